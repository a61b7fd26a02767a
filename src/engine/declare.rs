//! What hooks declare about jobs: who may, of which job, and what becomes of its processes.
//!
//! Anybody on the host can ask, and anybody can set a variable. So a declaration is worth as much as the user who makes it: of a job that has
//! others' processes it changes nothing.

use jiff::Timestamp;

use super::jobs::Refused;
use super::{Engine, Recognised};
use crate::judge::ci;
use crate::model::declared::{End, Start};
use crate::model::job::{Job, JobFacts, JobKey};
use crate::model::mask::without_passwords;
use crate::model::process::{Process, ProcessId};

/// The system of a job that is of none.
const CUSTOM: &str = "custom";
/// May declare everything.
const ROOT: u32 = 0;

/// Who declares something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// User.
    pub uid: u32,
    /// The process that asks, where it can be read: a hook's own variables tell which job it is in.
    pub process: Option<Process>,
}

impl Engine {
    /// A job begins. `read` reads a process. Nothing is changed where it is refused.
    pub fn start_job(
        &mut self,
        start: &Start,
        asker: &Asker,
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
        let declared = JobKey { ci: ci.to_owned(), id: start.id.clone() };
        let key = self.meant(&start.id, Some(ci), asker)?.unwrap_or(declared);
        self.may_declare(&key, asker.uid)?;
        // Processes of that SNIFFER_JOB_ID will be this job's, unless they are others'.
        let custom = JobKey { ci: CUSTOM.to_owned(), id: start.id.clone() };
        let renames = self.may_declare(&custom, asker.uid).is_ok();
        let process = start.process.map(|id| self.own_process(id, asker.uid, read, now)).transpose()?;
        let facts = JobFacts {
            key,
            id: start.id.clone(),
            name: start.name.clone(),
            repository: start.repository.as_deref().map(without_passwords),
            run: start.run.clone(),
            url: start.url.as_deref().map(without_passwords),
        };
        let change = self.jobs.declare(&system, facts, asker.uid, &self.processes.jobs(), now)?;
        let key = change.key.clone();
        if renames && self.jobs.alias(&custom, &key) {
            self.processes.rename_job(&custom, &key);
        }
        if let Some(id) = process {
            self.processes.give_job(id, &key);
            self.jobs.anchor_at(&key, id.pid);
        }
        self.note_jobs([change]);
        self.shown_job(&key)
    }

    /// A job ends. Nothing is changed where it is refused.
    pub fn end_job(&mut self, end: &End, asker: &Asker, now: Timestamp) -> Result<Job, Refused> {
        let Some(key) = self.meant(&end.id, end.ci.as_deref(), asker)? else {
            return Err(Refused::Unknown(format!(
                "no job '{}' is known; `sniffer job start --id` begins one, `sniffer job list` names all",
                end.id
            )));
        };
        self.may_declare(&key, asker.uid)?;
        let change = self.jobs.declare_end(&key, asker.uid, now)?;
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

    /// The job that is meant: the one that the asking process is in, where it has that id, else the only one that has.
    fn meant(&self, id: &str, ci: Option<&str>, asker: &Asker) -> Result<Option<JobKey>, Refused> {
        let own = asker.process.as_ref().and_then(|process| ci::recognize(&self.policy.systems, process));
        let is_it = |facts: &JobFacts| {
            (facts.id == id || facts.key.id == id) && ci.is_none_or(|ci| facts.key.ci == ci)
        };
        if let Some((_, facts)) = own.filter(|(_, facts)| is_it(facts)) {
            return Ok(Some(self.jobs.known_as(&facts.key).clone()));
        }
        match self.jobs.of_id(id, ci).as_slice() {
            [] => Ok(None),
            [key] => Ok(Some(key.clone())),
            several => {
                let systems: Vec<&str> = several.iter().map(|key| key.ci.as_str()).collect();
                Err(Refused::Malformed(format!(
                    "several jobs have the id '{id}' ({}): name the system with --ci, or ask within the job",
                    systems.join(", ")
                )))
            }
        }
    }

    /// Root may, and whoever declared it; of a job that nobody declared, who keeps it going: the user of all its anchors, or where it
    /// has none of all its processes. A declaration is no word where its user has no process in the job and others have.
    fn may_declare(&mut self, key: &JobKey, by: u32) -> Result<(), Refused> {
        if by == ROOT {
            return Ok(());
        }
        let users = self.processes.users_of(key);
        let forbidden = Err(Refused::Forbidden(format!(
            "job '{}' is another user's; ask as that user or as root",
            key.id
        )));
        match self.jobs.declared(key) {
            Some(declared) if declared.by == by => return Ok(()),
            Some(declared)
                if declared.by == ROOT || users.is_empty() || users.contains(&Some(declared.by)) =>
            {
                return forbidden;
            }
            Some(_) | None => {}
        }
        let anchors: Vec<Option<u32>> = self.jobs.anchors(key).map(|pid| self.processes.user(pid)).collect();
        let all_own = if anchors.is_empty() {
            users.iter().all(|user| *user == Some(by))
        } else {
            anchors.iter().all(|user| *user == Some(by))
        };
        if !all_own {
            return forbidden;
        }
        if self.jobs.declared(key).is_some() {
            self.jobs.void(key);
        }
        Ok(())
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
            return Err(Refused::Forbidden(format!(
                "process {} is another user's; ask as that user or as root",
                id.pid
            )));
        }
        let id = process.id;
        self.meet(process, now);
        Ok(id)
    }

    /// A process that came from nobody who declared the job that its variables name is not of that job; or else the declaration is none,
    /// where it came first and its user has no process there. One that began after the declared end is not of it either.
    pub(super) fn as_declared(
        &mut self,
        process: &Process,
        (system, facts): Recognised,
    ) -> Option<Recognised> {
        let key = self.jobs.known_as(&facts.key).clone();
        let Some(declared) = self.jobs.declared(&key) else {
            return Some((system, JobFacts { key, ..facts }));
        };
        let by = declared.by;
        let came_from =
            |uid| process.uid == Some(uid) || self.processes.descends_from_user(process.ppid, uid);
        if by != ROOT && !came_from(by) {
            if key.ci != CUSTOM && !self.processes.users_of(&key).contains(&Some(by)) {
                self.jobs.void(&key);
                return Some((system, facts));
            }
            self.counters.attribution_failed("declared_by_another");
            return None;
        }
        let began = self.clock.at_ticks(process.id.start);
        let over =
            declared.ended && began.is_some_and(|began| self.jobs.ended(&key).is_some_and(|end| began > end));
        if over {
            self.counters.attribution_failed("job_had_ended");
            return None;
        }
        Some((system, JobFacts { key, ..facts }))
    }
}
