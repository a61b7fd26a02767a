//! Jobs that somebody declares by hooks: `sniffer job start` and `sniffer job end`.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{JobChange, JobTable, Record};
use crate::judge::ci::System;
use crate::model::job::{JobFacts, JobKey, JobState};

/// So many declared jobs of one user are remembered.
const OF_ONE_USER: usize = 2_000;
/// A declared job without any process whose end nobody declares is forgotten after this long.
const ENDLESS: SignedDuration = SignedDuration::from_hours(24);

/// Who declared a job, and whether they declared its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Declared {
    /// User.
    pub(in crate::engine) by: u32,
    /// Whether its end was declared too.
    pub(in crate::engine) ended: bool,
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

    /// Whether nobody will ever say that it has ended.
    pub(super) fn is_endless(&self, now: Timestamp) -> bool {
        self.declared.is_some() && now.duration_since(self.first_seen) > ENDLESS && self.anchors.is_empty()
    }
}

impl JobTable {
    /// The jobs of this id, as people or as the system itself know it. Those whose end was declared only where there are no others.
    pub(in crate::engine) fn of_id(&self, id: &str, ci: Option<&str>) -> Vec<JobKey> {
        let is_it = |(key, record): &(&JobKey, &Record)| {
            (record.facts.id == id || key.id == id) && ci.is_none_or(|ci| key.ci == ci)
        };
        let (over, open): (Vec<_>, Vec<_>) =
            self.records.iter().filter(is_it).partition(|(_, record)| record.is_declared_ended());
        // Of those that are over any one tells that they are.
        let found = if open.is_empty() { over.into_iter().take(1).collect() } else { open };
        let mut keys: Vec<JobKey> = found.into_iter().map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    }

    /// The job that processes are of whose variables name this one.
    pub(in crate::engine) fn known_as<'a>(&'a self, key: &'a JobKey) -> &'a JobKey {
        if key.ci == "custom" { self.aliases.get(&key.id).unwrap_or(key) } else { key }
    }

    /// From now on processes of this custom job are of that one; answers whether they are. The first one stays.
    pub(in crate::engine) fn alias(&mut self, custom: &JobKey, key: &JobKey) -> bool {
        custom != key && self.aliases.entry(custom.id.clone()).or_insert_with(|| key.clone()) == key
    }

    /// Who declared a job.
    pub(in crate::engine) fn declared(&self, key: &JobKey) -> Option<Declared> {
        self.records.get(key)?.declared
    }

    /// The processes that keep a job going.
    pub(in crate::engine) fn anchors(&self, key: &JobKey) -> impl Iterator<Item = u32> {
        self.records.get(key).into_iter().flat_map(|record| record.anchors.iter().copied())
    }

    /// When a job ended, where that is known.
    pub(in crate::engine) fn ended(&self, key: &JobKey) -> Option<Timestamp> {
        self.records.get(key)?.over_since
    }

    /// Declares a job; one that is known by its processes is that one. `alive` are the jobs that have processes.
    pub(in crate::engine) fn declare(
        &mut self,
        system: &Arc<dyn System>,
        facts: JobFacts,
        by: u32,
        alive: &HashSet<&JobKey>,
        now: Timestamp,
    ) -> Result<JobChange, Refused> {
        let key = facts.key.clone();
        if let Some(declared) = self.declared(&key) {
            let what = if declared.ended { "has ended" } else { "was started" };
            return Err(Refused::OutOfOrder(format!(
                "job '{}' {what} already; every run of a job needs an id of its own",
                facts.id
            )));
        }
        self.make_room(by, alive)?;
        let record = self.record(system, facts.clone(), &key, now);
        // Its processes may have been met before, and tell less: whoever declares it says what it is called.
        record.facts = record.facts.clone().with(facts);
        record.declared = Some(Declared { by, ended: false });
        record.started = record.started.or(Some(now));
        record.state = JobState::Running;
        (record.ended, record.over_since) = (None, None);
        self.dirty = true;
        Ok(JobChange { key, state: JobState::Running })
    }

    /// Forgets the oldest that has ended, where a user has declared too many.
    fn make_room(&mut self, by: u32, alive: &HashSet<&JobKey>) -> Result<(), Refused> {
        let of_user = |record: &Record| record.declared.is_some_and(|declared| declared.by == by);
        let own = self.records.iter().filter(|(_, record)| of_user(record));
        let (mut count, mut oldest) = (0, None);
        for (key, record) in own {
            count += 1;
            let over = record.state == JobState::Ended && !alive.contains(key);
            if over && oldest.is_none_or(|(at, _)| record.over_since < at) {
                oldest = Some((record.over_since, key));
            }
        }
        if count < OF_ONE_USER {
            return Ok(());
        }
        let Some((_, key)) = oldest else {
            return Err(Refused::OutOfOrder(format!(
                "user {by} has {OF_ONE_USER} jobs that go on; end some with `sniffer job end`"
            )));
        };
        let key = key.clone();
        self.records.remove(&key);
        self.forget_aliases();
        Ok(())
    }

