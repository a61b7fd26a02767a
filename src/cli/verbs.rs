//! `who-holds`, `list` and `leaks`: a question, an answer, text or JSON, an exit code.

use jiff::tz::TimeZone;

use super::ask::{Whom, ask};
use super::{ANSWERED, Failure, OTHERWISE, Options, printed};
use crate::engine::{Question, Topic};
use crate::model::answer::Answer;
use crate::model::target::{Target, TargetError};
use crate::report;

/// Who holds a port.
pub(super) fn who_holds(target: &str, options: &Options) -> Result<u8, Failure> {
    let topic = Topic::Target(target.parse::<Target>().map_err(|error: TargetError| error.to_string())?);
    let answer = ask(&question(topic, options)?, Whom::DaemonOrMyself)?;
    print(&answer, options, |zone| report::story(&answer, target, zone))?;
    Ok(if answer.is_held() { ANSWERED } else { OTHERWISE })
}

/// Every held port.
pub(super) fn list(options: &Options) -> Result<u8, Failure> {
    let answer = ask(&question(Topic::All, options)?, Whom::DaemonOrMyself)?;
    print(&answer, options, |zone| report::list(&answer, zone))?;
    Ok(if answer.claims.is_empty() { OTHERWISE } else { ANSWERED })
}

/// Every leaked listener.
pub(super) fn leaks(options: &Options) -> Result<u8, Failure> {
    let answer = ask(&question(Topic::Leaks, options)?, Whom::Daemon)?;
    print(&answer, options, |zone| report::leaks(&answer, zone))?;
    Ok(if answer.claims.is_empty() { ANSWERED } else { OTHERWISE })
}

pub(super) fn question(topic: Topic, options: &Options) -> Result<Question, Failure> {
    let netns = options
        .netns
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|why: String| format!("--netns: {why}"))?;
    Ok(Question { topic, netns })
}

fn print(answer: &Answer, options: &Options, text: impl FnOnce(&TimeZone) -> String) -> Result<(), Failure> {
    printed(if options.json { report::print_json(answer) } else { report::print(&text(&super::zone())) })
}
