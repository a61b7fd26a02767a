//! Questions about the past, answered from the history's file and from what the agent knows now.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, broadcast};

use super::live::{Event, Live};
use crate::engine::agent::Agent;
use crate::history::{Asked, Reader, Recorder, document};
use crate::kernel::{clock, netns};
use crate::model::answer::SCHEMA;
use crate::model::conflict::Conflicts;
use crate::model::hold::History;
use crate::model::netns::NetnsSelector;
use crate::model::report::{JobReport, Kept, Timeline};
use crate::model::target::Target;

/// Readings of the file at the same time.
const READS_AT_ONCE: usize = 2;
/// What a page shows without being asked for a time.
const LAST: SignedDuration = SignedDuration::from_hours(1);

/// The agent and its memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Past {
    /// The agent.
    pub agent: Agent,
    recorder: Option<Recorder>,
    live: Live,
    reads: Arc<Semaphore>,
}

/// Why there is no answer, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// It is not there.
    NotFound(String),
    /// It cannot be read now.
    Unavailable(String),
}

impl Past {
    /// `recorder` is none where no history is wanted.
    pub fn new(agent: Agent, recorder: Option<Recorder>, live: Live) -> Self {
        Past { agent, recorder, live, reads: Arc::new(Semaphore::new(READS_AT_ONCE)) }
    }

    /// Begins to watch what happens.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.live.watch()
    }

    /// Why the past is not remembered.
    fn why_not(&self) -> Option<String> {
        match &self.recorder {
            None => {
                Some("history.path is empty: no history is kept; set it and restart the daemon".to_owned())
            }
            Some(recorder) => recorder.standing().why.map(|why| format!("no history is kept now: {why}")),
        }
    }

    /// Reads the file, with everything in it that was recorded before.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, Unanswered> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let recorder = match (&self.recorder, self.why_not()) {
            (Some(recorder), None) => recorder.clone(),
            (_, why) => return Err(Unanswered::Unavailable(why.unwrap_or_default())),
        };
        // A port that nobody has is looked at fastest.
        let any = Target { ports: 0..=0, protocol: None, address: None };
        self.agent.record(any).await.map_err(unavailable)?;
        // The semaphore is never closed.
        let _turn = self.reads.acquire().await;
        let work = tokio::task::spawn_blocking(move || {
            recorder.flush();
            let reader = Reader::open(&recorder.path());
            read(&reader.map_err(|why| Unanswered::Unavailable(why.to_string()))?)
        });
        work.await.unwrap_or_else(|error| Err(unavailable(error)))
    }

    /// Who had a port when.
    pub async fn history(&self, asked: Asked) -> Result<History, Unanswered> {
        let asked = resolved(asked)?;
        self.read(move |reader| document::history(reader, &asked, clock::now()).map_err(unavailable)).await
    }

    /// Refusals since a moment, those of before the agent's start among them.
    pub async fn conflicts(&self, since: Option<Timestamp>) -> Result<Conflicts, Unanswered> {
        let mut conflicts = self.agent.conflicts(since).await.map_err(unavailable)?;
        // What the agent knows itself is not read again.
        let limit = Some(document::MAX_CONFLICTS.saturating_sub(conflicts.conflicts.len()));
        let before = conflicts.conflicts.iter().map(|conflict| conflict.id).min();
        let asked = Asked { since, before, limit, ..Asked::default() };
        let read = self.read(move |reader| {
            let kept_since = reader.kept_since().map_err(unavailable)?;
            Ok((reader.conflicts(&asked).map_err(unavailable)?.found, kept_since))
        });
        match read.await {
            Ok((mut before, kept_since)) => {
                before.append(&mut conflicts.conflicts);
                before.sort_by_key(|conflict| (conflict.at, conflict.id));
                let over = before.len().saturating_sub(document::MAX_CONFLICTS);
                before.drain(..over);
                conflicts.incomplete.extend((over > 0).then(document::left_out));
                conflicts.conflicts = before;
                conflicts.remembered_since = kept_since;
            }
            // Nothing is missing of what was never wanted.
            Err(_) if self.recorder.is_none() => {}
            Err(Unanswered::Unavailable(why) | Unanswered::NotFound(why)) => conflicts.incomplete.push(why),
        }
        Ok(conflicts)
    }

    /// Everything of a time; without a history what goes on now.
    pub async fn timeline(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Timeline, Unanswered> {
        let now = clock::now();
        let until = until.unwrap_or(now);
        let since = since.or_else(|| until.checked_sub(LAST).ok()).unwrap_or(until);
        let read =
            self.read(move |reader| document::timeline(reader, (since, until), now).map_err(unavailable));
        let mut timeline = match read.await {
            Ok(timeline) => timeline,
            Err(Unanswered::Unavailable(why) | Unanswered::NotFound(why)) => {
                self.present((since, until), now, why).await?
            }
        };
        timeline.incomplete = self.incomplete().await;
        Ok(timeline)
    }

    async fn present(
        &self,
        (since, until): (Timestamp, Timestamp),
        now: Timestamp,
        why: String,
    ) -> Result<Timeline, Unanswered> {
        let mut holds = self.agent.holds().await.map_err(unavailable)?;
        holds.sort_unstable_by_key(|hold| (hold.from, hold.id));
        let conflicts = self.agent.conflicts(Some(since)).await.map_err(unavailable)?;
        let mut timeline = Timeline {
            schema: SCHEMA,
            as_of: now,
            since,
            until,
            truncated: false,
            incomplete: Vec::new(),
            history: Kept { kept: false, why: Some(why) },
            holds,
            conflicts: conflicts.conflicts,
            jobs: Vec::new(),
        };
        timeline.jobs = document::jobs(&timeline);
        Ok(timeline)
    }

    /// The evidence of a job.
    pub async fn report(&self, id: String, ci: Option<String>) -> Result<JobReport, Unanswered> {
        let incomplete = self.incomplete().await;
        let report = self.read(move |reader| {
            document::report(reader, &id, ci.as_deref(), incomplete, clock::now()).map_err(
                |error| match error {
                    document::NoReport::File(error) => unavailable(error),
                    error => Unanswered::NotFound(error.to_string()),
                },
            )
        });
        report.await
    }

    /// What cannot be seen now.
    async fn incomplete(&self) -> Vec<String> {
        let mut incomplete = self.agent.status().incomplete.clone();
        if let Ok(conflicts) = self.agent.conflicts(None).await {
            incomplete.extend(conflicts.incomplete);
        }
        incomplete
    }
}

fn unavailable(error: impl ToString) -> Unanswered {
    Unanswered::Unavailable(error.to_string())
}

/// A process's namespace is the one it is in now, and one of a name the one that has it now, or had it then.
pub fn resolved(asked: Asked) -> Result<Asked, Unanswered> {
    let pid = match &asked.netns {
        Some(NetnsSelector::Pid(pid)) => *pid,
        Some(NetnsSelector::Name(name)) => {
            let inode = netns::of_name(name);
            return Ok(Asked { inode, ..asked });
        }
        _ => return Ok(asked),
    };
    match netns::of_process(pid) {
        Ok(inode) => Ok(Asked { netns: Some(NetnsSelector::Inode(inode)), ..asked }),
        Err(_) => Err(Unanswered::NotFound(format!("no network namespace of a process {pid} could be read"))),
    }
}
