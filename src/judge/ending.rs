//! How a hold ended, and that it came back, in sentences.

use super::leak::span;
use crate::model::hold::{Comeback, End, Hold};
use crate::model::process::Exit;
use crate::model::socket::ClaimKind;
use jiff::SignedDuration;

/// Names of the signals that end processes most often (signal(7), x86 and Arm).
const SIGNALS: [(u8, &str); 11] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (13, "SIGPIPE"),
    (15, "SIGTERM"),
];

/// A bound socket that is closed before that never was to serve anybody.
const RESERVATION: SignedDuration = SignedDuration::from_secs(1);

/// How a hold ended; `None` while it goes on.
pub fn words(hold: &Hold) -> Option<String> {
    let end = hold.end?;
    Some(match (end, hold.kind) {
        (End::Closed, ClaimKind::NatRule) => "the rule was taken away".to_owned(),
        (End::Closed, ClaimKind::Bound) if is_reservation(hold) => {
            "it was let go of at once, without having listened: a reservation, as allocators of ports make them".to_owned()
        }
        _ => of(end, hold.exit, hold.cgroup.as_deref()),
    })
}

/// Whoever asks the kernel whether a port is free, or for any that is, has it so long.
fn is_reservation(hold: &Hold) -> bool {
    hold.until.is_some_and(|until| until.duration_since(hold.from) < RESERVATION)
}

/// An end, in words that follow "it was lost:" or stand alone.
pub fn of(end: End, exit: Option<Exit>, cgroup: Option<&str>) -> String {
    match end {
        End::Closed => "it was closed".to_owned(),
        End::Exit => match exit {
            Some(Exit { signal: Some(signal), .. }) => format!("its process was killed by {}", named(signal)),
            Some(Exit { code: Some(code), .. }) => format!("its process ended with exit status {code}"),
            _ => "its process ended".to_owned(),
        },
        End::OomKilled => {
            let place = cgroup.map(|cgroup| format!(" in control group {cgroup}")).unwrap_or_default();
            format!("its process was killed by the OOM killer{place}: it was out of memory")
        }
        End::NetnsGone => "its network namespace went".to_owned(),
        End::AgentRestart => "it ended while no agent watched".to_owned(),
        End::Unknown => "how it ended was not seen".to_owned(),
    }
}

fn named(signal: u8) -> String {
    let name = SIGNALS.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name);
    name.map_or_else(|| format!("signal {signal}"), |name| format!("signal {signal} ({name})"))
}

/// How a listener was lost and came back, in words that follow "lost at 14:03:07:".
pub fn comeback(back: &Comeback) -> String {
    let gap = gap(back.gap_ms);
    let how = of(back.end, back.exit, back.cgroup.as_deref());
    let before = back.pid.map(|pid| format!(" (before: pid {pid})")).unwrap_or_default();
    let often = match back.times {
        0 | 1 => String::new(),
        times => {
            let over = span(back.lost_at.duration_since(back.since));
            format!("; that was the {} time in {over}", ordinal(times))
        }
    };
    format!("{how}; it came back {gap} later as another process{before}{often}")
}

/// To the tenth of a second: a restart takes seconds, and which fraction of them tells who restarts it.
fn gap(millis: i64) -> String {
    match millis {
        1000..60_000 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        _ => span(SignedDuration::from_millis(millis)),
    }
}

fn ordinal(number: u64) -> String {
    let end = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hold::fixtures::{at, hold};

    #[test]
    fn ends_are_told_with_what_is_known_of_them() {
        let exit = |status| Some(Exit::of_status(status));
        assert_eq!(of(End::Exit, exit(9), None), "its process was killed by signal 9 (SIGKILL)");
        assert_eq!(of(End::Exit, exit(64), None), "its process was killed by signal 64");
        assert_eq!(of(End::Exit, exit(3 << 8), None), "its process ended with exit status 3");
        assert_eq!(of(End::Exit, None, None), "its process ended");
        assert!(of(End::OomKilled, exit(9), Some("/it")).contains("OOM killer in control group /it"));
    }

    #[test]
    fn nobody_closes_a_rule() {
        let closed = |kind| words(&Hold { kind, end: Some(End::Closed), ..hold(1, 7) });
        assert_eq!(closed(ClaimKind::NatRule).as_deref(), Some("the rule was taken away"));
        assert_eq!(closed(ClaimKind::Listener).as_deref(), Some("it was closed"));
    }

    #[test]
    fn whoever_asks_for_a_port_and_lets_it_go_has_reserved_it() {
        let closed = |kind, millis: i64| {
            let until = Some(at(0) + SignedDuration::from_millis(millis));
            words(&Hold { kind, until, end: Some(End::Closed), ..hold(1, 7) }).unwrap()
        };
        assert!(closed(ClaimKind::Bound, 12).contains("a reservation"));
        assert_eq!(closed(ClaimKind::Bound, 1000), "it was closed");
        assert_eq!(closed(ClaimKind::Listener, 12), "it was closed");
    }

    #[test]
    fn a_comeback_is_counted() {
        let back = |times| Comeback {
            hold: 1,
            end: End::Exit,
            exit: Some(Exit::of_status(11)),
            lost_at: at(480),
            gap_ms: 4200,
            times,
            since: at(0),
            cgroup: None,
            pid: Some(4121),
        };
        assert_eq!(
            comeback(&back(3)),
            "its process was killed by signal 11 (SIGSEGV); it came back 4.2s later as another process (before: pid 4121); that was the 3rd time in 8m"
        );
        assert_eq!([7, 59_960, 60_000].map(gap), ["7ms", "59.9s", "1m"]);
        assert!(!comeback(&back(1)).contains("time in"));
        assert_eq!(
            ["1st", "2nd", "11th", "22nd"],
            [1, 2, 11, 22].map(ordinal).each_ref().map(String::as_str)
        );
    }
}
