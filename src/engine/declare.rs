//! What hooks declare about jobs: who may, of which job, and what becomes of its processes.

use jiff::Timestamp;

use super::jobs::Refused;
use super::{Engine, Recognised};
use crate::model::declared::{End, Start};
use crate::model::job::{Job, JobFacts, JobKey};
use crate::model::process::{Process, ProcessId};

/// The system of a job that is of none.
const CUSTOM: &str = "custom";
/// May declare everything.
const ROOT: u32 = 0;

impl Engine {
    /// A job begins. `by` is the user who says so; `read` reads a process. Nothing is changed where it is refused.
    pub fn start_job(
        &mut self,
        start: &Start,
        by: u32,
        read: impl FnOnce(u32) -> Option<Process>,
        now: Timestamp,
    ) -> Result<Job, Refused> {
        if let Some(mistake) = start.mistake() {
            return Err(Refused::Malformed(mistake));
        }
        let ci = start.ci.as_deref().unwrap_or(CUSTOM);
        let Some(system) = self.policy.systems.iter().find(|system| system.name() == ci).cloned() else {
            let mut known: Vec<&str> = self.policy.systems.iter().map(|system| system.name()).collect();
            known.dedup();
            let known = known.join(", ");
            return Err(Refused::Malformed(format!("no CI system '{ci}' is known; there are {known}")));
        };
        for key in self.jobs.of_id(&start.id, Some(ci)) {
            self.may_declare(key, by)?;
        }
        let process = start.process.map(|id| self.own_process(id, by, read, now)).transpose()?;
        let facts = JobFacts {
            key: JobKey { ci: ci.to_owned(), id: start.id.clone() },
            id: start.id.clone(),
            name: start.name.clone(),
            repository: start.repository.clone(),
            run: start.run.clone(),
            url: start.url.clone(),
        };
        let change = self.jobs.declare(&system, facts, by, now)?;
        let key = change.key.clone();
        self.processes.rename_job(&JobKey { ci: CUSTOM.to_owned(), id: start.id.clone() }, &key);
        if let Some(id) = process {
            self.processes.give_job(id.pid, &key);
            self.jobs.anchor_at(&key, id.pid);
        }
        self.note_jobs([change]);
        self.shown_job(&key)
    }

    /// A job ends. Nothing is changed where it is refused.
    pub fn end_job(&mut self, end: &End, by: u32, now: Timestamp) -> Result<Job, Refused> {
        let of_id = self.jobs.of_id(&end.id, end.ci.as_deref());
        let key = match of_id.as_slice() {
            [] => {
                return Err(Refused::Unknown(format!(
                    "no job '{}' is known; `sniffer job start --id` begins one, `sniffer job list` names all",
                    end.id
                )));
            }
            [key] => (*key).clone(),
            several => {
                let systems: Vec<&str> = several.iter().map(|key| key.ci.as_str()).collect();
                let systems = systems.join(", ");
                return Err(Refused::Malformed(format!(
                    "several jobs have the id '{}': name its system with --ci ({systems})",
                    end.id
                )));
            }
        };
        self.may_declare(&key, by)?;
        let change = self.jobs.declare_end(&key, by, now)?;
        self.note_jobs(change);
        self.shown_job(&key)
    }

    /// All jobs that are known, the oldest first.
    pub fn all_jobs(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.jobs.keys().filter_map(|key| self.jobs.shown(key)).collect();
        jobs.sort_by(|one, other| {
            (one.started, &one.ci, &one.id).cmp(&(other.started, &other.ci, &other.id))
        });
        jobs
    }

    fn shown_job(&self, key: &JobKey) -> Result<Job, Refused> {
        self.jobs.shown(key).ok_or_else(|| Refused::Unknown(format!("no job '{}' is known", key.id)))
    }

    /// Root may, and whoever declared it; of a job that nobody declared, whose processes are in it.
    fn may_declare(&self, key: &JobKey, by: u32) -> Result<(), Refused> {
        let may = by == ROOT
            || match self.jobs.declared_by(key) {
                Some(declared_by) => by == declared_by,
                None => self.processes.has_process_of(key, by),
            };
        if may { Ok(()) } else { Err(Refused::Forbidden(format!("job '{}' is another user's", key.id))) }
    }

    /// The process that was named: alive, the one that was meant, and the user's own.
    fn own_process(
        &mut self,
        id: ProcessId,
        by: u32,
        read: impl FnOnce(u32) -> Option<Process>,
        now: Timestamp,
    ) -> Result<ProcessId, Refused> {
        let process = read(id.pid).filter(|process| process.id.start.abs_diff(id.start) <= 1 && id.pid > 1);
        let Some(process) = process else {
            return Err(Refused::Unknown(format!(
                "there is no process {} here: it has ended, or lives in another pid namespace",
                id.pid
            )));
        };
        if by != ROOT && process.uid != Some(by) {
            return Err(Refused::Forbidden(format!("process {} is another user's", id.pid)));
        }
        let id = process.id;
        self.meet(process, now);
        Ok(id)
    }

    /// A job that was declared is known by what was declared. A process that came from nobody who declared it is not of that job:
    /// or else anybody could name another's job, and declare its end.
    pub(super) fn as_declared(
        &mut self,
        process: &Process,
        (system, facts): Recognised,
    ) -> Option<Recognised> {
        let Some((key, by)) = self.jobs.declaration_of(&facts) else { return Some((system, facts)) };
        let key = key.clone();
        if by != ROOT && process.uid != Some(by) && !self.processes.descends_from_user(process.ppid, by) {
            self.counters.attribution_failed("declared_by_another");
            return None;
        }
        Some((system, JobFacts { key, ..facts }))
    }
}
