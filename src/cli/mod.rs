//! The command line: one file a verb. Parses, calls, turns the outcome into text and an exit code.

mod ask;
mod can_bind;
mod check_config;
mod conflicts;
mod daemon;
mod doctor;
mod help;
mod history;
mod job;
mod lease;
mod man;
mod reap;
mod run;
mod shell;
mod verbs;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use jiff::tz::TimeZone;

use crate::report;

/// Answered.
const ANSWERED: u8 = 0;
/// Answered the other way: nobody holds it, leaks exist.
const OTHERWISE: u8 = 1;
/// The question could not be answered.
const UNANSWERED: u8 = 2;

/// Who holds a port on this host, for which CI job, and whether it has leaked.
#[derive(Debug, Parser)]
#[command(name = "sniffer", version, max_term_width = 100, disable_help_subcommand = true, after_help = help::SNIFFER)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Who holds a port now, why, since when, for which job, and what to do
    #[command(after_help = help::WHO_HOLDS)]
    WhoHolds {
        #[arg(
            help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100",
            allow_negative_numbers = true
        )]
        target: String,
        #[command(flatten)]
        options: Options,
        /// Tell it again whenever it changes, until interrupted; with --json one document a line
        #[arg(long)]
        watch: bool,
    },
    /// Every held port in every network namespace
    #[command(after_help = help::LIST)]
    List {
        #[command(flatten)]
        options: Options,
        /// Tell it again whenever it changes, until interrupted; with --json one document a line
        #[arg(long)]
        watch: bool,
    },
    /// Listeners that outlived their job (asks the daemon)
    #[command(after_help = help::LEAKS)]
    Leaks {
        #[command(flatten)]
        options: Options,
    },
    /// Would a bind succeed, and if not, what stands in its way
    #[command(after_help = help::CAN_BIND)]
    CanBind {
        #[arg(
            help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100",
            allow_negative_numbers = true
        )]
        target: String,
        #[command(flatten)]
        options: can_bind::Options,
    },
    /// Wait until a bind would succeed, and say meanwhile who has the port
    #[command(after_help = help::WAIT_FREE)]
    WaitFree {
        #[arg(
            help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100",
            allow_negative_numbers = true
        )]
        target: String,
        /// Give up after this time (30s, 5m); without it there is no end
        #[arg(long, value_name = "TIME")]
        timeout: Option<String>,
        #[command(flatten)]
        options: can_bind::Options,
    },
    /// Failed binds, each with who was refused and who had the port
    #[command(after_help = help::CONFLICTS)]
    Conflicts {
        /// Only those that were seen since then: 90s, 2h, 7d ago, 14:03, or 2026-11-21T14:03:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Read this file of the history, and ask no daemon
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
        /// One JSON document on standard output
        #[arg(long)]
        json: bool,
    },
    /// Who held a port when, and how it ended
    #[command(after_help = help::HISTORY)]
    History(history::Options),
    /// The evidence of a job in one file, to keep as a build artefact
    #[command(after_help = help::REPORT)]
    Report(history::ReportOptions),
    /// End what holds leaked ports, or a port that you name: a plan first, --yes to act
    #[command(after_help = help::REAP)]
    Reap(reap::Options),
    /// Run a command, follow all that it starts, and tell what it leaves behind
    #[command(after_help = help::RUN)]
    Run(run::Options),
    /// Tell of a job's begin and end, from a hook of its CI system (asks the daemon)
    #[command(after_help = help::JOB)]
    Job {
        #[command(subcommand)]
        verb: job::Verb,
    },
    /// The agent: watches, judges, exports metrics, answers
    #[command(after_help = help::DAEMON)]
    Daemon {
        /// Configuration [default: /etc/sniffer/config.toml where it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Parse and validate a configuration, naming every mistake
    #[command(after_help = help::CHECK_CONFIG)]
    CheckConfig {
        /// The file [default: /etc/sniffer/config.toml]
        file: Option<PathBuf>,
        /// One JSON document on standard output
        #[arg(long)]
        json: bool,
    },
    /// What this kernel and these privileges allow, and what is lost without each
    #[command(after_help = help::DOCTOR)]
    Doctor {
        /// One JSON document on standard output
        #[arg(long)]
        json: bool,
    },
    /// Completions for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The manual page
    #[command(after_help = help::MAN)]
    Man,
}

#[derive(Debug, Args)]
struct Options {
    /// Only this network namespace: a name (host is your own), an inode, or PID:n
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// `run --fail-on-leak`: the command passed and left something behind.
const LEAKED: u8 = 3;

/// Why a verb failed: one line on standard error, exit code 2.
type Failure = String;

/// Parses the arguments, runs the verb, and answers with its exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.verb {
        Verb::WhoHolds { target, options, watch: true } => watch::who_holds(&target, &options),
        Verb::WhoHolds { target, options, .. } => verbs::who_holds(&target, &options),
        Verb::List { options, watch: true } => watch::list(&options),
        Verb::List { options, .. } => verbs::list(&options),
        Verb::Leaks { options } => verbs::leaks(&options),
        Verb::CanBind { target, options } => can_bind::can_bind(&target, &options),
        Verb::WaitFree { target, timeout, options } => {
            can_bind::wait_free(&target, timeout.as_deref(), &options)
        }
        Verb::Conflicts { since, db, json } => conflicts::run(since.as_deref(), db.as_deref(), json),
        Verb::History(options) => history::history(&options),
        Verb::Report(options) => history::report(&options),
        Verb::Reap(options) => reap::run(&options),
        Verb::Run(options) => run::run(&options),
        Verb::Job { verb } => job::run(verb),
        Verb::Daemon { config } => daemon::run(config.as_deref()),
        Verb::CheckConfig { file, json } => check_config::run(file, json),
        Verb::Doctor { json } => doctor::run(json),
        Verb::Completions { shell } => shell::completions(shell),
        Verb::Man => shell::manual(),
    };
    ExitCode::from(outcome.unwrap_or_else(|failure| {
        report::complain(&failure);
        UNANSWERED
    }))
}

/// A pipe closed by its reader (`| head`) is no failure worth words.
fn printed(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write the answer: {error}"))
        }
        _ => Ok(()),
    }
}

/// The zone of times that people are shown: `TZ`, else what `/etc/localtime` holds. That file is read by itself, since to find the
/// zone's name jiff lists the whole database, which takes longer than most answers.
pub(super) fn zone() -> TimeZone {
    let local = || TimeZone::tzif("Local", &std::fs::read("/etc/localtime").ok()?).ok();
    let named = environment("TZ").is_some();
    (!named).then(local).flatten().unwrap_or_else(TimeZone::system)
}

/// An environment variable of this program's own; empty counts as unset.
#[allow(clippy::disallowed_methods, reason = "the one place that reads this program's environment")]
fn environment(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
