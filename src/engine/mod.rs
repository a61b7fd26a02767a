//! The table of ports, processes and jobs, and the judgement over them. One owner; no I/O.
//!
//! The engine is told what was seen ([`Engine::event`], [`Engine::findings`], [`Engine::process_list`]), says what to look
//! at next ([`Engine::plan`]), and answers. The daemon does that for ever ([`agent`]), a one-shot verb once ([`oneshot`]).

pub mod agent;
mod answer;
mod binds;
mod conflicts;
mod declare;
mod ends;
mod gaps;
mod graves;
mod holds;
mod jobs;
mod nat;
pub mod oneshot;
mod ports;
mod processes;
mod question;
pub mod status;
mod verdicts;

pub use answer::Unanswerable;
pub use declare::Asker;
pub use holds::{KeptHold, Records};
pub use jobs::{KeptJob, Refused};
pub use question::{Question, Topic};
pub use verdicts::{Leak, Notice, Sharing};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use binds::BindTable;
use conflicts::ConflictTable;
use ends::Ends;
use gaps::Gaps;
use holds::HoldTable;
use jobs::{JobChange, JobTable};
use nat::NatTable;
use ports::PortTable;
use processes::{Pid, ProcessTable};

use crate::judge::ci::{self, System};
use crate::judge::leak::Watching;
use crate::judge::sharing::Group;
use crate::kernel::Gap;
use crate::kernel::clock::BootClock;
use crate::kernel::descriptors::NetnsDescriptors;
use crate::kernel::look::{Findings, ProcessList};
use crate::kernel::mounts::NetnsMount;
use crate::kernel::proc_events::ProcessEvent;
use crate::kernel::process::Glance;
use crate::kernel::sock_diag::Depth;
use crate::model::job::JobFacts;
use crate::model::process::{Exit, Process, ProcessId};
use crate::model::socket::SocketKey;

/// The parent of the kernel's threads has this pid on every Linux.
const KTHREADD: u32 = 2;

/// What judgement depends on, from the configuration.
#[derive(Debug)]
pub struct Policy {
    /// Time between the end of a job and the leak of its listeners.
    pub grace: SignedDuration,
    /// Programs that may outlive jobs.
    pub exempt: Vec<String>,
    /// CI systems, the configured ones first.
    pub systems: Vec<Arc<dyn System>>,
    /// Whether to read NAT rules.
    pub nat: bool,
}

/// A job named by a process's variables, with the system that recognised it.
type Recognised = (Arc<dyn System>, JobFacts);

