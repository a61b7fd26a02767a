//! Each tool is asked for the same port, as a user asks: a program start each.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::common::daemon::Daemon;
use crate::common::load::Load;
use crate::common::table::{markdown, median};
use crate::common::{Failure, interrupt};
use crate::tools::Tool;

/// A tool is asked no longer than this in all.
const PATIENCE: Duration = Duration::from_secs(20);
/// Its system calls are counted no longer than this: counting slows it down many times over.
const COUNTED: &str = "40s";

/// What an answer of one tool costs.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) tool: &'static str,
    /// In the median, from spawn to exit.
    pub(crate) milliseconds: f64,
    worst: f64,
    /// User and system time of the program, and of the agent where it asks one; the median's, in milliseconds.
    cpu: f64,
    /// What strace counted; with `>` where it was not done in time.
    system_calls: String,
    answers: bool,
}

pub(crate) fn ask(
    tools: &[Tool],
    load: &Load,
    daemon: &Daemon,
    repetitions: usize,
) -> Result<Vec<Row>, Failure> {
    let held = load.unique(false)?;
    tools
        .iter()
        .map(|tool| {
            eprintln!("asking {}", tool.name);
            let began = Instant::now();
            let (mut times, mut cpu, mut answers) = (Vec::new(), Vec::new(), true);
            let agent = daemon.cpu()?;
            while times.len() < repetitions.max(1) && (times.is_empty() || began.elapsed() < PATIENCE) {
                interrupt::check()?;
                let (before, start) = (children()?, Instant::now());
                let output = output(&mut tool.ask(held.port, &daemon.socket))?;
                times.push(start.elapsed().as_secs_f64() * 1000.0);
                cpu.push(children()? - before);
                answers &= names(&output, held.port, held.pid);
            }
            let agent =
                if tool.daemon == Some(true) { daemon.cpu()?.saturating_sub(agent) } else { Duration::ZERO };
            Ok(Row {
                tool: tool.name,
                milliseconds: median(&times),
                worst: times.iter().copied().fold(0.0, f64::max),
                cpu: median(&cpu) + agent.as_secs_f64() * 1000.0 / times.len() as f64,
                system_calls: system_calls(&tool.ask(held.port, &daemon.socket))
                    .unwrap_or_else(|| "?".to_owned()),
                answers,
            })
        })
        .collect()
}

pub(crate) fn output(command: &mut Command) -> Result<Output, Failure> {
    command.output().map_err(|error| format!("{command:?}: {error}"))
}

/// Whether a tool names a process: by its pid, as a number of its own, or by its command line. Of a tool that lists all, in a
/// line with the port. Complaints do not count: they are about processes that could not be read.
pub(crate) fn names(output: &Output, port: u16, pid: u32) -> bool {
    let text = String::from_utf8_lossy(&output.stdout);
    let has = |text: &str, number: u32| {
        text.split(|char: char| !char.is_ascii_digit()).any(|word| word == number.to_string())
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    let lists_all = text.lines().count() > 50;
    let by_pid = text.lines().any(|line| has(line, pid) && (!lists_all || has(line, port.into())));
    by_pid || (!command.is_empty() && text.contains(&command))
}

/// User and system time of all children that ended, in milliseconds.
fn children() -> Result<f64, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|errno| format!("getrusage: {errno}"))?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1000.0)
}

/// Counted by strace, in a run of its own.
fn system_calls(asked: &Command) -> Option<String> {
    let summary = tempfile::NamedTempFile::new().ok()?;
    let mut strace = Command::new("timeout");
    strace.args(["--signal=INT", COUNTED, "strace", "-f", "-c", "-o"]).arg(summary.path());
    strace.arg(asked.get_program()).args(asked.get_args());
    strace.envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // What timeout(1) exits with when it was over.
    let more = if strace.output().ok()?.status.code() == Some(124) { "> " } else { "" };
    let text = std::fs::read_to_string(summary.path()).ok()?;
    // % time, seconds, microseconds a call, calls, errors where there are any, "total".
    let total = text.lines().find(|line| line.ends_with("total"))?;
    let calls: u64 = total.split_whitespace().nth(3)?.parse().ok()?;
    Some(format!("{more}{calls}"))
}

pub(crate) fn table(rows: &[Row]) -> String {
    let number = |value: f64| if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") };
    let cells = |row: &Row| {
        [
            row.tool.to_owned(),
            number(row.milliseconds),
            number(row.worst),
            number(row.cpu),
            row.system_calls.clone(),
            if row.answers { "yes" } else { "no" }.to_owned(),
        ]
    };
    let head = [
        "tool",
        "median",
        "worst",
        "CPU, the agent's too",
        "system calls of the command",
        "names the holder",
    ];
    markdown(head, rows.iter().map(cells))
}
