//! Which job a process is of.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::{ProcessTable, Record};
use crate::judge::ci::Kin;
use crate::judge::container_client;
use crate::model::job::JobKey;
use crate::model::process::ProcessId;

/// A container that was started and has no process is forgotten after so long.
const TO_START: SignedDuration = SignedDuration::from_mins(1);
/// So many are remembered at the most.
const MAX_STARTED: usize = 10_000;

/// Containers that processes of jobs started, by their ids.
#[derive(Debug, Default)]
pub(super) struct StartedContainers(HashMap<String, (JobKey, Timestamp)>);

impl StartedContainers {
    /// The job that started a container.
    pub(super) fn job(&self, id: &str) -> Option<&JobKey> {
        self.0.get(id).map(|(job, _)| job)
    }

    /// Notes what a job's process starts. A container that has a process already (`is_there`) runs, and was somebody's before.
    pub(super) fn note(
        &mut self,
        comm: &str,
        cmdline: &[String],
        job: &JobKey,
        is_there: impl Fn(&str) -> bool,
        now: Timestamp,
    ) {
        for id in container_client::starts(comm, cmdline) {
            // Whoever said so last knows best.
            if (self.0.len() < MAX_STARTED || self.0.contains_key(id)) && !is_there(id) {
                self.0.insert(id.to_owned(), (job.clone(), now));
            }
        }
    }

    /// Forgets those without a process.
    pub(super) fn forget(&mut self, there: &HashSet<&str>, now: Timestamp) {
        let is_new = |since: Timestamp| now.duration_since(since) < TO_START;
        self.0.retain(|id, (_, since)| is_new(*since) || there.contains(id.as_str()));
    }
}

impl ProcessTable {
    /// Takes jobs from parents, and in a container from its oldest process, for processes met in no order.
    pub(in crate::engine) fn settle_jobs(&mut self) {
        let by_container = self.jobs_of_containers();
        let of_container = |record: &Record| {
            record.container.as_deref().and_then(|id| by_container.get(id)).map(|job| (*job).clone())
        };
        let found: Vec<(u32, JobKey)> = self
            .records
            .iter()
            .filter(|(_, record)| record.job.is_none())
            .filter_map(|(pid, record)| {
                let inherited = self.ancestors(*pid).find_map(|record| record.job.clone());
                Some((*pid, inherited.or_else(|| of_container(record))?))
            })
            .collect();
        for (pid, job) in found {
            if let Some(record) = self.records.get_mut(&pid) {
                record.job = Some(job);
            }
        }
    }

    /// A container that a job started, or whose first process is a job's, is that job's; so are processes that are put into it later.
    pub(in crate::engine) fn jobs_of_containers(&self) -> HashMap<&str, &JobKey> {
        let mut first: HashMap<&str, &Record> = HashMap::new();
        for record in self.records.values() {
            let Some(container) = record.container.as_deref() else { continue };
            let oldest = first.entry(container).or_insert(record);
            if record.start < oldest.start {
                *oldest = record;
            }
        }
        let by_first =
            first.into_iter().filter_map(|(container, record)| Some((container, record.own_job.as_ref()?)));
        self.started.0.iter().map(|(id, (job, _))| (id.as_str(), job)).chain(by_first).collect()
    }

    /// The jobs that have a living process.
    pub(in crate::engine) fn jobs(&self) -> HashSet<&JobKey> {
        self.records.values().filter_map(|record| record.job.as_ref()).collect()
    }

    /// The job of a process.
    pub(in crate::engine) fn job(&self, pid: u32) -> Option<&JobKey> {
        self.records.get(&pid)?.job.as_ref()
    }

    /// The job that its own variables name.
    pub(in crate::engine) fn own_job(&self, pid: u32) -> Option<&JobKey> {
        self.records.get(&pid)?.own_job.as_ref()
    }

