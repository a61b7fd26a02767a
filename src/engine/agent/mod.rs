//! The daemon's loop: the one task that owns the engine. Sources send to it through one bounded queue, looks are taken on
//! threads of their own, and outputs get copies.

mod fences;
mod pace;
mod sources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use fences::{Fences, Parked};
use pace::{
    BUSY_REST, EVERYTHING_EVERY, EVERYWHERE_EVERY, EVERYWHERE_REST, NEEDED_REST, PROCESSES_EVERY, Pace,
    QUIET_REST, START_UP, THOROUGH_REST, due,
};
use sources::Event;

use super::answer::Unanswerable;
use super::status::{SourceStatus, Status};
use super::{Asker, Engine, KeptJob, Notice, Policy, Question, Refused};
use crate::judge::leak::Watching;
use crate::kernel::bpf::holders::OpenFiles;
use crate::kernel::bpf::{self, Gain, Hurry};
use crate::kernel::look::{self, Everywhere, Findings, Plan, ProcessList};
use crate::kernel::proc_events::{ProcEvents, ProcessEvent, fence};
use crate::kernel::process::{self, Reader};
use crate::kernel::sock_diag::Depth;
use crate::kernel::{Gap, Unreadable, clock, descriptors, memory, surroundings};
use crate::model::answer::Answer;
use crate::model::conflict::Conflicts;
use crate::model::declared::{End, Start};
use crate::model::job::Job;

/// Messages (batches of events among them) that may wait. Past it a source waits, and its kernel buffer fills and counts what it drops.
const QUEUE: usize = 1024;
/// What was noticed is told this often.
const NOTICE_EVERY: Duration = Duration::from_millis(200);
/// The status is made anew at least this often.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A look waits this long for the events before it: events that take longer are being lost.
const FENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer that takes longer is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

const STOPPING: Unanswerable = Unanswerable::NoAgent("it is stopping");
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

/// The way to ask the agent and to tell it of a new policy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Agent {
    messages: mpsc::Sender<Message>,
    status: watch::Receiver<Arc<Status>>,
    closes: watch::Receiver<u64>,
    kept: watch::Receiver<Vec<KeptJob>>,
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
    /// The loop is alive; called several times a second at the least.
    fn alive(&mut self);
}

