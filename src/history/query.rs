//! Reads the tables: who held which port when, who was refused, and what a job did.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params_from_iter};
use serde::de::DeserializeOwned;

use super::schema::{CLASSES, open_to_read};
use super::store::{More, Place, meta};
use super::{Unkept, micros, moment};
use crate::model::conflict::Conflict;
use crate::model::hold::{End, Hold};
use crate::model::job::{Job, JobKey};
use crate::model::netns::NetnsSelector;
use crate::model::process::{Ancestor, Exit, Holder};
use crate::model::target::Target;

/// Ports of a range that are looked up one by one; of a wider one all holds of the time are looked through.
const FEW_PORTS: usize = 16;

/// What is asked for. Everything given must be met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Ports, protocol and address.
    pub target: Option<Target>,
    /// Namespace; a process's was resolved before.
    pub netns: Option<NetnsSelector>,
    /// Inode of the one that has this name now: what was over before it could be looked at is known by that alone.
    pub inode: Option<u64>,
    /// Not those that ended before it,
    pub since: Option<Timestamp>,
    /// nor those that began after it.
    pub until: Option<Timestamp>,
    /// Of refusals, those before this number only: the others are known.
    pub before: Option<u64>,
    /// So many at the most, the newest; `None` for all.
    pub limit: Option<usize>,
}

/// What was found, and whether there was more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown<T> {
    /// The oldest first.
    pub found: Vec<T>,
    /// Whether older ones were left out.
    pub truncated: bool,
}

/// The file, open to read.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

impl Reader {
    /// Opens it. Errors: there is none, or it is not one of ours.
    pub fn open(path: &Path) -> Result<Self, Unkept> {
        open_to_read(path).map(|connection| Reader { connection })
    }

    /// The same for a program that ends with its answer: the file is mapped, which spares most system calls. A file that is cut
    /// short meanwhile ends that program, so the daemon does not do it.
    pub fn open_mapped(path: &Path) -> Result<Self, Unkept> {
        let reader = Reader::open(path)?;
        let mapped = reader.connection.pragma_update(None, "mmap_size", i64::MAX);
        mapped.map_err(|error| Unkept::of(path, &error))?;
        Ok(reader)
    }

