//! The answer to `can-bind` as text: yes or no, what stands in the way, what to mind.

use std::fmt::Write;

use jiff::tz::TimeZone;

use super::story::{Told, tell};
use super::words;
use crate::model::can_bind::{CanBind, OneBind};
use crate::model::escape::Escaped;

/// Binds of a range that are told one by one.
const BINDS_TOLD: usize = 20;

/// The text, times in this zone. `asked` is the target as the user wrote it.
pub fn can_bind(answer: &CanBind, asked: &str, zone: &TimeZone) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {}", Escaped(asked), verdict(answer));
    for bind in answer.binds.iter().take(BINDS_TOLD) {
        let _ =
            writeln!(text, "  {} {}  {}", bind.protocol, words::address(bind.address, bind.port), one(bind));
    }
    if let Some(more) = answer.binds.len().checked_sub(BINDS_TOLD).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more (--json lists them all)");
    }
    let whole = answer.incomplete.is_empty();
    let told = Told { now: answer.as_of, source: answer.source, zone, whole };
    for claim in &answer.blockers {
        tell(&mut text, claim, &told);
    }
    for (head, sentences) in [("Not seen:", &answer.incomplete), ("Mind:", &answer.warnings)] {
        if !sentences.is_empty() {
            let _ = writeln!(text, "\n{head}");
        }
        for sentence in sentences {
            let _ = writeln!(text, "  - {}", Escaped(sentence));
        }
    }
    text
}

fn verdict(answer: &CanBind) -> String {
    match (answer.would_succeed, &answer.errno) {
        (Some(true), _) if !answer.incomplete.is_empty() => {
            "as far as could be seen, a bind would succeed.".to_owned()
        }
        (Some(true), _) => "a bind would succeed.".to_owned(),
        (None, _) => "whether a bind would succeed could not be seen.".to_owned(),
        (Some(false), errno) => format!("a bind would fail: {}.", why(errno.as_deref().unwrap_or_default())),
    }
}

fn one(bind: &OneBind) -> &str {
    match (bind.would_succeed, &bind.errno) {
        (Some(true), _) => "free",
        (_, Some(errno)) => errno,
        _ => "could not be seen",
    }
}

/// What an errno of bind(2) means here.
fn why(errno: &str) -> String {
    let words = match errno {
        "EADDRINUSE" => "the address is in use",
        "EADDRNOTAVAIL" => "no interface of this network namespace has the address",
        "EACCES" => "the port wants root or CAP_NET_BIND_SERVICE (net.ipv4.ip_unprivileged_port_start)",
        "ENODEV" => "there is no such interface",
        "EINVAL" => "such an address cannot be bound this way",
        "EAFNOSUPPORT" => "there is no IPv6 here",
        other => return other.to_owned(),
    };
    format!("{errno}, {words}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::answer::{AnswerSource, Query, SCHEMA};
    use crate::model::can_bind::Manner;
    use crate::model::claim::fixtures::claim;
    use crate::model::socket::Protocol;

    #[test]
    fn a_refusal_names_what_stands_in_the_way() {
        let answer = CanBind {
            schema: SCHEMA,
            as_of: "2026-11-21T14:03:07Z".parse().unwrap(),
            source: AnswerSource::Daemon,
            target: Query::default(),
            manner: Manner::default(),
            incomplete: vec!["a \u{1b}[2J gap".to_owned()],
            would_succeed: Some(false),
            errno: Some("EADDRINUSE".to_owned()),
            blockers: vec![claim()],
            warnings: vec!["mind this".to_owned()],
            binds: vec![OneBind {
                protocol: Protocol::Tcp,
                address: "::".parse().unwrap(),
                port: 8081,
                would_succeed: Some(false),
                errno: Some("EADDRINUSE".to_owned()),
            }],
        };
        let text = can_bind(&answer, "8081", &TimeZone::UTC);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        insta::assert_snapshot!(text);
    }
}
