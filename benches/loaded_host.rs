//! `cargo bench --bench loaded_host`: how fast and how cheap sniffer is on a loaded CI host.
//!
//! Makes such a host for real: thousands of processes with hundreds of descriptors each, a thousand TCP listeners, a hundred
//! network namespaces. Measures, prints one markdown table, and removes all of it again. Needs root (namespaces), and `ip`
//! and `ss` of iproute2. Exit code: 0 all targets met, 1 a target missed, an answer wrong, or something missing.
//!
//! `-- --quick` makes a small load to try the benchmark itself: speed is judged at the full load only. After SIGKILL
//! namespaces are left over: `ip netns list | grep sniffer-bench-`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "loaded_host/questions.rs"]
mod questions;
#[path = "loaded_host/table.rs"]
mod table;

use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;

use common::daemon::Daemon;
use common::load::{Load, Scale};
use common::{Failure, interrupt, worker};
use table::{Row, Target, Worth};

/// After the daemon is ready, before its idling is measured.
const SETTLE: Duration = Duration::from_secs(10);
/// Of one core, while nothing happens.
const CPU_PERCENT: f64 = 1.0;
const RSS_MIB: f64 = 48.0;
const READY_MS: f64 = 5000.0;

/// How fast and how cheap sniffer is on a loaded CI host.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// A small load for a first look
    #[arg(long)]
    quick: bool,
    /// Processes in all
    #[arg(long, default_value_t = 2000, default_value_if("quick", "true", "100"))]
    processes: usize,
    /// Open descriptors of each
    #[arg(long, default_value_t = 200, default_value_if("quick", "true", "50"))]
    descriptors: usize,
    /// TCP listeners in all, four fifths of them in the namespaces
    #[arg(long, default_value_t = 1000, default_value_if("quick", "true", "50"))]
    listeners: usize,
    /// Network namespaces
    #[arg(long, default_value_t = 100, default_value_if("quick", "true", "5"))]
    namespaces: usize,
    /// How often each question is asked
    #[arg(long, default_value_t = 15, default_value_if("quick", "true", "5"))]
    repetitions: usize,
    /// How long the daemon is watched while nothing happens, in seconds
    #[arg(long, default_value_t = 60, default_value_if("quick", "true", "10"))]
    idle: u64,
    /// Given by `cargo bench`; without it, as in `cargo test --benches`, nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn scale(&self) -> Scale {
        let Options { processes, descriptors, listeners, namespaces, .. } = *self;
        Scale { processes, descriptors, listeners, namespaces }
    }

    /// Whether this is the load that the speed targets are meant for.
    fn is_full(&self) -> bool {
        self.processes >= 2000 && self.descriptors >= 200 && self.listeners >= 1000 && self.namespaces >= 100
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(worker::ARGUMENT) {
        return worker::run(arguments);
    }
    let options = Options::parse();
    if !options.bench {
        println!("nothing is measured: run it with `cargo bench --bench loaded_host`");
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(missed) => ExitCode::from(u8::from(missed)),
        Err(failure) => {
            eprintln!("loaded_host: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints; answers whether a target was missed. Everything made is removed when its guard drops, on an error too.
fn run(options: &Options) -> Result<bool, Failure> {
    check_needs()?;
    interrupt::catch()?;
    let load = Load::make(options.scale())?;
    let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let ready = (0..options.repetitions.clamp(1, 3))
        .map(|_| Daemon::start(directory.path())?.wait_ready())
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut daemon = Daemon::start(directory.path())?;
    daemon.wait_ready()?;
    eprintln!("watching the daemon idle for {} s", options.idle);
    interrupt::sleep(SETTLE)?;
    let idle = daemon.idle(Duration::from_secs(options.idle))?;
    let rss_idle = daemon.memory("VmRSS")?;
    eprintln!("asking each question {} times", options.repetitions);
    let times = questions::ask(&load, &daemon, options)?;

    let of_load = Worth::at_load(options.is_full());
    let mib = |value| Target::Below(value, "MiB");
    let mut rows = vec![
        Row::times("`ss -Hltnp 'sport = :P'`", &times.ss),
        Row::times("`sniffer who-holds P`, daemon", &times.daemon),
        Row::ratios("ss ÷ who-holds, daemon", &times.ss, &times.daemon).target(Target::Factor(50.0), of_load),
        Row::times("`sniffer who-holds P`, no daemon", &times.alone),
        Row::ratios("ss ÷ who-holds, no daemon", &times.ss, &times.alone)
            .target(Target::Factor(10.0), of_load),
        Row::single("daemon idle: CPU of one core", idle.cpu_percent, "%")
            .target(Target::Below(CPU_PERCENT, "%"), Worth::Judged),
        Row::single("daemon idle: tasks started on the host", idle.started_per_second, "/s"),
        Row::single("daemon idle: RSS", rss_idle, "MiB").target(mib(RSS_MIB), Worth::Judged),
        Row::single("daemon after the questions: RSS", daemon.memory("VmRSS")?, "MiB")
            .target(mib(RSS_MIB), Worth::Judged),
        Row::single("daemon: peak RSS", daemon.memory("VmHWM")?, "MiB"),
        Row::times("daemon: start to ready", &ready).target(Target::Below(READY_MS, "ms"), Worth::Judged),
        Row::times("`sniffer who-holds P`, daemon, P is free", &times.free),
        Row::times("`sniffer who-holds P`, daemon, P in a namespace", &times.inside),
        Row::times("`sniffer list`, daemon", &times.list),
    ];
    rows.extend(times.lsof.as_ref().map(|times| Row::times("`lsof -nP -iTCP:P`", times)));
    println!("\n{}\n\n{}", load.described(), table::markdown(&rows));
    Ok(rows.iter().any(Row::is_missed))
}

fn check_needs() -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(
            "needs root, to make network namespaces: sudo -E cargo bench --bench loaded_host".to_owned()
        );
    }
    for program in ["ip", "ss"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Err(format!("needs `{program}` of iproute2: install the package iproute2 or iproute"));
        }
    }
    Ok(())
}