impl Agent {
    /// Starts the sources and the loop on the current runtime. The loop ends with the runtime; if it ends before, it failed.
    /// `kept` is what the agent before this one kept of jobs, with the begin of its clock.
    pub fn start(
        policy: Policy,
        watch: Watch,
        reader: Arc<Reader>,
        (kept, booted): (Vec<KeptJob>, Timestamp),
        outside: impl Outside,
    ) -> (Agent, JoinHandle<()>) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let (publish, status) = watch::channel(Arc::new(Status::default()));
        let (closed, closes) = watch::channel(0);
        let mut engine = Engine::new(policy, reader.clock, Watching::Continuously);
        engine.restore(kept, booted, |pid| process::start(pid).ok());
        let (keep, kept) = watch::channel(engine.kept_jobs());
        let agent = Agent { messages: messages.clone(), status, closes, kept };
        let task = Loop {
            engine,
            reader,
            watch,
            messages,
            publish,
            closed,
            keep,
            outside,
            sources: BTreeMap::new(),
            pace: Pace::default(),
            ready: false,
            waiting: Vec::new(),
            fences: Fences::default(),
            hurry: None,
            explaining: 0,
            started: clock::now(),
        };
        let task = tokio::spawn(task.run(queue));
        (agent, task)
    }

    /// Changes whenever a port was let go of, where that is told: how often it was.
    pub fn closes(&self) -> watch::Receiver<u64> {
        self.closes.clone()
    }

    /// What the next agent could not know of jobs by their processes; changes with it.
    pub fn kept(&self) -> watch::Receiver<Vec<KeptJob>> {
        self.kept.clone()
    }

    /// Asks a question; the look is taken after every event that came before the question.
    pub async fn ask(&self, question: Question) -> Result<Answer, Unanswerable> {
        self.answered(|reply| Message::Ask(question, reply)).await?
    }

    /// The refused binds since a moment. Errors: the agent is busy or stopping.
    pub async fn conflicts(&self, since: Option<Timestamp>) -> Result<Conflicts, Unanswerable> {
        self.answered(|reply| Message::AskConflicts(since, reply)).await
    }

    /// The jobs that are known, the oldest first. Errors: the agent is busy or stopping.
    pub async fn jobs(&self) -> Result<Vec<Job>, Unanswerable> {
        self.answered(Message::AskJobs).await
    }

    /// Tells of a job, as this user. Errors: the agent is busy or stopping, or nothing was changed, and why.
    pub async fn declare(
        &self,
        declaration: Declaration,
        by: Peer,
    ) -> Result<Result<Job, Refused>, Unanswerable> {
        // Whose a job is, is known of processes that are known.
        let ready = self.clone().status.wait_for(|status| status.ready).await.is_ok();
        if !ready {
            return Err(STOPPING);
        }
        self.answered(|reply| Message::Declare(declaration, by, reply)).await
    }

    /// Sends a message and waits for its answer, for so long.
    async fn answered<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, Unanswerable> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.messages.send(message(reply)).await.map_err(|_| STOPPING)?;
            answer.await.map_err(|_| STOPPING)
        };
        tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .unwrap_or(Err(Unanswerable::NoAgent("it is too busy; ask again")))
    }

    /// Another policy and interval from now on.
    pub async fn reload(&self, policy: Policy, interval: Duration) {
        // A stopping agent needs no policy.
        let _ = self.messages.send(Message::Reload(Box::new(policy), interval)).await;
    }

    /// The latest status.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Waits until the first look is done.
    pub async fn ready(&mut self) -> bool {
        self.status.wait_for(|status| status.ready).await.is_ok()
    }
}

struct Loop<O> {
    engine: Engine,
    reader: Arc<Reader>,
    watch: Watch,
    messages: mpsc::Sender<Message>,
    publish: watch::Sender<Arc<Status>>,
    closed: watch::Sender<u64>,
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

    fn start_events(&mut self) {
        if self.watch.events.is_empty() {
            let why = Some("switched off by watch.events = \"poll\"".to_owned());
            self.sources.insert(source::PROC, SourceStatus { why, ..SourceStatus::default() });
        }
        if self.watch.events.contains(&Events::Ebpf) {
            let status = self.start_bpf();
            self.sources.insert(source::EBPF, status);
            let status = self.start_walk();
            self.sources.insert(source::OPEN_FILES, status);
            // The kernel's description of its types takes tens of MiB while it is read.
            memory::trim();
        }
        if self.hurry.is_none() && !self.watch.events.is_empty() {
            let status = self.start_proc();
            self.sources.insert(source::PROC, status);
        }
    }

    /// Without the kernel's own walk over open files, /proc is read.
    fn start_walk(&mut self) -> SourceStatus {
        match OpenFiles::load(bpf::Reasons::InBrief) {
            Ok(files) => {
                self.reader.open_files.set(files);
                SourceStatus { up: true, ..SourceStatus::default() }
            }
            Err(error) => {
                tracing::info!("{error}; open files are read from /proc");
                SourceStatus { why: Some(error.to_string()), ..SourceStatus::default() }
            }
        }
    }

    fn start_bpf(&mut self) -> SourceStatus {
        match bpf::Source::load(bpf::Reasons::InBrief) {
            Ok(events) => {
                for (gain, why) in events.missing() {
                    tracing::info!("the kernel's programs tell less here: {} ({why})", gain.lost());
                }
                let missing: Vec<String> =
                    events.missing().iter().map(|(gain, why)| format!("{} ({why})", gain.lost())).collect();
                self.hurry = events.has(Gain::Processes).then(|| events.hurry());
                let (messages, reader) = (self.messages.clone(), Arc::clone(&self.reader));
                std::thread::spawn(move || sources::forward_bpf(events, &reader, &messages));
                let why = Some(missing.join("; ")).filter(|why| !why.is_empty());
                SourceStatus { up: true, why, ..SourceStatus::default() }
            }
            Err(error) => {
                tracing::warn!("{error}; failed binds are not seen");
                SourceStatus { why: Some(error.to_string()), ..SourceStatus::default() }
            }
        }
    }

