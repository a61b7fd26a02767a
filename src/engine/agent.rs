//! The daemon's loop: the one task that owns the engine. Sources send to it through one bounded queue, looks are taken on
//! threads of their own, and outputs get copies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::answer::Unanswerable;
use super::status::{SourceStatus, Status};
use super::{Engine, Notice, Policy, Question};
use crate::judge::leak::Watching;
use crate::kernel::look::{self, Everywhere, Findings, Plan, ProcessList};
use crate::kernel::proc_events::{ProcEvents, ProcessEvent, fence, means_lost};
use crate::kernel::process::Reader;
use crate::kernel::sock_diag::Depth;
use crate::kernel::{Gap, Unreadable, clock, descriptors, process};
use crate::model::answer::Answer;
use crate::model::process::Process;

/// Messages (batches of events among them) that may wait. Past it a source waits, and its kernel buffer fills and counts what it drops.
const QUEUE: usize = 1024;
/// A program that has just started binds its ports within this time, mostly: the look that an event causes waits for it.
const START_UP: Duration = Duration::from_millis(250);
/// Bound sockets and connections cost a walk of the kernel's whole hash table: not at every interval.
const EVERYTHING_EVERY: Duration = Duration::from_secs(60);
/// The pids are compared with /proc this often, though events tell of them.
const PROCESSES_EVERY: Duration = Duration::from_secs(60);
/// All descriptors are read at most this often,
const EVERYWHERE_EVERY: Duration = Duration::from_secs(60);
/// and then only after this multiple of what it cost: 1/500 of a core at most.
const EVERYWHERE_REST: u32 = 500;
/// Reading all descriptors because a listener has no holder may cost 1/50 of a core.
const NEEDED_REST: u32 = 50;
/// The same because a port that somebody asks for seems free may cost 1/10 of a core while people ask.
const THOROUGH_REST: u32 = 10;
/// A look rests for this multiple of what it cost, however short the interval: while processes come and go 1/50 of a core,
const BUSY_REST: u32 = 50;
/// and while nothing happens 1/400.
const QUIET_REST: u32 = 400;
/// Verdicts that time alone will change are judged again this often.
const JUDGE_EVERY: Duration = Duration::from_millis(200);
/// The status is made anew at least this often.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A look waits this long for the events before it: events that take longer are being lost.
const FENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer that takes longer is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Where observations come from.
pub mod source {
    /// Process events.
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
    Events(Vec<(ProcessEvent, Option<Box<Process>>)>),
    EventsLost,
    EventsEnded(String),
    Processes(ProcessList, Cost),
    Looked(u32, Result<Box<Findings>, Unreadable>, Cost, Purpose),
    Ask(Question, Reply),
    Reload(Box<Policy>, Duration),
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
}

/// The way to ask the agent and to tell it of a new policy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Agent {
    messages: mpsc::Sender<Message>,
    status: watch::Receiver<Arc<Status>>,
}

/// How to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// Whether process events may be used.
    pub events: bool,
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
    pub fn start(
        policy: Policy,
        watch: Watch,
        reader: Arc<Reader>,
        outside: impl Outside,
    ) -> (Agent, JoinHandle<()>) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let (publish, status) = watch::channel(Arc::new(Status::default()));
        let agent = Agent { messages: messages.clone(), status };
        let engine = Engine::new(policy, reader.clock, Watching::Continuously);
        let task = Loop {
            engine,
            reader,
            watch,
            messages,
            publish,
            outside,
            sources: BTreeMap::new(),
            pace: Pace::default(),
            ready: false,
            waiting: Vec::new(),
            fences: Fences::default(),
        };
        let task = tokio::spawn(task.run(queue));
        (agent, task)
    }

    /// Asks a question; the look is taken after every event that came before the question.
    pub async fn ask(&self, question: Question) -> Result<Answer, Unanswerable> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let message = Message::Ask(question, reply);
            self.messages.send(message).await.map_err(|_| Unanswerable::NoAgent("it is stopping"))?;
            answer.await.map_err(|_| Unanswerable::NoAgent("it is stopping"))?
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

