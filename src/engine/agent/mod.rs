//! The daemon's loop: the one task that owns the engine. Sources send to it through one bounded queue, looks are taken on
//! threads of their own, and outputs get copies.

mod fences;
mod handle;
mod looks;
mod pace;
mod sources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

pub use handle::{Agent, Before};

use fences::{Fences, Parked};
use pace::{Pace, START_UP, due};
use sources::Event;

use super::answer::Unanswerable;
use super::status::{SourceStatus, Status};
use super::{Asker, Engine, KeptJob, Notice, Policy, Question, Records, Refused};
use crate::kernel::bpf::Hurry;
use crate::kernel::look::{Findings, ProcessList};
use crate::kernel::proc_events::ProcessEvent;
use crate::kernel::process::Reader;
use crate::kernel::sock_diag::Depth;
use crate::kernel::{Unreadable, clock, surroundings};
use crate::model::answer::Answer;
use crate::model::conflict::Conflicts;
use crate::model::declared::{End, Start};
use crate::model::hold::Hold;
use crate::model::job::Job;

/// What was noticed is told this often.
const NOTICE_EVERY: Duration = Duration::from_millis(200);
/// The status is made anew at least this often.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A look waits this long for the events before it: events that take longer are being lost.
const FENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// Refusals that are looked at at the same time.
const CONFLICTS_AT_ONCE: usize = 2;

/// Where observations come from.
pub mod source {
    /// Binds, refusals and processes from the kernel's programs.
    pub const EBPF: &str = "ebpf";
    /// The kernel's own walk over open files.
    pub const OPEN_FILES: &str = "open_files";
    /// Process events of the connector.
    pub const PROC: &str = "proc";
    /// The list of processes.
    pub const PROCESSES: &str = "processes";
    /// Sockets.
    pub const SOCKETS: &str = "sock_diag";
    /// Descriptors of all processes.
    pub const DESCRIPTORS: &str = "descriptors";
}

/// What reaches the loop.
#[derive(Debug)]
enum Message {
    Events(&'static str, Vec<Event>),
    EventsLost(&'static str, u64),
    EventsEnded(&'static str, String),
    /// Sockets were bound, or began to listen.
    Bound,
    Processes(ProcessList, Cost),
    Looked(u32, Result<Box<Findings>, Unreadable>, Cost, Purpose),
    Ask(Question, Reply),
    AskConflicts(Option<Timestamp>, oneshot::Sender<Conflicts>),
    AskHolds(oneshot::Sender<Vec<Hold>>),
    /// Hand on what is to be remembered.
    Record(oneshot::Sender<()>),
    AskJobs(oneshot::Sender<Vec<Job>>),
    /// What this user declares, by this process.
    Declare(Declaration, Peer, oneshot::Sender<Result<Job, Refused>>),
    Reload(Box<Policy>, Duration),
}

/// What a hook tells of a job.
#[derive(Debug)]
pub enum Declaration {
    /// It begins.
    Start(Start),
    /// It ends.
    End(End),
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Effective user.
    pub uid: u32,
    /// Process, in this pid namespace.
    pub pid: Option<u32>,
}

type Reply = oneshot::Sender<Result<Answer, Unanswerable>>;

/// What a look cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    /// On the wall clock.
    took: Duration,
    /// Of the CPU, with whatever else the agent did meanwhile.
    cpu: Duration,
}

/// Does something and measures it.
fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (began, used) = (Instant::now(), clock::cpu_time());
    let result = work();
    (result, Cost { took: began.elapsed(), cpu: clock::cpu_time().saturating_sub(used) })
}

#[derive(Debug)]
enum Purpose {
    Interval(Depth),
    Answer(Question, Reply),
    /// Explains this refusal.
    Conflict(u64),
}

/// A source of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    /// The kernel's programs.
    Ebpf,
    /// The proc connector.
    Proc,
}

/// How to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Which events may be used, the best first.
    pub events: Vec<Events>,
    /// Time between two looks.
    pub interval: Duration,
}

/// What the loop tells the world outside.
pub trait Outside: Send + 'static {
    /// Something worth a log line.
    fn notice(&mut self, notice: &Notice);
    /// What is to be remembered; as many more found no room.
    fn record(&mut self, records: Records);
    /// Whether something may not have been remembered: then everything that goes on is told again.
    fn wants_all(&mut self) -> bool;
    /// The loop is alive; called several times a second at the least.
    fn alive(&mut self);
}