    /// A process and its ancestors, up to pid 1, for a CI system to judge. Processes without a reading are left out.
    pub(in crate::engine) fn lineage(&self, pid: u32) -> Vec<Kin<'_>> {
        std::iter::once(pid)
            .chain(self.ancestor_pids(pid))
            .filter_map(|pid| {
                let record = self.records.get(&pid)?;
                Some(Kin {
                    id: ProcessId { pid, start: record.start.unwrap_or(u64::MAX) },
                    comm: &record.comm,
                    cmdline: &record.cmdline,
                    own_job: record.own_job.as_ref(),
                })
            })
            .collect()
    }

    /// Processes whose own variables name a job.
    pub(in crate::engine) fn with_own_job(&self) -> impl Iterator<Item = (u32, &JobKey)> {
        self.records.iter().filter_map(|(pid, record)| Some((*pid, record.own_job.as_ref()?)))
    }

    /// From now on a job has another name.
    pub(in crate::engine) fn rename_job(&mut self, from: &JobKey, to: &JobKey) {
        for record in self.records.values_mut() {
            for job in [&mut record.own_job, &mut record.job].into_iter().flatten() {
                if job == from {
                    job.clone_from(to);
                }
            }
        }
    }

    /// Makes a process a job's, with whatever descends from it and names no job by itself; also one that is not known yet.
    pub(in crate::engine) fn give_job(&mut self, id: ProcessId, key: &JobKey) {
        self.given.insert(id, key.clone());
        if self.start(id.pid) != Some(id.start) {
            return;
        }
        for descendant in self.descendants(id.pid) {
            if let Some(record) = self.records.get_mut(&descendant) {
                if descendant == id.pid {
                    record.own_job = Some(key.clone());
                }
                if descendant == id.pid || record.own_job.is_none() {
                    record.job = Some(key.clone());
                }
            }
        }
    }

    /// The users of a job's living processes.
    pub(in crate::engine) fn users_of(&self, job: &JobKey) -> HashSet<Option<u32>> {
        let of_job = self.records.values().filter(|record| record.job.as_ref() == Some(job));
        of_job.map(|record| record.uid).collect()
    }

    /// The user of a process, where it is known.
    pub(in crate::engine) fn user(&self, pid: u32) -> Option<u32> {
        self.records.get(&pid)?.uid
    }

    /// Whether a process or one of its ancestors is this user's.
    pub(in crate::engine) fn descends_from_user(&self, pid: u32, uid: u32) -> bool {
        let is_of = |record: &Record| record.uid == Some(uid);
        self.records.get(&pid).is_some_and(is_of) || self.ancestors(pid).any(is_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::process::Process;
    use crate::model::process::fixtures::literal;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn job() -> JobKey {
        JobKey { ci: "github".to_owned(), id: "a".to_owned() }
    }

    /// What a job's worker runs, and then a process that the engine puts into the container.
    fn after(before: &[(u32, &str)], command: &[&str]) -> ProcessTable {
        let mut table = ProcessTable::default();
        let inside =
            |pid, id: &str| Process { cgroup: Some(format!("/docker/{id}")), ..literal(pid, 2, "sh") };
        for (pid, id) in before {
            let _ = table.read(inside(*pid, id), None, NOW);
        }
        let _ = table.read(literal(10, 1, "Runner.Worker"), Some(job()), NOW);
        let cmdline = command.iter().map(|word| (*word).to_owned()).collect();
        let _ = table.read(Process { cmdline, ..literal(11, 10, "docker") }, None, NOW);
        let _ = table.read(inside(30, &"4f".repeat(32)), None, NOW);
        table.settle_jobs();
        table
    }

    #[test]
    fn what_runs_in_a_container_that_a_job_started_is_the_jobs() {
        let id = "4f".repeat(32);
        assert_eq!(after(&[], &["docker", "start", &id]).job(30), Some(&job()));
        assert_eq!(after(&[], &["docker", "exec", "-i", &id, "sh"]).job(30), None, "it is only entered");
        let running = after(&[(20, &id)], &["docker", "start", &id]);
        assert_eq!((running.job(20), running.job(30)), (None, None), "it ran before");
    }

    #[test]
    fn containers_that_never_started_are_forgotten() {
        let mut table = after(&[], &["docker", "start", &"5a".repeat(32)]);
        assert_eq!(table.started.0.len(), 1);
        let later = NOW + SignedDuration::from_mins(2);
        let _ = table.keep_only(&HashSet::from([10, 30]), later);
        assert_eq!(table.started.0.len(), 0);
    }
}