    fn start_proc(&mut self) -> SourceStatus {
        match ProcEvents::subscribe() {
            Ok(events) => {
                let (messages, reader) = (self.messages.clone(), Arc::clone(&self.reader));
                std::thread::spawn(move || sources::forward(events, &reader, &messages));
                SourceStatus { up: true, ..SourceStatus::default() }
            }
            Err(error) => {
                tracing::warn!("{error}; processes are polled instead");
                SourceStatus { why: Some(error.to_string()), ..SourceStatus::default() }
            }
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
                (self.pace.next_processes, self.pace.next_look, self.pace.next_everything) =
                    (None, None, None);
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
                self.engine.close_event(event.cookie, self.reader.clock.at_monotonic(event.at));
                self.closed.send_modify(|closes| *closes += 1);
                self.stir();
            }
        }
    }

    fn events_ended(&mut self, source: &'static str, why: String) {
        tracing::error!("events of {source} ended: {why}");
        let status = self.source(source);
        (status.up, status.why) = (false, Some(why));
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

    /// Hands on what is to be kept of jobs, if that has changed.
    fn keep_jobs(&mut self) {
        if let Some(jobs) = self.engine.changed_jobs() {
            self.keep.send_if_modified(|kept| std::mem::replace(kept, jobs) != *kept);
        }
    }

    fn look_for(&mut self, question: Question, reply: Reply) {
        let plan = self.engine.plan_question(&question, due(self.pace.next_thorough, Instant::now()));
        self.look(plan, Purpose::Answer(question, reply));
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

    /// Without events nobody knows whether anything happens.
    fn rest(&self) -> u32 {
        if self.processes_told() && !self.pace.stirred { QUIET_REST } else { BUSY_REST }
    }

    fn source(&mut self, name: &'static str) -> &mut SourceStatus {
        self.sources.entry(name).or_default()
    }

    fn processes_listed(&mut self, list: ProcessList, cost: Cost) {
        self.pace.listing = false;
        // Without events the list is all there is: it is read before every look.
        let rest = if self.processes_told() { PROCESSES_EVERY } else { self.watch.interval };
        let now = Instant::now();
        let next = Some(now + rest.max(cost.cpu * self.rest()));
        self.pace.next_processes = if std::mem::take(&mut self.pace.list_again) { None } else { next };
        self.pace.next_wanted_list = Some(now + self.watch.interval.max(cost.cpu * BUSY_REST));
        let status = self.source(source::PROCESSES);
        status.why = list.gaps.iter().find(|gap| matches!(gap, Gap::Processes(_))).map(ToString::to_string);
        (status.up, status.took) = (status.why.is_none(), Some(cost.took));
        self.engine.process_list(list, self.reader.clock.now());
        self.pace.listed = true;
    }

    fn looked(&mut self, Parked { findings, cost, purpose, .. }: Parked) {
        if let Purpose::Interval(depth) = purpose {
            self.pace.looking = false;
            let thorough =
                depth == Depth::Everything || findings.as_ref().is_ok_and(|seen| seen.read_everywhere);
            if !thorough {
                self.pace.plain_cost = cost.cpu;
            }
            // The thorough looks have a rest of their own: the plain ones go on.
            let (now, plain) = (Instant::now(), self.pace.plain_cost);
            let interval = self.watch.interval.saturating_sub(cost.took);
            self.pace.next_busy_look = Some(now + plain * BUSY_REST);
            let next = Some(now + interval.max(plain * self.rest()));
            self.pace.next_look = if std::mem::take(&mut self.pace.look_again) { None } else { next };
            // What happened during the look may have happened behind its back.
            if std::mem::take(&mut self.pace.stirred) {
                self.stir();
            }
        }
        let findings = match findings {
            Ok(findings) => findings,
            Err(error) => {
                match purpose {
                    Purpose::Answer(question, reply) => {
                        let _ = reply.send(Err(Unanswerable::from_look(error, &question)));
                    }
                    Purpose::Conflict(id) => self.explained(id, None),
                    // The others may fail for what was asked: a namespace that is no more.
                    Purpose::Interval(_) => {
                        let status = self.source(source::SOCKETS);
                        (status.up, status.why) = (false, Some(format!("{error:?}")));
                    }
                }
                return;
            }
        };
        self.engine.findings(&findings);
        self.pace.changed = true;
        if findings.read_everywhere {
            let now = Instant::now();
            self.pace.next_needed = Some(now + cost.cpu * NEEDED_REST);
            self.pace.next_thorough = Some(now + cost.cpu * THOROUGH_REST);
            self.pace.next_everywhere = Some(now + EVERYWHERE_EVERY.max(cost.cpu * EVERYWHERE_REST));
            let status = self.source(source::DESCRIPTORS);
            (status.up, status.took) = (true, Some(cost.took));
        }
        match purpose {
            Purpose::Interval(depth) => {
                self.engine.judge(self.reader.clock.now());
                if depth == Depth::Everything {
                    let rest = EVERYTHING_EVERY.max(cost.cpu * EVERYWHERE_REST);
                    self.pace.next_everything = Some(Instant::now() + rest);
                }
                let status = self.source(source::SOCKETS);
                (status.up, status.why, status.took) = (true, None, Some(cost.took));
                self.ready = true;
                for (question, reply) in std::mem::take(&mut self.waiting) {
                    self.look_for(question, reply);
                }
            }
            Purpose::Answer(question, reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.engine.answer(&question, &findings));
            }
            Purpose::Conflict(id) => self.explained(id, Some(&findings)),
        }
    }

    fn explained(&mut self, id: u64, findings: Option<&Findings>) {
        self.explaining = self.explaining.saturating_sub(1);
        self.engine.explain(id, findings);
        self.explain_conflicts();
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

    fn list_processes(&mut self) {
        (self.pace.listing, self.pace.list_again) = (true, false);
        let known = self.engine.known_processes();
        let (reader, messages) = (Arc::clone(&self.reader), self.messages.clone());
        std::thread::spawn(move || {
            let (list, cost) = measured(|| look::processes(&reader, &known));
            // The loop may have ended meanwhile.
            let _ = messages.blocking_send(Message::Processes(list, cost));
        });
    }

    fn take_interval_look(&mut self) {
        let now = Instant::now();
        (self.pace.looking, self.pace.look_again, self.pace.stirred) = (true, false, false);
        let depth = if due(self.pace.next_everything, now) { Depth::Everything } else { Depth::Listeners };
        let everywhere = if due(self.pace.next_everywhere, now) {
            Everywhere::Always
        } else if due(self.pace.next_needed, now) {
            Everywhere::WhenNeeded
        } else {
            Everywhere::Never
        };
        // Nobody waits for the later ones: one core is enough.
        let threads = if self.ready { 1 } else { descriptors::all_cores() };
        let plan = self.engine.plan(depth, everywhere, threads);
        self.look(plan, Purpose::Interval(depth));
    }

    fn look(&mut self, plan: Plan, purpose: Purpose) {
        let (reader, messages) = (Arc::clone(&self.reader), self.messages.clone());
        self.fences.last = self.fences.last.wrapping_add(1);
        let number = self.fences.last;
        let hurry = self.hurry.clone();
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || {
                let looked = measured(|| look::look(&plan, &reader).map(Box::new));
                fence(number);
                if let Some(hurry) = hurry {
                    hurry.now();
                }
                looked
            });
            let (findings, cost) = looked.await.unwrap_or_else(|error| {
                (Err(Unreadable::Malformed(format!("the look failed: {error}"))), Cost::default())
            });
            let _ = messages.send(Message::Looked(number, findings, cost, purpose)).await;
        });
    }
}
