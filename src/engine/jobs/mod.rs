//! The jobs of the host: first seen with a process's variables, over when the processes that anchor them are gone.

mod declared;
mod kept;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

pub use declared::Refused;
pub use kept::KeptJob;

use declared::Declared;

use super::processes::ProcessTable;
use crate::judge::ci::{Absence, System};
use crate::judge::leak::Standing;
use crate::model::job::{Job, JobFacts, JobKey, JobState};

/// A job that was never seen to have an anchor is taken for over after this long without one, at the least: a process list
/// read while processes start may miss one.
const UNANCHORED: SignedDuration = SignedDuration::from_secs(5);
/// Ended jobs without a living process are remembered this many at the most.
const MAX_ENDED: usize = 5_000;

#[derive(Debug, Clone)]
struct Record {
    facts: JobFacts,
    system: Arc<dyn System>,
    anchors: HashSet<u32>,
    first_seen: Timestamp,
    started: Option<Timestamp>,
    state: JobState,
    ended: Option<Timestamp>,
    over_since: Option<Timestamp>,
    /// Start of the oldest process of the job that was met without an anchor.
    oldest: u64,
    /// Set where a hook told of it.
    declared: Option<Declared>,
    /// The anchors that the hook named.
    named: HashSet<u32>,
}

impl Record {
    fn pause(&self) -> SignedDuration {
        // Whoever declares its end knows.
        if self.is_declared_ended() {
            return SignedDuration::ZERO;
        }
        SignedDuration::try_from(self.system.pause()).unwrap_or(SignedDuration::ZERO)
    }
}

/// The job table.
#[derive(Debug, Default)]
pub(super) struct JobTable {
    records: HashMap<JobKey, Record>,
    /// Pids of the living: the process table tells when one ends or is reused.
    by_anchor: HashMap<u32, HashSet<JobKey>>,
    /// Jobs of other systems that are known by a `SNIFFER_JOB_ID` too.
    aliases: HashMap<String, JobKey>,
    /// Whether what is to be kept of jobs has changed.
    dirty: bool,
}

/// A job whose state has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobChange {
    /// The job.
    pub(super) key: JobKey,
    /// What it is now.
    pub(super) state: JobState,
}

impl JobTable {
    /// A process carries a job's variables: the job is known, and is running where the lineage has an anchor.
    pub(super) fn met(
        &mut self,
        system: &Arc<dyn System>,
        facts: JobFacts,
        pid: u32,
        processes: &ProcessTable,
        at_start: impl Fn(u64) -> Option<Timestamp>,
        now: Timestamp,
    ) -> Option<JobChange> {
        let key = facts.key.clone();
        let record = self.record(system, facts, &key, now);
        record.oldest = record.oldest.min(processes.start(pid).unwrap_or(u64::MAX));
        self.anchor(&key, pid, processes, at_start)
    }

    fn record(
        &mut self,
        system: &Arc<dyn System>,
        facts: JobFacts,
        key: &JobKey,
        now: Timestamp,
    ) -> &mut Record {
        self.records.entry(key.clone()).or_insert_with(|| Record {
            facts,
            system: Arc::clone(system),
            anchors: HashSet::new(),
            first_seen: now,
            started: None,
            state: JobState::Unknown,
            ended: None,
            over_since: None,
            oldest: u64::MAX,
            declared: None,
            named: HashSet::new(),
        })
    }

    /// Processes were met that may be a job's missing ancestors: looks again for the anchors of jobs without one.
    pub(super) fn reconsider(
        &mut self,
        processes: &ProcessTable,
        at_start: impl Fn(u64) -> Option<Timestamp>,
    ) -> Vec<JobChange> {
        let unanchored =
            |key: &JobKey| self.records.get(key).is_some_and(|record| record.state == JobState::Unknown);
        let members: Vec<(u32, JobKey)> = processes
            .with_own_job()
            .filter(|(_, key)| unanchored(key))
            .map(|(pid, key)| (pid, key.clone()))
            .collect();
        members.into_iter().filter_map(|(pid, key)| self.anchor(&key, pid, processes, &at_start)).collect()
    }

