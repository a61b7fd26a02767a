//! Writes records into the tables.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use super::schema::{class, open};
use super::{Left, Unkept, micros, moment};
use crate::engine::KeptHold;
use crate::model::claim::Nat;
use crate::model::conflict::Conflict;
use crate::model::hold::{Comeback, End, Hold, HoldKey, Record};
use crate::model::job::{Job, JobKey};
use crate::model::netns::Netns;
use crate::model::process::{Ancestor, Exit, Holder};
use crate::model::socket::{ClaimKind, Protocol};

/// Rows that are known by what they say; when there are more all are forgotten, which costs a few doubles.
const MAX_KNOWN: usize = 20_000;
/// A row that is named is marked so again after this time only.
const MARK_AGAIN: i64 = 3600 * 1_000_000;

/// A record, with the identity of its job.
pub(super) type Recorded = (Record, Option<JobKey>);

/// Where a hold is: most of the ports of a host share a few of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) kind: ClaimKind,
    pub(super) protocol: Protocol,
    pub(super) address: std::net::IpAddr,
    pub(super) netns: Netns,
}

/// What only few holds have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct More {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nat: Option<Box<Nat>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) comeback: Option<Box<Comeback>>,
    /// It was there before the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) older: bool,
}

/// What processes of one program share: a [`Holder`] without its number, times and ancestors.
pub(super) fn program(holder: &Holder) -> Holder {
    Holder { pid: 0, fd: None, start_time: None, ppid: None, ancestry: Vec::new(), ..holder.clone() }
}

/// A status as wait(2) tells it.
pub(super) fn status(exit: Exit) -> i64 {
    exit.signal.map_or_else(|| i64::from(exit.code.unwrap_or(0)) << 8, i64::from)
}

/// A row that is known by what it says.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: i64,
    used: i64,
}

/// Rows that are known by what they say.
#[derive(Debug, Default)]
struct Rows {
    texts: HashMap<String, Known>,
    /// By pid and start; the last of them, since a process may run another program.
    processes: HashMap<(u32, Option<Timestamp>), (Arc<Holder>, Known)>,
    jobs: HashMap<JobKey, Known>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) connection: Connection,
    rows: Rows,
    /// Holds and refusals there are.
    pub(super) events: u64,
}

impl Store {
    /// Opens it. Errors: why it cannot be used.
    pub(super) fn open(path: &Path) -> Result<Self, Unkept> {
        let connection = open(path)?;
        let of = |error: rusqlite::Error| Unkept::of(path, &error);
        let events: Option<i64> = meta(&connection, "events").map_err(of)?;
        let mut store =
            Store { connection, rows: Rows::default(), events: events.unwrap_or(0).try_into().unwrap_or(0) };
        // That it can be written is seen now, and not when the first record is there.
        store.apply(Vec::new(), Timestamp::UNIX_EPOCH).map_err(of)?;
        Ok(store)
    }

    /// What the agent before this one left; of another boot its sockets are gone.
    pub(super) fn left(&self, boot: &str) -> rusqlite::Result<Left> {
        let connection = &self.connection;
        let highest = |table: &str| {
            let sql = format!("SELECT max(id) FROM {table}");
            connection.query_row(&sql, [], |row| row.get::<_, Option<i64>>(0))
        };
        let last_id = highest("hold")?.max(highest("conflict")?).unwrap_or(0);
        let alive: Option<i64> = meta(connection, "alive")?;
        let same_boot = meta::<String>(connection, "boot")?.as_deref() == Some(boot);
        let mut statement = connection.prepare("SELECT hold, key FROM open")?;
        let open = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        let open: Vec<(i64, String)> = open.collect::<Result<_, _>>()?;
        let reader = super::query::Rows::new(connection);
        let mut holds = Vec::new();
        for (id, key) in open {
            let Some((hold, job)) = reader.hold(id)? else { continue };
            let key = serde_json::from_str(&key).unwrap_or(HoldKey::Rule(String::new()));
            // A cookie of another boot may be anybody's.
            let key = if same_boot { key } else { HoldKey::Rule(format!("before the boot {id}")) };
            holds.push(KeptHold { key, job, hold });
        }
        let alive_until = alive.map(moment).unwrap_or_default();
        Ok(Left { holds, alive_until, last_id: last_id.try_into().unwrap_or(0) })
    }

    /// Remembers which boot this is.
    pub(super) fn note_boot(&self, boot: &str) -> rusqlite::Result<()> {
        self.connection.execute("REPLACE INTO meta VALUES ('boot', ?)", [boot]).map(drop)
    }

    /// Forgets which rows are known: some were taken out.
    pub(super) fn forget_known(&mut self) {
        self.rows = Rows::default();
    }