/// When which look may be taken again.
#[derive(Debug, Default)]
struct Pace {
    looking: bool,
    listing: bool,
    listed: bool,
    look_again: bool,
    list_again: bool,
    /// Whether the status says something new.
    changed: bool,
    next_status: Option<Instant>,
    /// Whether processes came or went since the last look began.
    stirred: bool,
    next_look: Option<Instant>,
    next_busy_look: Option<Instant>,
    plain_cost: Duration,
    next_everything: Option<Instant>,
    next_everywhere: Option<Instant>,
    next_needed: Option<Instant>,
    next_thorough: Option<Instant>,
    next_processes: Option<Instant>,
    next_wanted_list: Option<Instant>,
    next_judgement: Option<Instant>,
}

fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_none_or(|at| at <= now)
}

/// Looks that wait until the events before them have been told: otherwise they would tell of processes whose past is not known.
#[derive(Debug, Default)]
struct Fences {
    last: u32,
    arrived: HashSet<u32>,
    parked: HashMap<u32, Parked>,
}

#[derive(Debug)]
struct Parked {
    findings: Result<Box<Findings>, Unreadable>,
    cost: Cost,
    purpose: Purpose,
    until: Instant,
}

struct Loop<O> {
    engine: Engine,
    reader: Arc<Reader>,
    watch: Watch,
    messages: mpsc::Sender<Message>,
    publish: watch::Sender<Arc<Status>>,
    outside: O,
    sources: BTreeMap<&'static str, SourceStatus>,
    pace: Pace,
    ready: bool,
    /// Asked before the first look was done.
    waiting: Vec<(Question, Reply)>,
    fences: Fences,
}

impl<O: Outside> Loop<O> {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        // Subscribed before the first list: what starts in between is in one of the two.
        self.start_events();
        self.list_processes();
        let mut pulse = tokio::time::interval(JUDGE_EVERY);
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
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
                _ = pulse.tick() => {}
            }
            self.pulse();
        }
    }

    fn start_events(&mut self) {
        let mut status = SourceStatus::default();
        if !self.watch.events {
            status.why = Some("switched off by watch.events = \"poll\"".to_owned());
        } else {
            match ProcEvents::subscribe() {
                Ok(events) => {
                    status.up = true;
                    let (messages, reader) = (self.messages.clone(), Arc::clone(&self.reader));
                    std::thread::spawn(move || forward(events, &reader, &messages));
                }
                Err(error) => {
                    tracing::warn!("{error}; processes are polled instead");
                    status.why = Some(error.to_string());
                }
            }
        }
        self.sources.insert(source::PROC, status);
    }

    fn take(&mut self, message: Message) {
        let now = self.reader.clock.now();
        match message {
            Message::Events(events) => {
                self.source(source::PROC).events += events.len() as u64;
                for (event, read) in events {
                    if let ProcessEvent::Fence { number } = event {
                        self.fence_arrived(number);
                    }
                    if self.engine.event(event, read.map(|process| *process), now) {
                        self.stir();
                    }
                }
            }
            Message::EventsLost => {
                self.source(source::PROC).lost += 1;
                self.engine.events_lost(now);
                // A look or a list that is under way may have been taken before: another one follows it.
                (self.pace.look_again, self.pace.list_again) = (true, true);
                (self.pace.next_processes, self.pace.next_look) = (None, None);
            }
            Message::EventsEnded(why) => {
                tracing::error!("process events ended: {why}; processes are polled from now on");
                let status = self.source(source::PROC);
                (status.up, status.why) = (false, Some(why));
                self.pace.next_processes = None;
            }
            Message::Processes(list, cost) => self.processes_listed(list, cost),
            Message::Looked(number, findings, cost, purpose) => {
                let look = Parked { findings, cost, purpose, until: Instant::now() + FENCE_TIMEOUT };
                if !self.events_up() || self.fences.arrived.remove(&number) {
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
            Message::Reload(policy, interval) => {
                self.engine.set_policy(*policy);
                self.watch.interval = interval;
                self.pace.next_look = None;
            }
        }
    }

    fn look_for(&mut self, question: Question, reply: Reply) {
        let plan = self.engine.plan_question(&question, due(self.pace.next_thorough, Instant::now()));
        self.look(plan, Purpose::Answer(question, reply));
    }

    fn events_up(&self) -> bool {
        self.sources.get(source::PROC).is_some_and(|status| status.up)
    }

    /// Everything that happened before this look was over has been told.
    fn fence_arrived(&mut self, number: u32) {
        match self.fences.parked.remove(&number) {
            Some(look) => self.looked(look),
            None => drop(self.fences.arrived.insert(number)),
        }
    }

    /// Looks whose fence got lost wait no longer.
    fn unpark_overdue(&mut self, now: Instant) {
        let overdue = |parked: &Parked| parked.until <= now;
        let numbers: Vec<u32> = self
            .fences
            .parked
            .iter()
            .filter(|(_, parked)| overdue(parked))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.fence_arrived(number);
        }
        // Fences that came after their look was taken all the same.
        if self.fences.parked.is_empty() && self.fences.arrived.len() > 1000 {
            self.fences.arrived.clear();
        }
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
        if self.events_up() && !self.pace.stirred { QUIET_REST } else { BUSY_REST }
    }

    fn source(&mut self, name: &'static str) -> &mut SourceStatus {
        self.sources.entry(name).or_default()
    }

    fn processes_listed(&mut self, list: ProcessList, cost: Cost) {
        self.pace.listing = false;
        // Without events the list is all there is: it is read before every look.
        let rest = if self.events_up() { PROCESSES_EVERY } else { self.watch.interval };
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
                let status = self.source(source::SOCKETS);
                (status.up, status.why) = (false, Some(format!("{error:?}")));
                if let Purpose::Answer(question, reply) = purpose {
                    let _ = reply.send(Err(Unanswerable::from_look(error, &question)));
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
        }
    }

    fn pulse(&mut self) {
        let now = Instant::now();
        self.unpark_overdue(now);
        let wanted = self.engine.wants_list() && due(self.pace.next_wanted_list, now);
        if !self.pace.listing && (wanted || due(self.pace.next_processes, now)) {
            self.list_processes();
        }
        if self.pace.listed && !self.pace.looking && due(self.pace.next_look, now) {
            self.take_interval_look();
        }
        if due(self.pace.next_judgement, now) {
            self.pace.next_judgement = Some(now + JUDGE_EVERY);
            if self.engine.awaits_time() {
                self.engine.judge(self.reader.clock.now());
            }
            for notice in self.engine.take_notices() {
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
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || {
                let looked = measured(|| look::look(&plan, &reader).map(Box::new));
                fence(number);
                looked
            });
            let (findings, cost) = looked.await.unwrap_or_else(|error| {
                (Err(Unreadable::Malformed(format!("the look failed: {error}"))), Cost::default())
            });
            let _ = messages.send(Message::Looked(number, findings, cost, purpose)).await;
        });
    }
}

