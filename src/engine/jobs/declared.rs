//! Jobs that somebody declares by hooks: `sniffer job start` and `sniffer job end`.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{JobChange, JobTable, Record};
use crate::judge::ci::System;
use crate::model::job::{JobFacts, JobKey, JobState};

/// So many declared jobs of one user may be running at the same time.
const RUNNING_OF_ONE: usize = 2_000;

/// Who declared a job, and whether they declared its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Declared {
    by: u32,
    ended: bool,
}

/// Why a declaration changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It says nothing that could be done.
    #[error("{0}")]
    Malformed(String),
    /// It is another user's.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such job, or no such process.
    #[error("{0}")]
    Unknown(String),
    /// It was declared before, or the other thing was.
    #[error("{0}")]
    OutOfOrder(String),
}

impl Record {
    pub(super) fn is_declared_ended(&self) -> bool {
        self.declared.is_some_and(|declared| declared.ended)
    }
}

impl JobTable {
    /// The jobs of this id, as people or as the system itself know it.
    pub(in crate::engine) fn of_id(&self, id: &str, ci: Option<&str>) -> Vec<&JobKey> {
        self.records
            .iter()
            .filter(|(key, record)| {
                (record.facts.id == id || key.id == id) && ci.is_none_or(|ci| key.ci == ci)
            })
            .map(|(key, _)| key)
            .collect()
    }

    /// Who declared the job that a process's variables name, and its key: a declared job is known by the id that people know.
    pub(in crate::engine) fn declaration_of(&self, facts: &JobFacts) -> Option<(&JobKey, u32)> {
        let key = self.declared.get(&facts.id)?;
        let record = self.records.get(key)?;
        let fits = facts.key.ci == key.ci || facts.key.ci == "custom";
        Some((key, record.declared?.by)).filter(|_| fits && !facts.key.is_run())
    }

    /// Declares a job. One that is known already by its processes is that one.
    pub(in crate::engine) fn declare(
        &mut self,
        system: &Arc<dyn System>,
        facts: JobFacts,
        by: u32,
        now: Timestamp,
    ) -> Result<JobChange, Refused> {
        let (id, ci) = (facts.id.clone(), facts.key.ci.clone());
        if let Some(other) = self.declared.get(&id).and_then(|key| self.records.get_key_value(key)) {
            let (key, record) = other;
            let what = if record.is_declared_ended() { "has ended" } else { "was started" };
            return Err(Refused::OutOfOrder(format!(
                "job '{id}' of {} {what} already; every run of a job needs an id of its own",
                key.ci
            )));
        }
        let running = |record: &&Record| {
            record.declared == Some(Declared { by, ended: false }) && record.state == JobState::Running
        };
        if self.records.values().filter(running).count() >= RUNNING_OF_ONE {
            return Err(Refused::OutOfOrder(format!(
                "user {by} has {RUNNING_OF_ONE} jobs running; end some with `sniffer job end`"
            )));
        }
        let known = self.of_id(&id, Some(&ci)).first().map(|key| (*key).clone());
        let key = known.unwrap_or_else(|| facts.key.clone());
        let record = self.record(system, facts, &key, now);
        record.declared = Some(Declared { by, ended: false });
        record.started = record.started.or(Some(now));
        record.state = JobState::Running;
        (record.ended, record.over_since) = (None, None);
        self.declared.insert(id, key.clone());
        Ok(JobChange { key, state: JobState::Running })
    }

    /// A process whose end is the end of a declared job.
    pub(in crate::engine) fn anchor_at(&mut self, key: &JobKey, pid: u32) {
        if let Some(record) = self.records.get_mut(key) {
            record.anchors.insert(pid);
            self.by_anchor.insert(pid, key.clone());
        }
    }

    /// Declares the end of a job. `None`: it had ended by itself.
    pub(in crate::engine) fn declare_end(
        &mut self,
        key: &JobKey,
        by: u32,
        now: Timestamp,
    ) -> Result<Option<JobChange>, Refused> {
        let Some(record) = self.records.get_mut(key) else {
            return Err(Refused::Unknown(format!("no job '{}' is known", key.id)));
        };
        if record.is_declared_ended() {
            return Err(Refused::OutOfOrder(format!("job '{}' has ended already", record.facts.id)));
        }
        let by = record.declared.map_or(by, |declared| declared.by);
        record.declared = Some(Declared { by, ended: true });
        self.declared.insert(record.facts.id.clone(), key.clone());
        if record.state == JobState::Ended {
            return Ok(None);
        }
        record.state = JobState::Ended;
        (record.ended, record.over_since) = (Some(now), Some(now));
        Ok(Some(JobChange { key: key.clone(), state: JobState::Ended }))
    }

    /// Who declared a job.
    pub(in crate::engine) fn declared_by(&self, key: &JobKey) -> Option<u32> {
        Some(self.records.get(key)?.declared?.by)
    }

    /// All that are known.
    pub(in crate::engine) fn keys(&self) -> impl Iterator<Item = &JobKey> {
        self.records.keys()
    }

    /// Forgets declarations of jobs that are forgotten.
    pub(super) fn forget_declarations(&mut self) {
        let known: HashSet<&JobKey> = self.records.keys().collect();
        self.declared.retain(|_, key| known.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::ci::built_in;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn declare(jobs: &mut JobTable, id: &str, by: u32, now: i64) -> Result<JobChange, Refused> {
        let systems = built_in();
        let system = systems.iter().find(|system| system.name() == "custom").unwrap();
        let key = JobKey { ci: "custom".to_owned(), id: id.to_owned() };
        let facts = JobFacts { key, id: id.to_owned(), name: None, repository: None, run: None, url: None };
        jobs.declare(system, facts, by, at(now))
    }

    #[test]
    fn a_job_that_never_ends_goes_on_and_one_without_processes_is_forgotten_in_the_end() {
        let mut jobs = JobTable::default();
        let key = declare(&mut jobs, "endless", 0, 0).unwrap().key;
        // Thousands of others by other users, none of which is ever said to have ended.
        for number in 0..5_100_u32 {
            declare(&mut jobs, &format!("other-{number}"), 1 + number % 10, 1).unwrap();
        }
        jobs.forget(&HashSet::from([&key]));
        assert_eq!(jobs.standing(&key).map(|standing| standing.state), Some(JobState::Running));
        assert!(jobs.keys().count() <= 5_001, "what has no process is bounded");
        assert_eq!(jobs.declared.len(), jobs.keys().count());
    }

    #[test]
    fn one_user_cannot_have_jobs_without_end() {
        let mut jobs = JobTable::default();
        for number in 0..RUNNING_OF_ONE {
            declare(&mut jobs, &number.to_string(), 7, 0).unwrap();
        }
        assert!(matches!(declare(&mut jobs, "one-more", 7, 0), Err(Refused::OutOfOrder(_))));
        assert!(declare(&mut jobs, "of-another", 8, 0).is_ok());
        let zero = JobKey { ci: "custom".to_owned(), id: "0".to_owned() };
        assert!(jobs.declare_end(&zero, 7, at(1)).unwrap().is_some());
        assert!(declare(&mut jobs, "one-more", 7, 2).is_ok());
    }
}
