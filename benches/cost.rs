//! `cargo bench --bench cost`: what the agent costs the programs that it watches, and how soon it knows of their binds.
//!
//! Loops of one kind of work each run on one core without the agent, with it, without, with …, and the ratio is what counts:
//! times differ between machines, and between minutes of one machine. Then two processes bind at full speed, and it is asked
//! for ports that have just been bound. Prints two markdown tables and removes what it made. Needs root, and `ip` of iproute2.
//!
//! Exit code 0 also where a target is missed: the tables say so. 1 where nothing could be measured. `-- --quick` is a first look.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "cost/quiet.rs"]
mod quiet;
#[path = "cost/rounds.rs"]
mod rounds;
#[path = "cost/storm.rs"]
mod storm;
#[path = "cost/table.rs"]
mod table;
#[path = "cost/turn.rs"]
mod turn;
#[path = "cost/visible.rs"]
mod visible;
#[path = "cost/worker.rs"]
mod worker;

use std::process::{Command, ExitCode};

use clap::Parser;

use common::{Failure, interrupt};
use table::Figure;

/// What the agent costs the programs that it watches.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Few rounds, for a first look
    #[arg(long)]
    quick: bool,
    /// How often each loop runs without and with the agent, in turns
    #[arg(long, default_value_t = 20, default_value_if("quick", "true", "3"))]
    rounds: usize,
    /// Timed batches of each loop in a turn, of about 10 ms each
    #[arg(long, default_value_t = 50, default_value_if("quick", "true", "20"))]
    batches: usize,
    /// Seconds for turns that are taken again because others were at work
    #[arg(long, default_value_t = 180, default_value_if("quick", "true", "0"))]
    patience: u64,
    /// How often two processes bind at full speed
    #[arg(long, default_value_t = 5, default_value_if("quick", "true", "1"))]
    storms: usize,
    /// Ports that are asked for as soon as they are bound
    #[arg(long, default_value_t = 200, default_value_if("quick", "true", "50"))]
    ports: u16,
    /// Given by `cargo bench`; without it, as in `cargo test --benches`, nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(worker::ARGUMENT) {
        return worker::serve(arguments.next());
    }
    let options = Options::parse();
    if !options.bench {
        println!("nothing is measured: run it with `cargo bench --bench cost`");
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cost: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints. Everything made is removed when its guard drops, on an error too.
fn run(options: &Options) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root, as the agent does: sudo -E cargo bench --bench cost".to_owned());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Err("needs `ip` of iproute2: install the package iproute2 or iproute".to_owned());
    }
    interrupt::catch()?;
    let load = quiet::load_average()?;
    if load > quiet::LOAD {
        eprintln!("cost: this machine is not quiet, its load average is {load:.2}; going on");
    }
    let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let measured = rounds::measure(directory.path(), options)?;
    let daemon = &measured.daemon;
    eprintln!("two processes binding at full speed, {} times", options.storms);
    let storm = storm::measure(daemon, options.storms)?;
    eprintln!("asking for {} ports as soon as they are bound, twice", options.ports);
    let here = visible::measure(daemon, worker::Work::Listen, options)?;
    let inside = visible::measure(daemon, worker::Work::ListenInside, options)?;

    let figures = [
        Figure::storms("two processes × 50,000 binds: events lost", &storm.lost, f64::max, "").at_most(0.0),
        Figure::storms("two processes × 50,000 binds: events told", &storm.told, f64::min, "")
            .at_least(storm::EVENTS),
        Figure::storms("two processes × 50,000 binds: binds", &storm.binds_per_second, f64::min, "/s"),
        Figure::times("bind to visible in who-holds", &here.visible).at_most(visible::TARGET_MS),
        Figure::times("the same in another network namespace", &inside.visible).at_most(visible::TARGET_MS),
        Figure::times("who-holds over the socket, nothing happening", &here.asked),
        Figure::times("`sniffer who-holds P`, the program", &here.program),
        Figure::single("daemon while one core binds: CPU of one core", measured.cpu_percent, "%"),
        Figure::single("daemon while one core binds: CPU for a bind", measured.cpu_us_per_bind, "µs"),
        Figure::single("daemon at the end: RSS", daemon.memory("VmRSS")?, "MiB"),
        Figure::single("daemon: peak RSS", daemon.memory("VmHWM")?, "MiB"),
    ];
    println!(
        "\n{}\n\n{}\n\n{}\n",
        measured.described(load, options),
        table::loops(&measured.loops),
        table::figures(&figures)
    );
    println!("{}", table::verdict(&measured.loops, &figures));
    Ok(())
}
