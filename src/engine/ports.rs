//! The ports of the host: every socket seen, since when, and who has it open.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use crate::kernel::descriptors::Descriptor;
use crate::kernel::look::{Findings, NetnsFound};
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::model::claim::Verdict;
use crate::model::job::JobKey;
use crate::model::netns::{Netns, NetnsKey};
use crate::model::socket::{ClaimKind, Protocol, Socket, SocketKey};

/// A socket of the table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// As the kernel last described it.
    pub(super) socket: Socket,
    /// When it appeared, where it was seen to appear.
    pub(super) since: Option<Timestamp>,
    /// Who has it open, as far as known.
    pub(super) holders: Vec<Descriptor>,
    /// Whether `holders` was found by reading, and nothing happened since that could change it.
    pub(super) settled: bool,
    /// The verdict at the last judgement, and the job it was about.
    pub(super) verdict: Option<Verdict>,
    pub(super) job: Option<JobKey>,
    /// The newest look that saw it: an older one says nothing against it.
    seen_at: Timestamp,
    /// The newest event that may have changed its holders: an older look does not know of it.
    touched_at: Timestamp,
}

#[derive(Debug, Clone)]
struct NetnsRecord {
    shown: Netns,
    /// The newest look that met it.
    seen_at: Timestamp,
    /// When all its listeners were first read, and all its other sockets: what appears later was seen to appear.
    listeners_since: Option<Timestamp>,
    others_since: Option<Timestamp>,
}

impl NetnsRecord {
    fn new(found: &NetnsFound, at: Timestamp) -> Self {
        NetnsRecord { shown: found.shown.clone(), seen_at: at, listeners_since: None, others_since: None }
    }

    /// Since when the appearance of such a socket is noticed.
    fn noticed_since(&self, socket: &Socket) -> Option<Timestamp> {
        if is_shallow(socket) { self.listeners_since } else { self.others_since }
    }
}

/// The port table.
#[derive(Debug, Default)]
pub(super) struct PortTable {
    entries: HashMap<SocketKey, Entry>,
    /// The other direction of [`Entry::holders`].
    by_pid: HashMap<u32, HashSet<SocketKey>>,
    netns: BTreeMap<NetnsKey, NetnsRecord>,
}

impl PortTable {
    /// Takes over what a look saw. Sockets that the look would have seen and did not are gone.
    /// Looks may arrive out of order: one says nothing against what a newer one saw.
    pub(super) fn apply(&mut self, findings: &Findings) {
        let at = findings.taken_at;
        let mut read: HashMap<NetnsKey, HashSet<SocketKey>> = HashMap::new();
        for found in &findings.namespaces {
            let record = self.netns.entry(found.key).or_insert_with(|| NetnsRecord::new(found, at));
            if record.seen_at <= at {
                record.shown = found.shown.clone();
                record.seen_at = at;
            }
            let Some(sockets) = &found.sockets else { continue };
            let before = record.clone();
            for socket in sockets {
                // What was there at the first reading is of unknown age.
                let noticed = before.noticed_since(socket).is_some_and(|since| since < at);
                self.upsert(socket, noticed.then_some(at), at);
            }
            self.note_reading(found.key, &findings.query, at);
            read.insert(found.key, sockets.iter().map(|socket| socket.key).collect());
        }
        if findings.all_netns {
            let seen: HashSet<NetnsKey> = findings.namespaces.iter().map(|found| found.key).collect();
            self.netns.retain(|key, record| seen.contains(key) || record.seen_at > at);
        }
        self.remove_missing(&read, findings);
        for (key, holders) in &findings.holders {
            self.take_holders(*key, holders, findings);
        }
    }

    fn note_reading(&mut self, netns: NetnsKey, query: &DiagQuery, at: Timestamp) {
        let Some(record) = self.netns.get_mut(&netns).filter(|_| query.ports.is_none()) else { return };
        record.listeners_since.get_or_insert(at);
        if query.depth == Depth::Everything {
            record.others_since.get_or_insert(at);
        }
    }

