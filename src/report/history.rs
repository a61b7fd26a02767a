//! `history` told: who held a port from when to when, and how it ended.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::judge::leak::span;
use crate::judge::{ending, owner};
use crate::model::claim::Nat;
use crate::model::escape::Escaped;
use crate::model::hold::{History, Hold};
use crate::model::socket::ClaimKind;

/// The story of each hold, the newest last. `asked` is the target as the user wrote it, `at` the moment it was asked for.
pub fn history(answer: &History, asked: &str, at: Option<Timestamp>, zone: &TimeZone) -> String {
    let mut text = String::new();
    if answer.holds.is_empty() {
        text += &nobody(answer, asked, at, zone);
    }
    if answer.truncated {
        text += "Older ones are left out: narrow it with --since or --at, or raise --limit.\n\n";
    }
    for hold in &answer.holds {
        tell(&mut text, hold, answer.as_of, zone);
    }
    for gap in &answer.incomplete {
        let _ = writeln!(text, "Not seen: {}", Escaped(gap));
    }
    text
}

fn nobody(answer: &History, asked: &str, at: Option<Timestamp>, zone: &TimeZone) -> String {
    let when = at.map(|at| format!(" at {}", words::moment(at, answer.as_of, zone))).unwrap_or_default();
    let since = match answer.kept_since {
        Some(since) => format!("what is remembered begins at {}", words::moment(since, answer.as_of, zone)),
        None => "nothing is remembered yet".to_owned(),
    };
    format!("{}: nobody is remembered to have held it{when}; {since}.\n", Escaped(asked))
}

/// Tells of one hold.
pub(super) fn tell(text: &mut String, hold: &Hold, now: Timestamp, zone: &TimeZone) {
    let place = words::address(hold.address, hold.port);
    let _ = writeln!(
        text,
        "{}  {} {place}  {}{}",
        time(hold, now, zone),
        hold.protocol,
        kind(hold.kind),
        words::foreign_netns(&hold.netns)
    );
    let mut fact = |name: &str, words: &str| {
        let _ = writeln!(text, "  {name:<10} {words}");
    };
    match (&hold.holder, &hold.nat) {
        (Some(holder), _) => {
            let command = holder.cmdline.as_deref().map(|line| format!("  {}", words::command(line)));
            let user = holder.user.as_deref().map(|user| format!("  as {}", Escaped(user)));
            fact(
                "by",
                &format!(
                    "{} (pid {}){}{}",
                    words::comm(holder),
                    holder.pid,
                    user.unwrap_or_default(),
                    command.unwrap_or_default()
                ),
            );
            for (name, value) in [("container", &holder.container), ("unit", &holder.unit)] {
                if let Some(value) = value {
                    fact(name, &Escaped(value).to_string());
                }
            }
        }
        (None, Some(nat)) => fact("by", &rule(nat)),
        (None, None) => fact("by", "no process that was found"),
    }
    if let Some(job) = &hold.job {
        fact("job", &format!("{}  {}", words::job(job), Escaped(&job.id)));
    }
    if let Some(test) = &hold.test {
        fact("test", &words::test(test));
    }
    if let Some(back) = &hold.comeback {
        fact("back", &words::comeback(back, now, zone));
    }
    if let Some(at) = hold.leaked_at {
        fact("LEAKED", &format!("at {}", words::moment(at, now, zone)));
    }
    if let Some(how) = ending::words(hold) {
        fact("ended", &Escaped(&how).to_string());
    }
    text.push('\n');
}

fn rule(nat: &Nat) -> String {
    let service = owner::service(nat).map(|name| format!("service {name}: ")).unwrap_or_default();
    format!("{}{}, to {}", Escaped(&service), Escaped(&nat.rule()), Escaped(&nat.destination()))
}

fn kind(kind: ClaimKind) -> &'static str {
    match kind {
        ClaimKind::Listener => "listening",
        ClaimKind::Bound => "bound",
        ClaimKind::NatRule => "a NAT rule",
        ClaimKind::Connection => "connected",
        kind => kind.as_str(),
    }
}

/// `13:50:00 - 14:03:07 (13m7s)`, with the date where it is not today's.
fn time(hold: &Hold, now: Timestamp, zone: &TimeZone) -> String {
    let today = now.to_zoned(zone.clone()).date();
    let clock = |at: Timestamp, beside: jiff::civil::Date| {
        let at = at.to_zoned(zone.clone());
        let format = if at.date() == beside { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
        at.strftime(format).to_string()
    };
    let older = if hold.from_known { "" } else { "before " };
    let from = clock(hold.from, today);
    match hold.until {
        Some(until) => {
            let length = span(until.duration_since(hold.from));
            format!("{older}{from} - {} ({length})", clock(until, hold.from.to_zoned(zone.clone()).date()))
        }
        None => format!("{older}{from} - now ({})", span(now.duration_since(hold.from))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hold::fixtures::{at, hold};
    use crate::model::hold::{Comeback, End};
    use crate::model::process::{Exit, Holder};

    #[test]
    fn holds_are_told_in_order_with_how_they_ended() {
        let holder = Holder {
            comm: Some("evil\u{1b}[2J".to_owned()),
            cmdline: Some(vec!["gateway".to_owned(), "--port\n8081".to_owned()]),
            user: Some("runner".to_owned()),
            container: Some("c0ffee".to_owned()),
            ..Holder::unknown(7)
        };
        let lost = Hold {
            until: Some(at(420)),
            end: Some(End::OomKilled),
            exit: Some(Exit::of_status(9)),
            cgroup: Some("/docker/c0ffee".to_owned()),
            holder: Some(holder.into()),
            from_known: false,
            ..hold(1, 7)
        };
        let comeback = Comeback {
            hold: 1,
            end: End::OomKilled,
            exit: None,
            lost_at: at(420),
            gap_ms: 4200,
            times: 3,
            since: at(0),
            cgroup: None,
            pid: Some(7),
        };
        let back = Hold {
            from: at(424),
            comeback: Some(Box::new(comeback)),
            leaked_at: Some(at(500)),
            ..hold(2, 8)
        };
        let answer = History {
            schema: 1,
            as_of: at(600),
            kept_since: Some(at(0)),
            incomplete: vec!["something".to_owned()],
            truncated: true,
            holds: vec![lost, back],
        };
        let text = history(&answer, "8081", None, &TimeZone::UTC);
        assert!(!text.contains('\u{1b}') && text.lines().all(|line| !line.starts_with("8081\\")));
        insta::assert_snapshot!(text);
        let none = History { holds: vec![], truncated: false, ..answer };
        insta::assert_snapshot!("nobody", history(&none, "8081", Some(at(30)), &TimeZone::UTC));
    }
}
