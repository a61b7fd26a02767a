//! `cargo bench --bench history`: what it takes to remember. Ten million holds and refusals in one file: its size for each, how long
//! `sniffer history PORT` and `--at` take on it, with a daemon and without, and what is kept at 20,000 a second and at 100,000.
//!
//! What is written is made up, in the proportions of a busy CI host ([`events`]). The files lie in a temporary directory and take some
//! 3 GB. Prints a markdown table. Needs root for the daemon. Exit code 1 where a target is missed or nothing could be measured.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "history/events.rs"]
mod events;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use sniffer::engine::Records;
use sniffer::history::Recorder;

use common::Failure;
use common::daemon::{Daemon, SNIFFER};
use common::table::{markdown, median};
use events::Events;

/// Targets.
const BYTES: f64 = 150.0;
const ANSWER_MS: f64 = 20.0;
const SUSTAINED: u64 = 20_000;
const STORM: u64 = 100_000;
/// What a queue of 65,536 records, and a batch of them, may take.
const STORM_MIB: f64 = 128.0;

/// What it takes to remember.
#[derive(Debug, Parser)]
struct Options {
    /// Holds and refusals in the file
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// How often each question is asked
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Seconds of 20,000 a second
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Where the files lie, and stay; a temporary directory without it
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Given by `cargo bench`; without it, as in `cargo test --benches`, nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        return ExitCode::SUCCESS;
    }
    match measure(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("history: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<bool, Failure> {
    let temporary = tempfile::tempdir().map_err(|error| error.to_string())?;
    let directory = options.directory.as_deref().unwrap_or(temporary.path());
    let file = directory.join("history.db");
    let mut table = Table::default();
    let middle = fill(&file, options.events, &mut table)?;
    questions(directory, &file, &middle, options.rounds, &mut table)?;
    sustained(&directory.join("sustained.db"), options.seconds, &mut table);
    storm(&directory.join("storm.db"), &mut table)?;
    println!("{}", markdown(["measured", "figure", "target"], table.rows));
    Ok(table.met)
}

struct Table {
    rows: Vec<[String; 3]>,
    met: bool,
}

impl Default for Table {
    fn default() -> Self {
        Table { rows: Vec::new(), met: true }
    }
}

impl Table {
    fn row(&mut self, what: &str, figure: String, target: &str, met: bool) {
        let target = if target.is_empty() || met { target.to_owned() } else { format!("{target} MISSED") };
        self.rows.push([what.to_owned(), figure, target]);
        self.met &= met;
    }
}

fn recorder(file: &Path) -> Recorder {
    let (recorder, _) = Recorder::start(file.to_owned(), Duration::from_hours(24 * 365), u64::MAX, "a boot");
    recorder
}

/// Writes as fast as it goes; answers a moment in the middle.
fn fill(file: &Path, count: u64, table: &mut Table) -> Result<String, Failure> {
    let recorder = recorder(file);
    let mut events = Events::ending_now(1, count);
    let (began, mut middle) = (Instant::now(), String::new());
    while events.made < count {
        let records = events.some(4000);
        recorder.record(Records { records, lost: 0 });
        recorder.flush();
        if middle.is_empty() && events.made >= count / 2 {
            middle = events.now().to_string();
        }
        common::interrupt::check()?;
    }
    let took = began.elapsed();
    recorder.record(Records { records: events.rest(), lost: 0 });
    recorder.end();
    let standing = recorder.standing();
    if let Some(why) = standing.why {
        return Err(why);
    }
    let each = standing.bytes as f64 / standing.events as f64;
    let rate = standing.events as f64 / took.as_secs_f64();
    table.row("holds and refusals in the file", format!("{}", standing.events), "", true);
    table.row("written as fast as it goes", format!("{rate:.0} a second"), "", true);
    table.row(
        "bytes of each, indexes and processes and jobs included",
        format!("{each:.0}"),
        &format!("{BYTES:.0}"),
        each <= BYTES,
    );
    Ok(middle)
}

/// Wall time of the command, process start included.
fn asked(arguments: &[&str], socket: &Path, rounds: usize) -> Result<(f64, usize), Failure> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let output = Command::new(SNIFFER)
            .args(arguments)
            .env("SNIFFER_SOCKET", socket)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        bytes = output.stdout.len();
        if output.status.code() == Some(2) {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        common::interrupt::check()?;
    }
    Ok((median(&times), bytes))
}