    fn remove_missing(&mut self, read: &HashMap<NetnsKey, HashSet<SocketKey>>, findings: &Findings) {
        let missing = |entry: &Entry| {
            let key = entry.socket.key;
            match read.get(&key.netns) {
                Some(alive) => {
                    covers(&findings.query, &entry.socket)
                        && !alive.contains(&key)
                        && entry.seen_at <= findings.taken_at
                }
                None => !self.netns.contains_key(&key.netns),
            }
        };
        let keys: Vec<SocketKey> =
            self.entries.values().filter(|entry| missing(entry)).map(|entry| entry.socket.key).collect();
        for key in keys {
            self.set_holders(key, Vec::new(), false);
            self.entries.remove(&key);
        }
    }

    /// Holders that a look found. What an event told after the look began is kept beside them, to be looked at again.
    fn take_holders(&mut self, key: SocketKey, found: &[Descriptor], findings: &Findings) {
        let Some(entry) = self.entries.get(&key) else { return };
        if entry.touched_at < findings.taken_at {
            let settled = !found.is_empty() || findings.read_everywhere;
            return self.set_holders(key, found.to_vec(), settled);
        }
        let mut both = entry.holders.clone();
        both.extend(found.iter().filter(|held| !entry.holders.contains(held)));
        self.set_holders(key, both, false);
    }

    fn set_holders(&mut self, key: SocketKey, holders: Vec<Descriptor>, settled: bool) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        for held in std::mem::take(&mut entry.holders) {
            if let Some(keys) = self.by_pid.get_mut(&held.pid) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_pid.remove(&held.pid);
                }
            }
        }
        for held in &holders {
            self.by_pid.entry(held.pid).or_default().insert(key);
        }
        entry.holders = holders;
        entry.settled = settled;
    }

    fn upsert(&mut self, socket: &Socket, since: Option<Timestamp>, at: Timestamp) {
        match self.entries.get_mut(&socket.key) {
            Some(entry) if entry.seen_at > at => {}
            Some(entry) => {
                // The same socket that now listens has been a listener since now.
                if entry.socket.kind() != socket.kind() {
                    entry.since = Some(at);
                }
                // Not every look asks for options.
                let options = socket.options.or(entry.socket.options);
                entry.socket = Socket { options, ..socket.clone() };
                entry.seen_at = at;
            }
            None => {
                let entry = Entry {
                    socket: socket.clone(),
                    since,
                    holders: Vec::new(),
                    settled: false,
                    verdict: None,
                    job: None,
                    seen_at: at,
                    touched_at: Timestamp::MIN,
                };
                self.entries.insert(socket.key, entry);
            }
        }
    }

    /// A process was made: it has its parent's sockets open too, until it closes them.
    pub(super) fn forked(&mut self, parent: u32, child: u32, now: Timestamp) {
        let Some(keys) = self.by_pid.get(&parent).cloned() else { return };
        for key in &keys {
            if let Some(entry) = self.entries.get_mut(key) {
                let inherited = entry
                    .holders
                    .iter()
                    .find(|held| held.pid == parent)
                    .map(|held| Descriptor { pid: child, ..*held });
                entry.holders.extend(inherited);
                (entry.settled, entry.touched_at) = (false, now);
            }
        }
        self.by_pid.insert(child, keys);
    }

    /// A process runs another program or ended: what it had open has to be looked at again. Answers whether there is any.
    pub(super) fn unsettle(&mut self, pid: u32, now: Timestamp) -> bool {
        let Some(keys) = self.by_pid.get(&pid) else { return false };
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key) {
                (entry.settled, entry.touched_at) = (false, now);
            }
        }
        true
    }

    /// Every process may hold anything: events were lost.
    pub(super) fn unsettle_all(&mut self, now: Timestamp) {
        for entry in self.entries.values_mut() {
            (entry.settled, entry.touched_at) = (false, now);
        }
    }

    /// Every socket.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Notes what was judged.
    pub(super) fn set_verdicts(&mut self, verdicts: Vec<(SocketKey, Verdict, Option<JobKey>)>) {
        for (key, verdict, job) in verdicts {
            if let Some(entry) = self.entries.get_mut(&key) {
                (entry.verdict, entry.job) = (Some(verdict), job);
            }
        }
    }

    /// One socket.
    pub(super) fn get(&self, key: &SocketKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Whether no process had it open when all were read, and nothing happened since.
    pub(super) fn is_known_orphan(&self, key: &SocketKey) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.settled && entry.holders.is_empty())
    }

    /// Whether a socket of a namespace, named by its inode, was there at the last look.
    pub(super) fn has(&self, inode: u64, cookie: u64) -> bool {
        let mut keys = self.netns.keys().filter(|key| key.inode == inode);
        keys.any(|netns| self.entries.contains_key(&SocketKey { netns: *netns, cookie }))
    }

    /// What documents show of a namespace.
    pub(super) fn netns(&self, key: NetnsKey) -> Netns {
        self.netns.get(&key).map_or_else(
            || Netns { inode: key.inode, name: None, kept_by: None },
            |record| record.shown.clone(),
        )
    }

    /// A namespace that is known, by its inode.
    pub(super) fn netns_key(&self, inode: u64) -> Option<NetnsKey> {
        // All of them are on one device.
        let device = self.netns.keys().next()?.device;
        Some(NetnsKey { device, inode }).filter(|key| self.netns.contains_key(key))
    }

    /// The same by the inode alone, as the kernel's events name a namespace.
    pub(super) fn netns_of_inode(&self, inode: u64) -> Netns {
        let known =
            self.netns.iter().find(|(key, _)| key.inode == inode).map(|(_, record)| record.shown.clone());
        known.unwrap_or(Netns { inode, name: None, kept_by: None })
    }

    /// How many namespaces are known.
    pub(super) fn netns_count(&self) -> usize {
        self.netns.len()
    }

    /// How many sockets there are of each protocol and kind.
    pub(super) fn counts(&self) -> HashMap<(Protocol, ClaimKind), usize> {
        let mut counts = HashMap::new();
        for entry in self.entries.values() {
            *counts.entry((entry.socket.protocol, entry.socket.kind())).or_insert(0) += 1;
        }
        counts
    }
}

