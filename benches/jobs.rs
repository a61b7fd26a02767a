//! `cargo bench --bench jobs`: how soon a leak is visible, whether short jobs are ever taken for leaks, what a process of a job costs, and a
//! thousand jobs at once.
//!
//! The jobs are GitHub's as far as processes go: this program, started again under the names of a runner's. Prints a markdown table, and
//! ends all of them. Needs root. Exit code 1 where a target is missed or nothing could be measured.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "jobs/roles.rs"]
mod roles;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use common::daemon::Daemon;
use common::table::{markdown, median};
use common::{Failure, interrupt};
use roles::{Job, Programs};

const GRACE: Duration = Duration::from_secs(1);
/// What may pass after the grace until the leak is visible.
const VISIBLE_MS: f64 = 200.0;
/// How often the metrics are asked while something is waited for.
const TICK: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);
const SETTLE: Duration = Duration::from_secs(3);
const LEAKED: &str = "sniffer_leaked_listeners{ci=\"github\"}";
const LEAKS: &str = "sniffer_leaks_total{ci=\"github\"}";
const RUNNING: &str = "sniffer_jobs{ci=\"github\",state=\"running\"}";
const ENDED: &str = "sniffer_jobs{ci=\"github\",state=\"ended\"}";

/// Jobs under an agent's eyes.
#[derive(Debug, Parser)]
struct Options {
    /// Leaks to time
    #[arg(long, default_value_t = 15)]
    leaks: usize,
    /// Short jobs, one after the other in each lane
    #[arg(long, default_value_t = 5000)]
    short: usize,
    /// Lanes of short jobs
    #[arg(long, default_value_t = 8)]
    lanes: usize,
    /// Jobs at the same time
    #[arg(long, default_value_t = 1000)]
    at_once: usize,
    /// Processes in one job's lineage
    #[arg(long, default_value_t = 10_000)]
    lineage: usize,
    /// Given by `cargo bench`; without it, as in `cargo test --benches`, nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if let Some(code) = roles::play() {
        return code;
    }
    let options = Options::parse();
    if !options.bench {
        return ExitCode::SUCCESS;
    }
    match measure(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("jobs: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<bool, Failure> {
    interrupt::catch()?;
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let programs = Programs::new(directory.path())?;
    let (mut rows, mut met) = (Vec::new(), true);
    let mut add = |what: String, value: String, target: &str, ok: Option<bool>| {
        met &= ok != Some(false);
        let result = ok.map_or("", |ok| if ok { "ok" } else { "MISSED" });
        rows.push([what, value, target.to_owned(), result.to_owned()]);
    };

    let delays = visible(options.leaks, &programs, directory.path())?;
    let worst = delays.iter().copied().fold(0.0, f64::max);
    add(
        format!("from the end of a job to its leak in the metrics, less the grace ({})", options.leaks),
        format!("{:.0} ms, worst {worst:.0} ms", median(&delays)),
        "≤ 200 ms",
        Some(worst <= VISIBLE_MS),
    );

    let churn = churn(options, &programs, directory.path())?;
    add(
        format!(
            "{} short jobs, {} at a time, in {:.0} s: false leaks",
            options.short, options.lanes, churn.seconds
        ),
        format!("{:.0}", churn.leaks),
        "0",
        Some(churn.leaks == 0.0),
    );
    add("jobs of them that the agent knows as ended".to_owned(), format!("{:.0}", churn.ended), "", None);
    add("CPU of the agent for each of them".to_owned(), format!("{:.2} ms", churn.cpu_ms), "", None);

    let crowd = at_once(options.at_once, &programs, directory.path())?;
    add(
        format!("{} jobs at once: all known as running after", options.at_once),
        format!("{:.1} s", crowd.known),
        "",
        None,
    );
    add(
        "all ended at once, each with a listener left: all leaked after their grace and".to_owned(),
        format!("{:.0} ms", crowd.leaked_ms),
        "",
        None,
    );

    let cost = lineage(options.lineage, &programs, directory.path())?;
    add(
        format!("{} processes in one job's lineage: memory for each", options.lineage),
        format!("{:.2} KiB", cost.kib),
        "",
        None,
    );
    add(
        "resident memory with them, and after they have ended twice".to_owned(),
        format!("{:.0} MiB, {:.0} MiB", cost.with_mib, cost.after_mib),
        "",
        None,
    );
    println!("{}", markdown(["measured", "value", "target", "result"], rows));
    Ok(met)
}

fn daemon(directory: &Path, grace: Duration) -> Result<Daemon, Failure> {
    let more = format!("[leak]\ngrace = \"{}ms\"\n", grace.as_millis());
    let mut daemon = Daemon::start_with(directory, &more)?;
    daemon.wait_ready()?;
    interrupt::sleep(SETTLE)?;
    Ok(daemon)
}

/// Waits until a series has a value; answers when.
fn until(daemon: &Daemon, series: &str, value: f64) -> Result<Instant, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = daemon.series(series)?;
        if found == value {
            return Ok(Instant::now());
        }
        if Instant::now() > end {
            return Err(format!("{series} stays {found}, not {value}; the daemon said:\n{}", daemon.said()));
        }
        interrupt::check()?;
        std::thread::sleep(TICK);
    }
}

