//! The processes of the host and the job each belongs to, kept from events and snapshots.
//!
//! Keyed by pid among the living, where the kernel keeps it unique; a pid that comes back with another start time is
//! another process. A job is inherited at fork, so a process that blanks its variables or loses its parent keeps it.

mod membership;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use membership::StartedContainers;

use super::binds::Binder;
use super::graves::Graves;
use crate::judge::test_runner;
use crate::kernel::netns::{Inhabitants, add_inhabitant};
use crate::kernel::process::Glance;
use crate::model::cgroup_path;
use crate::model::job::{JobKey, Test};
use crate::model::process::{Ancestor, Process, ProcessId};

/// Ancestries are followed this far: a bound against cycles that a reused pid could make.
const MAX_GENERATIONS: usize = 64;

#[derive(Debug, Clone)]
struct Record {
    /// `None` between fork and the first reading.
    start: Option<u64>,
    ppid: u32,
    comm: String,
    cmdline: Vec<String>,
    /// Path of its program and its effective user, where its exec was told with them.
    told: Option<(String, u32)>,
    /// Effective user, when it was read last.
    uid: Option<u32>,
    unit: Option<String>,
    container: Option<String>,
    netns: Option<u64>,
    /// The job that its own variables name.
    own_job: Option<JobKey>,
    /// The job it belongs to: its own, else the one it was born into.
    job: Option<JobKey>,
    /// The test it is of: by itself, or as it was born into it.
    test: Option<Arc<Test>>,
    /// False where the environment is closed to this program: then that no variable was found proves nothing.
    readable: bool,
    /// When an event or a reading last told of it: a list that was taken before says nothing about it.
    touched: Timestamp,
    /// Whether it has been seen since the last [`ProcessTable::take_recent`].
    recent: bool,
}

/// Whether a pid that was read is still the process it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Pid {
    /// It is, or it is new.
    Kept,
    /// It was another process, whose end went by unseen.
    Reused,
}

/// The process table.
#[derive(Debug, Default)]
pub(super) struct ProcessTable {
    records: HashMap<u32, Record>,
    /// The other direction of [`Record::ppid`].
    children: HashMap<u32, HashSet<u32>>,
    /// Ends since the last list: a reading taken before one must not bring its process back.
    ended: HashMap<u32, Timestamp>,
    /// Those that ended a short time ago, the last at the end.
    graves: Graves,
    /// Containers that a process of a job started.
    started: StartedContainers,
    /// Processes that hooks named as a job's.
    given: HashMap<ProcessId, JobKey>,
}

/// A process as it is, or was when it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) pid: u32,
    /// Start in clock ticks since boot, where it was read.
    pub(super) start: Option<u64>,
    pub(super) ppid: u32,
    pub(super) comm: String,
    pub(super) cmdline: Vec<String>,
    /// Path of its program and its effective user.
    pub(super) told: Option<(String, u32)>,
    pub(super) unit: Option<String>,
    pub(super) container: Option<String>,
    pub(super) job: Option<JobKey>,
    pub(super) test: Option<Arc<Test>>,
    pub(super) ancestry: Vec<Ancestor>,
}

impl ProcessTable {
    /// A process was made: it is its parent's copy, job included.
    pub(super) fn forked(&mut self, parent: u32, child: u32, now: Timestamp) {
        let Some(of_parent) = self.records.get(&parent) else {
            // Whoever had this pid before has ended unseen; what it left must not be taken for the child's.
            return self.exited(child, now);
        };
        let record = Record {
            start: None,
            ppid: parent,
            own_job: None,
            recent: true,
            touched: now,
            ..of_parent.clone()
        };
        self.insert(child, record);
    }

    fn insert(&mut self, pid: u32, record: Record) {
        self.children.entry(record.ppid).or_default().insert(pid);
        let parent = record.ppid;
        if let Some(before) = self.records.insert(pid, record).filter(|before| before.ppid != parent) {
            self.leave(before.ppid, pid);
        }
    }