/// The loop has ended.
struct Stopped;

/// Reads events and sends them on, each exec with what it left of the process's environment, until the loop ends.
fn forward(mut events: ProcEvents, reader: &Reader, messages: &mpsc::Sender<Message>) {
    let mut headless = HashSet::new();
    loop {
        let sent = match events.receive_some() {
            Ok(some) => match with_readings(some, reader, &mut headless) {
                // Threads, our own among them, come and go without a word.
                events if events.is_empty() => Ok(()),
                events => messages.blocking_send(Message::Events(events)).map_err(|_| Stopped),
            },
            Err(error) if means_lost(&error) => {
                messages.blocking_send(Message::EventsLost).map_err(|_| Stopped)
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(error) => {
                let _ = messages.blocking_send(Message::EventsEnded(error.to_string()));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Adds to each exec what can be read of the process, and corrects the kernel's word about ends: the exit of a process's
/// first thread is told as the process's, though others may go on.
fn with_readings(
    events: Vec<ProcessEvent>,
    reader: &Reader,
    headless: &mut HashSet<u32>,
) -> Vec<(ProcessEvent, Option<Box<Process>>)> {
    events
        .into_iter()
        .filter_map(|event| match event {
            ProcessEvent::Execed { pid } => {
                headless.remove(&pid);
                Some((ProcessEvent::Execed { pid }, reader.read(pid).ok().map(Box::new)))
            }
            ProcessEvent::Exited { pid } if process::glance(pid).is_ok() => {
                headless.insert(pid);
                None
            }
            ProcessEvent::ThreadExited { pid } => {
                let last = headless.contains(&pid) && process::glance(pid).is_err();
                last.then(|| {
                    headless.remove(&pid);
                    (ProcessEvent::Exited { pid }, None)
                })
            }
            event => Some((event, None)),
        })
        .collect()
}
