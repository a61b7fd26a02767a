//! What the agent says about itself and its host: a value made at every look, for metrics, health and the log.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Engine, Leak};
use crate::kernel::Gap;
use crate::model::conflict::Cause;
use crate::model::hold::End;
use crate::model::job::JobState;
use crate::model::socket::{ClaimKind, Protocol};

/// Counters that only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Leaks by CI system.
    pub leaks: BTreeMap<String, u64>,
    /// Failed attributions by reason.
    pub attribution_failures: BTreeMap<&'static str, u64>,
    /// Listeners that were lost, by how.
    pub lost_listeners: BTreeMap<&'static str, u64>,
    /// Brief holds that were not remembered, since their process made too many.
    pub left_out: u64,
    /// Refused binds, each attempt.
    pub conflicts: BTreeMap<(Protocol, Cause), u64>,
}

impl Counters {
    pub(super) fn leaked(&mut self, leak: &Leak) {
        let ci = leak.job.as_ref().map(|job| job.ci.clone()).unwrap_or_default();
        *self.leaks.entry(ci).or_insert(0) += 1;
    }

    pub(super) fn lost_listener(&mut self, end: End) {
        *self.lost_listeners.entry(end.as_str()).or_insert(0) += 1;
    }

    pub(super) fn left_out(&mut self) {
        self.left_out += 1;
    }

    pub(super) fn conflicted(&mut self, protocol: Protocol, cause: Cause, attempts: u64) {
        *self.conflicts.entry((protocol, cause)).or_insert(0) += attempts;
    }

    pub(super) fn attribution_failed(&mut self, reason: &'static str) {
        *self.attribution_failures.entry(reason).or_insert(0) += 1;
    }
}

/// A source of observations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Whether it works.
    pub up: bool,
    /// Why not.
    pub why: Option<String>,
    /// How long its last look took.
    pub took: Option<Duration>,
    /// Events it delivered.
    pub events: u64,
    /// Times it said that events were lost.
    pub lost: u64,
}

/// The agent's view of itself and its host.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether the first look is done.
    pub ready: bool,
    /// By protocol and kind.
    pub held: BTreeMap<(Protocol, ClaimKind), usize>,
    /// Network namespaces.
    pub netns: usize,
    /// Processes followed.
    pub processes: usize,
    /// Jobs by system and state.
    pub jobs: BTreeMap<(String, &'static str), usize>,
    /// Leaked listeners.
    pub leaks: Vec<Leak>,
    /// Ports that several jobs share silently.
    pub shared: usize,
    /// Counters.
    pub counters: Counters,
    /// Sources by name.
    pub sources: BTreeMap<&'static str, SourceStatus>,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
}

impl Engine {
    /// The engine's part of the status.
    pub fn status(&self) -> Status {
        let mut held: BTreeMap<(Protocol, ClaimKind), usize> = BTreeMap::new();
        for protocol in Protocol::ALL {
            for kind in ClaimKind::COUNTED {
                held.insert((protocol, kind), 0);
            }
        }
        held.extend(self.ports.counts());
        held.extend(self.nat.counts().into_iter().map(|(protocol, n)| ((protocol, ClaimKind::NatRule), n)));
        let mut jobs: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
        for system in &self.policy.systems {
            for state in [JobState::Running, JobState::Ended, JobState::Unknown] {
                jobs.insert((system.name().to_owned(), state.as_str()), 0);
            }
        }
        jobs.extend(self.jobs.counts().into_iter().map(|((ci, state), count)| ((ci, state.as_str()), count)));
        let mut counters = self.counters.clone();
        for system in &self.policy.systems {
            counters.leaks.entry(system.name().to_owned()).or_insert(0);
        }
        let mut leaks: Vec<Leak> = self.leaks.values().cloned().collect();
        leaks.sort_by_key(|leak| (leak.port, leak.key));
        Status {
            ready: false,
            held,
            netns: self.ports.netns_count(),
            processes: self.processes.len(),
            jobs,
            leaks,
            shared: self.shared.len(),
            counters,
            sources: BTreeMap::new(),
            // pid 1 is of no job, and where it alone may hold a port no holder is named.
            incomplete: self
                .known_gaps()
                .filter(|gap| **gap != Gap::DescriptorsOfInit)
                .map(ToString::to_string)
                .collect(),
        }
    }
}
