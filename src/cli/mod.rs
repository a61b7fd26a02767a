//! The command line: one file a verb. Parses, calls, turns the outcome into text and an exit code.

mod ask;
mod can_bind;
mod check_config;
mod conflicts;
mod daemon;
mod doctor;
mod history;
mod job;
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
#[command(name = "sniffer", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Who holds a port now, why, since when, for which job, and what to do
    #[command(
        after_help = "Examples:\n  sniffer who-holds 8081\n  sniffer who-holds 127.0.0.1:8081/tcp --json\n  sniffer who-holds 8000-8100 --netns blue\n  sniffer who-holds 8081 --watch\n\nExit code: 0 held, 1 nobody holds it, 2 could not be answered."
    )]
    WhoHolds {
        #[arg(help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100")]
        target: String,
        #[command(flatten)]
        options: Options,
        /// Tell it again whenever it changes, until interrupted; with --json one document a line
        #[arg(long)]
        watch: bool,
    },
    /// Every held port in every network namespace
    #[command(
        after_help = "Examples:\n  sniffer list\n  sniffer list --netns host\n  sniffer list --watch --json\n  sniffer list --json | jq '.claims[].port'\n\nExit code: 0 some port is held, 1 none is, 2 could not be answered."
    )]
    List {
        #[command(flatten)]
        options: Options,
        /// Tell it again whenever it changes, until interrupted; with --json one document a line
        #[arg(long)]
        watch: bool,
    },
    /// Listeners that outlived their job (asks the daemon)
    #[command(
        after_help = "Examples:\n  sniffer leaks\n  sniffer leaks --json\n\nExit code: 0 nothing leaked, 1 leaks exist, 2 no daemon runs."
    )]
    Leaks {
        #[command(flatten)]
        options: Options,
    },
    /// Would a bind succeed, and if not, what stands in its way
    #[command(
        after_help = "Examples:\n  sniffer can-bind 8081\n  sniffer can-bind 127.0.0.1:8081/tcp --reuseaddr\n  sniffer can-bind 80/tcp --uid 1001 --json\n\nA bare port means TCP and UDP, on every address. Exit code: 0 it would, 1 it would not, 2 could not be answered."
    )]
    CanBind {
        #[arg(help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100")]
        target: String,
        #[command(flatten)]
        options: can_bind::Options,
    },
    /// Wait until a bind would succeed, and say meanwhile who has the port
    #[command(
        after_help = "Examples:\n  sniffer wait-free 8081/tcp --timeout 30s && ./server\n  sniffer wait-free 127.0.0.1:5432/tcp --reuseaddr\n\nExit code: 0 it would succeed now, 1 timed out, 2 could not be answered."
    )]
    WaitFree {
        #[arg(help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100")]
        target: String,
        /// Give up after this time (30s, 5m); without it there is no end
        #[arg(long, value_name = "TIME")]
        timeout: Option<String>,
        #[command(flatten)]
        options: can_bind::Options,
    },
    /// Failed binds, each with who was refused and who had the port (asks the daemon)
    #[command(
        after_help = "Examples:\n  sniffer conflicts\n  sniffer conflicts --since 2h\n  sniffer conflicts --since 14:03 --json\n\nExit code: 0 there are some, 1 there are none, 2 could not be answered."
    )]
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
    #[command(
        after_help = "Examples:\n  sniffer history 8081\n  sniffer history 8081 --at 14:03\n  sniffer history 8000-8100 --since 2h --json\n  sniffer history 8081 --db ./history.db\n\nAsks the daemon; where none runs it reads the file that the last one wrote. Connections are not remembered. Exit code: 0 somebody is remembered, 1 nobody is, 2 could not be answered."
    )]
    History(history::Options),
    /// The evidence of a job in one file, to keep as a build artefact
    #[command(
        after_help = "Examples:\n  sniffer report --job github_1f0c\n  sniffer report --job 4711 --ci gitlab --format html -o ports.html\n\nEvery port of the job, refused binds with both sides, leaks and lost listeners. Exit code: 0 written, 2 no such job is remembered."
    )]
    Report(history::ReportOptions),
    /// End what holds leaked ports, or a port that you name: a plan first, --yes to act
    #[command(
        after_help = "Examples:\n  sniffer reap --leaked\n  sniffer reap --job github_1f0c --yes\n  sniffer reap 8081/tcp --yes\n\nNever ends a client, pid 1 or what is exempt (unless you name its port); reaches exactly the process that was planned, or none. Exit code: 0 planned or ended, 1 something did not end, 2 not permitted or no daemon."
    )]
    Reap(reap::Options),
    /// Run a command, follow all that it starts, and tell what it leaves behind
    #[command(
        after_help = "Examples:\n  sniffer run -- make test\n  sniffer run --name api --fail-on-leak --reap -- ./run-tests.sh\n  go test -exec 'sniffer run --fail-on-leak --' ./...\n\nSignals are handed on. Exit code: the command's (126 and 127 where it cannot be run or found, its signal where one ended it); 3 with --fail-on-leak where it passed and left a held port behind; 2 wrong usage. What is left is told on standard error."
    )]
    Run(run::Options),
    /// Tell of a job's begin and end, from a hook of its CI system (asks the daemon)
    #[command(
        after_help = "Examples:\n  sniffer job start --id nightly-7\n  sniffer job end --id nightly-7\n  sniffer job list\n\nHooks that call it are in integrations/."
    )]
    Job {
        #[command(subcommand)]
        verb: job::Verb,
    },
    /// The agent: watches, judges, exports metrics, answers
    #[command(
        after_help = "Examples:\n  sniffer daemon\n  sniffer daemon --config ./config.toml\n\nSIGTERM ends it, SIGHUP reloads the configuration. SNIFFER_LOG sets the log filter (error, warn, info, debug)."
    )]
    Daemon {
        /// Configuration [default: /etc/sniffer/config.toml where it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Parse and validate a configuration, naming every mistake
    #[command(
        after_help = "Examples:\n  sniffer check-config\n  sniffer check-config ./config.toml\n\nExit code: 0 valid, 2 mistakes."
    )]
    CheckConfig {
        /// The file [default: /etc/sniffer/config.toml]
        file: Option<PathBuf>,
    },
    /// What this kernel and these privileges allow, and what is lost without each
    #[command(
        after_help = "Examples:\n  sniffer doctor\n  sudo sniffer doctor --json\n\nExit code: 0 everything is there, 1 something is missing."
    )]
    Doctor {
        /// One JSON document on standard output
        #[arg(long)]
        json: bool,
    },
    /// Completions for a shell
    #[command(after_help = "Example:\n  sniffer completions bash > /etc/bash_completion.d/sniffer")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The manual page
    #[command(after_help = "Example:\n  sniffer man | man -l -")]
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
        Verb::CheckConfig { file } => check_config::run(file),
        Verb::Doctor { json } => doctor::run(json),
        Verb::Completions { shell } => shell::completions(shell),
        Verb::Man => shell::man(),
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
