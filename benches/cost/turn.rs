//! One turn: every loop once, with or without the agent.

use std::time::{Duration, Instant};

use crate::Options;
use crate::common::daemon::Daemon;
use crate::common::{Failure, interrupt};
use crate::quiet::{self, Watch};
use crate::rounds::{KINDS, Kind};
use crate::worker::{Work, Worker};

/// What was seen in a turn.
#[derive(Debug)]
pub(crate) struct Turn {
    /// By loop and batch: nanoseconds of an iteration.
    pub(crate) times: Vec<Vec<f64>>,
    /// CPU of the daemon while binds ran, and how long they ran.
    pub(crate) bind_cpu: Duration,
    pub(crate) bind_time: Duration,
    /// Cores that others used.
    pub(crate) others: f64,
    /// Whether there was no agent but ours.
    pub(crate) alone: bool,
}

/// The workers of all loops.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Vec<Worker>,
    batches: usize,
    /// Time left for turns that are taken again.
    patience: Duration,
}

impl Crew {
    pub(crate) fn start(options: &Options) -> Result<Crew, Failure> {
        let workers = KINDS.iter().map(|kind| Worker::start(kind.work)).collect::<Result<_, Failure>>()?;
        Ok(Crew { workers, batches: options.batches, patience: Duration::from_secs(options.patience) })
    }

    /// A turn in which nobody else was at work; or what it was like when the patience had gone.
    pub(crate) fn turn(&mut self, daemon: Option<&Daemon>) -> Result<Turn, Failure> {
        loop {
            let began = Instant::now();
            quiet::await_agents(usize::from(daemon.is_some()), self.patience)?;
            let turn = self.once(daemon)?;
            if (turn.alone && turn.others <= quiet::CORES) || self.patience.is_zero() {
                return Ok(turn);
            }
            self.patience = self.patience.saturating_sub(began.elapsed());
            let what = if turn.alone { "somebody else is at work" } else { "there is another agent" };
            eprintln!("cost: {what} ({:.2} cores); once more", turn.others);
        }
    }

    pub(crate) fn once(&mut self, daemon: Option<&Daemon>) -> Result<Turn, Failure> {
        let (watch, began) = (Watch::begin()?, Instant::now());
        let used = cpu(daemon)?;
        let mut turn = Turn {
            times: Vec::new(),
            bind_cpu: Duration::ZERO,
            bind_time: Duration::ZERO,
            others: 0.0,
            alone: true,
        };
        for (worker, kind) in self.workers.iter_mut().zip(KINDS) {
            interrupt::check()?;
            let (used, began) = (cpu(daemon)?, Instant::now());
            turn.times.push(one(worker, kind, self.batches)?);
            if kind.work == Work::Bind {
                (turn.bind_cpu, turn.bind_time) = (cpu(daemon)?.saturating_sub(used), began.elapsed());
            }
        }
        // One worker used one core.
        let ours = 1.0 + cpu(daemon)?.saturating_sub(used).as_secs_f64() / began.elapsed().as_secs_f64();
        turn.others = (watch.cores()? - ours).max(0.0);
        turn.alone = quiet::agents() == usize::from(daemon.is_some());
        Ok(turn)
    }
}

fn cpu(daemon: Option<&Daemon>) -> Result<Duration, Failure> {
    daemon.map_or(Ok(Duration::ZERO), Daemon::cpu)
}

fn one(worker: &mut Worker, kind: Kind, batches: usize) -> Result<Vec<f64>, Failure> {
    let times = worker.batches(batches, kind.iterations)?;
    Ok(times.into_iter().map(|time| time / kind.iterations as f64).collect())
}