    fn anchor(
        &mut self,
        key: &JobKey,
        pid: u32,
        processes: &ProcessTable,
        at_start: impl Fn(u64) -> Option<Timestamp>,
    ) -> Option<JobChange> {
        let record = self.records.get_mut(key).filter(|record| !record.is_declared_ended())?;
        let lineage = processes.lineage(pid);
        let anchor = record.system.anchor(&lineage).and_then(|index| lineage.get(index)).map(|kin| kin.id)?;
        self.by_anchor.entry(anchor.pid).or_default().insert(key.clone());
        if !record.anchors.insert(anchor.pid) {
            return None;
        }
        let began = at_start(anchor.start);
        record.started = match (record.started, began) {
            (Some(known), Some(new)) => Some(known.min(new)),
            (known, new) => known.or(new),
        };
        (record.ended, record.over_since) = (None, None);
        let changed = record.state != JobState::Running;
        record.state = JobState::Running;
        self.dirty = true;
        changed.then(|| JobChange { key: key.clone(), state: JobState::Running })
    }

    /// A process ended; answers with the jobs that ended with it.
    pub(super) fn exited(&mut self, pid: u32, now: Timestamp) -> Vec<JobChange> {
        let mut ended = Vec::new();
        for key in self.by_anchor.remove(&pid).unwrap_or_default() {
            let Some(record) = self.records.get_mut(&key) else { continue };
            record.anchors.remove(&pid);
            record.named.remove(&pid);
            if !record.anchors.is_empty() || record.is_declared_ended() {
                continue;
            }
            record.state = JobState::Ended;
            (record.ended, record.over_since) = (Some(now), Some(now));
            ended.push(JobChange { key, state: JobState::Ended });
            self.dirty = true;
        }
        ended
    }

    /// The processes that keep jobs going.
    pub(super) fn all_anchors(&self) -> Vec<u32> {
        self.by_anchor.keys().copied().collect()
    }

    /// Whether there is a job without an anchor that was met after the processes were last listed.
    pub(super) fn wants_list(&self, listed_at: Timestamp) -> bool {
        self.records
            .values()
            .any(|record| record.state == JobState::Unknown && record.first_seen >= listed_at)
    }

    /// Decides about jobs that were met without an anchor, from what is missing in a list of all processes that was taken
    /// after they were met (`all_seen_at`; `None` where not every process could be read). `watching` says that time will
    /// tell (the daemon), so that a short absence is not yet believed.
    pub(super) fn decide_unanchored(
        &mut self,
        processes: &ProcessTable,
        all_seen_at: Option<Timestamp>,
        watching: bool,
        now: Timestamp,
    ) -> Vec<JobChange> {
        let mut changes = Vec::new();
        for (key, record) in &mut self.records {
            let seen = all_seen_at.is_some_and(|at| record.first_seen < at || !watching);
            if record.state != JobState::Unknown || !seen {
                continue;
            }
            let over = match record.system.absence() {
                // A worker runs one job: one that is known to run another cannot be this one's.
                Absence::OfProcess(comm) => !processes
                    .named(comm)
                    .any(|worker| worker.start <= record.oldest && !self.by_anchor.contains_key(&worker.pid)),

                Absence::OfAnchor if watching => {
                    let wait = record.pause().max(UNANCHORED);
                    now.duration_since(record.first_seen) >= wait
                }
                Absence::OfAnchor => record.pause().is_zero(),
                Absence::ProvesNothing => false,
            };
            if over {
                record.state = JobState::Ended;
                record.over_since = Some(record.first_seen);
                self.dirty = true;
                changes.push(JobChange { key: key.clone(), state: JobState::Ended });
            }
        }
        changes
    }

