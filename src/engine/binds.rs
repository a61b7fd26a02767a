//! Who bound what when, from the kernel's events: the binders of open sockets, and for a while those of closed ones.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::model::bind::Bind;
use crate::model::job::{JobKey, Test};
use crate::model::socket::Protocol;

/// Closed sockets are remembered this long: a refusal may be told some time after it happened,
const CLOSED_KEPT: SignedDuration = SignedDuration::from_secs(30);
/// and this many at the most.
const MAX_CLOSED: usize = 8192;
/// Sockets on one port that are looked through: a loop that binds and closes makes thousands a second.
const MAX_ON_PORT: usize = 64;
/// Open sockets that are remembered at the most: the kernel's closes may get lost.
const MAX_OPEN: usize = 100_000;
/// Events bear the moment of the kernel's last tick, and that of a host that was suspended is known to the tenth of a second: what seems to
/// have happened so shortly before a look may have happened after it.
pub(super) const UNSURE: SignedDuration = SignedDuration::from_millis(100);
/// Whoever asked for a port is remembered this long,
const ASKED_KEPT: SignedDuration = SignedDuration::from_hours(1);
/// for so many ports,
const MAX_ASKED_PORTS: usize = 4096;
/// with so many names each.
const MAX_ASKERS: usize = 8;

/// The process that bound a socket, as it was then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Binder {
    pub(super) pid: u32,
    pub(super) start: Option<u64>,
    pub(super) ppid: Option<u32>,
    pub(super) comm: Option<String>,
    pub(super) job: Option<JobKey>,
    pub(super) test: Option<Arc<Test>>,
}

/// A bind that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) cookie: u64,
    pub(super) netns: u64,
    pub(super) at: Timestamp,
    pub(super) until: Option<Timestamp>,
    pub(super) protocol: Protocol,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) asked_port: u16,
    /// The thread.
    pub(super) tid: u32,
    pub(super) by: Binder,
}

type Port = (u64, Protocol, u16);

/// Who asked for one port.
#[derive(Debug, Clone, Default)]
struct Asked {
    last: Timestamp,
    times: u64,
    names: Vec<String>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct BindTable {
    binds: HashMap<u64, Bound>,
    by_port: HashMap<Port, VecDeque<u64>>,
    closed: VecDeque<u64>,
    asked: HashMap<(Protocol, u16), Asked>,
}

impl BindTable {
    /// A socket was bound.
    pub(super) fn bound(&mut self, cookie: u64, netns: u64, bind: &Bind, at: Timestamp, by: Binder) {
        self.asked_for(bind, at, by.comm.as_deref());
        if self.binds.len() >= MAX_OPEN + MAX_CLOSED {
            return;
        }
        let Bind { protocol, address, port, asked_port, tid, .. } = *bind;
        self.forget(cookie);
        self.add((netns, protocol, port), cookie);
        let bound = Bound { cookie, netns, at, until: None, protocol, address, port, asked_port, tid, by };
        self.binds.insert(cookie, bound);
    }

    fn add(&mut self, port: Port, cookie: u64) {
        let cookies = self.by_port.entry(port).or_default();
        cookies.push_back(cookie);
        if cookies.len() <= MAX_ON_PORT {
            return;
        }
        // The oldest goes, unless it is open: then it goes to the end.
        let Some(oldest) = cookies.pop_front() else { return };
        if self.binds.get(&oldest).is_some_and(|bound| bound.until.is_none()) {
            cookies.push_back(oldest);
        } else {
            self.binds.remove(&oldest);
        }
    }

    /// A socket was closed.
    pub(super) fn closed(&mut self, cookie: u64, at: Timestamp) {
        let Some(bound) = self.binds.get_mut(&cookie).filter(|bound| bound.until.is_none()) else { return };
        bound.until = Some(at.max(bound.at));
        self.closed.push_back(cookie);
        while let Some(oldest) = self.closed.front().copied() {
            let until = self.binds.get(&oldest).and_then(|bound| bound.until);
            let young = |until| at.duration_since(until) < CLOSED_KEPT;
            if self.closed.len() <= MAX_CLOSED && until.is_some_and(young) {
                break;
            }
            self.closed.pop_front();
            self.forget(oldest);
        }
    }