struct Loop<O> {
    engine: Engine,
    reader: Arc<Reader>,
    watch: Watch,
    messages: mpsc::Sender<Message>,
    publish: watch::Sender<Arc<Status>>,
    closed: watch::Sender<u64>,
    /// How often something was recorded.
    recorded: watch::Sender<u64>,
    keep: watch::Sender<Vec<KeptJob>>,
    outside: O,
    sources: BTreeMap<&'static str, SourceStatus>,
    pace: Pace,
    ready: bool,
    /// Asked before the first look was done.
    waiting: Vec<(Question, Reply)>,
    fences: Fences,
    /// Where the kernel's programs tell of processes: the way to make them tell at once.
    hurry: Option<Hurry>,
    /// Refusals that are being looked at.
    explaining: usize,
    started: Timestamp,
}

impl<O: Outside> Loop<O> {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        self.engine.set_ephemeral(surroundings::ephemeral());
        // Subscribed before the first list: what starts in between is in one of the two.
        self.start_events();
        self.list_processes();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                received = queue.recv_many(&mut batch, 256) => {
                    if received == 0 {
                        return;
                    }
                    for message in batch.drain(..) {
                        self.take(message);
                    }
                }
                () = tokio::time::sleep_until(self.next_pulse().into()) => {}
            }
            self.pulse();
        }
    }

    fn take(&mut self, message: Message) {
        let now = self.reader.clock.now();
        match message {
            Message::Events(source, events) => {
                self.source(source).events += events.len() as u64;
                for event in events {
                    self.take_event(event, now);
                }
            }
            Message::Bound => self.stir(),
            Message::EventsLost(source, lost) => {
                self.source(source).lost += lost;
                self.engine.events_lost(now);
                // A look or a list that is under way may have been taken before: another one follows it.
                (self.pace.look_again, self.pace.list_again) = (true, true);
                // Where they are lost without end, looks rest all the same.
                let pace = &mut self.pace;
                pace.next_processes = pace.next_processes.min(pace.next_wanted_list);
                pace.next_look = pace.next_look.min(pace.next_busy_look);
                pace.next_everything = pace.next_everything.min(pace.next_wanted_everything);
            }
            Message::EventsEnded(source, why) => self.events_ended(source, why),
            Message::Processes(list, cost) => self.processes_listed(list, cost),
            Message::Looked(number, findings, cost, purpose) => {
                let look = Parked { findings, cost, purpose, until: Instant::now() + FENCE_TIMEOUT };
                if !self.processes_told() || self.fences.arrived.remove(&number) {
                    self.looked(look);
                } else {
                    self.fences.parked.insert(number, look);
                }
            }
            // Whoever asked has gone.
            Message::Ask(_, reply) if reply.is_closed() => {}
            // Before the first look the table is empty, and an answer from it would be a wrong "free".
            Message::Ask(question, reply) if !self.ready => self.waiting.push((question, reply)),
            Message::Ask(question, reply) => self.look_for(question, reply),
            Message::AskConflicts(since, reply) => self.tell_conflicts(since, reply),
            Message::AskHolds(reply) => {
                let _ = reply.send(self.engine.open_holds());
            }
            Message::Record(reply) => {
                self.tell_records();
                let _ = reply.send(());
            }
            Message::AskJobs(reply) => {
                let _ = reply.send(self.engine.all_jobs());
            }
            Message::Declare(declaration, by, reply) => {
                let _ = reply.send(self.declared(&declaration, by, now));
            }
            Message::Reload(policy, interval) => {
                self.engine.set_policy(*policy);
                self.watch.interval = interval;
                self.pace.next_look = None;
            }
        }
    }

    fn take_event(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Process(ProcessEvent::Fence { number }, _) => {
                if let Some(look) = self.fences.arrived(number) {
                    self.looked(look);
                }
            }
            Event::Process(event, read) => {
                let told_of_binds = self.hurry.is_some();
                let may_bind = matches!(event, ProcessEvent::Forked { .. } | ProcessEvent::Execed { .. });
                let matters = self.engine.event(event, read.map(|process| *process), now);
                // Where binds are told, a process that has just started is no reason to look for them.
                if matters && !(told_of_binds && may_bind) {
                    self.stir();
                }
            }
            Event::Bind(event) => {
                if self.engine.bind_event(*event) {
                    self.explain_conflicts();
                }
            }
            Event::Close(event) => {
                self.engine.close_event(&event);
                self.closed.send_modify(|closes| *closes += 1);
                self.stir();
            }
        }
    }

    fn events_ended(&mut self, source: &'static str, why: String) {
        tracing::error!("events of {source} ended: {why}");
        let status = self.source(source);
        (status.up, status.why) = (false, Some(why));
        if source == source::EBPF {
            self.engine.set_oom_told(false);
        }
        if source == source::EBPF && self.hurry.take().is_some() {
            let status = self.start_proc();
            self.sources.insert(source::PROC, status);
        }
        self.pace.next_processes = None;
    }

    /// Explains refusals, a few at the same time.
    fn explain_conflicts(&mut self) {
        while self.explaining < CONFLICTS_AT_ONCE {
            let Some((id, plan)) = self.engine.next_conflict() else { return };
            self.explaining += 1;
            self.look(plan, Purpose::Conflict(id));
        }
    }

    fn tell_conflicts(&mut self, since: Option<Timestamp>, reply: oneshot::Sender<Conflicts>) {
        let mut conflicts = self.engine.conflicts(since, self.reader.clock.now());
        conflicts.watched_since = Some(self.started);
        let watched = self.sources.get(source::EBPF);
        if !watched.is_some_and(|status| status.up) {
            let why = watched.and_then(|status| status.why.clone());
            conflicts.watched_since = None;
            conflicts.incomplete.push(format!(
                "failed binds are not seen: {}",
                why.unwrap_or_else(|| "watch.events allows no BPF programs".to_owned())
            ));
        }
        // Whoever asked may be gone.
        let _ = reply.send(conflicts);
    }

    fn declared(&mut self, declaration: &Declaration, by: Peer, now: Timestamp) -> Result<Job, Refused> {
        let reader = &self.reader;
        let asker = Asker { uid: by.uid, process: by.pid.and_then(|pid| reader.read(pid).ok()) };
        let job = match declaration {
            Declaration::Start(start) => {
                self.engine.start_job(start, &asker, |pid| reader.read(pid).ok(), now)?
            }
            Declaration::End(end) => self.engine.end_job(end, &asker, now)?,
        };
        self.keep_jobs();
        // What it holds is judged by this at the next look.
        self.stir();
        Ok(job)
    }

    /// Hands on what is to be remembered.
    fn tell_records(&mut self) {
        let mut records = self.engine.take_records();
        if self.ready && self.outside.wants_all() {
            records.records.extend(self.engine.all_records());
        }
        if !records.records.is_empty() || records.lost > 0 {
            self.recorded.send_modify(|told| *told += 1);
            self.outside.record(records);
        }
    }

    /// Hands on what is to be kept of jobs, if that has changed.
    fn keep_jobs(&mut self) {
        if let Some(jobs) = self.engine.changed_jobs() {
            self.keep.send_if_modified(|kept| std::mem::replace(kept, jobs) != *kept);
        }
    }

    /// Whether anybody tells of processes, fences among them.
    fn processes_told(&self) -> bool {
        self.hurry.is_some() || self.sources.get(source::PROC).is_some_and(|status| status.up)
    }

    /// Something happened: the next look need not wait for the interval.
    fn stir(&mut self) {
        if !std::mem::replace(&mut self.pace.stirred, true) {
            let soon = Some(Instant::now() + START_UP).max(self.pace.next_busy_look);
            self.pace.next_look = self.pace.next_look.min(soon);
        }
    }

    fn source(&mut self, name: &'static str) -> &mut SourceStatus {
        self.sources.entry(name).or_default()
    }

    fn pulse(&mut self) {
        let now = Instant::now();
        for look in self.fences.overdue(now) {
            self.looked(look);
        }
        let wanted = self.engine.wants_list() && due(self.pace.next_wanted_list, now);
        if !self.pace.listing && (wanted || due(self.pace.next_processes, now)) {
            self.list_processes();
        }
        if self.pace.listed && !self.pace.looking && due(self.pace.next_look, now) {
            self.take_interval_look();
        }
        let clock_now = self.reader.clock.now();
        let ripe = self.engine.verdict_until().is_some_and(|until| until <= clock_now);
        if ripe {
            self.engine.judge(clock_now);
        }
        if ripe || due(self.pace.next_notices, now) {
            self.pace.next_notices = Some(now + NOTICE_EVERY);
            let notices = self.engine.take_notices();
            self.keep_jobs();
            self.tell_records();
            for notice in notices {
                self.pace.changed = true;
                self.outside.notice(&notice);
            }
            self.outside.alive();
        }
        if self.pace.changed || due(self.pace.next_status, now) {
            (self.pace.changed, self.pace.next_status) = (false, Some(now + STATUS_EVERY));
            let status = Status { ready: self.ready, sources: self.sources.clone(), ..self.engine.status() };
            self.publish.send_replace(Arc::new(status));
        }
    }

    /// When there is something to do though nothing was told.
    fn next_pulse(&self) -> Instant {
        let now = Instant::now();
        let notices = self.pace.next_notices.unwrap_or(now);
        let verdict = self.engine.verdict_until().map(|until| {
            let wait = Duration::try_from(until.duration_since(self.reader.clock.now()));
            now + wait.unwrap_or(Duration::ZERO)
        });
        verdict.map_or(notices, |verdict| verdict.min(notices))
    }
}