    fn leave(&mut self, parent: u32, child: u32) {
        if let Some(siblings) = self.children.get_mut(&parent) {
            siblings.remove(&child);
            if siblings.is_empty() {
                self.children.remove(&parent);
            }
        }
    }

    /// A process was read, at its exec or by a snapshot. `own_job` is what its variables name. A job it was born into
    /// stays, unless its own variables name another; a process met for the first time takes its parent's.
    pub(super) fn read(&mut self, process: Process, own_job: Option<JobKey>, now: Timestamp) -> Pid {
        let test = self.test_of(&process);
        let Process {
            id, ppid, comm, cmdline, told, uid, cgroup, netns, variables_readable: readable, ..
        } = process;
        let own_job = self.given.get(&id).cloned().or(own_job);
        let same = |record: &&Record| record.start.is_none_or(|start| start == id.start);
        let known = self.records.get(&id.pid).filter(same);
        // A reading may be later than the events told so far: while they know a living parent, that one counts.
        let ppid = known
            .map(|record| record.ppid)
            .filter(|told| *told != 1 && self.records.contains_key(told))
            .unwrap_or(ppid);
        let inherited = match known {
            Some(record) => record.job.clone(),
            None => self.job(ppid).filter(|_| ppid != 1).cloned(),
        };
        // A command that is followed inside of a job is a part of that job.
        let of_job = inherited.as_ref().is_some_and(|job: &JobKey| !job.is_run());
        let own_job = own_job.filter(|own| !(own.is_run() && of_job));
        let unit = cgroup.as_deref().and_then(cgroup_path::unit);
        let container = cgroup.as_deref().and_then(cgroup_path::container);
        let told = told.or_else(|| known.and_then(|record| record.told.clone()));
        let recent = known.is_none_or(|record| record.recent);
        let job = own_job
            .clone()
            .or(inherited)
            .or_else(|| container.as_deref().and_then(|id| self.started.job(id)).cloned());
        let record = Record {
            start: Some(id.start),
            ppid,
            comm,
            cmdline,
            told,
            uid,
            unit,
            container,
            netns,
            own_job,
            job,
            test,
            readable,
            recent,
            touched: now,
        };
        let reused = known.is_none() && self.records.contains_key(&id.pid);
        if reused {
            self.exited(id.pid, now);
        }
        if let Some(job) = &record.job {
            let there = |id: &str| self.records.values().any(|one| one.container.as_deref() == Some(id));
            self.started.note(&record.comm, &record.cmdline, job, there, now);
        }
        self.insert(id.pid, record);
        if reused { Pid::Reused } else { Pid::Kept }
    }

    /// The test of a process that was just read. What its parent was born into it is, unless it names another.
    fn test_of(&self, process: &Process) -> Option<Arc<Test>> {
        let same = |record: &&Record| record.start.is_none_or(|start| start == process.id.start);
        let inherited = match self.records.get(&process.id.pid).filter(same) {
            Some(record) => record.test.clone(),
            None => self.test(process.ppid).filter(|_| process.ppid != 1).cloned(),
        };
        let parent = self.records.get(&process.ppid).map(|parent| parent.comm.as_str());
        let found = test_runner::recognize(process, parent, inherited.as_deref())?;
        // Thousands of processes may be of one test.
        Some(inherited.filter(|test| **test == found).unwrap_or_else(|| Arc::new(found)))
    }

    /// A process ran another program and could not be read: what it copied from its parent at fork is not true any more, but
    /// for its descent and its job.
    pub(super) fn unread_exec(&mut self, pid: u32, now: Timestamp) {
        if let Some(record) = self.records.get_mut(&pid) {
            record.comm.clear();
            record.cmdline.clear();
            record.told = None;
            record.touched = now;
        }
    }