    fn forget(&mut self, cookie: u64) {
        let Some(bound) = self.binds.remove(&cookie) else { return };
        let port = (bound.netns, bound.protocol, bound.port);
        if let Some(cookies) = self.by_port.get_mut(&port) {
            if cookies.front() == Some(&cookie) {
                cookies.pop_front();
            } else {
                cookies.retain(|other| *other != cookie);
            }
            if cookies.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    /// Open sockets that a look into everything would have seen and did not: their closes were not told.
    pub(super) fn reconcile(&mut self, is_there: impl Fn(u64) -> bool, looked_at: Timestamp) {
        let gone: Vec<u64> = self
            .binds
            .values()
            .filter(|bound| bound.until.is_none() && looked_at.duration_since(bound.at) > UNSURE)
            .filter(|bound| !is_there(bound.cookie))
            .map(|bound| bound.cookie)
            .collect();
        for cookie in gone {
            self.closed(cookie, looked_at);
        }
    }

    /// The bind of a socket that is open.
    pub(super) fn get(&self, cookie: u64) -> Option<&Bound> {
        self.binds.get(&cookie).filter(|bound| bound.until.is_none())
    }

    /// The last bind of a socket, be it open or closed since.
    pub(super) fn bound_of(&self, cookie: u64) -> Option<&Bound> {
        self.binds.get(&cookie)
    }

    /// Whether a socket was told to be closed.
    pub(super) fn is_closed(&self, cookie: u64) -> bool {
        self.binds.get(&cookie).is_some_and(|bound| bound.until.is_some())
    }

    /// Whether the bind of this moment succeeded, be its socket open or closed since.
    pub(super) fn succeeded(&self, cookie: u64, at: Timestamp) -> bool {
        self.binds.get(&cookie).is_some_and(|bound| bound.at == at)
    }

    /// The sockets that were bound to a port at that moment, with those that were closed since.
    pub(super) fn at(
        &self,
        netns: u64,
        protocol: Protocol,
        port: u16,
        at: Timestamp,
    ) -> impl Iterator<Item = &Bound> {
        self.on_port(netns, protocol, port)
            .filter(move |bound| bound.at <= at && bound.until.is_none_or(|until| until >= at))
    }

    /// When a socket on this port was closed that had been given it as a free one, by somebody of whom `related` says so.
    pub(super) fn gave_away(
        &self,
        (netns, protocol, port): Port,
        before: Timestamp,
        related: impl Fn(&Binder) -> bool,
    ) -> Option<Timestamp> {
        self.on_port(netns, protocol, port)
            .filter(|bound| bound.asked_port == 0 && related(&bound.by))
            .filter_map(|bound| bound.until)
            .filter(|until| *until <= before)
            .max()
    }

    fn on_port(&self, netns: u64, protocol: Protocol, port: u16) -> impl Iterator<Item = &Bound> {
        let cookies = self.by_port.get(&(netns, protocol, port));
        cookies.into_iter().flatten().filter_map(|cookie| self.binds.get(cookie))
    }

    /// Somebody asked for a port, and got it or was refused.
    pub(super) fn asked_for(&mut self, bind: &Bind, at: Timestamp, comm: Option<&str>) {
        if bind.asked_port == 0 {
            return;
        }
        let key = (bind.protocol, bind.asked_port);
        if self.asked.len() >= MAX_ASKED_PORTS && !self.asked.contains_key(&key) {
            self.asked.retain(|_, asked| at.duration_since(asked.last) < ASKED_KEPT);
            if self.asked.len() >= MAX_ASKED_PORTS {
                return;
            }
        }
        let asked = self.asked.entry(key).or_default();
        if at.duration_since(asked.last) >= ASKED_KEPT {
            *asked = Asked::default();
        }
        (asked.last, asked.times) = (at, asked.times + 1);
        if let Some(comm) =
            comm.filter(|comm| asked.names.len() < MAX_ASKERS && !asked.names.iter().any(|name| name == comm))
        {
            asked.names.push(comm.to_owned());
            asked.names.sort();
        }
    }

    /// Programs that asked for this very port lately, and how often.
    pub(super) fn askers(&self, protocol: Protocol, port: u16) -> (Vec<String>, u64) {
        self.asked.get(&(protocol, port)).map(|asked| (asked.names.clone(), asked.times)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn bind(asked_port: u16) -> Bind {
        Bind {
            at: Duration::ZERO,
            pid: 7,
            tid: 7,
            protocol: Protocol::Tcp,
            address: IpAddr::from([127, 0, 0, 1]),
            port: 80,
            asked_port,
        }
    }

    fn by(pid: u32, comm: &str) -> Binder {
        Binder { pid, start: None, ppid: None, comm: Some(comm.to_owned()), job: None, test: None }
    }

    #[test]
    fn who_had_a_port_at_a_moment_is_known_after_it_was_closed() {
        let mut table = BindTable::default();
        table.bound(1, 9, &bind(80), at(0), by(7, "a"));
        table.closed(1, at(5));
        table.bound(2, 9, &bind(80), at(6), by(8, "b"));
        let had =
            |second| table.at(9, Protocol::Tcp, 80, at(second)).map(|bound| bound.cookie).collect::<Vec<_>>();
        assert_eq!((had(3), had(5), had(7)), (vec![1], vec![1], vec![2]));
        assert_eq!((table.get(1), table.get(2).map(|bound| bound.by.pid)), (None, Some(8)));
        table.closed(2, at(100));
        assert_eq!(table.at(9, Protocol::Tcp, 80, at(3)).count(), 0, "what was closed long ago is forgotten");
        assert_eq!(table.by_port.len(), 1);
    }

    #[test]
    fn memory_is_bounded_in_a_storm_of_short_binds() {
        let mut table = BindTable::default();
        for cookie in 0..50_000 {
            table.bound(cookie, 9, &bind(80), at(0), by(7, "a"));
            table.closed(cookie, at(0));
        }
        assert!(table.binds.len() <= MAX_CLOSED + 1 && table.closed.len() <= MAX_CLOSED);
        assert_eq!(table.askers(Protocol::Tcp, 80), (vec!["a".to_owned()], 50_000));
    }

    #[test]
    fn a_free_port_that_was_closed_again_was_given_away() {
        let mut table = BindTable::default();
        table.bound(1, 9, &bind(0), at(0), by(7, "a"));
        table.closed(1, at(1));
        let port = (9, Protocol::Tcp, 80);
        assert_eq!(table.gave_away(port, at(3), |by| by.pid == 7), Some(at(1)));
        assert_eq!(table.gave_away(port, at(3), |by| by.pid == 8), None);
        assert_eq!(table.askers(Protocol::Tcp, 80), (vec![], 0), "nobody asked for it");
    }

    #[test]
    fn a_close_that_was_lost_is_found_by_a_look() {
        let mut table = BindTable::default();
        table.bound(1, 9, &bind(80), at(0), by(7, "a"));
        table.bound(2, 9, &bind(80), at(8), by(7, "a"));
        table.reconcile(|_| false, at(5));
        assert_eq!(
            (table.get(1), table.get(2).is_some()),
            (None, true),
            "a look says nothing of what came after it"
        );
        table.bound(3, 9, &bind(80), at(9) - UNSURE, by(7, "a"));
        table.reconcile(|cookie| cookie == 2, at(9));
        assert!(table.get(3).is_some(), "nor of what came a tick before it");
    }
}
