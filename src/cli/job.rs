//! `sniffer job`: explicit boundaries of jobs, for the hooks of CI systems.

use std::fs::OpenOptions;
use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};

use super::ask::{ask_daemon_only, tell_daemon};
use super::{ANSWERED, Failure, OTHERWISE, environment, help, printed};
use crate::kernel::{clock, process};
use crate::model::declared::{End, Ended, Jobs, Start, Started};
use crate::report;

/// Why no answer is made without the daemon.
const WHY_DAEMON: &str = "it alone remembers jobs";
/// Where GitHub's runner takes a step's summary from.
const SUMMARY: &str = "GITHUB_STEP_SUMMARY";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// A job begins
    #[command(after_help = help::JOB_START)]
    Start(StartOptions),
    /// A job ends: tells what it still holds, and which of its binds failed
    #[command(after_help = help::JOB_END)]
    End(EndOptions),
    /// The jobs that are known
    #[command(after_help = help::JOB_LIST)]
    List {
        /// One JSON document on standard output
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct StartOptions {
    /// The CI system's own id of this run of the job
    #[arg(long)]
    id: String,
    /// CI system: github, gitlab, jenkins, …, or the name of a [[jobs.custom]] [default: custom]
    #[arg(long)]
    ci: Option<String>,
    /// Name of the job
    #[arg(long)]
    name: Option<String>,
    /// Repository
    #[arg(long)]
    repository: Option<String>,
    /// Number of the run, pipeline or build
    #[arg(long)]
    run: Option<String>,
    /// Address of the job's page
    #[arg(long)]
    url: Option<String>,
    /// This process and its descendants are the job; its end is the job's
    #[arg(long)]
    pid: Option<u32>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct EndOptions {
    /// The job's id
    #[arg(long)]
    id: String,
    /// Its CI system, where several have a job of that id
    #[arg(long)]
    ci: Option<String>,
    /// How to tell what is left
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// One JSON document on standard output
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// Annotations on standard output, and a summary in the file that GITHUB_STEP_SUMMARY names
    Github,
}

pub(super) fn run(verb: Verb) -> Result<u8, Failure> {
    match verb {
        Verb::Start(options) => start(options),
        Verb::End(options) => end(options),
        Verb::List { json } => list(json),
    }
}

fn start(options: StartOptions) -> Result<u8, Failure> {
    let StartOptions { id, ci, name, repository, run, url, pid, json } = options;
    let process = match pid {
        Some(pid) => {
            Some(process::parentage(pid).map_err(|_| format!("--pid: there is no process {pid}; it has ended, or lives in another pid namespace: name one that runs as long as the job"))?.0)
        }
        None => None,
    };
    let start = Start { id, ci, name, repository, run, url, process };
    if let Some(mistake) = start.mistake() {
        return Err(mistake);
    }
    let started: Started = tell_daemon("/v1/job/start", &start, WHY_DAEMON)?;
    printed(if json { report::print_json(&started) } else { report::print(&report::started(&started.job)) })?;
    Ok(ANSWERED)
}

fn end(options: EndOptions) -> Result<u8, Failure> {
    let EndOptions { id, ci, format, json } = options;
    let ended: Ended = tell_daemon("/v1/job/end", &End { id, ci }, WHY_DAEMON)?;
    printed(match format {
        _ if json => report::print_json(&ended),
        Format::Text => report::print(&report::ended(&ended, &super::zone())),
        Format::Github => report::print(&report::annotations(&ended)),
    })?;
    if format == Format::Github {
        summarise(&report::summary(&ended, &super::zone()));
    }
    Ok(ANSWERED)
}

/// Adds to the step's summary, where the runner wants one.
fn summarise(text: &str) {
    let Some(file) = environment(SUMMARY).filter(|_| !text.is_empty()) else { return };
    let written = OpenOptions::new().append(true).create(true).open(&file);
    if let Err(error) = written.and_then(|mut file| file.write_all(text.as_bytes())) {
        report::complain(&format!("the summary cannot be written to {}: {error}", file.display()));
    }
}

fn list(json: bool) -> Result<u8, Failure> {
    let jobs: Jobs = ask_daemon_only("/v1/jobs", WHY_DAEMON)?;
    printed(if json {
        report::print_json(&jobs)
    } else {
        report::print(&report::jobs(&jobs, clock::now(), &super::zone()))
    })?;
    Ok(if jobs.jobs.is_empty() { OTHERWISE } else { ANSWERED })
}
