//! The table of ports, processes and jobs, and the judgement over them. One owner; no I/O.
//!
//! The engine is told what was seen ([`Engine::event`], [`Engine::findings`], [`Engine::process_list`]), says what to look
//! at next ([`Engine::plan`]), and answers. The daemon does that for ever ([`agent`]), a one-shot verb once ([`oneshot`]).

pub mod agent;
mod answer;
mod binds;
mod conflicts;
mod jobs;
pub mod oneshot;
mod ports;
mod processes;
pub mod status;

pub use answer::Unanswerable;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use binds::BindTable;
use conflicts::ConflictTable;
use jobs::{JobChange, JobTable};
use ports::{Entry, PortTable};
use processes::{Pid, ProcessTable};

use crate::judge::ci::{self, System};
use crate::judge::exempt::{self, Program};
use crate::judge::leak::{self, HolderStanding, Judgement, Watching};
use crate::judge::sharing::{self, Group, Member};
use crate::kernel::Gap;
use crate::kernel::clock::BootClock;
use crate::kernel::descriptors::{Descriptor, NetnsDescriptors};
use crate::kernel::look::{Describe, Everywhere, Findings, Plan, ProcessList, Search, WhenFree};
use crate::kernel::mounts::NetnsMount;
use crate::kernel::proc_events::ProcessEvent;
use crate::kernel::process::Glance;
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::model::answer::Query;
use crate::model::claim::Verdict;
use crate::model::conflict::Conflict;
use crate::model::job::{Job, JobFacts, JobState};
use crate::model::netns::{Netns, NetnsSelector};
use crate::model::process::Process;
use crate::model::socket::{ClaimKind, Protocol, SocketKey};
use crate::model::target::Target;

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
}

/// A question that is answered from a look of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub topic: Topic,
    /// Only this namespace.
    pub netns: Option<NetnsSelector>,
}

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// `who-holds TARGET`.
    Target(Target),
    /// `list`.
    All,
    /// `leaks`.
    Leaks,
}

impl Question {
    fn target(&self) -> Option<&Target> {
        match &self.topic {
            Topic::Target(target) => Some(target),
            Topic::All | Topic::Leaks => None,
        }
    }

    fn query(&self) -> Query {
        Query::new(self.target(), self.netns.as_ref())
    }
}

/// A change that is worth a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A job was met, or ended.
    Job(JobState, Box<Job>),
    /// A listener leaked (`true`), or a leaked one is gone or excused (`false`).
    Leak(bool, Box<Leak>),
    /// A bind was refused. Those that repeat it are not told.
    Conflict(Box<Conflict>),
    /// A port is shared silently by several jobs (`true`), or not any more (`false`).
    Shared(bool, Box<Sharing>),
}

/// A port that several jobs share without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// Where.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// The jobs.
    pub jobs: Vec<Job>,
}

/// A leaked listener, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The socket.
    pub key: SocketKey,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Local port.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// First holder's pid and name.
    pub holder: Option<(u32, String)>,
    /// The job that left it.
    pub job: Option<Job>,
    /// Why.
    pub reason: String,
}

fn on_port(entry: &Entry, ports: Option<&RangeInclusive<u16>>) -> bool {
    ports.is_none_or(|ports| ports.contains(&entry.socket.port))
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
    netns_descriptors: NetnsDescriptors,
    netns_mounts: Vec<NetnsMount>,
    gaps: Gaps,
    /// When the list of processes was taken that was last told.
    listed_at: Timestamp,
    notices: Vec<Notice>,
    leaks: HashMap<SocketKey, Leak>,
    binds: BindTable,
    conflicts: ConflictTable,
    shared: BTreeMap<Group, Sharing>,
    /// The kernel's own choice of ports, where it could be read.
    ephemeral: Option<(u16, u16)>,
    counters: status::Counters,
}

/// What could not be seen, by which look: the next one of the same kind replaces it.
#[derive(Debug, Default)]
struct Gaps {
    processes: Vec<Gap>,
    descriptors: Vec<Gap>,
    namespaces: Vec<Gap>,
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
            netns_descriptors: NetnsDescriptors::new(),
            netns_mounts: Vec::new(),
            gaps: Gaps::default(),
            listed_at: Timestamp::UNIX_EPOCH,
            notices: Vec::new(),
            leaks: HashMap::new(),
            binds: BindTable::default(),
            conflicts: ConflictTable::default(),
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