    /// The oldest moment that is remembered. Errors: SQLite's.
    pub fn kept_since(&self) -> rusqlite::Result<Option<Timestamp>> {
        let first = |sql: &str| {
            self.connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).map(|at| at.map(moment))
        };
        // By class, so that the index answers each at once.
        let mut oldest = None;
        for class in 0..CLASSES.len() {
            let held = first(&format!("SELECT min(since) FROM hold WHERE class = {class}"))?;
            oldest = [oldest, held].into_iter().flatten().min();
        }
        Ok([oldest, first("SELECT min(last) FROM conflict")?].into_iter().flatten().min())
    }

    /// When an agent last wrote that it lives. Errors: SQLite's.
    pub fn alive_until(&self) -> rusqlite::Result<Option<Timestamp>> {
        Ok(meta::<i64>(&self.connection, "alive")?.map(moment))
    }

    /// Holds that meet what is asked. Errors: SQLite's.
    pub fn holds(&self, asked: &Asked) -> rusqlite::Result<Shown<Hold>> {
        let rows = Rows::new(&self.connection);
        let limit = asked.limit.unwrap_or(usize::MAX);
        let mut found = Vec::new();
        for (sql, values) in plans(asked) {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut read =
                statement.query(params_from_iter(values.iter().map(|value| value as &dyn ToSql)))?;
            // The newest come first: of a busy port there may be far more than are shown, and those are never read.
            let mut enough = 0;
            while enough <= limit
                && let Some(row) = read.next()?
            {
                if rows.place(row)?.is_some_and(|place| meets(asked, &place)) {
                    found.push(Found::of(row)?);
                    enough += 1;
                }
            }
        }
        found.sort_unstable_by_key(|row| (row.since, row.id));
        let truncated = found.len() > limit;
        let newest = found.split_off(found.len().saturating_sub(limit));
        let found = newest.into_iter().map(|row| rows.described(row).map(|(hold, _)| hold));
        Ok(Shown { found: found.collect::<Result<_, _>>()?, truncated })
    }

    /// Refusals that meet what is asked. Errors: SQLite's.
    pub fn conflicts(&self, asked: &Asked) -> rusqlite::Result<Shown<Conflict>> {
        let ports = asked.target.as_ref().map_or(0..=u16::MAX, |target| target.ports.clone());
        let since = asked.since.map_or(i64::MIN, micros);
        let before = asked.before.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX);
        let limit = asked.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1));
        let by_port = asked.target.is_some() && ports.len() <= FEW_PORTS;
        let index = if by_port { "conflict_port" } else { "conflict_last" };
        let sql = format!(
            "SELECT body FROM conflict INDEXED BY {index} WHERE port BETWEEN ?1 AND ?2 AND last >= ?3 AND id < ?4 ORDER BY last DESC"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query((ports.start(), ports.end(), since, before))?;
        let mut shown = Shown { found: Vec::new(), truncated: false };
        while let Some(row) = rows.next()? {
            let Some(conflict) = parsed::<Conflict>(row.get_ref(0)?.as_str()?) else { continue };
            let in_netns =
                asked.netns.as_ref().is_none_or(|wanted| is_netns((wanted, asked.inode), &conflict.netns));
            let early = asked.until.is_none_or(|until| conflict.at <= until);
            let of_target = asked
                .target
                .as_ref()
                .is_none_or(|target| target.protocol.is_none_or(|protocol| protocol == conflict.protocol));
            if !in_netns || !early || !of_target {
                continue;
            }
            if limit >= 0 && shown.found.len() as i64 >= limit {
                shown.truncated = true;
                break;
            }
            shown.found.push(conflict);
        }
        shown.found.reverse();
        Ok(shown)
    }

    /// Jobs by the id that people know; with `ci` only that system's. Errors: SQLite's.
    pub fn jobs(&self, id: &str, ci: Option<&str>) -> rusqlite::Result<Vec<(i64, Job)>> {
        let sql = "SELECT id, body FROM job WHERE (number = ?1 OR key = ?1) AND (?2 IS NULL OR ci = ?2) ORDER BY id";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map((id, ci), |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let jobs: Vec<(i64, String)> = rows.collect::<Result<_, _>>()?;
        Ok(jobs.into_iter().filter_map(|(row, body)| Some((row, parsed(&body)?))).collect())
    }

    /// The jobs that a time saw, by the holds in it. Errors: SQLite's.
    pub fn holds_of_job(&self, job: i64) -> rusqlite::Result<Vec<Hold>> {
        let rows = Rows::new(&self.connection);
        let sql = format!("SELECT {COLUMNS} FROM hold INDEXED BY hold_job WHERE job = ?");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut found: Vec<Found> = statement.query_map([job], Found::of)?.collect::<Result<_, _>>()?;
        found.sort_unstable_by_key(|row| (row.since, row.id));
        found.into_iter().map(|row| rows.described(row).map(|(hold, _)| hold)).collect()
    }

    /// Refusals with this job on either side, the newest last. Errors: SQLite's.
    pub fn conflicts_of_job(&self, job: &Job) -> rusqlite::Result<Vec<Conflict>> {
        let sql = "SELECT body FROM conflict_job JOIN conflict ON conflict.id = conflict
            WHERE ci = ? AND number = ? ORDER BY last";
        let mut statement = self.connection.prepare_cached(sql)?;
        let bodies = statement.query_map((&job.ci, &job.id), |row| row.get::<_, String>(0))?;
        let bodies: Vec<String> = bodies.collect::<Result<_, _>>()?;
        // The same id on another server is another job.
        let is_it = |other: &Job| (&other.ci, &other.id, &other.url) == (&job.ci, &job.id, &job.url);
        let concerns = |conflict: &Conflict| {
            conflict.loser.job.as_ref().is_some_and(is_it)
                || conflict.blockers.iter().any(|claim| claim.job.as_ref().is_some_and(is_it))
        };
        Ok(bodies.iter().filter_map(|body| parsed(body)).filter(concerns).collect())
    }
}

const COLUMNS: &str = "id, since, lasted, port, place, holder, job, test, ending, status, leaked, more";

/// A row of `hold`, not described yet.
struct Found {
    id: i64,
    since: i64,
    lasted: Option<i64>,
    port: u16,
    place: i64,
    holder: Option<i64>,
    job: Option<i64>,
    test: Option<i64>,
    ending: Option<i64>,
    status: Option<i64>,
    leaked: Option<i64>,
    more: Option<i64>,
}