    /// Writes these, the newest state of each, and that the agent lives.
    pub(super) fn apply(&mut self, records: Vec<Recorded>, now: Timestamp) -> rusqlite::Result<()> {
        let Store { connection, rows, events } = self;
        if rows.texts.len().max(rows.processes.len()).max(rows.jobs.len()) > MAX_KNOWN {
            *rows = Rows::default();
        }
        let transaction = connection.transaction()?;
        let mut batch = Batch { transaction, rows, now: micros(now), new: 0 };
        let written = batch.write_all(records).and_then(|()| batch.note(*events, now));
        let Batch { transaction, new, .. } = batch;
        let written = written.and_then(|()| transaction.commit());
        match &written {
            Ok(()) => *events += new,
            // What was rolled back is not there.
            Err(_) => *rows = Rows::default(),
        }
        written
    }
}

/// A value of `meta`; a type that is not ours counts as none.
pub(super) fn meta<T: rusqlite::types::FromSql>(
    connection: &Connection,
    key: &str,
) -> rusqlite::Result<Option<T>> {
    let value =
        connection.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| Ok(row.get(0).ok()));
    value.optional().map(Option::flatten)
}

struct Batch<'t, 'k> {
    transaction: Transaction<'t>,
    rows: &'k mut Rows,
    now: i64,
    /// Rows that were not there before.
    new: u64,
}

impl Batch<'_, '_> {
    fn statement(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.transaction.prepare_cached(sql)
    }

    fn write_all(&mut self, records: Vec<Recorded>) -> rusqlite::Result<()> {
        // Of what is told several times the last counts.
        let mut last: HashMap<u64, usize> = HashMap::new();
        for (index, (record, _)) in records.iter().enumerate() {
            if let Record::Hold(hold, _) = record {
                last.insert(hold.id, index);
            }
        }
        for (index, (record, job)) in records.into_iter().enumerate() {
            match record {
                Record::Hold(hold, _) if last.get(&hold.id) != Some(&index) => {}
                Record::Hold(hold, key) => self.hold(&hold, &key, job.as_ref())?,
                Record::Conflict(conflict) => self.conflict(&conflict)?,
                Record::Job(it) => {
                    if let Some(key) = job {
                        self.job(&key, Some(&it), true)?;
                    }
                }
                Record::Open(ids) => self.only_open(&ids)?,
            }
        }
        Ok(())
    }

    fn note(&mut self, events: u64, now: Timestamp) -> rusqlite::Result<()> {
        let mut note = self.statement("REPLACE INTO meta VALUES (?, ?)")?;
        note.execute(params!["events", i64::try_from(events + self.new).unwrap_or(i64::MAX)])?;
        if now != Timestamp::UNIX_EPOCH {
            note.execute(params!["alive", micros(now)])?;
        }
        Ok(())
    }

    fn hold(&mut self, hold: &Hold, key: &HoldKey, job: Option<&JobKey>) -> rusqlite::Result<()> {
        let Hold { kind, protocol, address, ref netns, .. } = *hold;
        // Who keeps a namespace is of the moment.
        let netns = Netns { kept_by: None, ..netns.clone() };
        let place = self.text(&Place { kind, protocol, address, netns })?;
        let holder = hold.holder.as_ref().map(|holder| self.process(holder)).transpose()?;
        let job = match (job, &hold.job) {
            (Some(key), job) => Some(self.job(key, job.as_deref(), false)?),
            (None, Some(job)) => {
                Some(self.job(&JobKey { ci: job.ci.clone(), id: job.id.clone() }, Some(job), false)?)
            }
            (None, None) => None,
        };
        let test = hold.test.as_deref().map(|test| self.text(test)).transpose()?;
        let more = More {
            nat: hold.nat.clone(),
            cgroup: hold.cgroup.clone(),
            comeback: hold.comeback.clone(),
            older: !hold.from_known,
        };
        let more = if more == More::default() { None } else { Some(self.text(&more)?) };
        let since = micros(hold.from);
        let lasted = hold.until.map(|until| micros(until) - since);
        let id = i64::try_from(hold.id).unwrap_or(i64::MAX);
        let ending = hold.end.and_then(|end| End::ALL.iter().position(|one| *one == end)).map(|at| at as i64);
        let changed = self.statement(
            "UPDATE hold SET since = ?2, lasted = ?3, class = ?4, place = ?6, holder = ?7, job = ?8, test = ?9, ending = ?10,
                status = ?11, leaked = ?12, more = ?13 WHERE id = ?1 AND port = ?5",
        );
        let values = params![
            id,
            since,
            lasted,
            class(lasted),
            hold.port,
            place,
            holder,
            job,
            test,
            ending,
            hold.exit.map(status),
            hold.leaked_at.map(|at| micros(at) - since),
            more,
        ];
        if changed?.execute(values)? == 0 {
            let added = self
                .statement("INSERT OR IGNORE INTO hold VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)")?
                .execute(values)?;
            self.new += added as u64;
        }
        if hold.until.is_some() {
            self.statement("DELETE FROM open WHERE hold = ?")?.execute([id])?;
        } else {
            let key = serde_json::to_string(key).unwrap_or_default();
            self.statement("REPLACE INTO open VALUES (?, ?)")?.execute(params![id, key])?;
        }
        Ok(())
    }

