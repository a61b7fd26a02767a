//! The holds of the host: who has which port since when, from events and looks, and how each ended. What history remembers.
//!
//! A hold is told again whenever something about it changes, whole each time, and once when it ends. One that began and ended
//! between two tellings is told once.

mod events;
mod kills;
mod looks;
mod records;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use kills::Doubtful;

use crate::judge::hold::{Losses, WINDOW};
use crate::model::hold::{Comeback, End, Hold, HoldKey, Record};
use crate::model::job::JobKey;
use crate::model::netns::Netns;
use crate::model::process::{Exit, Holder};
use crate::model::socket::{ClaimKind, Protocol};
use crate::model::target::Target;

/// Open holds that are followed at the most.
const MAX_OPEN: usize = 100_000;
/// Records that wait to be taken: the agent's loop takes them five times a second, and has other things to do.
const MAX_WAITING: usize = 10_000;
/// Holds of milliseconds that one process may make in a second: a loop that binds and closes would push a week out of the history in
/// minutes, and its first hundred say all there is to say.
const MAX_BRIEF: u32 = 100;
/// Ports whose last loss is remembered.
const MAX_LOSSES: usize = 4096;
/// Processes that are described and kept so: those that bind now.
const MAX_DESCRIBED: usize = 4096;

/// A hold that goes on.
#[derive(Debug, Clone)]
struct Open {
    hold: Hold,
    job: Option<JobKey>,
    /// Whether something changed since it was told.
    dirty: bool,
    /// Whether its holder was described for people.
    described: bool,
    /// A process that had it open at the last look.
    last: Option<u32>,
    /// Whether one look saw it, which nobody told of and which the next look into everything has to show again.
    unconfirmed: bool,
}

/// What a look knows better of a hold.
#[derive(Debug, Default, PartialEq)]
struct Change {
    kind: Option<ClaimKind>,
    netns: Option<Netns>,
    holder: Option<Arc<Holder>>,
    job: Option<JobKey>,
    leaked_at: Option<Timestamp>,
}

impl Open {
    fn take(&mut self, change: Change) {
        let Change { kind, netns, holder, job, leaked_at } = change;
        self.described |= holder.is_some();
        self.hold.kind = kind.unwrap_or(self.hold.kind);
        self.hold.holder = holder.or(self.hold.holder.take());
        self.hold.leaked_at = self.hold.leaked_at.or(leaked_at);
        self.job = self.job.take().or(job);
        if let Some(netns) = netns {
            self.hold.netns = netns;
        }
    }
}

/// Where a program listens, for its comeback: a container that is started again has another namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Netns(u64, Protocol, u16),
    Container(String, Protocol, u16),
}

/// A hold that was open when the agent before this one saw it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptHold {
    /// What it is known by.
    pub key: HoldKey,
    /// Its job.
    pub job: Option<JobKey>,
    /// As it was then.
    pub hold: Hold,
}

/// Records, each with what they need to be remembered.
#[derive(Debug, Default)]
pub struct Records {
    /// What happened, in order.
    pub records: Vec<(Record, Option<JobKey>)>,
    /// How many more there were: they found no room.
    pub lost: u64,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct HoldTable {
    open: HashMap<HoldKey, Open>,
    /// Those of [`HoldTable::open`] that changed.
    dirty: Vec<HoldKey>,
    ended: Vec<(Hold, HoldKey, Option<JobKey>)>,
    lost_records: u64,
    doubtful: Doubtful,
    /// When the second began in which a process made so many brief holds.
    brief: HashMap<u32, (Timestamp, u32)>,
    /// Whether a look was followed already.
    followed: bool,
    /// Whether the last look left a hold in doubt.
    wants_everything: bool,
    losses: HashMap<Place, Losses>,
    /// From before a restart, until the first look shows which of them go on; with the last moment that agent lived.
    kept: HashMap<HoldKey, KeptHold>,
    kept_until: Timestamp,
    last_id: u64,
    /// Processes that bind, by pid.
    described: HashMap<u32, Arc<Holder>>,
}

impl HoldTable {
    /// Numbers begin after this one; `kept` went on when the agent before this one was last seen to live.
    pub(in crate::engine) fn restore(&mut self, last_id: u64, kept: Vec<KeptHold>, until: Timestamp) {
        self.last_id = self.last_id.max(last_id);
        self.kept = kept.into_iter().map(|kept| (kept.key.clone(), kept)).collect();
        self.kept_until = until;
    }

    /// A process runs another program, has another name, or ended: it is described anew.
    pub(in crate::engine) fn forget_process(&mut self, pid: u32) {
        self.described.remove(&pid);
    }

    /// Whether one more hold of milliseconds of this process is to be remembered.
    fn takes_brief(&mut self, pid: u32, at: Timestamp) -> bool {
        if self.brief.len() >= MAX_DESCRIBED {
            self.brief.clear();
        }
        let (began, count) = self.brief.entry(pid).or_insert((at, 0));
        if at.duration_since(*began) >= SignedDuration::from_secs(1) {
            (*began, *count) = (at, 0);
        }
        *count += 1;
        *count <= MAX_BRIEF
    }

