//! `conflicts` told: who was refused which port when, who had it, why, and what helps.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::model::claim::Claim;
use crate::model::conflict::{Conflict, Conflicts, Loser};
use crate::model::escape::Escaped;

/// The story of each conflict, the newest last. `since` is what was asked for.
pub fn conflicts(answer: &Conflicts, since: Option<Timestamp>, zone: &TimeZone) -> String {
    let mut text = String::new();
    for conflict in &answer.conflicts {
        tell(&mut text, conflict, answer.as_of, zone);
    }
    if answer.conflicts.is_empty() {
        text += "No bind has failed since ";
        let watched = [answer.remembered_since, answer.watched_since].into_iter().flatten().min();
        text += &match (since, watched) {
            (Some(since), Some(started)) if since > started => words::moment(since, answer.as_of, zone),
            (_, Some(started)) => {
                let what =
                    if answer.watched_since == watched { "the daemon started" } else { "the history begins" };
                format!("{what}, {}", words::moment(started, answer.as_of, zone))
            }
            (_, None) => "then".to_owned(),
        };
        text += ".\n";
    }
    for gap in &answer.incomplete {
        line(&mut text, format_args!("Not seen: {}", Escaped(gap)));
    }
    text
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{words}");
}

pub(super) fn tell(text: &mut String, conflict: &Conflict, now: Timestamp, zone: &TimeZone) {
    let place = words::address(conflict.address, conflict.port);
    let errno = match (&conflict.errno, conflict.errno_known) {
        (Some(errno), true) => format!(" ({})", Escaped(errno)),
        (Some(errno), false) => format!(" ({}, inferred)", Escaped(errno)),
        (None, _) => String::new(),
    };
    let comm = Escaped(conflict.loser.comm.as_deref().unwrap_or("a process")).to_string();
    line(
        text,
        format_args!(
            "{}  {comm} (pid {}) was refused {} {place}{errno}",
            words::moment(conflict.at, now, zone),
            conflict.loser.pid,
            conflict.protocol,
        ),
    );
    if conflict.attempts > 1 {
        let last = words::moment(conflict.last_at, now, zone);
        line(text, format_args!("  tried      {} times, the last at {last}", conflict.attempts));
    }
    tell_loser(text, &conflict.loser);
    if conflict.netns.name.as_deref() != Some("host") {
        let netns = conflict.netns.name.clone().unwrap_or_else(|| conflict.netns.inode.to_string());
        line(text, format_args!("  netns      {}", Escaped(&netns)));
    }
    for blocker in &conflict.blockers {
        tell_blocker(text, blocker);
    }
    line(text, format_args!("  cause      {}", conflict.cause.as_str()));
    line(text, format_args!("  {}\n", Escaped(&conflict.explanation)));
}

fn tell_loser(text: &mut String, loser: &Loser) {
    if let Some(cmdline) = &loser.cmdline {
        let dir = loser.cwd.as_deref().map(|cwd| format!("  in {}", Escaped(cwd))).unwrap_or_default();
        line(text, format_args!("  command    {}{dir}", words::command(cmdline)));
    }
    if let Some(job) = &loser.job {
        line(text, format_args!("  job        {}", words::job(job)));
    }
    if let Some(test) = &loser.test {
        line(text, format_args!("  test       {}", words::test(test)));
    }
}

fn tell_blocker(text: &mut String, blocker: &Claim) {
    let place = words::address(blocker.address, blocker.port);
    let holder = blocker.holders.first().map_or_else(
        || "no process".to_owned(),
        |holder| format!("{} (pid {})", words::comm(holder), holder.pid),
    );
    let job = blocker.job.as_ref().map(|job| format!(" of {}", words::job(job))).unwrap_or_default();
    let test = blocker.test.as_ref().map(|test| format!(", test {}", words::test(test))).unwrap_or_default();
    line(text, format_args!("  had by     {holder}{job}{test}: {place} {}", Escaped(&blocker.state)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::fixtures::{claim, github};
    use crate::model::conflict::{Call, Cause};
    use crate::model::job::JobState;
    use crate::model::socket::Protocol;

    fn answer() -> Conflicts {
        let loser = Loser {
            pid: 77,
            start_time: None,
            ppid: Some(1),
            uid: Some(1001),
            user: None,
            comm: Some("evil\u{1b}[2J\nfake".to_owned()),
            exe: None,
            cmdline: Some(vec!["./gateway.test".to_owned(), "a b".to_owned()]),
            cwd: Some("/home/\u{7}".to_owned()),
            unit: None,
            container: None,
            ancestry: Vec::new(),
            job: Some(github(JobState::Running, "2")),
            test: None,
        };
        Conflicts {
            schema: 1,
            as_of: "2026-11-21T14:10:00Z".parse().unwrap(),
            watched_since: Some("2026-11-21T08:00:00Z".parse().unwrap()),
            remembered_since: None,
            pending: 0,
            incomplete: Vec::new(),
            conflicts: vec![Conflict {
                id: 1,
                at: "2026-11-21T14:03:07.1Z".parse().unwrap(),
                last_at: "2026-11-21T14:03:17Z".parse().unwrap(),
                call: Call::Bind,
                protocol: Protocol::Tcp,
                address: [0, 0, 0, 0].into(),
                port: 8081,
                netns: claim().netns,
                errno: Some("EADDRINUSE".to_owned()),
                errno_known: false,
                attempts: 12,
                loser,
                blockers: vec![claim()],
                cause: Cause::LeakedListener,
                explanation: "8081/tcp was taken.".to_owned(),
            }],
        }
    }

    #[test]
    fn a_conflict_is_told_with_both_sides() {
        let text = conflicts(&answer(), None, &TimeZone::UTC);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn none_says_since_when_it_would_have_been_seen() {
        let text = conflicts(&Conflicts { conflicts: Vec::new(), ..answer() }, None, &TimeZone::UTC);
        assert_eq!(text, "No bind has failed since the daemon started, 08:00:00 (6h10m ago).\n");
        let since = Some("2026-11-21T14:00:00Z".parse().unwrap());
        let text = conflicts(&Conflicts { conflicts: Vec::new(), ..answer() }, since, &TimeZone::UTC);
        assert_eq!(text, "No bind has failed since 14:00:00 (10m ago).\n");
    }
}
