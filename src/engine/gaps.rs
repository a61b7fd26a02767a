//! What could not be seen, and where it matters.

use std::collections::{BTreeSet, HashSet};

use super::Engine;
use super::ports::Entry;
use crate::kernel::Gap;
use crate::kernel::look::Findings;
use crate::model::netns::NetnsKey;

/// What could not be seen, by which look: the next one of the same kind replaces it.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    pub(super) processes: Vec<Gap>,
    pub(super) descriptors: Vec<Gap>,
    pub(super) namespaces: Vec<Gap>,
}

impl Engine {
    pub(super) fn known_gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.processes.iter().chain(&self.gaps.descriptors).chain(&self.gaps.namespaces)
    }

    /// What could not be seen and matters for these sockets.
    pub(super) fn incomplete(&self, findings: &Findings, entries: &[&Entry]) -> Vec<String> {
        let orphaned = entries.iter().any(|entry| entry.holders.is_empty() && entry.socket.inode != 0);
        let closed: HashSet<u32> = entries
            .iter()
            .flat_map(|entry| &entry.holders)
            .filter(|held| self.processes.job(held.pid).is_none())
            .flat_map(|held| self.processes.unreadable(held.pid))
            .collect();
        let environments = (!closed.is_empty()).then_some(Gap::Environments(closed.len()));
        let looked_at = |netns: &NetnsKey| findings.namespaces.iter().any(|found| found.key == *netns);
        let rules: Vec<Gap> = self
            .nat
            .cut_short()
            .filter(looked_at)
            .map(|netns| Gap::Nat(netns.inode, "not all of them could be followed".to_owned()))
            .collect();
        // What is not seen of other namespaces matters to whoever asks about all.
        let elsewhere = |gap: &&Gap| {
            gap.netns().is_some_and(|inode| findings.namespaces.iter().all(|found| found.key.inode != inode))
        };
        let known =
            self.known_gaps().filter(|gap| findings.all_netns || !elsewhere(gap)).chain(&findings.gaps);
        let all: BTreeSet<&Gap> = known.chain(&environments).chain(&rules).collect();
        let matters = |gap: &&&Gap| orphaned || ***gap != Gap::DescriptorsOfInit;
        all.iter().filter(matters).map(ToString::to_string).collect()
    }
}