/// How long each leak took to show after its grace, in milliseconds.
fn visible(leaks: usize, programs: &Programs, directory: &Path) -> Result<Vec<f64>, Failure> {
    let daemon = daemon(directory, GRACE)?;
    let mut delays = Vec::new();
    for number in 0..leaks {
        let mut job = Job::start(programs, &format!("github_leak{number}"))?;
        until(&daemon, RUNNING, 1.0)?;
        let ended = job.end_worker()?;
        let shown = until(&daemon, LEAKED, 1.0)?;
        delays.push((shown - ended).saturating_sub(GRACE).as_secs_f64() * 1000.0);
        drop(job);
        until(&daemon, LEAKED, 0.0)?;
    }
    Ok(delays)
}

struct Churn {
    seconds: f64,
    leaks: f64,
    ended: f64,
    cpu_ms: f64,
}

/// Short jobs whose servers end just before them, with no grace to speak of.
fn churn(options: &Options, programs: &Programs, directory: &Path) -> Result<Churn, Failure> {
    let daemon = daemon(directory, Duration::from_millis(1))?;
    let (began, cpu) = (Instant::now(), daemon.cpu()?);
    let lanes = options.lanes.max(1);
    std::thread::scope(|scope| {
        let lane = |lane: usize| {
            scope.spawn(move || {
                (lane..options.short).step_by(lanes).try_for_each(|number| {
                    interrupt::check()?;
                    programs.short_job(&format!("github_short{number}"))
                })
            })
        };
        let running: Vec<_> = (0..lanes).map(lane).collect();
        running
            .into_iter()
            .try_for_each(|lane| lane.join().unwrap_or_else(|_| Err("a lane failed".to_owned())))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    interrupt::sleep(SETTLE)?;
    let used = daemon.cpu()?.saturating_sub(cpu).as_secs_f64();
    Ok(Churn {
        seconds,
        leaks: daemon.series(LEAKS)?,
        ended: daemon.series(ENDED)?,
        cpu_ms: used * 1000.0 / options.short as f64,
    })
}

struct Crowd {
    known: f64,
    leaked_ms: f64,
}

fn at_once(count: usize, programs: &Programs, directory: &Path) -> Result<Crowd, Failure> {
    let daemon = daemon(directory, GRACE)?;
    let began = Instant::now();
    let mut jobs = (0..count)
        .map(|number| {
            interrupt::check()?;
            Job::start(programs, &format!("github_crowd{number}"))
        })
        .collect::<Result<Vec<Job>, Failure>>()?;
    let known = until(&daemon, RUNNING, count as f64)? - began;
    if daemon.series(LEAKS)? > 0.0 {
        return Err("a running job's listener was taken for leaked".to_owned());
    }
    let mut ended = Instant::now();
    for job in &mut jobs {
        ended = job.end_worker()?;
    }
    let leaked = until(&daemon, LEAKED, count as f64)?;
    drop(jobs);
    until(&daemon, LEAKED, 0.0)?;
    Ok(Crowd {
        known: known.as_secs_f64(),
        leaked_ms: (leaked - ended).saturating_sub(GRACE).as_secs_f64() * 1000.0,
    })
}

struct Cost {
    kib: f64,
    with_mib: f64,
    after_mib: f64,
}

fn lineage(count: usize, programs: &Programs, directory: &Path) -> Result<Cost, Failure> {
    let daemon = daemon(directory, GRACE)?;
    let before = daemon.memory("VmRSS")?;
    let mut with = 0.0_f64;
    for round in 0..2 {
        let crowd = programs.crowd(&format!("github_lineage{round}"), count)?;
        interrupt::sleep(SETTLE)?;
        with = with.max(daemon.memory("VmRSS")?);
        drop(crowd);
        interrupt::sleep(SETTLE)?;
    }
    Ok(Cost {
        kib: (with - before) * 1024.0 / count as f64,
        with_mib: with,
        after_mib: daemon.memory("VmRSS")?,
    })
}