    /// Ends what is open in the file and goes on no more: its end was not told.
    fn only_open(&mut self, ids: &[u64]) -> rusqlite::Result<()> {
        let there: std::collections::HashSet<i64> =
            ids.iter().filter_map(|id| i64::try_from(*id).ok()).collect();
        let open: Vec<i64> = self
            .statement("SELECT hold FROM open")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let unknown = End::ALL.iter().position(|one| *one == End::Unknown).map(|at| at as i64);
        for id in open.into_iter().filter(|id| !there.contains(id)) {
            let since: Option<i64> = self
                .statement("SELECT since FROM hold WHERE id = ?")?
                .query_row([id], |row| row.get(0))
                .optional()?;
            let lasted = since.map(|since| (self.now - since).max(0));
            self.statement("UPDATE hold SET lasted = ?, class = ?, ending = ? WHERE id = ?")?
                .execute(params![lasted, class(lasted), unknown, id])?;
            self.statement("DELETE FROM open WHERE hold = ?")?.execute([id])?;
        }
        Ok(())
    }

    fn conflict(&mut self, conflict: &Conflict) -> rusqlite::Result<()> {
        let body = serde_json::to_string(conflict).unwrap_or_default();
        let id = i64::try_from(conflict.id).unwrap_or(i64::MAX);
        let last = micros(conflict.last_at);
        let known = self
            .statement("UPDATE conflict SET last = ?, body = ? WHERE id = ?")?
            .execute(params![last, body, id])?;
        if known > 0 {
            return Ok(());
        }
        self.statement("INSERT INTO conflict VALUES (?, ?, ?, ?)")?.execute(params![
            id,
            last,
            conflict.port,
            body
        ])?;
        self.new += 1;
        let jobs =
            conflict.loser.job.iter().chain(conflict.blockers.iter().filter_map(|claim| claim.job.as_ref()));
        let mut link = self.statement("INSERT OR IGNORE INTO conflict_job VALUES (?, ?, ?)")?;
        for job in jobs {
            link.execute(params![job.ci, job.id, id])?;
        }
        Ok(())
    }

    fn job(&mut self, key: &JobKey, job: Option<&Job>, is_news: bool) -> rusqlite::Result<i64> {
        let known = self.rows.jobs.get(key).filter(|known| !self.is_stale(**known));
        // Each hold brings its job; the job's own record says what has changed.
        if let Some(known) = known.filter(|_| !is_news) {
            return Ok(known.id);
        }
        let body = job.map(|job| serde_json::to_string(job).unwrap_or_default());
        let number = job.map_or(key.id.as_str(), |job| job.id.as_str());
        let id = self
            .statement(
                "INSERT INTO job (used, ci, key, number, body) VALUES (?1, ?2, ?3, ?4, coalesce(?5, '{}'))
                    ON CONFLICT (ci, key) DO UPDATE SET used = ?1, body = coalesce(?5, body) RETURNING id",
            )?
            .query_row(params![self.now, key.ci, key.id, number, body], |row| row.get(0))?;
        self.rows.jobs.insert(key.clone(), Known { id, used: self.now });
        Ok(id)
    }

    fn is_stale(&self, known: Known) -> bool {
        self.now - known.used > MARK_AGAIN
    }

    fn text(&mut self, what: &impl Serialize) -> rusqlite::Result<i64> {
        let body = serde_json::to_string(what).unwrap_or_default();
        if let Some(known) = self.rows.texts.get(&body).copied() {
            if self.is_stale(known) {
                self.statement("UPDATE text SET used = ? WHERE id = ?")?
                    .execute(params![self.now, known.id])?;
                self.rows.texts.insert(body, Known { used: self.now, ..known });
            }
            return Ok(known.id);
        }
        self.statement("INSERT INTO text (used, body) VALUES (?, ?)")?.execute(params![self.now, body])?;
        let id = self.transaction.last_insert_rowid();
        self.rows.texts.insert(body, Known { id, used: self.now });
        Ok(id)
    }

    fn process(&mut self, holder: &Arc<Holder>) -> rusqlite::Result<i64> {
        let key = (holder.pid, holder.start_time);
        if let Some((known, row)) = self.rows.processes.get(&key).cloned()
            && (Arc::ptr_eq(&known, holder) || known == *holder)
            && !self.is_stale(row)
        {
            return Ok(row.id);
        }
        let program = self.text(&program(holder))?;
        let ancestry: &[Ancestor] = &holder.ancestry;
        let ancestry = if ancestry.is_empty() { None } else { Some(self.text(&ancestry)?) };
        self.statement(
            "INSERT INTO process (used, pid, start, ppid, program, ancestry) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            self.now,
            holder.pid,
            holder.start_time.map(micros),
            holder.ppid,
            program,
            ancestry
        ])?;
        let id = self.transaction.last_insert_rowid();
        self.rows.processes.insert(key, (Arc::clone(holder), Known { id, used: self.now }));
        Ok(id)
    }
}