    /// Processes and the namespaces they live in now.
    pub(super) fn moved(&mut self, netns: &[(u32, u64)]) {
        for (pid, inode) in netns {
            if let Some(record) = self.records.get_mut(pid) {
                record.netns = Some(*inode);
            }
        }
    }

    /// A process gave itself another name.
    pub(super) fn renamed(&mut self, pid: u32, comm: String) {
        if let Some(record) = self.records.get_mut(&pid) {
            record.comm = comm;
        }
    }

    /// A process ended.
    pub(super) fn exited(&mut self, pid: u32, now: Timestamp) {
        self.ended.insert(pid, now);
        if let Some(remembered) = self.living(pid) {
            self.graves.bury(remembered, now);
        }
        let Some(record) = self.records.remove(&pid) else { return };
        if let Some(start) = record.start {
            self.given.remove(&ProcessId { pid, start });
        }
        self.leave(record.ppid, pid);
        // Orphans go to pid 1 (or a subreaper, which the next reading tells): never to whoever gets this pid next.
        for child in self.children.remove(&pid).unwrap_or_default() {
            if let Some(orphan) = self.records.get_mut(&child) {
                orphan.ppid = 1;
                self.children.entry(1).or_default().insert(child);
            }
        }
    }

    fn living(&self, pid: u32) -> Option<Remembered> {
        let record = self.records.get(&pid)?;
        Some(Remembered {
            pid,
            start: record.start,
            ppid: record.ppid,
            comm: record.comm.clone(),
            cmdline: record.cmdline.clone(),
            told: record.told.clone(),
            unit: record.unit.clone(),
            container: record.container.clone(),
            job: record.job.clone(),
            test: record.test.clone(),
            ancestry: self.ancestry(record.ppid),
        })
    }

    /// Who just bound a socket: what is needed of the process later, since it may end.
    pub(super) fn binder(&self, pid: u32) -> Binder {
        let of = |start: Option<u64>, ppid: u32, comm: &str| Binder {
            pid,
            start,
            ppid: Some(ppid),
            comm: Some(comm).filter(|comm| !comm.is_empty()).map(str::to_owned),
            job: None,
            test: None,
        };
        if let Some(record) = self.records.get(&pid) {
            let (job, test) = (record.job.clone(), record.test.clone());
            return Binder { job, test, ..of(record.start, record.ppid, &record.comm) };
        }
        match self.graves.last(pid, |_| true) {
            Some(grave) => {
                let (job, test) = (grave.job.clone(), grave.test.clone());
                Binder { job, test, ..of(grave.start, grave.ppid, &grave.comm) }
            }
            None => Binder { pid, ..Binder::default() },
        }
    }

    /// Whether this process is alive. One that has run nothing since its fork is known by its pid only.
    pub(super) fn lives(&self, pid: u32, start: Option<u64>) -> bool {
        let same = |record: &Record| record.start.is_none() || start.is_none() || record.start == start;
        self.records.get(&pid).is_some_and(same)
    }

    /// A process that lives or has ended a short time ago. `start` tells it from others that had its pid.
    pub(super) fn remembered(&self, pid: u32, start: Option<u64>) -> Option<Remembered> {
        let is_it = |found: &Remembered| match (found.start, start) {
            // Told in nanoseconds by one and in ticks by the other: rounding may part them by one.
            (Some(found), Some(asked)) => found.abs_diff(asked) <= 1,
            _ => true,
        };
        self.living(pid).filter(is_it).or_else(|| self.graves.last(pid, is_it).cloned())
    }

    /// Whether something was told of this process after that moment, its end included.
    pub(super) fn is_newer(&self, pid: u32, than: Timestamp) -> bool {
        let told = self.records.get(&pid).map(|record| &record.touched).or(self.ended.get(&pid));
        told.is_some_and(|told| *told >= than)
    }

    /// When this process ended, if that was told since then.
    pub(super) fn ended_since(&self, pid: u32, moment: Timestamp) -> Option<Timestamp> {
        let ended = self.ended.get(&pid).filter(|_| !self.records.contains_key(&pid));
        ended.copied().filter(|ended| *ended >= moment)
    }

