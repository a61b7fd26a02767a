//! Which job a process is of.

use std::collections::{HashMap, HashSet};

use super::{ProcessTable, Record};
use crate::judge::ci::Kin;
use crate::model::job::JobKey;
use crate::model::process::ProcessId;

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

    /// A container whose first process is a job's was started for that job; processes put into it later belong to it.
    pub(in crate::engine) fn jobs_of_containers(&self) -> HashMap<&str, &JobKey> {
        let mut first: HashMap<&str, &Record> = HashMap::new();
        for record in self.records.values() {
            let Some(container) = record.container.as_deref() else { continue };
            let oldest = first.entry(container).or_insert(record);
            if record.start < oldest.start {
                *oldest = record;
            }
        }
        first
            .into_iter()
            .filter_map(|(container, record)| Some((container, record.own_job.as_ref()?)))
            .collect()
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
        if from == to {
            return;
        }
        for record in self.records.values_mut() {
            for job in [&mut record.own_job, &mut record.job].into_iter().flatten() {
                if job == from {
                    job.clone_from(to);
                }
            }
        }
    }

    /// Makes a process a job's, with whatever descends from it and names no job by itself.
    pub(in crate::engine) fn give_job(&mut self, pid: u32, key: &JobKey) {
        for descendant in self.descendants(pid) {
            if let Some(record) = self.records.get_mut(&descendant) {
                if descendant == pid {
                    record.own_job = Some(key.clone());
                }
                if descendant == pid || record.own_job.is_none() {
                    record.job = Some(key.clone());
                }
            }
        }
    }

    /// Whether a job has a living process of this user.
    pub(in crate::engine) fn has_process_of(&self, job: &JobKey, uid: u32) -> bool {
        self.records.values().any(|record| record.uid == Some(uid) && record.job.as_ref() == Some(job))
    }

    /// Whether a process or one of its ancestors is this user's.
    pub(in crate::engine) fn descends_from_user(&self, pid: u32, uid: u32) -> bool {
        let is_of = |record: &Record| record.uid == Some(uid);
        self.records.get(&pid).is_some_and(is_of) || self.ancestors(pid).any(is_of)
    }
}
