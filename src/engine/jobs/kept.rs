//! What is kept of jobs across restarts: what no process tells any more.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::declared::Declared;
use super::{JobTable, Record};
use crate::judge::ci::System;
use crate::model::job::{JobFacts, JobKey, JobState};
use crate::model::process::ProcessId;

/// A job, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptJob {
    facts: JobFacts,
    state: JobState,
    first_seen: Timestamp,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    over_since: Option<Timestamp>,
    declared: Option<Declared>,
    /// Of a declared job: the processes whose end is its end,
    processes: Vec<ProcessId>,
    /// and those of them that the hook named, which are the job's with all their descendants.
    named: Vec<ProcessId>,
    /// Whether processes with its id as `SNIFFER_JOB_ID` are its.
    alias: bool,
}

impl JobTable {
    /// Those that were declared, and those that have ended and still have a process. A job that runs is known by its processes.
    pub(in crate::engine) fn keep(
        &self,
        alive: &HashSet<&JobKey>,
        start: impl Fn(u32) -> Option<u64>,
    ) -> Vec<KeptJob> {
        let matters = |(key, record): &(&JobKey, &Record)| {
            record.declared.is_some() || (record.state == JobState::Ended && alive.contains(key))
        };
        let identified = |pids: &HashSet<u32>| {
            pids.iter().filter_map(|pid| Some(ProcessId { pid: *pid, start: start(*pid)? })).collect()
        };
        let kept = self.records.iter().filter(matters).map(|(key, record)| {
            let anchors = record.declared.map(|_| &record.anchors);
            KeptJob {
                facts: JobFacts { key: key.clone(), ..record.facts.clone() },
                state: record.state,
                first_seen: record.first_seen,
                started: record.started,
                ended: record.ended,
                over_since: record.over_since,
                declared: record.declared,
                processes: anchors.map(identified).unwrap_or_default(),
                named: identified(&record.named),
                alias: self.aliases.get(&record.facts.id) == Some(key),
            }
        });
        let mut kept: Vec<KeptJob> = kept.collect();
        kept.sort_by(|one, other| one.facts.key.cmp(&other.facts.key));
        kept
    }

    /// Knows again what was kept, moments moved by `shift`. A declared job whose processes have ended meanwhile has ended; one of a CI system
    /// is running if its processes say so. Answers with the living processes that hooks named.
    pub(in crate::engine) fn restore(
        &mut self,
        kept: Vec<KeptJob>,
        systems: &[Arc<dyn System>],
        alive: impl Fn(ProcessId) -> Option<ProcessId>,
        shift: SignedDuration,
        now: Timestamp,
    ) -> Vec<(ProcessId, JobKey)> {
        let mut given = Vec::new();
        let moved = |at: Timestamp| at.checked_add(shift).unwrap_or(at);
        for job in kept {
            let key = job.facts.key.clone();
            // A [[jobs.custom]] that is configured no more.
            let Some(system) = systems.iter().find(|system| system.name() == key.ci) else { continue };
            let had_some = !job.processes.is_empty();
            let anchors: HashSet<u32> =
                job.processes.into_iter().filter_map(&alive).map(|id| id.pid).collect();
            let over = job.state == JobState::Running && had_some && anchors.is_empty();
            let named: Vec<ProcessId> = job.named.into_iter().filter_map(&alive).collect();
            given.extend(named.iter().map(|id| (*id, key.clone())));
            if job.alias {
                self.aliases.insert(job.facts.id.clone(), key.clone());
            }
            for pid in &anchors {
                self.by_anchor.entry(*pid).or_default().insert(key.clone());
            }
            let state = match job.state {
                _ if over => JobState::Ended,
                JobState::Running if key.ci != "custom" && anchors.is_empty() => JobState::Unknown,
                state => state,
            };
            let record = Record {
                facts: job.facts,
                system: Arc::clone(system),
                anchors,
                first_seen: if state == JobState::Unknown { now } else { moved(job.first_seen) },
                started: job.started.map(moved),
                state,
                ended: job.ended.map(moved),
                over_since: job.over_since.map(moved).or(over.then_some(now)),
                oldest: u64::MAX,
                declared: job.declared,
                named: named.iter().map(|id| id.pid).collect(),
            };
            self.records.insert(key, record);
        }
        given
    }
}