impl Found {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Found {
            id: row.get(0)?,
            since: row.get(1)?,
            lasted: row.get(2)?,
            port: row.get(3)?,
            place: row.get(4)?,
            holder: row.get(5)?,
            job: row.get(6)?,
            test: row.get(7)?,
            ending: row.get(8)?,
            status: row.get(9)?,
            leaked: row.get(10)?,
            more: row.get(11)?,
        })
    }
}

/// The reads that find what is asked, each by an index: a hold of a class that ended long enough before cannot be in it.
fn plans(asked: &Asked) -> Vec<(String, Vec<i64>)> {
    let ports = asked.target.as_ref().map(|target| target.ports.clone());
    let few = ports.clone().filter(|ports| ports.len() <= FEW_PORTS);
    let since = asked.since.map_or(i64::MIN, micros);
    let until = asked.until.map_or(i64::MAX, micros);
    let (first, last) = ports.map_or((0, i64::from(u16::MAX)), |ports| bounds(&ports));
    let mut plans = Vec::new();
    for (class, longest) in CLASSES.iter().enumerate() {
        let from = since.saturating_sub(*longest);
        let class = class as i64;
        let ends = "(lasted IS NULL OR since + lasted > ?)";
        match &few {
            Some(ports) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM hold INDEXED BY hold_port
                        WHERE port = ? AND class = ? AND since BETWEEN ? AND ? AND {ends} ORDER BY since DESC"
                );
                plans.extend(
                    ports.clone().map(|port| (sql.clone(), vec![port.into(), class, from, until, since])),
                );
            }
            None => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM hold INDEXED BY hold_time
                        WHERE class = ? AND since BETWEEN ? AND ? AND {ends} AND port BETWEEN ? AND ? ORDER BY since DESC"
                );
                plans.push((sql, vec![class, from, until, since, first, last]));
            }
        }
    }
    plans
}

fn bounds(ports: &RangeInclusive<u16>) -> (i64, i64) {
    ((*ports.start()).into(), (*ports.end()).into())
}

fn meets(asked: &Asked, place: &Place) -> bool {
    let by_target = asked.target.as_ref().is_none_or(|target| {
        let protocol = target.protocol.is_none_or(|protocol| protocol == place.protocol);
        // A wildcard has the address too.
        let address =
            target.address.is_none_or(|address| address == place.address || place.address.is_unspecified());
        protocol && address
    });
    by_target && asked.netns.as_ref().is_none_or(|wanted| is_netns((wanted, asked.inode), &place.netns))
}

fn is_netns((wanted, inode): (&NetnsSelector, Option<u64>), netns: &crate::model::netns::Netns) -> bool {
    match wanted {
        NetnsSelector::Inode(inode) => netns.inode == *inode,
        NetnsSelector::Name(name) if netns.name.is_some() => netns.name.as_deref() == Some(name),
        NetnsSelector::Name(_) => inode == Some(netns.inode),
        // The caller has looked up its inode.
        NetnsSelector::Pid(_) => false,
    }
}

/// What is not ours any more is left out, not an error: a later version may write more.
fn parsed<T: DeserializeOwned>(body: &str) -> Option<T> {
    serde_json::from_str(body).ok()
}

/// A job, with what tells it from all others.
type Identified = (JobKey, Option<Arc<Job>>);

