//! `sniffer history` and `sniffer report`: the past, from the daemon or from the file it wrote.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use super::ask::{Asked as Found, ask_path, encoded, settings};
use super::{ANSWERED, Failure, OTHERWISE, printed};
use crate::history::{Asked, Reader, Unkept, document};
use crate::kernel::clock;
use crate::model::hold::History;
use crate::model::moment;
use crate::model::netns::NetnsSelector;
use crate::model::report::JobReport;
use crate::model::target::{Target, TargetError};
use crate::report;
use crate::serve::past::{Unanswered, resolved};

/// What `history` takes.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(
        help = "8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100",
        allow_negative_numbers = true
    )]
    target: String,
    /// Only holds that went on after it: 90s, 2h, 7d ago, 14:03, or 2026-11-21T14:03:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only holds that went on at that moment
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    at: Option<String>,
    /// Only this network namespace: a name (host is your own), an inode, or PID:n
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
    /// So many at the most, the newest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Read this file, and ask no daemon
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Who held a port when.
pub(super) fn history(options: &Options) -> Result<u8, Failure> {
    let zone = super::zone();
    let target: Target = options.target.parse().map_err(|error: TargetError| error.to_string())?;
    let (since, at) =
        (past_moment("--since", options.since.as_deref())?, past_moment("--at", options.at.as_deref())?);
    let netns: Option<NetnsSelector> = options
        .netns
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|why: String| format!("--netns: {why}"))?;
    let mut path = format!("/v1/history?target={}&limit={}", encoded(&target.to_string()), options.limit);
    for (name, moment) in [("since", since.or(at)), ("until", at)] {
        path += &moment.map(|moment| format!("&{name}={moment}")).unwrap_or_default();
    }
    path +=
        &netns.as_ref().map(|netns| format!("&netns={}", encoded(&netns.to_string()))).unwrap_or_default();
    let asked = Asked {
        target: Some(target),
        netns,
        since: since.or(at),
        until: at,
        limit: Some(options.limit as usize),
        ..Asked::default()
    };
    let answer = past(options.db.as_deref(), &path, |reader, gap| {
        let asked = resolved(asked).map_err(said)?;
        let mut answer =
            document::history(reader, &asked, clock::now()).map_err(|error| error.to_string())?;
        // That nobody has written down anything is no answer.
        if options.db.is_none() && answer.kept_since.is_none() {
            return Err("no sniffer daemon answers, and none has written its history yet: start one with `sniffer daemon` or `systemctl start sniffer`".to_owned());
        }
        answer.incomplete.extend(gap);
        Ok(answer)
    })?;
    let answer: History = answer;
    printed(if options.json {
        report::print_json(&answer)
    } else {
        report::print(&report::history(&answer, &options.target, at, &zone))
    })?;
    Ok(if answer.holds.is_empty() { OTHERWISE } else { ANSWERED })
}

/// How an evidence file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a terminal or a log
    Text,
    /// For scripts
    Json,
    /// One file for a browser
    Html,
}

/// What `report` takes.
#[derive(Debug, Args)]
pub(super) struct ReportOptions {
    /// The job's id, as `sniffer job list` and the CI system have it
    #[arg(long, value_name = "ID")]
    job: String,
    /// The CI system, where several have a job of this id
    #[arg(long, value_name = "CI")]
    ci: Option<String>,
    /// How to write it [default: text, or as the name of the file ends: .json, .html]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write it to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Read this file, and ask no daemon
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
}

impl ReportOptions {
    fn format(&self) -> Format {
        let named = || {
            let name = self.output.as_ref()?.extension()?.to_str()?;
            Format::from_str(name, true).ok()
        };
        let asked = if self.json { Some(Format::Json) } else { self.format };
        asked.or_else(named).unwrap_or(Format::Text)
    }
}

/// The evidence of a job.
pub(super) fn report(options: &ReportOptions) -> Result<u8, Failure> {
    let ci = options.ci.as_deref();
    let mut path = format!("/v1/report?id={}", encoded(&options.job));
    path += &ci.map(|ci| format!("&ci={}", encoded(ci))).unwrap_or_default();
    let report: JobReport = past(options.db.as_deref(), &path, |reader, gap| {
        let gaps = gap.into_iter().collect();
        let nobody = if options.db.is_none() { "no sniffer daemon answers, and in its file: " } else { "" };
        document::report(reader, &options.job, ci, gaps, clock::now())
            .map_err(|error| format!("{nobody}{error}"))
    })?;
    let zone = super::zone();
    let text = match options.format() {
        Format::Json => serde_json::to_string_pretty(&report).map_err(|error| error.to_string())? + "\n",
        Format::Html => report::evidence_html(&report, &zone),
        Format::Text => report::evidence(&report, &zone),
    };
    match &options.output {
        None => printed(report::print(&text))?,
        Some(file) => {
            let cure = "name a file in a directory that is there, and that you may write to";
            std::fs::write(file, text).map_err(|error| format!("{}: {error}; {cure}", file.display()))?;
        }
    }
    Ok(ANSWERED)
}

/// A moment that lies further ahead is of the future.
const AHEAD: SignedDuration = SignedDuration::from_mins(1);

/// A moment of the past that an option names.
pub(super) fn past_moment(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, Failure> {
    let (now, zone) = (clock::now(), super::zone());
    let moment = text.map(|text| moment::parse(text, now, &zone)).transpose();
    let moment = moment.map_err(|why| format!("{name}: {why}"))?;
    match moment {
        // What the agent tells may be a little ahead: its clock steps with nobody's.
        Some(moment) if moment.duration_since(now) > AHEAD => {
            Err(format!("{name}: that lies in the future; write 90s, 15m, 2h or 7d ago, or a time that was"))
        }
        moment => Ok(moment),
    }
}

fn said(why: Unanswered) -> Failure {
    match why {
        Unanswered::NotFound(why) | Unanswered::Unavailable(why) => why,
    }
}

/// What to do about a file that was named.
fn remedy(why: &Unkept) -> &'static str {
    match why {
        Unkept::Missing(_) | Unkept::Foreign(_) => "name the one that a sniffer daemon writes (history.path)",
        Unkept::Damaged { .. } => {
            "a daemon moves it aside when it starts, and begins anew; a copy may be whole"
        }
        Unkept::Failed { .. } => {
            "read it as root or as a member of its group, or ask the daemon: leave out --db"
        }
        Unkept::Newer { .. } | Unkept::InUse(_) => "read it with the program that wrote it",
    }
}

/// Asks the daemon; where none runs, or a file is named, reads the file. Then it comes with what its agent has not seen.
pub(super) fn past<T: serde::de::DeserializeOwned>(
    db: Option<&Path>,
    path: &str,
    read: impl FnOnce(&Reader, Option<String>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let settings = settings();
    if db.is_none()
        && let Found::Answered(answer) = ask_path(&settings, path)?
    {
        return Ok(answer);
    }
    let none = || {
        "no sniffer daemon answers, and history.path is empty: nothing is remembered; set it and start one, or name a file with --db".to_owned()
    };
    let file = db.map(Path::to_owned).or(settings.history).ok_or_else(none)?;
    let reader = Reader::open_mapped(&file).map_err(|why| match db {
        Some(_) => format!("{why}; {}", remedy(&why)),
        None => format!("no sniffer daemon answers, and {why}: start one with `sniffer daemon` or `systemctl start sniffer`"),
    })?;
    let gap =
        document::unwatched(&reader, clock::now(), &super::zone()).map_err(|error| error.to_string())?;
    read(&reader, gap)
}