fn questions(
    directory: &Path,
    file: &Path,
    middle: &str,
    rounds: usize,
    table: &mut Table,
) -> Result<(), Failure> {
    let file = file.to_string_lossy();
    let none = Path::new("/nonexistent/sniffer.sock");
    let mut daemon = Daemon::start(directory)?;
    daemon.wait_ready()?;
    let port = &events::PORT.to_string();
    let range = &format!("{0}-{1}", events::PORT, events::PORT + 99);
    for (words, arguments, has_target) in [
        ("`history PORT`, its newest 100 holds", &["history", port][..], true),
        ("`history PORT --at`", &["history", port, "--at", middle], true),
        ("`history` of 100 ports `--at`", &["history", range, "--at", middle], true),
        ("`history` of all ports `--at`", &["history", "1-65535", "--at", middle], true),
        ("`history PORT --since 1h`", &["history", port, "--since", "1h"], false),
    ] {
        for (how, arguments, socket) in [
            ("without a daemon", [arguments, &["--db", &file]].concat(), none),
            ("with one", arguments.to_vec(), daemon.socket.as_path()),
        ] {
            let (took, bytes) = asked(&arguments, socket, rounds)?;
            let target = if has_target { format!("{ANSWER_MS:.0} ms") } else { String::new() };
            let figure = format!("{took:.1} ms ({} KiB)", bytes / 1024);
            table.row(&format!("{words}, {how}"), figure, &target, !has_target || took <= ANSWER_MS);
        }
    }
    let memory = daemon.memory("VmHWM")?;
    table.row("the daemon's memory after all these", format!("{memory:.0} MiB"), "", true);
    Ok(())
}

/// Offers so many a second, in tenths of one.
fn offer(recorder: &Recorder, events: &mut Events, rate: u64, seconds: u64) -> u64 {
    let began = Instant::now();
    let mut offered = 0;
    for tenth in 1..=seconds * 10 {
        let records = events.some((rate / 10) as usize);
        offered += records.len() as u64;
        recorder.record(Records { records, lost: 0 });
        std::thread::sleep((Duration::from_millis(100) * tenth as u32).saturating_sub(began.elapsed()));
    }
    offered
}

fn sustained(file: &Path, seconds: u64, table: &mut Table) {
    let recorder = recorder(file);
    let began = Instant::now();
    let offered = offer(&recorder, &mut Events::ending_now(2, SUSTAINED * seconds), SUSTAINED, seconds);
    let offering = began.elapsed();
    recorder.end();
    let lost = recorder.standing().lost;
    let rate = offered as f64 / offering.as_secs_f64();
    let met = lost == 0 && rate >= SUSTAINED as f64 * 0.99;
    let figure = format!("{lost} lost of {offered} ({rate:.0} a second)");
    table.row(&format!("{SUSTAINED} a second for {seconds} s"), figure, "0 lost", met);
}

fn memory() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    resident.map(|kib| kib / 1024.0).ok_or_else(|| "/proc/self/status has no VmRSS".to_owned())
}

fn storm(file: &Path, table: &mut Table) -> Result<(), Failure> {
    let recorder = recorder(file);
    let mut events = Events::ending_now(3, STORM * 10);
    let before = memory()?;
    let mut most: f64 = 0.0;
    let mut offered = 0;
    for _ in 0..10 {
        offered += offer(&recorder, &mut events, STORM, 1);
        most = most.max(memory()? - before);
    }
    recorder.end();
    let standing = recorder.standing();
    // What was offered and is neither written nor counted went by unseen.
    let unseen = offered.saturating_sub(standing.lost + standing.written);
    table.row(
        &format!("{STORM} a second for 10 s"),
        format!(
            "{} written, {} lost and counted, {unseen} unseen; {most:.0} MiB more",
            standing.written, standing.lost
        ),
        &format!("0 unseen, {STORM_MIB:.0} MiB"),
        unseen == 0 && most <= STORM_MIB,
    );
    Ok(())
}