    fn begin(&mut self, key: HoldKey, mut hold: Hold, job: Option<JobKey>, unconfirmed: bool) {
        let kept = self.kept.remove(&key).filter(|kept| is_same(&kept.hold, &hold));
        let described = kept.is_some();
        let (hold, job) = match kept {
            Some(kept) => (kept.hold, kept.job.or(job)),
            None => {
                self.last_id += 1;
                hold.id = self.last_id;
                hold.comeback = self.comeback(&hold).map(Box::new);
                (hold, job)
            }
        };
        let open = Open { hold, job, dirty: false, described, last: None, unconfirmed };
        self.open.insert(key.clone(), open);
        self.touch(&key);
    }

    fn touch(&mut self, key: &HoldKey) {
        if let Some(open) = self.open.get_mut(key).filter(|open| !open.dirty) {
            open.dirty = true;
            self.dirty.push(key.clone());
        }
    }

    /// Ends a hold; answers it, if its end is known.
    fn finish(&mut self, key: &HoldKey, until: Timestamp, (end, exit): (End, Option<Exit>)) -> Option<&Hold> {
        let Open { mut hold, job, .. } = self.open.remove(key)?;
        hold.until = Some(until.max(hold.from));
        (hold.end, hold.exit) = (Some(end), exit);
        let holder = hold.holder.as_deref().filter(|_| end == End::OomKilled);
        hold.cgroup = holder.and_then(|holder| holder.cgroup.clone());
        if hold.is_lost() {
            self.note_loss(&hold);
        }
        // One whose end is in doubt is counted when that is known.
        let doubtful = self.doubtful.note(&hold, key, job.as_ref());
        if self.ended.len() >= MAX_WAITING {
            self.lost_records += 1;
            return None;
        }
        self.ended.push((hold, key.clone(), job));
        self.ended.last().map(|(hold, ..)| hold).filter(|_| !doubtful)
    }

    fn note_loss(&mut self, hold: &Hold) {
        let Some(at) = hold.until else { return };
        if self.losses.len() >= MAX_LOSSES {
            let young =
                |losses: &Losses| losses.last.until.is_some_and(|until| at.duration_since(until) <= WINDOW);
            self.losses.retain(|_, losses| young(losses));
        }
        for place in places(hold) {
            if self.losses.len() < MAX_LOSSES || self.losses.contains_key(&place) {
                let before = self.losses.remove(&place);
                self.losses.insert(place, Losses::with(before, hold.clone(), at));
            }
        }
    }

    /// How one was lost is known better now.
    fn amend_loss(&mut self, hold: &Hold) {
        for place in places(hold) {
            if let Some(losses) = self.losses.get_mut(&place).filter(|losses| losses.last.id == hold.id) {
                losses.last = hold.clone();
            }
        }
    }

    fn comeback(&self, hold: &Hold) -> Option<Comeback> {
        places(hold).filter_map(|place| self.losses.get(&place)?.comeback(hold)).max_by_key(|back| back.times)
    }

    /// The last listener that was lost on one of these ports and is not back, the newest first.
    pub(in crate::engine) fn lost(&self, target: &Target, now: Timestamp) -> Option<(&Hold, usize)> {
        let concerned = |hold: &Hold| {
            target.ports.contains(&hold.port)
                && target.protocol.is_none_or(|protocol| protocol == hold.protocol)
                && hold.until.is_some_and(|until| now.duration_since(until) <= WINDOW)
        };
        let lost = self.losses.values().filter(|losses| concerned(&losses.last));
        let newest = lost.max_by_key(|losses| losses.last.until)?;
        Some((&newest.last, newest.moments.len()))
    }

    /// The hold of a socket that is open.
    pub(in crate::engine) fn of_socket(&self, cookie: u64) -> Option<&Hold> {
        self.open.get(&HoldKey::Socket(cookie)).map(|open| &open.hold)
    }
}

/// Whether what is there now is what was kept: a cookie of another boot may be anybody's.
fn is_same(kept: &Hold, now: &Hold) -> bool {
    (kept.protocol, kept.address, kept.port) == (now.protocol, now.address, now.port)
}

fn places(hold: &Hold) -> impl Iterator<Item = Place> + use<> {
    let container = hold.holder.as_ref().and_then(|holder| holder.container.clone());
    let in_container = container.map(|id| Place::Container(id, hold.protocol, hold.port));
    [Some(Place::Netns(hold.netns.inode, hold.protocol, hold.port)), in_container].into_iter().flatten()
}

/// A hold of which only the place and the beginning are known.
fn new(
    kind: ClaimKind,
    (protocol, address, port): (Protocol, IpAddr, u16),
    netns: Netns,
    (from, from_known): (Timestamp, bool),
) -> Hold {
    Hold {
        id: 0,
        from,
        from_known,
        until: None,
        kind,
        protocol,
        address,
        port,
        netns,
        holder: None,
        job: None,
        test: None,
        nat: None,
        leaked_at: None,
        end: None,
        exit: None,
        cgroup: None,
        comeback: None,
    }
}