    /// A process whose end is the end of a declared job.
    pub(in crate::engine) fn anchor_at(&mut self, key: &JobKey, pid: u32) {
        if let Some(record) = self.records.get_mut(key) {
            record.anchors.insert(pid);
            record.named.insert(pid);
            self.by_anchor.entry(pid).or_default().insert(key.clone());
            self.dirty = true;
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
        // It seemed over, and was perhaps between two steps.
        let paused = record.over_since.is_some_and(|since| now.duration_since(since) < record.pause());
        let by = record.declared.map_or(by, |declared| declared.by);
        record.declared = Some(Declared { by, ended: true });
        self.dirty = true;
        let changed = record.state != JobState::Ended;
        if changed || paused {
            (record.ended, record.over_since) = (Some(now), Some(now));
        }
        record.state = JobState::Ended;
        Ok(changed.then(|| JobChange { key: key.clone(), state: JobState::Ended }))
    }

    /// Nobody has declared this job: who did has no process in it, and others have.
    pub(in crate::engine) fn void(&mut self, key: &JobKey) {
        if let Some(record) = self.records.get_mut(key) {
            record.declared = None;
            record.state = if record.anchors.is_empty() { JobState::Unknown } else { JobState::Running };
            (record.ended, record.over_since) = (None, None);
            self.aliases.retain(|_, alias| alias != key);
            self.dirty = true;
        }
    }

    /// All that are known.
    pub(in crate::engine) fn keys(&self) -> impl Iterator<Item = &JobKey> {
        self.records.keys()
    }

    /// Whether what is to be kept has changed since the last call.
    pub(in crate::engine) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Forgets names of jobs that are forgotten.
    pub(super) fn forget_aliases(&mut self) {
        let records = &self.records;
        self.aliases.retain(|_, key| records.contains_key(key));
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
        jobs.declare(system, facts, by, &HashSet::new(), at(now))
    }

    #[test]
    fn a_job_that_never_ends_goes_on_and_one_without_processes_is_forgotten_in_the_end() {
        let mut jobs = JobTable::default();
        let key = declare(&mut jobs, "endless", 0, 0).unwrap().key;
        let empty = declare(&mut jobs, "empty", 0, 0).unwrap().key;
        jobs.forget(&HashSet::from([&key]), at(86_000));
        assert_eq!(jobs.keys().count(), 2);
        jobs.forget(&HashSet::from([&key]), at(90_000));
        assert_eq!(jobs.standing(&key).map(|standing| standing.state), Some(JobState::Running));
        assert_eq!(jobs.standing(&empty), None);
        // Thousands of others by other users, none of which is ever said to have ended.
        for number in 0..5_100_u32 {
            declare(&mut jobs, &format!("other-{number}"), 1 + number % 10, 90_000).unwrap();
        }
        jobs.forget(&HashSet::from([&key]), at(90_001));
        assert!(jobs.keys().count() <= 5_001, "what has no process is bounded");
    }

    #[test]
    fn one_user_cannot_have_jobs_without_end() {
        let mut jobs = JobTable::default();
        for number in 0..OF_ONE_USER {
            declare(&mut jobs, &number.to_string(), 7, 0).unwrap();
        }
        assert!(matches!(declare(&mut jobs, "one-more", 7, 0), Err(Refused::OutOfOrder(_))));
        assert!(declare(&mut jobs, "of-another", 8, 0).is_ok());
        let zero = JobKey { ci: "custom".to_owned(), id: "0".to_owned() };
        assert!(jobs.declare_end(&zero, 7, at(1)).unwrap().is_some());
        assert!(declare(&mut jobs, "one-more", 7, 2).is_ok());
        assert_eq!(jobs.standing(&zero), None, "the oldest that has ended makes room");
    }

    #[test]
    fn the_end_of_a_job_between_two_steps_is_now() {
        let mut jobs = JobTable::default();
        let systems = built_in();
        let system = systems.iter().find(|system| system.name() == "jenkins").unwrap();
        let key = JobKey { ci: "jenkins".to_owned(), id: "c".to_owned() };
        let facts = JobFacts {
            key: key.clone(),
            id: "c".to_owned(),
            name: None,
            repository: None,
            run: None,
            url: None,
        };
        jobs.declare(system, facts, 7, &HashSet::new(), at(0)).unwrap();
        jobs.anchor_at(&key, 50);
        assert_eq!(jobs.exited(50, at(10)).len(), 1, "its last step so far");
        assert_eq!(jobs.declare_end(&key, 7, at(300)).unwrap(), None);
        assert_eq!(jobs.standing(&key).unwrap().over_since, Some(at(300)));
    }

    #[test]
    fn a_job_whose_processes_were_met_first_is_called_as_it_is_declared() {
        let mut jobs = JobTable::default();
        let systems = built_in();
        let system = systems.iter().find(|system| system.name() == "custom").unwrap();
        let key = JobKey { ci: "custom".to_owned(), id: "c".to_owned() };
        let facts = |name: Option<&str>, run: Option<&str>| JobFacts {
            key: key.clone(),
            id: "c".to_owned(),
            name: name.map(str::to_owned),
            repository: None,
            run: run.map(str::to_owned),
            url: None,
        };
        jobs.record(system, facts(None, Some("7")), &key, at(0));
        jobs.declare(system, facts(Some("nightly"), None), 7, &HashSet::new(), at(1)).unwrap();
        let job = jobs.shown(&key).unwrap();
        assert_eq!((job.name.as_deref(), job.run.as_deref()), (Some("nightly"), Some("7")));
    }

    #[test]
    fn two_jobs_of_one_process_both_end_with_it() {
        let mut jobs = JobTable::default();
        for id in ["a", "b"] {
            let key = declare(&mut jobs, id, 0, 0).unwrap().key;
            jobs.anchor_at(&key, 50);
        }
        assert_eq!(jobs.exited(50, at(1)).len(), 2);
    }
}