    /// Forgets those that were no longer alive at that moment; answers who they were.
    pub(super) fn keep_only(&mut self, alive: &HashSet<u32>, at: Timestamp) -> Vec<u32> {
        let gone = |pid: &u32| !alive.contains(pid) && !self.is_newer(*pid, at);
        let gone: Vec<u32> = self.records.keys().copied().filter(gone).collect();
        self.ended.retain(|_, ended| *ended >= at);
        let there: HashSet<&str> =
            self.records.values().filter_map(|record| record.container.as_deref()).collect();
        self.started.forget(&there, at);
        for pid in &gone {
            self.exited(*pid, at);
        }
        gone
    }

    fn ancestors(&self, pid: u32) -> impl Iterator<Item = &Record> {
        self.ancestor_pids(pid).filter_map(|pid| self.records.get(&pid))
    }

    fn ancestor_pids(&self, pid: u32) -> impl Iterator<Item = u32> {
        let parent = |pid: &u32| self.records.get(pid).map(|record| record.ppid).filter(|ppid| *ppid != 0);
        std::iter::successors(parent(&pid), move |pid| parent(pid)).take(MAX_GENERATIONS)
    }

    /// The test of a process.
    pub(super) fn test(&self, pid: u32) -> Option<&Arc<Test>> {
        self.records.get(&pid)?.test.as_ref()
    }

    /// Name and arguments of a process.
    pub(super) fn program(&self, pid: u32) -> Option<(&str, &[String])> {
        self.records.get(&pid).map(|record| (record.comm.as_str(), record.cmdline.as_slice()))
    }

    /// A process and its ancestors, pid 1 left out, as far as their environments are closed to this program.
    pub(super) fn unreadable(&self, pid: u32) -> impl Iterator<Item = u32> {
        let closed = |pid: &u32| *pid != 1 && self.records.get(pid).is_some_and(|record| !record.readable);
        std::iter::once(pid).chain(self.ancestor_pids(pid)).filter(closed)
    }

    /// Whether every environment could be read, that of pid 1 left out: it is no job's.
    pub(super) fn all_readable(&self) -> bool {
        self.records.iter().all(|(pid, record)| record.readable || *pid == 1)
    }

    /// A process and everything that descends from it: those that may have inherited its descriptors.
    pub(super) fn descendants(&self, pid: u32) -> Vec<u32> {
        let mut found = vec![pid];
        let mut seen = HashSet::from([pid]);
        let mut next = 0;
        while let Some(children) = found.get(next).map(|pid| self.children.get(pid)) {
            found.extend(children.into_iter().flatten().filter(|child| seen.insert(**child)));
            next += 1;
        }
        found
    }

    /// A parent, its parent, up to pid 1, for people.
    pub(super) fn ancestry(&self, parent: u32) -> Vec<Ancestor> {
        std::iter::once(parent)
            .chain(self.ancestor_pids(parent))
            .filter_map(|pid| Some(Ancestor { pid, comm: self.records.get(&pid)?.comm.clone() }))
            .collect()
    }

    /// Living processes of a name, with their starts.
    pub(super) fn named<'a>(&'a self, comm: &'a str) -> impl Iterator<Item = ProcessId> + 'a {
        self.records
            .iter()
            .filter(move |(_, record)| record.comm == comm)
            .map(|(pid, record)| ProcessId { pid: *pid, start: record.start.unwrap_or(u64::MAX) })
    }

    /// Start of a living process.
    pub(super) fn start(&self, pid: u32) -> Option<u64> {
        self.records.get(&pid)?.start
    }

    /// Which processes live in which namespace.
    pub(super) fn inhabitants(&self) -> Inhabitants {
        let mut inhabitants = Inhabitants::new();
        for (pid, record) in &self.records {
            if let Some(inode) = record.netns {
                add_inhabitant(&mut inhabitants, inode, *pid);
            }
        }
        inhabitants
    }