/// Rows turned into holds; what many share is read once.
pub(super) struct Rows<'a> {
    connection: &'a Connection,
    places: RefCell<HashMap<i64, Option<Arc<Place>>>>,
    holders: RefCell<BTreeMap<i64, Option<Arc<Holder>>>>,
    programs: RefCell<HashMap<i64, Option<Arc<Holder>>>>,
    jobs: RefCell<HashMap<i64, Option<Identified>>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Rows {
            connection,
            places: RefCell::default(),
            holders: RefCell::default(),
            programs: RefCell::default(),
            jobs: RefCell::default(),
        }
    }

    /// One hold, with its job's identity.
    pub(super) fn hold(&self, id: i64) -> rusqlite::Result<Option<(Hold, Option<JobKey>)>> {
        let sql = format!("SELECT {COLUMNS} FROM hold WHERE id = ?");
        let found = self.connection.prepare_cached(&sql)?.query_row([id], Found::of).optional()?;
        found.map(|found| self.described(found)).transpose()
    }

    fn text<T: DeserializeOwned>(&self, id: Option<i64>) -> rusqlite::Result<Option<T>> {
        let Some(id) = id else { return Ok(None) };
        let mut statement = self.connection.prepare_cached("SELECT body FROM text WHERE id = ?")?;
        let body: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
        Ok(body.and_then(|body| parsed(&body)))
    }

    fn place(&self, row: &Row<'_>) -> rusqlite::Result<Option<Arc<Place>>> {
        self.place_of(row.get(4)?)
    }

    fn place_of(&self, id: i64) -> rusqlite::Result<Option<Arc<Place>>> {
        if let Some(known) = self.places.borrow().get(&id) {
            return Ok(known.clone());
        }
        let place = self.text::<Place>(Some(id))?.map(Arc::new);
        self.places.borrow_mut().insert(id, place.clone());
        Ok(place)
    }

    fn described(&self, found: Found) -> rusqlite::Result<(Hold, Option<JobKey>)> {
        let place = self.place_of(found.place)?;
        // A hold whose place is lost is still one of that port.
        let unknown = || Place {
            kind: crate::model::socket::ClaimKind::Listener,
            protocol: crate::model::socket::Protocol::Tcp,
            address: std::net::Ipv6Addr::UNSPECIFIED.into(),
            netns: crate::model::netns::Netns { inode: 0, name: None, kept_by: None },
        };
        let place = place.map_or_else(unknown, |place| Place::clone(&place));
        let more: More = self.text(found.more)?.unwrap_or_default();
        let job = self.job(found.job)?;
        let from = moment(found.since);
        let after = |micros: i64| moment(found.since.saturating_add(micros));
        let end = found.ending.and_then(|at| End::ALL.get(usize::try_from(at).ok()?).copied());
        let hold = Hold {
            id: found.id.try_into().unwrap_or(0),
            from,
            from_known: !more.older,
            until: found.lasted.map(after),
            kind: place.kind,
            protocol: place.protocol,
            address: place.address,
            port: found.port,
            netns: place.netns,
            holder: self.holder(found.holder)?,
            job: job.as_ref().and_then(|(_, job)| job.clone()),
            test: self.text(found.test)?.map(Arc::new),
            nat: more.nat,
            leaked_at: found.leaked.map(after),
            end,
            exit: found.status.and_then(|status| u32::try_from(status).ok()).map(Exit::of_status),
            cgroup: more.cgroup,
            comeback: more.comeback,
        };
        Ok((hold, job.map(|(key, _)| key)))
    }

    fn job(&self, id: Option<i64>) -> rusqlite::Result<Option<Identified>> {
        let Some(id) = id else { return Ok(None) };
        if let Some(known) = self.jobs.borrow().get(&id) {
            return Ok(known.clone());
        }
        let mut statement = self.connection.prepare_cached("SELECT ci, key, body FROM job WHERE id = ?")?;
        let job = statement
            .query_row([id], |row| {
                let key = JobKey { ci: row.get(0)?, id: row.get(1)? };
                Ok((key, parsed(row.get_ref(2)?.as_str()?)))
            })
            .optional()?;
        self.jobs.borrow_mut().insert(id, job.clone());
        Ok(job)
    }

    fn holder(&self, id: Option<i64>) -> rusqlite::Result<Option<Arc<Holder>>> {
        let Some(id) = id else { return Ok(None) };
        if let Some(known) = self.holders.borrow().get(&id) {
            return Ok(known.clone());
        }
        let sql = "SELECT pid, start, ppid, program, ancestry FROM process WHERE id = ?";
        let row = self.connection.prepare_cached(sql)?.query_row([id], |row| {
            Ok((
                row.get::<_, u32>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, Option<u32>>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, Option<i64>>(4)?,
            ))
        });
        let holder = match row.optional()? {
            Some((pid, start, ppid, program, ancestry)) => {
                let ancestry: Vec<Ancestor> = self.text(ancestry)?.unwrap_or_default();
                let program = self.program(program)?;
                let program = program.map_or_else(|| Holder::unknown(pid), |it| Holder::clone(&it));
                // A file of an older agent says 0.
                Some(Arc::new(Holder {
                    pid,
                    ppid,
                    fd: None,
                    start_time: start.map(moment),
                    ancestry,
                    ..program
                }))
            }
            None => None,
        };
        self.holders.borrow_mut().insert(id, holder.clone());
        Ok(holder)
    }

    fn program(&self, id: i64) -> rusqlite::Result<Option<Arc<Holder>>> {
        if let Some(known) = self.programs.borrow().get(&id) {
            return Ok(known.clone());
        }
        let program = self.text::<Holder>(Some(id))?.map(Arc::new);
        self.programs.borrow_mut().insert(id, program.clone());
        Ok(program)
    }
}
