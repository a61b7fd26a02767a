//! The ports of the host: every socket seen, since when, and who has it open.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use crate::kernel::descriptors::Descriptor;
use crate::kernel::look::Findings;
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::model::claim::Verdict;
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
    /// The verdict at the last judgement.
    pub(super) verdict: Option<Verdict>,
}

#[derive(Debug, Clone)]
struct NetnsRecord {
    shown: Netns,
    /// When it was last read: an older look says nothing against it.
    read_at: Option<Timestamp>,
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
    /// Takes over what a look saw. Sockets that the look would have seen and did not are gone; answers with those.
    /// A look older than what is known of a namespace is ignored for that namespace.
    pub(super) fn apply(&mut self, findings: &Findings) -> Vec<Entry> {
        let mut read: HashMap<NetnsKey, HashSet<SocketKey>> = HashMap::new();
        for found in &findings.namespaces {
            let read_before = self.netns.get(&found.key).and_then(|record| record.read_at);
            if read_before.is_some_and(|read_at| read_at > findings.taken_at) {
                continue;
            }
            let read_at = if found.sockets.is_some() { Some(findings.taken_at) } else { read_before };
            self.netns.insert(found.key, NetnsRecord { shown: found.shown.clone(), read_at });
            let Some(sockets) = &found.sockets else { continue };
            // A namespace read for the first time holds sockets of unknown age.
            let since = read_before.map(|_| findings.taken_at);
            for socket in sockets {
                self.upsert(socket, since);
            }
            read.insert(found.key, sockets.iter().map(|socket| socket.key).collect());
        }
        if findings.all_netns {
            let seen: HashSet<NetnsKey> = findings.namespaces.iter().map(|found| found.key).collect();
            self.netns.retain(|key, record| {
                seen.contains(key) || record.read_at.is_some_and(|at| at > findings.taken_at)
            });
        }
        let gone = self.remove_missing(&read, &findings.query);
        for (key, holders) in &findings.holders {
            self.set_holders(*key, holders.clone(), !holders.is_empty() || findings.read_everywhere);
        }
        gone
    }

    fn remove_missing(
        &mut self,
        read: &HashMap<NetnsKey, HashSet<SocketKey>>,
        query: &DiagQuery,
    ) -> Vec<Entry> {
        let missing = |entry: &Entry| {
            let key = entry.socket.key;
            match read.get(&key.netns) {
                Some(alive) => covers(query, &entry.socket) && !alive.contains(&key),
                None => !self.netns.contains_key(&key.netns),
            }
        };
        let keys: Vec<SocketKey> =
            self.entries.values().filter(|entry| missing(entry)).map(|entry| entry.socket.key).collect();
        let mut gone = Vec::with_capacity(keys.len());
        for key in keys {
            self.set_holders(key, Vec::new(), false);
            gone.extend(self.entries.remove(&key));
        }
        gone
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

    fn upsert(&mut self, socket: &Socket, since: Option<Timestamp>) {
        match self.entries.get_mut(&socket.key) {
            Some(entry) => {
                // The same socket that now listens has been a listener since now.
                if entry.socket.kind() != socket.kind() {
                    entry.since = since;
                }
                entry.socket.clone_from(socket);
            }
            None => {
                let entry = Entry {
                    socket: socket.clone(),
                    since,
                    holders: Vec::new(),
                    settled: false,
                    verdict: None,
                };
                self.entries.insert(socket.key, entry);
            }
        }
    }

    /// A process was made: it has its parent's sockets open too, until it closes them.
    pub(super) fn forked(&mut self, parent: u32, child: u32) {
        let Some(keys) = self.by_pid.get(&parent).cloned() else { return };
        for key in &keys {
            if let Some(entry) = self.entries.get_mut(key) {
                let inherited = entry
                    .holders
                    .iter()
                    .find(|held| held.pid == parent)
                    .map(|held| Descriptor { pid: child, ..*held });
                entry.holders.extend(inherited);
                entry.settled = false;
            }
        }
        self.by_pid.insert(child, keys);
    }

    /// A process runs another program or ended: what it had open has to be looked at again. Answers whether there is any.
    pub(super) fn unsettle(&mut self, pid: u32) -> bool {
        let Some(keys) = self.by_pid.get(&pid) else { return false };
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.settled = false;
            }
        }
        true
    }

    /// Every process may hold anything: events were lost.
    pub(super) fn unsettle_all(&mut self) {
        for entry in self.entries.values_mut() {
            entry.settled = false;
        }
    }

    /// Every socket.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Notes what was judged.
    pub(super) fn set_verdicts(&mut self, verdicts: Vec<(SocketKey, Verdict)>) {
        for (key, verdict) in verdicts {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.verdict = Some(verdict);
            }
        }
    }

    /// One socket.
    pub(super) fn get(&self, key: &SocketKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// What documents show of a namespace.
    pub(super) fn netns(&self, key: NetnsKey) -> Netns {
        self.netns.get(&key).map_or_else(
            || Netns { inode: key.inode, name: None, kept_by: None },
            |record| record.shown.clone(),
        )
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

/// Whether a look of this kind would have seen the socket.
fn covers(query: &DiagQuery, socket: &Socket) -> bool {
    let by_port = query.ports.as_ref().is_none_or(|ports| ports.contains(&socket.port));
    let by_depth = match (query.depth, socket.protocol) {
        (Depth::Everything, _) | (_, Protocol::Udp) => true,
        (Depth::Listeners, Protocol::Tcp) => socket.kind() == ClaimKind::Listener,
    };
    by_port && by_depth
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Sockets and findings as literals.

    use std::net::IpAddr;

    use super::*;
    use crate::kernel::look::NetnsFound;
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
            }],
            cgroups: HashMap::new(),
            holders: HashMap::new(),
            read_everywhere: false,
            processes_read: 0,
            netns_descriptors: None,
            processes: Vec::new(),
            described: HashMap::new(),
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
        let gone = table.apply(&narrow);
        assert_eq!(gone.len(), 1);
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
        table.forked(10, 11);
        let entry = table.get(&key).unwrap();
        assert_eq!((entry.holders.len(), entry.settled), (2, false));
        table.unsettle(99);
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
}
