//! The way to the agent for everybody else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::fences::Fences;
use super::pace::Pace;
use super::{Declaration, Loop, Message, Outside, Peer, Watch};
use crate::engine::status::Status;
use crate::engine::{Engine, KeptHold, KeptJob, Policy, Question, Refused, Topic, Unanswerable};
use crate::judge::leak::Watching;
use crate::kernel::clock;
use crate::kernel::process::{self, Reader};
use crate::model::answer::Answer;
use crate::model::conflict::Conflicts;
use crate::model::hold::Hold;
use crate::model::job::Job;
use crate::model::netns::NetnsSelector;
use crate::model::target::Target;

/// Messages (batches of events among them) that may wait. Past it a source waits, and its kernel buffer fills and counts what it drops.
const QUEUE: usize = 1024;
/// An answer that takes longer is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const STOPPING: Unanswerable = Unanswerable::NoAgent("it is stopping");

/// What the agent before this one kept.
#[derive(Debug, Clone)]
pub struct Before {
    /// Of jobs,
    pub jobs: Vec<KeptJob>,
    /// with the begin of its clock;
    pub booted: Timestamp,
    /// of holds that went on,
    pub holds: Vec<KeptHold>,
    /// when it was seen to live last, and the last number it gave.
    pub alive_until: Timestamp,
    /// That number.
    pub last_id: u64,
}

/// The way to ask the agent and to tell it of a new policy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Agent {
    messages: mpsc::Sender<Message>,
    status: watch::Receiver<Arc<Status>>,
    closes: watch::Receiver<u64>,
    recorded: watch::Receiver<u64>,
    kept: watch::Receiver<Vec<KeptJob>>,
}

impl Agent {
    /// Starts the sources and the loop on the current runtime. The loop ends with the runtime; if it ends before, it failed.
    pub fn start(
        policy: Policy,
        watch: Watch,
        reader: Arc<Reader>,
        before: Before,
        outside: impl Outside,
    ) -> (Agent, JoinHandle<()>) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let (publish, status) = watch::channel(Arc::new(Status::default()));
        let (closed, closes) = watch::channel(0);
        let (record, recorded) = watch::channel(0);
        let mut engine = Engine::new(policy, reader.clock, Watching::Continuously);
        engine.restore(before.jobs, before.booted, |pid| process::start(pid).ok());
        engine.restore_holds(before.last_id, before.holds, before.alive_until);
        let (keep, kept) = watch::channel(engine.kept_jobs());
        let agent = Agent { messages: messages.clone(), status, closes, recorded, kept };
        let task = Loop {
            engine,
            reader,
            watch,
            messages,
            publish,
            closed,
            recorded: record,
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

    /// Changes whenever something was recorded: how often that was.
    pub fn recorded(&self) -> watch::Receiver<u64> {
        self.recorded.clone()
    }

    /// Has what happened so far handed on to whoever remembers it: a look at this port comes after all events before it.
    /// Errors: the agent is busy or stopping.
    pub async fn record(&self, target: Target) -> Result<(), Unanswerable> {
        let question =
            Question { topic: Topic::Target(target), netns: Some(NetnsSelector::Name("host".to_owned())) };
        // What it finds is not asked for.
        let _ = self.ask(question).await;
        self.answered(Message::Record).await
    }

    /// The holds that go on. Errors: the agent is busy or stopping.
    pub async fn holds(&self) -> Result<Vec<Hold>, Unanswerable> {
        self.answered(Message::AskHolds).await
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