    /// What happened to processes, in order. An exec comes with what was read of the process. Answers whether it may have
    /// changed who holds a port: the kernel's own threads come and go on an idle host too.
    pub fn event(&mut self, event: ProcessEvent, read: Option<Process>, now: Timestamp) -> bool {
        match event {
            ProcessEvent::Forked { parent, child } => {
                self.processes.forked(parent, child, now);
                self.ports.forked(parent, child, now);
                parent != KTHREADD
            }
            ProcessEvent::Execed { pid } => {
                self.ports.unsettle(pid, now);
                match read {
                    Some(process) => self.meet(process, now),
                    None => self.processes.unread_exec(pid, now),
                }
                true
            }
            ProcessEvent::Renamed { pid, comm } => {
                self.processes.renamed(pid, comm);
                false
            }
            ProcessEvent::Exited { pid } => {
                self.processes.exited(pid, now);
                let change = self.jobs.exited(pid, now);
                let matters = self.ports.unsettle(pid, now) || change.is_some();
                self.note_jobs(change);
                matters
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
        for pid in self.processes.keep_only(&list.alive, list.taken_at) {
            self.ports.unsettle(pid, now);
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
            if let Some(recognised) = recognised {
                self.join(recognised, pid, now);
            }
        }
        self.processes.settle_jobs();
        self.processes.moved(&list.netns);
        self.gaps.processes = list.gaps;
        self.listed_at = list.taken_at;
        let clock = self.clock;
        let changes = self.jobs.reconsider(&self.processes, |ticks| clock.at_ticks(ticks));
        self.note_jobs(changes);
        self.decide_jobs(now);
        self.jobs.forget(&self.processes.jobs());
    }

    /// Whether a list of processes is needed to decide about a job.
    pub fn wants_list(&self) -> bool {
        self.jobs.wants_list(self.listed_at)
    }

    /// Decides about jobs that were met without the process that ends them.
    fn decide_jobs(&mut self, now: Timestamp) {
        let all_seen = self.gaps.processes.is_empty() && self.processes.all_readable();
        let all_seen_at = all_seen.then_some(self.listed_at);
        let watching = self.watching == Watching::Continuously;
        let changes = self.jobs.decide_unanchored(&self.processes, all_seen_at, watching, now);
        self.note_jobs(changes);
    }

    fn meet(&mut self, process: Process, now: Timestamp) {
        let recognised = self.recognise(&process);
        let pid = self.enter(process, recognised.as_ref(), now);
        if let Some(recognised) = recognised {
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
        ci::recognize(&self.policy.systems, &process.variables)
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

    /// Judges every listener; a change to or from leaked is noticed.
    pub fn judge(&mut self, now: Timestamp) {
        self.decide_jobs(now);
        let mut leaks = HashMap::new();
        let mut verdicts = Vec::new();
        for entry in self.ports.entries() {
            let key = entry.socket.key;
            let judgement = self.judgement(entry, now);
            let unsure = !entry.settled && judgement.verdict == Verdict::Leaked;
            if judgement.verdict == Verdict::Leaked && (!unsure || self.leaks.contains_key(&key)) {
                let leak = self.leaks.get(&key).cloned().unwrap_or_else(|| self.leak(entry, &judgement));
                leaks.insert(key, Leak { reason: judgement.reason, ..leak });
            }
            verdicts.push((key, if unsure { Verdict::Grace } else { judgement.verdict }));
        }
        self.ports.set_verdicts(verdicts);
        for (key, leak) in &leaks {
            if !self.leaks.contains_key(key) {
                self.counters.leaked(leak);
                self.notices.push(Notice::Leak(true, Box::new(leak.clone())));
            }
        }
        for (key, leak) in std::mem::take(&mut self.leaks) {
            if !leaks.contains_key(&key) {
                self.notices.push(Notice::Leak(false, Box::new(leak)));
            }
        }
        self.leaks = leaks;
        self.judge_sharing();
    }

    /// Finds the ports that several jobs share silently; a change is noticed.
    fn judge_sharing(&mut self) {
        let listeners = self.ports.entries().filter(|entry| entry.socket.kind() == ClaimKind::Listener);
        let groups = sharing::shared(listeners.map(|entry| Member {
            key: entry.socket.key,
            protocol: entry.socket.protocol,
            address: entry.socket.address,
            port: entry.socket.port,
            jobs: entry.holders.iter().filter_map(|held| self.processes.job(held.pid)).collect(),
        }));
        let mut shared = BTreeMap::new();
        for (group, jobs) in groups {
            let (netns, protocol, address, port) = group;
            let jobs = jobs.iter().filter_map(|key| self.jobs.shown(key)).collect();
            let sharing = Sharing { protocol, address, port, netns: self.ports.netns(netns), jobs };
            if !self.shared.contains_key(&group) {
                self.notices.push(Notice::Shared(true, Box::new(sharing.clone())));
            }
            shared.insert(group, sharing);
        }
        for (group, sharing) in std::mem::take(&mut self.shared) {
            if !shared.contains_key(&group) {
                self.notices.push(Notice::Shared(false, Box::new(sharing)));
            }
        }
        self.shared = shared;
    }

    fn leak(&self, entry: &Entry, judgement: &Judgement) -> Leak {
        let holder = entry.holders.first().map(|held| {
            let comm = self.processes.program(held.pid).map(|(comm, _)| comm.to_owned()).unwrap_or_default();
            (held.pid, comm)
        });
        Leak {
            key: entry.socket.key,
            protocol: entry.socket.protocol.as_str(),
            port: entry.socket.port,
            netns: self.ports.netns(entry.socket.key.netns),
            holder,
            job: judgement.job.as_ref().and_then(|key| self.jobs.shown(key)),
            reason: judgement.reason.clone(),
        }
    }

    fn judgement(&self, entry: &Entry, now: Timestamp) -> Judgement {
        let holders: Vec<HolderStanding> = entry.holders.iter().map(|held| self.standing(held.pid)).collect();
        leak::judge(entry.socket.kind(), &holders, now, self.policy.grace, self.watching)
    }

    fn standing(&self, pid: u32) -> HolderStanding {
        let exempt = self
            .processes
            .program(pid)
            .and_then(|(comm, cmdline)| exempt::entry(&self.policy.exempt, Program { comm, cmdline }))
            .map(str::to_owned);
        HolderStanding { exempt, job: self.processes.job(pid).and_then(|job| self.jobs.standing(job)) }
    }

    /// Whether a verdict will change by the passing of time alone.
    pub fn awaits_time(&self) -> bool {
        self.ports.entries().any(|entry| entry.verdict == Some(Verdict::Grace))
    }

    /// Takes what is worth a log line since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// The processes that are known, for a list of what is new.
    pub fn known_processes(&self) -> HashMap<u32, Glance> {
        self.processes.glances()
    }

    /// The look that keeps the table right, to be taken at every interval.
    pub fn plan(&mut self, depth: Depth, everywhere: Everywhere, threads: usize) -> Plan {
        let first = self.processes.take_recent();
        // Reading everywhere also finds who was handed a socket that seemed settled.
        let known = |entry: &&Entry| entry.settled && everywhere != Everywhere::Always;
        let settled = self.ports.entries().filter(known).map(|entry| entry.socket.key).collect();
        let search = Search {
            settled,
            candidates: self.candidates(|entry| !entry.settled),
            first,
            everywhere,
            when_free: WhenFree::Say,
            connections: false,
            threads,
        };
        let inhabitants = Some(self.processes.inhabitants());
        Plan {
            inhabitants,
            ..self.plan_with(DiagQuery { ports: None, depth }, None, search, Describe::Nobody)
        }
    }

    /// The look that answers a question. The daemon knows whom to ask; a one-shot verb reads every process.
    /// `thorough` says that the daemon may read every process too, where the port seems free.
    pub fn plan_question(&self, question: &Question, thorough: bool) -> Plan {
        let ports = question.target().map(|target| target.ports.clone());
        let search = match self.watching {
            Watching::Once => Search::unprepared(),
            Watching::Continuously => Search {
                settled: self.known_orphans(question),
                candidates: self.candidates(|entry| on_port(entry, ports.as_ref())),
                first: self.likely_holders(ports.as_ref()),
                everywhere: Everywhere::WhenNeeded,
                when_free: if thorough { WhenFree::Search } else { WhenFree::Say },
                ..Search::unprepared()
            },
        };
        let describe = match question.topic {
            Topic::Leaks => {
                let suspect =
                    |entry: &&Entry| matches!(entry.verdict, Some(Verdict::Leaked | Verdict::Grace));
                Describe::Only(self.ports.entries().filter(suspect).map(|entry| entry.socket.key).collect())
            }
            Topic::Target(_) | Topic::All => Describe::Everybody,
        };
        let query = DiagQuery { ports, depth: Depth::Everything };
        let plan = self.plan_with(query, question.netns.clone(), search, describe);
        Plan { target: question.target().cloned(), ..plan }
    }

    fn plan_with(
        &self,
        query: DiagQuery,
        only: Option<NetnsSelector>,
        search: Search,
        describe: Describe,
    ) -> Plan {
        Plan {
            query,
            target: None,
            only,
            inhabitants: None,
            netns_descriptors: self.netns_descriptors.clone(),
            netns_mounts: self.netns_mounts.clone(),
            search,
            describe,
            also: Vec::new(),
        }
    }

    /// Who had each socket open, and whoever descends from them: one readlink each tells who still has.
    fn candidates(&self, wanted: impl Fn(&Entry) -> bool) -> HashMap<SocketKey, Vec<Descriptor>> {
        self.ports
            .entries()
            .filter(|entry| !entry.holders.is_empty() && wanted(entry))
            .map(|entry| {
                let heirs = entry.holders.iter().flat_map(|held| {
                    let descendants = self.processes.descendants(held.pid);
                    descendants.into_iter().map(|pid| Descriptor { pid, fd: held.fd })
                });
                (entry.socket.key, heirs.collect::<BTreeSet<_>>().into_iter().collect())
            })
            .collect()
    }

    /// For `list`: sockets that no process had open when all were read. Whoever asks for one port waits for another reading.
    fn known_orphans(&self, question: &Question) -> HashSet<SocketKey> {
        match question.topic {
            Topic::Target(_) => HashSet::new(),
            Topic::All | Topic::Leaks => {
                let keys = self.ports.entries().map(|entry| entry.socket.key);
                keys.filter(|key| self.ports.is_known_orphan(key)).collect()
            }
        }
    }

    /// The processes that have something else open on these ports (the listener of a connection), and the newest ones.
    fn likely_holders(&self, ports: Option<&RangeInclusive<u16>>) -> Vec<u32> {
        let of_interest = self.ports.entries().filter(|entry| on_port(entry, ports));
        let holding = of_interest.flat_map(|entry| &entry.holders).map(|held| held.pid);
        holding.chain(self.processes.recent()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn known_gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.processes.iter().chain(&self.gaps.descriptors).chain(&self.gaps.namespaces)
    }

    /// What could not be seen and matters for these sockets.
    fn incomplete(&self, findings: &Findings, entries: &[&Entry]) -> Vec<String> {
        let orphaned = entries.iter().any(|entry| entry.holders.is_empty() && entry.socket.inode != 0);
        let closed: HashSet<u32> = entries
            .iter()
            .flat_map(|entry| &entry.holders)
            .filter(|held| self.processes.job(held.pid).is_none())
            .flat_map(|held| self.processes.unreadable(held.pid))
            .collect();
        let environments = (!closed.is_empty()).then_some(Gap::Environments(closed.len()));
        let all: BTreeSet<&Gap> = self.known_gaps().chain(&findings.gaps).chain(&environments).collect();
        let matters = |gap: &&&Gap| orphaned || ***gap != Gap::DescriptorsOfInit;
        all.iter().filter(matters).map(ToString::to_string).collect()
    }
}
