//! `cargo bench --bench page`: how long a real browser takes to draw 5,000 holds, and whether it stays smooth while somebody scrolls
//! and types.
//!
//! The holds are made up ([`events`]) and lie in the history of a daemon of the benchmark's own. Needs root, Chromium, Node and
//! playwright-core where `scripts/test` puts it. Prints a markdown table. Exit code 1 where a target is missed.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "../tests/page/browser.rs"]
mod browser;
#[path = "common/mod.rs"]
mod common;
#[path = "history/events.rs"]
mod events;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use sniffer::engine::Records;
use sniffer::history::Recorder;

use browser::Browser;
use common::Failure;
use common::daemon::Daemon;
use common::table::{markdown, median};
use events::Events;

/// Targets: the first drawing, and the time between two frames that 19 of 20 keep.
const DRAW_MS: f64 = 1000.0;
const FRAME_MS: f64 = 50.0;

/// What it takes to draw.
#[derive(Debug, Parser)]
struct Options {
    /// Holds that are drawn
    #[arg(long, default_value_t = 5000)]
    holds: usize,
    /// How often the page is opened
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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
            eprintln!("page: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<bool, Failure> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = directory.path().join("history.db");
    let (recorder, _) = Recorder::start(file, Duration::from_hours(24 * 365), u64::MAX, "a boot");
    // The page shows the last hour.
    let mut events = Events::ending_now(1, options.holds as u64);
    let records = events.some(options.holds);
    recorder.record(Records { records, lost: 0 });
    recorder.record(Records { records: events.rest(), lost: 0 });
    recorder.end();
    let mut daemon = Daemon::start(directory.path())?;
    daemon.wait_ready()?;
    let mut rows = Vec::new();
    let mut met = true;
    for (view, name) in [("timeline", "the timeline"), ("now", "the table of what is held")] {
        let mut browser = Browser::start()?;
        let (mut draws, mut p95, mut longest) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds.max(1) {
            browser.open(&daemon.metrics(), view)?;
            browser.ask(json!({"do": "wait_selector", "selector": "#connection[data-state=live]"}))?;
            let drawn = || json!({"do": "measures"});
            let mut measures = browser.ask(drawn())?;
            while number(&measures, "draw").is_none() {
                common::interrupt::sleep(Duration::from_millis(50))?;
                measures = browser.ask(drawn())?;
            }
            draws.extend(number(&measures, "draw"));
            let frames = browser.ask(json!({"do": "frames", "ms": 3000}))?;
            p95.extend(number(&frames, "p95"));
            longest.extend(number(&frames, "longest"));
        }
        let (draw, p95, longest) = (median(&draws), median(&p95), median(&longest));
        met &= draw <= DRAW_MS && p95 <= FRAME_MS;
        let target = |value: f64, most: f64| {
            let missed = if value <= most { "" } else { " MISSED" };
            format!("{most:.0} ms{missed}")
        };
        let drawn = format!("{name} of {} holds is drawn", options.holds);
        rows.push([drawn, format!("{draw:.0} ms"), target(draw, DRAW_MS)]);
        let frames = format!("{p95:.0} ms (longest {longest:.0})");
        rows.push([
            format!("{name}, 95 % of frames while scrolling and typing"),
            frames,
            target(p95, FRAME_MS),
        ]);
    }
    println!("{}", markdown(["measured", "figure", "target"], rows));
    Ok(met)
}

fn number(document: &Value, name: &str) -> Option<f64> {
    document.get(name)?.as_f64()
}