    /// Forgets jobs without a living process: those of unknown state, and of the others the oldest beyond a bound.
    pub(super) fn forget(&mut self, alive: &HashSet<&JobKey>, now: Timestamp) {
        self.records.retain(|key, record| {
            alive.contains(key) || (record.state != JobState::Unknown && !record.is_endless(now))
        });
        // One that was declared runs without any process, until somebody declares its end.
        let over = |record: &Record| record.state == JobState::Ended || record.anchors.is_empty();
        let dead = self.records.iter().filter(|(key, record)| over(record) && !alive.contains(key));
        let mut old: Vec<(Timestamp, JobKey)> =
            dead.map(|(key, record)| (record.over_since.unwrap_or(record.first_seen), key.clone())).collect();
        old.sort();
        for (_, key) in old.iter().take(old.len().saturating_sub(MAX_ENDED)) {
            self.records.remove(key);
        }
        self.forget_aliases();
    }

    /// A job as far as leaks go.
    pub(super) fn standing(&self, key: &JobKey) -> Option<Standing> {
        self.records.get(key).map(|record| Standing {
            key: key.clone(),
            state: record.state,
            ended: record.ended,
            over_since: record.over_since,
            pause: record.pause(),
        })
    }

    /// A job as documents show it.
    pub(super) fn shown(&self, key: &JobKey) -> Option<Job> {
        let record = self.records.get(key)?;
        let JobFacts { id, name, repository, run, url, .. } = record.facts.clone();
        Some(Job {
            ci: key.ci.clone(),
            id,
            name,
            repository,
            run,
            url,
            state: record.state,
            started: record.started,
            ended: record.ended,
        })
    }

