//! `sniffer can-bind` and `sniffer wait-free`: would this bind succeed, and waiting until it would.

use std::time::{Duration, Instant};

use clap::Args;

use super::ask::Asker;
use super::{ANSWERED, Failure, OTHERWISE, UNANSWERED, printed};
use crate::config;
use crate::kernel::{clock, netns};
use crate::model::answer::AnswerSource;
use crate::model::can_bind::{CanBind, Manner};
use crate::model::claim::Claim;
use crate::model::netns::NetnsSelector;
use crate::model::target::{Target, TargetError};
use crate::report;

/// Without a daemon: the first pause between two looks, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// With a daemon: so long one question waits there for a change.
const ROUND: Duration = Duration::from_secs(10);

/// How it is to be bound, and where.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(long, help = "With SO_REUSEADDR")]
    reuseaddr: bool,
    #[arg(long, help = "With SO_REUSEPORT")]
    reuseport: bool,
    #[arg(long, help = "With IPV6_V6ONLY")]
    v6only: bool,
    #[arg(long, help = "As this user (a number); your own by default")]
    uid: Option<u32>,
    #[arg(long, help = "To this interface (SO_BINDTODEVICE)")]
    interface: Option<String>,
    #[arg(
        long,
        help = "In this network namespace: a name (host is the daemon's own), an inode, or PID:n; yours by default"
    )]
    netns: Option<String>,
    #[arg(long, help = "One JSON document on standard output")]
    json: bool,
}

/// A question that can be asked again.
struct Question {
    target: Target,
    manner: Manner,
    netns: NetnsSelector,
}

impl Question {
    fn new(target: &str, options: &Options) -> Result<Self, Failure> {
        let named = options.netns.as_deref().map(str::parse).transpose();
        let named = named.map_err(|why: String| format!("--netns: {why}"))?;
        let own = || netns::own().map(|key| NetnsSelector::Inode(key.inode));
        Ok(Question {
            target: target.parse().map_err(|error: TargetError| error.to_string())?,
            manner: Manner {
                reuseaddr: options.reuseaddr,
                reuseport: options.reuseport,
                v6only: options.v6only,
                uid: options.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
                interface: options.interface.clone(),
            },
            netns: named
                .map_or_else(own, Ok)
                .map_err(|error| format!("your own network namespace cannot be named: {error:?}"))?,
        })
    }
}

/// Would it succeed?
pub(super) fn can_bind(target: &str, options: &Options) -> Result<u8, Failure> {
    let question = Question::new(target, options)?;
    let answer =
        Asker::new().can_bind(&question.target, &question.manner, &question.netns, Duration::ZERO)?;
    print(&answer, target, options)
}

/// Waits until it would.
pub(super) fn wait_free(target: &str, timeout: Option<&str>, options: &Options) -> Result<u8, Failure> {
    let question = Question::new(target, options)?;
    let timeout = timeout.map(config::duration).transpose().map_err(|why| format!("--timeout: {why}"))?;
    let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let left = || end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
    let mut asker = Asker::new();
    let (mut pauses, mut said) = (pauses(), String::new());
    let mut round = Duration::ZERO;
    loop {
        let answer = asker.can_bind(&question.target, &question.manner, &question.netns, round)?;
        if !answer.may_change() || left().is_zero() {
            return print(&answer, target, options);
        }
        let holders = holders(&answer.blockers);
        if holders != said {
            report::complain(&format!("waiting for {target}: {holders}"));
            said = holders;
        }
        if answer.source == AnswerSource::Daemon {
            round = ROUND.min(left());
        } else {
            std::thread::sleep(jittered(pauses.next().unwrap_or(LONGEST_PAUSE)).min(left()));
        }
    }
}

/// Each twice as long as the one before, up to the longest.
fn pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_PAUSE), |pause| Some((*pause * 2).min(LONGEST_PAUSE)))
}

/// Between three quarters and five quarters of it: those who wait for one port do not look all at once.
fn jittered(pause: Duration) -> Duration {
    let random = u32::from(std::process::id() as u16) ^ clock::now().subsec_nanosecond().unsigned_abs();
    pause * (75 + random % 51) / 100
}

fn holders(blockers: &[Claim]) -> String {
    let mut words: Vec<String> = blockers
        .iter()
        .map(|claim| match claim.holders.first() {
            Some(holder) => {
                format!("{} (pid {}) has it", holder.comm.as_deref().unwrap_or("a process"), holder.pid)
            }
            None => format!("{} without a process", claim.state),
        })
        .collect();
    words.sort();
    words.dedup();
    words.truncate(3);
    words.join(", ")
}

fn print(answer: &CanBind, target: &str, options: &Options) -> Result<u8, Failure> {
    printed(if options.json {
        report::print_json(answer)
    } else {
        report::print(&report::can_bind(answer, target, &super::zone()))
    })?;
    Ok(match answer.would_succeed {
        Some(true) => ANSWERED,
        Some(false) => OTHERWISE,
        None => {
            report::complain("it depends on what could not be seen; ask as root, or the daemon");
            UNANSWERED
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let millis: Vec<u128> = pauses().take(9).map(|pause| pause.as_millis()).collect();
        assert_eq!(millis, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000]);
    }

    #[test]
    fn pauses_differ_by_a_quarter_at_the_most() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_millis(100));
            assert!((75..=125).contains(&pause.as_millis()), "{pause:?}");
        }
    }
}