/// The engine.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    clock: BootClock,
    watching: Watching,
    processes: ProcessTable,
    jobs: JobTable,
    ports: PortTable,
    nat: NatTable,
    netns_descriptors: NetnsDescriptors,
    netns_mounts: Vec<NetnsMount>,
    gaps: Gaps,
    /// When the list of processes was taken that was last told.
    listed_at: Timestamp,
    /// Whether that was of the whole host.
    sees_host: bool,
    notices: Vec<Notice>,
    leaks: HashMap<SocketKey, Leak>,
    /// When the first verdict changes by itself.
    verdict_until: Option<Timestamp>,
    binds: BindTable,
    conflicts: ConflictTable,
    ends: Ends,
    holds: HoldTable,
    /// What is to be remembered, beside the holds.
    records: Records,
    shared: BTreeMap<Group, Sharing>,
    /// The kernel's own choice of ports, where it could be read.
    ephemeral: Option<(u16, u16)>,
    counters: status::Counters,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(policy: Policy, clock: BootClock, watching: Watching) -> Self {
        Engine {
            policy,
            clock,
            watching,
            processes: ProcessTable::default(),
            jobs: JobTable::default(),
            ports: PortTable::default(),
            nat: NatTable::default(),
            netns_descriptors: NetnsDescriptors::new(),
            netns_mounts: Vec::new(),
            gaps: Gaps::default(),
            listed_at: Timestamp::UNIX_EPOCH,
            sees_host: true,
            notices: Vec::new(),
            leaks: HashMap::new(),
            verdict_until: None,
            binds: BindTable::default(),
            conflicts: ConflictTable::default(),
            ends: Ends::default(),
            holds: HoldTable::default(),
            records: Records::default(),
            shared: BTreeMap::new(),
            ephemeral: None,
            counters: status::Counters::default(),
        }
    }

    /// The range of ports that the kernel chooses from (`ip_local_port_range`).
    pub fn set_ephemeral(&mut self, range: Option<(u16, u16)>) {
        self.ephemeral = range;
    }

    /// Another policy from now on. Jobs already known stay.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Jobs that were kept by the agent before this one, whose clock began at `booted`. `start` tells when a living process began.
    pub fn restore(&mut self, kept: Vec<KeptJob>, booted: Timestamp, start: impl Fn(u32) -> Option<u64>) {
        // Told in ticks by one and in nanoseconds by the other, a start may differ by one.
        let alive = |id: ProcessId| {
            let now = start(id.pid).filter(|start| start.abs_diff(id.start) <= 1)?;
            Some(ProcessId { start: now, ..id })
        };
        let shift = self.clock.booted().duration_since(booted);
        let given = self.jobs.restore(kept, &self.policy.systems, alive, shift, self.clock.now());
        for (id, key) in given {
            self.processes.give_job(id, &key);
        }
    }

    /// The same as [`Engine::kept_jobs`], if something of it may have changed since the last call.
    pub fn changed_jobs(&mut self) -> Option<Vec<KeptJob>> {
        self.jobs.take_dirty().then(|| self.kept_jobs())
    }

    /// Jobs that the next agent could not know by their processes.
    pub fn kept_jobs(&self) -> Vec<KeptJob> {
        self.jobs.keep(&self.processes.jobs(), |pid| self.processes.start(pid))
    }

    /// What happened to processes, in order. An exec comes with what was read of the process. Answers whether it may have
    /// changed who holds a port: the kernel's own threads come and go on an idle host too.
    pub fn event(&mut self, event: ProcessEvent, read: Option<Process>, now: Timestamp) -> bool {
        match event {
            ProcessEvent::Forked { parent, child } => {
                self.ends.began(child);
                self.processes.forked(parent, child, now);
                self.ports.forked(parent, child, now);
                parent != KTHREADD
            }
            ProcessEvent::Execed { pid } => {
                self.ports.unsettle(pid, now);
                self.holds.forget_process(pid);
                match read {
                    Some(process) => self.meet(process, now),
                    None => self.processes.unread_exec(pid, now),
                }
                true
            }
            ProcessEvent::Renamed { pid, comm } => {
                self.processes.renamed(pid, comm);
                self.holds.forget_process(pid);
                false
            }
            ProcessEvent::Exited { pid, exit } => {
                self.ended(pid, exit, now);
                self.processes.exited(pid, now);
                let change = self.jobs.exited(pid, now);
                let matters = self.ports.exited(pid, now) || !change.is_empty();
                self.note_jobs(change);
                matters
            }
            ProcessEvent::OomKilled { pid } => {
                self.ends.chosen(pid, now);
                false
            }
            ProcessEvent::ThreadExited { .. } | ProcessEvent::Fence { .. } => false,
        }
    }

    /// Events were lost: nothing that was inferred from them holds until the next looks.
    pub fn events_lost(&mut self, now: Timestamp) {
        self.ports.unsettle_all(now);
    }

    /// The list of processes, with those read that were not known.
    pub fn process_list(&mut self, list: ProcessList, now: Timestamp) {
        if list.gaps.iter().any(|gap| matches!(gap, Gap::Processes(_))) {
            self.gaps.processes = list.gaps;
            return;
        }
        let mut gone: HashSet<u32> =
            self.processes.keep_only(&list.alive, list.taken_at).into_iter().collect();
        // Known from before a restart, and ended before it was listed.
        let is_gone = |pid: &u32| !list.alive.contains(pid) && !self.processes.is_newer(*pid, list.taken_at);
        gone.extend(self.jobs.all_anchors().into_iter().filter(is_gone));
        for pid in gone {
            self.ended(pid, None, now);
            self.ports.exited(pid, now);
            let change = self.jobs.exited(pid, now);
            self.note_jobs(change);
        }
        // Parents first: most jobs are then inherited at once, and anchors are found in whole lineages.
        let mut fresh = list.fresh;
        fresh.retain(|process| !self.processes.is_newer(process.id.pid, list.taken_at));
        fresh.sort_by_key(|process| process.id.start);
        let read: Vec<(u32, Option<Recognised>)> = fresh
            .into_iter()
            .map(|process| {
                let recognised = self.recognise(&process);
                (self.enter(process, recognised.as_ref(), now), recognised)
            })
            .collect();
        for (pid, recognised) in read {
            self.join_own(recognised, pid, now);
        }
        self.processes.settle_jobs();
        self.processes.moved(&list.netns);
        self.gaps.processes = list.gaps;
        self.sees_host = list.of_host;
        self.listed_at = list.taken_at;
        let clock = self.clock;
        let changes = self.jobs.reconsider(&self.processes, |ticks| clock.at_ticks(ticks));
        self.note_jobs(changes);
        self.decide_jobs(now);
        self.jobs.forget(&self.processes.jobs(), now);
    }

    /// Whether a list of processes is needed to decide about a job.
    pub fn wants_list(&self) -> bool {
        self.jobs.wants_list(self.listed_at)
    }

    /// Decides about jobs that were met without the process that ends them.
    fn decide_jobs(&mut self, now: Timestamp) {
        let all_seen = self.sees_host && self.gaps.processes.is_empty() && self.processes.all_readable();
        let all_seen_at = all_seen.then_some(self.listed_at);
        let watching = self.watching == Watching::Continuously;
        let changes = self.jobs.decide_unanchored(&self.processes, all_seen_at, watching, now);
        self.note_jobs(changes);
    }

    /// A process ended, and how, where that was told.
    fn ended(&mut self, pid: u32, exit: Option<Exit>, now: Timestamp) {
        self.ends.ended(pid, exit, now);
        self.holds.forget_process(pid);
    }

    fn meet(&mut self, process: Process, now: Timestamp) {
        let recognised = self.recognise(&process);
        let pid = self.enter(process, recognised.as_ref(), now);
        self.join_own(recognised, pid, now);
    }

    /// Makes a process one of the job that was recognised, unless the table knows better: a `sniffer run` inside a job is none.
    fn join_own(&mut self, recognised: Option<Recognised>, pid: u32, now: Timestamp) {
        if let Some(recognised) =
            recognised.filter(|(_, facts)| self.processes.own_job(pid) == Some(&facts.key))
        {
            self.join(recognised, pid, now);
        }
    }

    /// Enters a process into the table; one that had its pid before has ended unseen.
    fn enter(&mut self, process: Process, recognised: Option<&Recognised>, now: Timestamp) -> u32 {
        let pid = process.id.pid;
        if self.processes.read(process, recognised.map(|(_, facts)| facts.key.clone()), now) == Pid::Reused {
            let change = self.jobs.exited(pid, now);
            self.note_jobs(change);
        }
        pid
    }

    fn recognise(&mut self, process: &Process) -> Option<Recognised> {
        if !process.variables_readable {
            self.counters.attribution_failed("environment_denied");
        }
        let recognised = ci::recognize(&self.policy.systems, process)?;
        self.as_declared(process, recognised)
    }

    fn join(&mut self, (system, facts): Recognised, pid: u32, now: Timestamp) {
        let clock = self.clock;
        let change = self.jobs.met(&system, facts, pid, &self.processes, |ticks| clock.at_ticks(ticks), now);
        self.note_jobs(change);
    }

    fn note_jobs(&mut self, changes: impl IntoIterator<Item = JobChange>) {
        for change in changes {
            if let Some(job) = self.jobs.shown(&change.key) {
                self.notices.push(Notice::Job(change.state, Box::new(job)));
            }
            self.records.records.extend(self.job_record(&change.key, self.clock.step()));
        }
    }

    /// What a look saw.
    pub fn findings(&mut self, findings: &Findings) {
        if findings.read_everywhere {
            for (key, holders) in &findings.holders {
                if holders.is_empty() && !self.ports.is_known_orphan(key) {
                    self.counters.attribution_failed("no_holder");
                }
            }
        }
        let mut met = false;
        for process in &findings.processes {
            let known = self.processes.start(process.id.pid) == Some(process.id.start);
            if !known && !self.processes.is_newer(process.id.pid, findings.taken_at) {
                self.meet(process.clone(), findings.taken_at);
                met = true;
            }
        }
        if met {
            self.processes.settle_jobs();
        }
        self.ports.apply(findings);
        // What was read of a process may be older than its end.
        for pid in findings.holders.values().flatten().map(|held| held.pid) {
            if let Some(at) = self.processes.ended_since(pid, findings.taken_at) {
                self.ports.exited(pid, at);
            }
        }
        self.nat.apply(findings);
        if findings.all_netns && findings.query.ports.is_none() && findings.query.depth == Depth::Everything {
            let seen: HashSet<u64> = self.ports.entries().map(|entry| entry.socket.key.cookie).collect();
            self.binds.reconcile(|cookie| seen.contains(&cookie), findings.taken_at);
        }
        if let Some(descriptors) = &findings.netns_descriptors {
            self.netns_descriptors.clone_from(descriptors);
            self.gaps.descriptors =
                findings.gaps.iter().filter(|gap| gap.is_of_descriptors()).cloned().collect();
        }
        if let Some(mounts) = &findings.netns_mounts {
            self.netns_mounts.clone_from(mounts);
        }
        if findings.all_netns {
            self.gaps.namespaces = findings.gaps.iter().filter(|gap| gap.lasts()).cloned().collect();
        }
    }

    /// Takes what is worth a log line since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// The processes that are known, for a list of what is new.
    pub fn known_processes(&self) -> HashMap<u32, Glance> {
        self.processes.glances()
    }
}
