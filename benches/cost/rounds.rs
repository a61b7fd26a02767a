//! The loops, in turns without the agent and with it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Options;
use crate::common::daemon::Daemon;
use crate::common::table::median;
use crate::common::{Failure, interrupt};
use crate::quiet;
use crate::turn::{Crew, Turn};
use crate::worker::Work;

/// A daemon that used no more CPU than this in a while has come to rest after its start.
const CALM: Duration = Duration::from_millis(10);
const CALM_WINDOW: Duration = Duration::from_millis(300);
const CALM_TIMEOUT: Duration = Duration::from_secs(10);

/// A loop: what it does and what may become of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    what: &'static str,
    pub(crate) work: Work,
    /// Of a batch of about 10 ms, so that the agent's wakings, every 5 ms in a storm, are in each.
    pub(crate) iterations: usize,
    /// Ratios of the time with the agent to the time without.
    target: f64,
    limit: f64,
}

pub(crate) const KINDS: [Kind; 4] = [
    Kind { what: "socket+bind+listen+close", work: Work::Bind, iterations: 2000, target: 1.05, limit: 1.10 },
    Kind { what: "getppid", work: Work::Null, iterations: 40_000, target: 1.01, limit: 1.03 },
    Kind { what: "fork+exec+wait", work: Work::Fork, iterations: 15, target: 1.03, limit: 1.05 },
    Kind { what: "posix_spawn+wait", work: Work::Spawn, iterations: 15, target: 1.03, limit: 1.05 },
];

/// A loop and its times: nanoseconds of an iteration, by turn and batch.
#[derive(Debug)]
pub(crate) struct Loop {
    kind: Kind,
    pub(crate) without: Vec<Vec<f64>>,
    pub(crate) with: Vec<Vec<f64>>,
}

/// What a loop's ratio is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    WithinLimit,
    AboveLimit,
}

impl Loop {
    pub(crate) fn what(&self) -> &'static str {
        self.kind.what
    }

    pub(crate) fn target(&self) -> (f64, f64) {
        (self.kind.target, self.kind.limit)
    }

    /// Of the fastest batches.
    pub(crate) fn ratio_of_minima(&self) -> f64 {
        minimum(&self.with) / minimum(&self.without)
    }

    /// Of the batches in the middle.
    pub(crate) fn ratio_of_medians(&self) -> f64 {
        middle(&self.with) / middle(&self.without)
    }

    /// What each pair of turns says by its medians: the least and the largest.
    pub(crate) fn range(&self) -> (f64, f64) {
        let pairs = self.with.iter().zip(&self.without).map(|(with, without)| median(with) / median(without));
        pairs.fold((f64::INFINITY, 0.0), |(least, most), ratio| (ratio.min(least), ratio.max(most)))
    }

    /// The same ratio where it must be 1: every second turn without the agent against the others.
    pub(crate) fn noise(&self) -> f64 {
        let half = |first: usize| self.without.iter().skip(first).step_by(2).cloned().collect::<Vec<_>>();
        middle(&half(1)) / middle(&half(0))
    }

    /// Judged by the medians: the fastest batches are those in which the agent did least.
    pub(crate) fn verdict(&self) -> Verdict {
        let ratio = self.ratio_of_medians();
        match (ratio <= self.kind.target, ratio <= self.kind.limit) {
            (true, _) => Verdict::Met,
            (_, true) => Verdict::WithinLimit,
            _ => Verdict::AboveLimit,
        }
    }
}

pub(crate) fn minimum(turns: &[Vec<f64>]) -> f64 {
    turns.iter().flatten().copied().fold(f64::INFINITY, f64::min)
}

pub(crate) fn middle(turns: &[Vec<f64>]) -> f64 {
    median(&turns.concat())
}

/// What was measured. The last turn's daemon goes on.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) loops: Vec<Loop>,
    pub(crate) daemon: Daemon,
    /// CPU of the daemons while binds ran.
    pub(crate) cpu_percent: f64,
    pub(crate) cpu_us_per_bind: f64,
    /// Cores that others used in each turn.
    others: Vec<f64>,
    /// Turns during which there were other agents.
    crowded: usize,
}

impl Measured {
    pub(crate) fn described(&self, load: f64, options: &Options) -> String {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let others = median(&self.others);
        let worst = self.others.iter().copied().fold(0.0, f64::max);
        let mut text = format!(
            "{} turns without the agent and with it × {} batches; {cores} cores, Linux {}.\n\
             Load average before: {load:.2}. Others used {others:.2} cores in the middle turn, {worst:.2} in the worst.",
            options.rounds,
            options.batches,
            kernel.trim()
        );
        let noisy = self.others.iter().filter(|others| **others > quiet::CORES).count();
        if noisy > 0 {
            text +=
                &format!("\nNOT QUIET: others were at work in {noisy} turns, and the figures show that too.");
        }
        if self.crowded > 0 {
            text += &format!("\nNOT ALONE: another agent was there in {} turns.", self.crowded);
        }
        text
    }
}

pub(crate) fn measure(directory: &Path, options: &Options) -> Result<Measured, Failure> {
    let mut loops: Vec<Loop> =
        KINDS.iter().map(|kind| Loop { kind: *kind, without: Vec::new(), with: Vec::new() }).collect();
    let mut crew = Crew::start(options)?;
    // Once in vain: caches fill, files are read.
    crew.once(None)?;
    let (mut without, mut with): (Vec<Turn>, Vec<Turn>) = Default::default();
    let mut last = None;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}: without the agent, then with it", options.rounds);
        drop(last.take());
        without.push(crew.turn(None)?);
        let daemon = start(directory)?;
        with.push(crew.turn(Some(&daemon))?);
        last = Some(daemon);
    }
    let used: f64 = with.iter().map(|turn| turn.bind_cpu.as_secs_f64()).sum();
    let ran: f64 = with.iter().map(|turn| turn.bind_time.as_secs_f64()).sum();
    let binds = options.rounds * options.batches * KINDS.first().map_or(0, |kind| kind.iterations);
    let others = without.iter().chain(&with).map(|turn| turn.others).collect();
    let crowded = without.iter().chain(&with).filter(|turn| !turn.alone).count();
    for turn in without {
        loops.iter_mut().zip(turn.times).for_each(|(one, times)| one.without.push(times));
    }
    for turn in with {
        loops.iter_mut().zip(turn.times).for_each(|(one, times)| one.with.push(times));
    }
    Ok(Measured {
        loops,
        daemon: last.ok_or("no round was run")?,
        cpu_percent: 100.0 * used / ran,
        cpu_us_per_bind: 1e6 * used / binds as f64,
        others,
        crowded,
    })
}

/// A daemon that has BPF programs, and has come to rest.
fn start(directory: &Path) -> Result<Daemon, Failure> {
    let mut daemon = Daemon::start(directory)?;
    daemon.wait_ready()?;
    if daemon.metric("sniffer_source_up", "ebpf")? != 1.0 {
        return Err(format!("the daemon has no BPF programs here; it said:\n{}", daemon.said()));
    }
    let until = Instant::now() + CALM_TIMEOUT;
    loop {
        let used = daemon.cpu()?;
        interrupt::sleep(CALM_WINDOW)?;
        if daemon.cpu()?.saturating_sub(used) <= CALM {
            return Ok(daemon);
        }
        if Instant::now() > until {
            eprintln!("cost: the daemon does not come to rest; going on");
            return Ok(daemon);
        }
    }
}