    /// How many jobs of each system are in each state.
    pub(super) fn counts(&self) -> HashMap<(String, JobState), usize> {
        let mut counts = HashMap::new();
        for (key, record) in &self.records {
            *counts.entry((key.ci.clone(), record.state)).or_insert(0) += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::ci::built_in;
    use crate::model::process::fixtures::literal;
    use crate::model::process::{Process, Variables};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    struct Host {
        processes: ProcessTable,
        jobs: JobTable,
    }

    impl Host {
        fn new() -> Self {
            let mut host = Host { processes: ProcessTable::default(), jobs: JobTable::default() };
            let _ = host.processes.read(literal(1, 0, "systemd"), None, at(0));
            host
        }

        fn process(
            &mut self,
            pid: u32,
            ppid: u32,
            comm: &str,
            variables: Variables,
            now: i64,
        ) -> Option<JobChange> {
            let systems = built_in();
            let process = Process { variables, ..literal(pid, ppid, comm) };
            let found = crate::judge::ci::recognize(&systems, &process);
            let own = found.as_ref().map(|(_, facts)| facts.key.clone());
            let _ = self.processes.read(process, own, at(now));
            let (system, facts) = found?;
            self.jobs.met(&system, facts, pid, &self.processes, |start| Some(at(start as i64)), at(now))
        }
    }

    fn github() -> Variables {
        Variables::from([("RUNNER_TRACKING_ID", "github_1")])
    }

    fn key() -> JobKey {
        JobKey { ci: "github".to_owned(), id: "github_1".to_owned() }
    }

    #[test]
    fn a_github_job_ends_with_its_worker_however_that_ends() {
        let mut host = Host::new();
        host.process(5, 1, "Runner.Worker", Variables::default(), 0);
        let change = host.process(6, 5, "bash", github(), 1);
        assert_eq!(change, Some(JobChange { key: key(), state: JobState::Running }));
        assert_eq!(host.jobs.exited(6, at(2)), [], "a step is not the job");
        let change = host.jobs.exited(5, at(9));
        assert_eq!(change, [JobChange { key: key(), state: JobState::Ended }]);
        let shown = host.jobs.shown(&key()).unwrap();
        assert_eq!((shown.started, shown.ended), (Some(at(5)), Some(at(9))));
    }

    #[test]
    fn a_job_with_several_scripts_runs_again_with_the_next() {
        let gitlab = || Variables::from([("GITLAB_CI", "true"), ("CI_JOB_ID", "7")]);
        let mut host = Host::new();
        host.process(4, 1, "gitlab-runner", Variables::default(), 0);
        host.process(5, 4, "bash", Variables::default(), 0);
        host.process(6, 5, "make", gitlab(), 0);
        let ended = host.jobs.exited(5, at(10));
        assert_eq!(ended.first().map(|change| change.state), Some(JobState::Ended));
        host.process(8, 4, "bash", Variables::default(), 11);
        let again = host.process(9, 8, "after", gitlab(), 11).unwrap();
        assert_eq!(again.state, JobState::Running);
        assert_eq!(host.jobs.standing(&again.key).unwrap().over_since, None);
    }

    #[test]
    fn a_leftover_met_late_is_over_when_no_worker_is_old_enough() {
        let mut host = Host::new();
        host.process(50, 1, "server", github(), 100);
        host.process(90, 1, "Runner.Worker", Variables::default(), 100);
        assert_eq!(host.jobs.standing(&key()).unwrap().state, JobState::Unknown);
        let changes = host.jobs.decide_unanchored(&host.processes, None, true, at(101));
        assert_eq!(changes, [], "not all processes were seen: nothing is proven");
        let changes = host.jobs.decide_unanchored(&host.processes, Some(at(100)), true, at(101));
        assert_eq!(changes, [], "the list is older than the job: its worker may be missing in it");
        let changes = host.jobs.decide_unanchored(&host.processes, Some(at(101)), true, at(101));
        assert_eq!(changes, [JobChange { key: key(), state: JobState::Ended }]);
        let standing = host.jobs.standing(&key()).unwrap();
        assert_eq!((standing.ended, standing.over_since), (None, Some(at(100))));
    }

    #[test]
    fn a_worker_that_is_met_after_its_job_is_still_its_anchor() {
        let mut host = Host::new();
        host.process(6, 5, "bash", github(), 0);
        assert_eq!(host.jobs.standing(&key()).unwrap().state, JobState::Unknown);
        host.process(5, 1, "Runner.Worker", Variables::default(), 1);
        let changes = host.jobs.reconsider(&host.processes, |_| None);
        assert_eq!(changes, [JobChange { key: key(), state: JobState::Running }]);
    }

    #[test]
    fn a_worker_that_runs_another_job_is_not_this_ones() {
        let mut host = Host::new();
        host.process(5, 1, "Runner.Worker", Variables::default(), 0);
        host.process(6, 5, "bash", Variables::from([("RUNNER_TRACKING_ID", "github_2")]), 0);
        host.process(50, 1, "server", github(), 100);
        let changes = host.jobs.decide_unanchored(&host.processes, Some(at(101)), true, at(101));
        assert_eq!(changes, [JobChange { key: key(), state: JobState::Ended }]);
    }

    #[test]
    fn a_leftover_met_late_may_belong_to_a_worker_that_is_older() {
        let mut host = Host::new();
        host.process(5, 1, "Runner.Worker", Variables::default(), 0);
        host.process(50, 1, "server", github(), 100);
        assert_eq!(host.jobs.decide_unanchored(&host.processes, Some(at(101)), true, at(9999)), []);
    }

    #[test]
    fn a_job_of_unknown_state_is_forgotten_with_its_last_process() {
        let mut host = Host::new();
        host.process(50, 1, "server", github(), 100);
        host.jobs.forget(&HashSet::from([&key()]), at(200));
        assert!(host.jobs.standing(&key()).is_some());
        host.jobs.forget(&HashSet::new(), at(200));
        assert!(host.jobs.standing(&key()).is_none());
    }
}
