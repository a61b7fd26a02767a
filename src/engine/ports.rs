//! The ports of the host: every socket seen, since when, and who has it open.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

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

impl Entry {
    /// Whether a look that was taken then or later saw it.
    pub(super) fn was_seen_since(&self, taken_at: Timestamp) -> bool {
        self.seen_at >= taken_at
    }
}

#[derive(Debug, Clone)]
struct NetnsRecord {
    shown: Netns,
    /// The newest look that met it.
    seen_at: Timestamp,
    /// When all its listeners were first read, and all its other sockets: what appears later was seen to appear.
    listeners_since: Option<Timestamp>,
    others_since: Option<Timestamp>,
    /// When the last readings began, as they arrived.
    readings: VecDeque<(Timestamp, DiagQuery)>,
}

/// Readings that are kept of a namespace: no look is overtaken by so many.
const READINGS: usize = 16;

impl NetnsRecord {
    fn new(found: &NetnsFound, at: Timestamp) -> Self {
        NetnsRecord {
            shown: found.shown.clone(),
            seen_at: at,
            listeners_since: None,
            others_since: None,
            readings: VecDeque::new(),
        }
    }

    /// Since when the appearance of such a socket is noticed.
    fn noticed_since(&self, socket: &Socket) -> Option<Timestamp> {
        if is_shallow(socket) { self.listeners_since } else { self.others_since }
    }

    /// Whether a reading that began after that moment would have seen such a socket. One that overlaps proves nothing: a long
    /// look may read a namespace later than one that began after it.
    fn was_read_after(&self, moment: Timestamp, socket: &Socket) -> bool {
        self.readings.iter().any(|(began, query)| *began > moment && covers(query, socket))
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
        let mut read: HashMap<NetnsKey, (Timestamp, HashSet<SocketKey>)> = HashMap::new();
        for found in &findings.namespaces {
            let record = self.netns.entry(found.key).or_insert_with(|| NetnsRecord::new(found, at));
            if record.seen_at <= at {
                record.shown = found.shown.clone();
                record.seen_at = at;
            }
            let Some(sockets) = &found.sockets else { continue };
            let before = record.clone();
            for socket in sockets {
                // One that a later reading did not see has been closed since.
                if !self.entries.contains_key(&socket.key) && before.was_read_after(found.read_until, socket)
                {
                    continue;
                }
                // What was there at the first reading is of unknown age.
                let noticed = before.noticed_since(socket).is_some_and(|since| since < at);
                self.upsert(socket, noticed.then_some(at), found.read_until);
            }
            self.note_reading(found, &findings.query, at);
            let keys = sockets.iter().map(|socket| socket.key).collect();
            read.insert(found.key, (found.read_from, keys));
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

    fn note_reading(&mut self, found: &NetnsFound, query: &DiagQuery, at: Timestamp) {
        let Some(record) = self.netns.get_mut(&found.key) else { return };
        record.readings.push_back((found.read_from, query.clone()));
        if record.readings.len() > READINGS {
            record.readings.pop_front();
        }
        if query.ports.is_some() {
            return;
        }
        record.listeners_since.get_or_insert(at);
        if query.depth == Depth::Everything {
            record.others_since.get_or_insert(at);
        }
    }

    fn remove_missing(
        &mut self,
        read: &HashMap<NetnsKey, (Timestamp, HashSet<SocketKey>)>,
        findings: &Findings,
    ) {
        let missing = |entry: &Entry| {
            let key = entry.socket.key;
            match read.get(&key.netns) {
                Some((read_from, alive)) => {
                    covers(&findings.query, &entry.socket)
                        && !alive.contains(&key)
                        && entry.seen_at <= *read_from
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
        let Some(entry) = self.entries.get(&key).filter(|entry| entry.socket.inode != 0) else { return };
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
                // The kernel keeps it without a file: nobody has it open any more, and no child inherits it.
                if socket.inode == 0 && !entry.holders.is_empty() {
                    self.set_holders(socket.key, Vec::new(), false);
                }
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
        // Whoever had this pid before has ended.
        for key in self.by_pid.remove(&child).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.holders.retain(|held| held.pid != child);
            }
        }
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

    /// A process ended: what it had open is others' now, or nobody's. Whoever had a socket last is kept until a look tells.
    /// Answers whether there is any.
    pub(super) fn exited(&mut self, pid: u32, now: Timestamp) -> bool {
        let Some(keys) = self.by_pid.remove(&pid) else { return false };
        let mut last_of = HashSet::new();
        for key in keys {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            (entry.settled, entry.touched_at) = (false, entry.touched_at.max(now));
            if entry.holders.iter().any(|held| held.pid != pid) {
                entry.holders.retain(|held| held.pid != pid);
            } else {
                last_of.insert(key);
            }
        }
        if !last_of.is_empty() {
            self.by_pid.insert(pid, last_of);
        }
        true
    }

    /// A process runs another program: what it had open has to be looked at again. Answers whether there is any.
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
pub(crate) mod fixtures;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