/// Whether the cheap look sees it.
fn is_shallow(socket: &Socket) -> bool {
    socket.protocol == Protocol::Udp || socket.kind() == ClaimKind::Listener
}

/// Whether a look of this kind would have seen the socket.
fn covers(query: &DiagQuery, socket: &Socket) -> bool {
    let by_port = query.ports.as_ref().is_none_or(|ports| ports.contains(&socket.port));
    let by_depth = match (query.depth, socket.protocol) {
        (Depth::Everything, _) | (_, Protocol::Udp) => true,
        (Depth::Listeners, Protocol::Tcp) => is_shallow(socket),
    };
    by_port && by_depth
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Sockets and findings as literals.

    use std::net::IpAddr;

    use super::*;
    use crate::model::socket::SocketState;

    pub(crate) const NETNS: NetnsKey = NetnsKey { device: 4, inode: 7 };

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    pub(crate) fn listener(cookie: u64, port: u16) -> Socket {
        Socket {
            key: SocketKey { netns: NETNS, cookie },
            protocol: Protocol::Tcp,
            state: SocketState::Listen,
            address: IpAddr::from([127, 0, 0, 1]),
            port,
            peer: None,
            v6only: None,
            ifindex: None,
            interface: None,
            inode: u32::try_from(cookie).unwrap() + 1000,
            uid: 0,
            cgroup_id: None,
            expires_ms: None,
            options: None,
        }
    }

    pub(crate) fn findings(second: i64, sockets: Option<Vec<Socket>>) -> Findings {
        Findings {
            taken_at: at(second),
            query: DiagQuery { ports: None, depth: Depth::Everything },
            all_netns: true,
            namespaces: vec![NetnsFound {
                key: NETNS,
                shown: Netns { inode: 7, name: Some("host".to_owned()), kept_by: None },
                sockets,
                surroundings: None,
                nat: None,
            }],
            cgroups: HashMap::new(),
            holders: HashMap::new(),
            read_everywhere: false,
            processes_read: 0,
            netns_descriptors: None,
            netns_mounts: None,
            processes: Vec::new(),
            described: HashMap::new(),
            oom_kills: HashMap::new(),
            also: HashMap::new(),
            containers: Vec::new(),
            places: Vec::new(),
            gaps: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{NETNS, at, findings, listener};
    use super::*;

    fn ports(table: &PortTable) -> Vec<u16> {
        let mut ports: Vec<u16> = table.entries().map(|entry| entry.socket.port).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn since_is_known_only_for_sockets_that_were_seen_to_appear() {
        let mut table = PortTable::default();
        table.apply(&findings(0, Some(vec![listener(1, 80)])));
        table.apply(&findings(2, Some(vec![listener(1, 80), listener(2, 81)])));
        let since = |port| table.entries().find(|entry| entry.socket.port == port).unwrap().since;
        assert_eq!((since(80), since(81)), (None, Some(at(2))));
    }

    #[test]
    fn a_socket_that_a_look_would_have_seen_and_did_not_is_gone() {
        let mut table = PortTable::default();
        table.apply(&findings(0, Some(vec![listener(1, 80), listener(2, 90)])));
        let mut narrow = findings(1, Some(vec![]));
        narrow.query = DiagQuery { ports: Some(90..=90), depth: Depth::Listeners };
        table.apply(&narrow);
        assert_eq!(ports(&table), [80]);
    }

    #[test]
    fn an_unreadable_namespace_loses_nothing_and_a_vanished_one_everything() {
        let mut table = PortTable::default();
        table.apply(&findings(0, Some(vec![listener(1, 80)])));
        table.apply(&findings(1, None));
        assert_eq!(ports(&table), [80]);
        let mut without = findings(2, None);
        without.namespaces.clear();
        table.apply(&without);
        assert_eq!(ports(&table), [0u16; 0]);
    }

    #[test]
    fn an_older_look_says_nothing_against_a_newer_one() {
        let mut table = PortTable::default();
        table.apply(&findings(5, Some(vec![listener(1, 80)])));
        table.apply(&findings(4, Some(vec![])));
        assert_eq!(ports(&table), [80]);
    }

    #[test]
    fn a_forked_child_is_a_possible_holder_until_looked_at() {
        let mut table = PortTable::default();
        let key = SocketKey { netns: NETNS, cookie: 1 };
        let mut first = findings(0, Some(vec![listener(1, 80)]));
        first.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
        table.apply(&first);
        assert!(table.get(&key).unwrap().settled);
        table.forked(10, 11, at(1));
        let entry = table.get(&key).unwrap();
        assert_eq!((entry.holders.len(), entry.settled), (2, false));
        assert!(!table.unsettle(99, at(1)));
    }

    #[test]
    fn a_port_without_a_holder_is_settled_only_by_reading_everywhere() {
        let mut table = PortTable::default();
        let key = SocketKey { netns: NETNS, cookie: 1 };
        let mut look = findings(0, Some(vec![listener(1, 80)]));
        look.holders.insert(key, vec![]);
        table.apply(&look);
        assert!(!table.get(&key).unwrap().settled);
        look.read_everywhere = true;
        table.apply(&look);
        assert!(table.get(&key).unwrap().settled);
    }

    #[test]
    fn an_older_look_still_brings_what_a_newer_one_did_not_ask_for() {
        let mut table = PortTable::default();
        let mut newer = findings(5, Some(vec![listener(1, 80)]));
        newer.query.ports = Some(80..=80);
        table.apply(&newer);
        let mut older = findings(4, Some(vec![listener(2, 90)]));
        older.query.ports = Some(90..=90);
        table.apply(&older);
        assert_eq!(ports(&table), [80, 90]);
    }

    #[test]
    fn a_question_about_one_port_says_nothing_of_the_age_of_others() {
        let mut table = PortTable::default();
        let mut question = findings(0, Some(vec![]));
        question.query.ports = Some(3..=3);
        table.apply(&question);
        table.apply(&findings(2, Some(vec![listener(1, 80)])));
        assert_eq!(table.entries().next().unwrap().since, None);
    }

    #[test]
    fn a_look_does_not_undo_what_an_event_told_after_it_began() {
        let mut table = PortTable::default();
        let key = SocketKey { netns: NETNS, cookie: 1 };
        let mut look = findings(0, Some(vec![listener(1, 80)]));
        look.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
        table.apply(&look);
        table.forked(10, 11, at(3));
        look.taken_at = at(2);
        table.apply(&look);
        let entry = table.get(&key).unwrap();
        assert_eq!((entry.holders.len(), entry.settled), (2, false));
    }
}