    /// What tells whether each is still the process that was read.
    pub(super) fn glances(&self) -> HashMap<u32, Glance> {
        let glance = |record: &Record| Glance { start: record.start, comm: record.comm.clone() };
        self.records.iter().map(|(pid, record)| (*pid, glance(record))).collect()
    }

    /// How many processes are known.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The processes that appeared since the last [`ProcessTable::take_recent`].
    pub(super) fn recent(&self) -> impl Iterator<Item = u32> {
        self.records.iter().filter(|(_, record)| record.recent).map(|(pid, _)| *pid)
    }

    /// The processes that appeared since the last call: the likeliest holders of a socket that appeared since then.
    pub(super) fn take_recent(&mut self) -> Vec<u32> {
        let recent = self.records.iter_mut().filter(|(_, record)| record.recent);
        recent
            .map(|(pid, record)| {
                record.recent = false;
                *pid
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::model::process::fixtures::literal;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn job(id: &str) -> JobKey {
        JobKey { ci: "github".to_owned(), id: id.to_owned() }
    }

    fn table() -> ProcessTable {
        let mut table = ProcessTable::default();
        let _ = table.read(literal(1, 0, "systemd"), None, NOW);
        let _ = table.read(literal(10, 1, "bash"), Some(job("a")), NOW);
        table
    }

    #[test]
    fn an_ended_process_is_remembered_for_a_while_and_told_from_the_next_with_its_pid() {
        let mut table = table();
        let later = |seconds| NOW + SignedDuration::from_secs(seconds);
        table.exited(10, later(1));
        let _ = table.read(
            Process { id: ProcessId { pid: 10, start: 99 }, ..literal(10, 1, "next") },
            None,
            later(2),
        );
        let was = table.remembered(10, Some(10)).unwrap();
        assert_eq!((was.comm.as_str(), was.job), ("bash", Some(job("a"))));
        assert_eq!(was.ancestry, [Ancestor { pid: 1, comm: "systemd".to_owned() }]);
        assert_eq!(table.remembered(10, Some(99)).unwrap().comm, "next");
        table.exited(10, later(30));
        assert_eq!(table.remembered(10, Some(10)), None);
    }

    #[test]
    fn a_process_that_blanked_its_variables_keeps_the_job_it_was_born_into() {
        let mut table = table();
        table.forked(10, 11, NOW);
        let _ = table.read(
            Process { id: ProcessId { pid: 11, start: 11 }, ..literal(11, 10, "evader") },
            None,
            NOW,
        );
        assert_eq!(table.job(11), Some(&job("a")));
    }

    #[test]
    fn a_daemonised_grandchild_keeps_its_job() {
        let mut table = table();
        table.forked(10, 11, NOW);
        table.forked(11, 12, NOW);
        table.exited(11, NOW);
        table.exited(10, NOW);
        let _ = table.read(literal(12, 1, "server"), None, NOW);
        assert_eq!(table.job(12), Some(&job("a")));
        assert_eq!(table.lineage(12).iter().map(|kin| kin.id.pid).collect::<Vec<_>>(), [12, 1]);
    }

    #[test]
    fn own_variables_count_more_than_birth() {
        let mut table = table();
        table.forked(10, 11, NOW);
        let _ = table.read(literal(11, 10, "nested"), Some(job("b")), NOW);
        assert_eq!(table.job(11), Some(&job("b")));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut table = table();
        let other = Process { id: ProcessId { pid: 10, start: 99 }, ..literal(10, 1, "cron") };
        assert_eq!(table.read(other, None, NOW), Pid::Reused);
        assert_eq!(table.job(10), None);
    }

    #[test]
    fn processes_met_in_no_order_find_their_jobs() {
        let mut table = ProcessTable::default();
        let _ = table.read(literal(12, 11, "server"), None, NOW);
        let _ = table.read(literal(11, 10, "sh"), None, NOW);
        let _ = table.read(literal(10, 1, "bash"), Some(job("a")), NOW);
        table.settle_jobs();
        assert_eq!(table.job(12), Some(&job("a")));
    }

    #[test]
    fn what_is_put_into_a_jobs_container_is_the_jobs() {
        let inside = |process| Process { cgroup: Some(format!("/docker/{}", "a".repeat(64))), ..process };
        let mut table = ProcessTable::default();
        let _ = table.read(inside(literal(20, 5, "sh")), Some(job("a")), NOW);
        let _ = table.read(inside(literal(30, 5, "execed")), None, NOW);
        table.settle_jobs();
        assert_eq!(table.job(30), Some(&job("a")));
    }

    #[test]
    fn a_cycle_of_parents_ends() {
        let mut table = ProcessTable::default();
        let _ = table.read(literal(2, 3, "a"), None, NOW);
        let _ = table.read(literal(3, 2, "b"), None, NOW);
        assert!(table.ancestry(2).len() <= MAX_GENERATIONS + 1);
        assert_eq!(table.lineage(4).len(), 0);
    }

    #[test]
    fn a_command_that_is_followed_inside_of_a_job_is_a_part_of_that_job() {
        let job = JobKey { ci: "tekton".to_owned(), id: "pod".to_owned() };
        let run = JobKey { ci: "custom".to_owned(), id: "run-12.5.1".to_owned() };
        let mut table = table();
        let _ = table.read(literal(11, 10, "entrypoint"), Some(job.clone()), NOW);
        let _ = table.read(literal(12, 11, "make"), Some(run.clone()), NOW);
        assert_eq!((table.job(12), table.own_job(12)), (Some(&job), None));
        let _ = table.read(literal(13, 1, "make"), Some(run.clone()), NOW);
        assert_eq!(table.job(13), Some(&run), "outside of any job it is one itself");
    }

    #[test]
    fn descendants_are_found() {
        let mut table = table();
        table.forked(10, 11, NOW);
        table.forked(11, 12, NOW);
        table.forked(1, 13, NOW);
        let mut found = table.descendants(10);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12]);
    }

    #[test]
    fn a_list_says_nothing_about_what_was_told_after_it_was_taken() {
        let later = Timestamp::from_second(10).unwrap();
        let mut table = table();
        table.forked(10, 11, later);
        let gone = table.keep_only(&HashSet::from([1]), Timestamp::from_second(5).unwrap());
        assert_eq!(gone, [10]);
        assert!(table.program(11).is_some(), "born after the list was taken");
    }

    #[test]
    fn a_reading_from_before_its_end_brings_no_process_back() {
        let mut table = table();
        table.exited(10, Timestamp::from_second(7).unwrap());
        assert!(table.is_newer(10, Timestamp::from_second(5).unwrap()));
        assert!(!table.is_newer(10, Timestamp::from_second(8).unwrap()));
    }

    #[test]
    fn a_reading_that_is_ahead_of_the_events_does_not_lose_the_parent() {
        let mut table = table();
        table.forked(10, 11, NOW);
        // Read when its parent had ended already, of which no event has told yet.
        let _ = table.read(literal(11, 1, "server"), Some(job("a")), NOW);
        assert_eq!(table.lineage(11).iter().map(|kin| kin.id.pid).collect::<Vec<_>>(), [11, 10, 1]);
    }

    #[test]
    fn a_program_that_could_not_be_read_does_not_keep_its_parents_name() {
        let mut table = table();
        table.forked(10, 11, NOW);
        assert_eq!(table.program(11).map(|(comm, _)| comm), Some("bash"));
        table.unread_exec(11, NOW);
        assert_eq!((table.program(11).map(|(comm, _)| comm), table.job(11)), (Some(""), Some(&job("a"))));
    }
}
