//! `who-holds --watch` and `list --watch`: the answer again whenever it changes, until somebody interrupts.

use std::io::IsTerminal;
use std::time::Duration;

use super::ask::{Asked, Whom, ask, ask_path, settings};
use super::{ANSWERED, Failure, Options, printed};
use crate::engine::{Question, Topic};
use crate::kernel::{Gap, clock};
use crate::model::answer::Answer;
use crate::model::target::{Target, TargetError};
use crate::report;
use crate::serve::control::Changes;

/// Without a daemon nobody tells of changes: it is looked this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// With one it is asked this often though nothing was told: connections, and times that pass.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(100);

/// Who holds a port, again and again.
pub(super) fn who_holds(target: &str, options: &Options) -> Result<u8, Failure> {
    let topic = Topic::Target(target.parse::<Target>().map_err(|error: TargetError| error.to_string())?);
    watch(&super::verbs::question(topic, options)?, options, |answer| {
        report::story(answer, target, &super::zone())
    })
}

/// Every held port, again and again.
pub(super) fn list(options: &Options) -> Result<u8, Failure> {
    watch(&super::verbs::question(Topic::All, options)?, options, |answer| {
        report::list(answer, &super::zone())
    })
}

fn watch(question: &Question, options: &Options, text: impl Fn(&Answer) -> String) -> Result<u8, Failure> {
    let settings = settings();
    let terminal = std::io::stdout().is_terminal();
    let (mut told, mut after) = (None, None);
    loop {
        // The number is taken before the answer: what changes in between is asked about again.
        let path = changes(after, if told.is_some() { ASK_EVERY } else { Duration::ZERO });
        after = match ask_path::<Changes>(&settings, &path)? {
            Asked::Answered(now) => Some(now.changes),
            Asked::Absent => None,
        };
        let answer = ask(question, Whom::DaemonOrMyself)?;
        let essence = essence(&answer);
        if told.as_ref() != Some(&essence) {
            told = Some(essence);
            let written = if options.json {
                report::print_json_line(&answer)
            } else {
                report::print(&page(&answer, terminal, &text))
            };
            if is_over(&written) {
                return Ok(ANSWERED);
            }
            printed(written)?;
        }
        std::thread::sleep(if after.is_some() { GATHER } else { LOOK_EVERY });
    }
}

/// Whoever read it has gone.
fn is_over(written: &std::io::Result<()>) -> bool {
    written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn changes(after: Option<u64>, wait: Duration) -> String {
    let after = after.map(|after| format!("after={after}&")).unwrap_or_default();
    format!("/v1/changes?{after}wait_ms={}", wait.as_millis())
}

/// A terminal shows the newest alone; elsewhere each stands below the one before, with its time.
fn page(answer: &Answer, terminal: bool, text: &impl Fn(&Answer) -> String) -> String {
    const CLEAR: &str = "\u{1b}[H\u{1b}[2J\u{1b}[3J";
    let at = clock::now().to_zoned(super::zone()).strftime("%H:%M:%S").to_string();
    let before = if terminal { CLEAR } else { "" };
    format!("{before}--- {at}\n{}", text(answer))
}

/// What makes an answer another one: not the time it was given at, nor how long something has lasted, nor that hidden namespaces were
/// not looked for again.
fn essence(answer: &Answer) -> Vec<String> {
    let of_claim = |claim: &crate::model::claim::Claim| {
        let holders: Vec<_> = claim.holders.iter().map(|holder| (holder.pid, &holder.comm)).collect();
        let job = claim.job.as_ref().map(|job| (&job.ci, &job.id, job.state));
        format!(
            "{:?}",
            (
                (claim.kind, claim.protocol, claim.address, claim.port, &claim.state, &claim.peer),
                (claim.netns.inode, &claim.socket, holders, job, &claim.test, claim.verdict, &claim.nat)
            )
        )
    };
    // That one comes and goes with each look of the agent.
    let passing = Gap::HiddenNetns.to_string();
    let gaps = answer.incomplete.iter().filter(|gap| **gap != passing).cloned();
    answer.claims.iter().map(of_claim).chain(gaps).collect()
}
