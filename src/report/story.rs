//! The answer to `who-holds` told as a story: what is held where, by whom, started how, for which job, and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::model::answer::{Answer, AnswerSource};
use crate::model::claim::{Claim, Nat, Owner, OwnerType, Verdict};
use crate::model::escape::Escaped;
use crate::model::process::Holder;
use crate::model::socket::ClaimKind;

/// Connections of one process on one port are told one by one up to this many.
const CONNECTIONS_TOLD: usize = 3;

/// What the telling of a claim depends on.
pub(super) struct Told<'a> {
    pub(super) now: Timestamp,
    pub(super) source: AnswerSource,
    pub(super) zone: &'a TimeZone,
    /// Whether everything could be seen.
    pub(super) whole: bool,
}

/// The story of an answer, times in this zone. `asked` is the target as the user wrote it.
pub fn story(answer: &Answer, asked: &str, zone: &TimeZone) -> String {
    let mut text = String::new();
    let whole = answer.incomplete.is_empty();
    let how = Told { now: answer.as_of, source: answer.source, zone, whole };
    let (reserved, held): (Vec<&Claim>, Vec<&Claim>) =
        answer.claims.iter().partition(|claim| claim.kind == ClaimKind::Reserved);
    if held.is_empty() {
        nobody(&mut text, answer, asked);
    } else {
        headline(&mut text, answer, asked);
        let mut told = 0;
        let (waits, others): (Vec<&Claim>, Vec<&Claim>) =
            held.into_iter().partition(|claim| claim.kind == ClaimKind::TimeWait);
        let (connections, others): (Vec<&Claim>, Vec<&Claim>) =
            others.into_iter().partition(|claim| is_passing(claim));
        for claim in others {
            tell(&mut text, claim, &how);
        }
        tell_waits(&mut text, &waits);
        for claim in &connections {
            if told < CONNECTIONS_TOLD {
                tell(&mut text, claim, &how);
                told += 1;
            }
        }
        if connections.len() > told {
            line(
                &mut text,
                format_args!("\nand {} more connections (--json lists them all)", connections.len() - told),
            );
        }
    }
    tell_reserved(&mut text, &reserved);
    if !answer.incomplete.is_empty() {
        line(&mut text, format_args!("\nNot seen:"));
        for gap in &answer.incomplete {
            line(&mut text, format_args!("  - {}", Escaped(gap)));
        }
    }
    if !answer.advice.is_empty() {
        line(&mut text, format_args!("\nWhat to do:"));
        for sentence in &answer.advice {
            line(&mut text, format_args!("  - {}", Escaped(sentence)));
        }
    }
    text
}

/// TIME_WAIT in one line a place: how many there are, and how long the last one stays.
fn tell_waits(text: &mut String, waits: &[&Claim]) {
    let mut places: BTreeMap<(IpAddr, u16, u64), Vec<&Claim>> = BTreeMap::new();
    for claim in waits {
        places.entry((claim.address, claim.port, claim.netns.inode)).or_default().push(claim);
    }
    for ((address, port, _), claims) in places {
        let Some(first) = claims.first() else { continue };
        let last = claims.iter().filter_map(|claim| claim.expires_ms).max();
        let until = last.map(|left| format!("; the kernel lets go of the last in {}s", left.div_ceil(1000)));
        line(
            text,
            format_args!(
                "\n{} {}  TIME_WAIT  {} of them, in network namespace {}{}",
                first.protocol,
                words::address(address, port),
                claims.len(),
                words::netns(first),
                until.unwrap_or_default()
            ),
        );
    }
}

/// Reservations, which are for TCP and UDP at once.
fn tell_reserved(text: &mut String, reserved: &[&Claim]) {
    let said: BTreeSet<(u16, String)> = reserved
        .iter()
        .map(|claim| {
            (claim.port, format!("reserved in network namespace {}: {}", words::netns(claim), claim.reason))
        })
        .collect();
    for (port, words) in said {
        line(text, format_args!("\n{port}  {words}"));
    }
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{words}");
}

fn is_passing(claim: &Claim) -> bool {
    matches!(claim.kind, ClaimKind::Connection | ClaimKind::TimeWait)
}

fn nobody(text: &mut String, answer: &Answer, asked: &str) {
    let found =
        if answer.incomplete.is_empty() { "nobody holds it." } else { "nobody that could be seen holds it." };
    line(text, format_args!("{}: {found}", Escaped(asked)));
    line(
        text,
        format_args!(
            "Looked at {} network namespaces and {} processes: TCP and UDP, IPv4 and IPv6, listening, bound, connected, TIME_WAIT{}.",
            answer.looked.netns,
            answer.looked.processes,
            if answer.looked.nat { ", NAT rules" } else { "" }
        ),
    );
    if !answer.looked.nat {
        line(
            text,
            format_args!(
                "Not looked at: NAT rules, which take a port's traffic without a socket (watch.nat = false)."
            ),
        );
    }
}

fn headline(text: &mut String, answer: &Answer, asked: &str) {
    let Some(first) = answer.claims.first() else { return };
    let by = match first.owner.kind {
        OwnerType::Container | OwnerType::Unit | OwnerType::Service | OwnerType::Pod => {
            format!("{} {}", first.owner.kind.as_str(), name(first))
        }
        OwnerType::Kernel => "the kernel".to_owned(),
        _ if first.kind == ClaimKind::NatRule => "a NAT rule, without a socket".to_owned(),
        _ => match first.holders.first() {
            Some(holder) => format!("{} (pid {})", words::comm(holder), holder.pid),
            None => "no process that could be found".to_owned(),
        },
    };
    let places =
        answer.claims.iter().filter(|claim| !is_passing(claim) && claim.kind != ClaimKind::Reserved).count();
    let more = if places > 1 { format!(", and in {} more places", places - 1) } else { String::new() };
    let judged = match first.verdict {
        Verdict::Leaked => "  LEAKED",
        _ => "",
    };
    line(text, format_args!("{} is held by {by}{more}{judged}", Escaped(asked)));
}

fn name(claim: &Claim) -> String {
    Escaped(claim.owner.name.as_deref().unwrap_or("?")).to_string()
}

/// Tells of one claim.
pub(super) fn tell(text: &mut String, claim: &Claim, how: &Told<'_>) {
    let (now, zone) = (how.now, how.zone);
    let mut head = format!("{} {}", claim.protocol, words::address(claim.address, claim.port));
    if let Some(last) = claim.nat.as_ref().and_then(|nat| nat.last_port) {
        head += &format!("-{last}");
    }
    if let Some(peer) = &claim.peer {
        head += &format!(" → {}", words::address(peer.address, peer.port));
    }
    head += &format!("  {}", Escaped(&claim.state));
    if claim.address.is_unspecified() && claim.address.is_ipv6() && claim.v6only == Some(false) {
        head += "  (IPv4 too)";
    }
    if let Some(interface) = &claim.interface {
        head += &format!("  on interface {}", Escaped(interface));
    }
    line(text, format_args!("\n{head}  in network namespace {}", words::netns(claim)));
    if let Some(nat) = &claim.nat {
        return tell_rule(text, claim, nat, how);
    }
    for holder in &claim.holders {
        tell_holder(text, holder, how);
    }
    if claim.holders.is_empty() {
        fact(text, "process", &nobody_has_it(claim, how.whole));
    }
    tell_owner(text, &claim.owner);
    tell_job(text, claim, how);
    match (claim.since, claim.kind, how.source) {
        (Some(since), _, _) => fact(text, "held", &format!("since {}", words::moment(since, now, zone))),
        (None, ClaimKind::Listener | ClaimKind::Bound, AnswerSource::Daemon) => {
            fact(text, "held", "since before the daemon started");
        }
        _ => {}
    }
    if let Some(back) = &claim.comeback {
        fact(text, "back", &words::comeback(back, now, zone));
    }
    if claim.reuseport == Some(true) {
        fact(
            text,
            "shared",
            "SO_REUSEPORT: others of its user may listen here too, and connections reach any of them",
        );
    }
    if let Some(binder) =
        claim.binder.as_ref().filter(|binder| !claim.holders.iter().any(|held| held.pid == binder.pid))
    {
        let comm = Escaped(&binder.comm);
        let fate = match (binder.alive, claim.holders.first()) {
            (true, _) => "still running".to_owned(),
            (false, None) => "gone".to_owned(),
            (false, Some(heir)) => format!(
                "gone; {} (pid {}) has it by inheritance: it was opened without close-on-exec, or handed on",
                words::comm(heir),
                heir.pid
            ),
        };
        fact(text, "bound by", &format!("{comm}, pid {}, {fate}", binder.pid));
    }
    if !claim.shared_with.is_empty() {
        let jobs: Vec<String> = claim.shared_with.iter().map(words::job).collect();
        fact(
            text,
            "SILENTLY",
            &format!("shared by {} jobs: {}; requests reach any of them", jobs.len(), jobs.join("; ")),
        );
    }
    let verdict = claim.verdict.as_str();
    fact(text, "verdict", &format!("{verdict}: {}", Escaped(&claim.reason)));
}

fn tell_rule(text: &mut String, claim: &Claim, nat: &Nat, how: &Told<'_>) {
    tell_owner(text, &claim.owner);
    let which = match (nat.local_only, nat.conditional) {
        (true, _) => "what processes of this host send",
        (false, true) => "some of it",
        (false, false) => "all of it",
    };
    fact(text, "traffic", &format!("{which} goes to {}", nat.destination()));
    fact(text, "rule", &Escaped(&nat.rule()).to_string());
    tell_job(text, claim, how);
}

/// Whom a person would name, where that is not the process.
fn tell_owner(text: &mut String, owner: &Owner) {
    let behind = matches!(owner.kind, OwnerType::Container | OwnerType::Pod | OwnerType::Service);
    if let Some(name) = owner.name.as_ref().filter(|_| behind) {
        let image = owner.image.as_ref().map(|image| format!(", image {}", Escaped(image)));
        let words = format!("{} {}{}", owner.kind.as_str(), Escaped(name), image.unwrap_or_default());
        fact(text, "owner", &words);
    }
}

fn tell_job(text: &mut String, claim: &Claim, how: &Told<'_>) {
    if let Some(job) = &claim.job {
        fact(text, "job", &format!("{}: {}", words::job(job), words::job_state(job, how.now, how.zone)));
        if let Some(url) = &job.url {
            fact(text, "", &Escaped(url).to_string());
        }
    }
    if let Some(test) = &claim.test {
        fact(text, "test", &words::test(test));
    }
}

fn nobody_has_it(claim: &Claim, whole: bool) -> String {
    match (claim.kind, claim.expires_ms) {
        (ClaimKind::TimeWait, Some(left)) => format!("none; the kernel lets go in {}s", left.div_ceil(1000)),
        (ClaimKind::Connection, _) if claim.owner.kind == OwnerType::Kernel => {
            "none; the kernel keeps it: not accepted yet, or closed and being finished".to_owned()
        }
        _ => match &claim.socket {
            Some(socket) if whole => format!(
                "none: no process was found with a descriptor of it; in flight between two, kept by an io_uring, or the kernel's own; made by uid {}",
                socket.uid
            ),
            Some(socket) => format!("none found; the socket was made by uid {}", socket.uid),
            None => "none".to_owned(),
        },
    }
}

fn tell_holder(text: &mut String, holder: &Holder, how: &Told<'_>) {
    let mut who = format!("{}, pid {}", words::comm(holder), holder.pid);
    match (&holder.user, holder.uid) {
        (Some(user), _) => who += &format!(", user {}", Escaped(user)),
        (None, Some(uid)) => who += &format!(", uid {uid}"),
        (None, None) => {}
    }
    if let Some(fd) = holder.fd {
        who += &format!(", fd {fd}");
    }
    if let Some(start) = holder.start_time {
        who += &format!(", started {}", words::moment(start, how.now, how.zone));
    }
    fact(text, "process", &who);
    if let Some(arguments) = holder.cmdline.as_deref().filter(|arguments| !arguments.is_empty()) {
        fact(text, "command", &words::command(arguments));
    }
    if let Some(cwd) = &holder.cwd {
        fact(text, "in", &Escaped(cwd).to_string());
    }
    if !holder.ancestry.is_empty() {
        let chain: Vec<String> =
            holder.ancestry.iter().rev().map(|kin| format!("{} ({})", Escaped(&kin.comm), kin.pid)).collect();
        fact(text, "started by", &chain.join(" → "));
    }
    if let Some(unit) = &holder.unit {
        fact(text, "unit", &Escaped(unit).to_string());
    }
    if let Some(container) = &holder.container {
        fact(text, "container", &Escaped(container).to_string());
    }
}

fn fact(text: &mut String, name: &str, value: &str) {
    line(text, format_args!("  {name:<11}{value}"));
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! An answer as a literal.

    use super::*;
    use crate::model::answer::{Looked, Query, SCHEMA};

    pub(crate) fn answer(claims: Vec<Claim>) -> Answer {
        Answer {
            schema: SCHEMA,
            as_of: "2026-11-21T14:03:07Z".parse().unwrap(),
            source: AnswerSource::Daemon,
            query: Query::default(),
            incomplete: Vec::new(),
            looked: Looked { netns: 3, processes: 214, nat: true },
            advice: crate::judge::advice::advice(&claims, crate::judge::advice::Sight::default()),
            claims,
            surroundings: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::answer;
    use super::*;
    use crate::model::claim::Peer;
    use crate::model::claim::fixtures::claim;
    use crate::model::job::Test;

    fn told(answer: &Answer) -> String {
        let text = story(answer, "8081", &TimeZone::UTC);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        text
    }

    #[test]
    fn a_leaked_listener_is_told_with_its_job_and_what_to_do() {
        insta::assert_snapshot!(told(&answer(vec![claim()])));
    }

    #[test]
    fn a_free_port_says_what_was_looked_at() {
        insta::assert_snapshot!(told(&answer(vec![])));
    }

    #[test]
    fn partial_sight_is_said() {
        let mut partial = answer(vec![]);
        partial.incomplete.push("the open files of 7 processes could not be read".to_owned());
        let text = told(&partial);
        assert!(
            text.contains("nobody that could be seen") && text.contains("Not seen:\n  - the open files of 7"),
            "{text}"
        );
    }

    #[test]
    fn time_wait_is_one_line_with_its_number_and_its_end() {
        let wait = |expires_ms| Claim {
            kind: ClaimKind::TimeWait,
            state: "TIME_WAIT".to_owned(),
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            holders: vec![],
            expires_ms,
            ..claim()
        };
        let text = told(&answer(vec![wait(Some(59_001)), wait(Some(1)), wait(None)]));
        let said = "tcp 127.0.0.1:8081  TIME_WAIT  3 of them, in network namespace host; the kernel lets go of the last in 60s";
        assert!(text.contains(said), "{text}");
    }

    #[test]
    fn an_heir_is_told_from_whoever_opened_the_socket() {
        let binder =
            crate::model::claim::Binder { pid: 7, start_time: None, comm: "go".to_owned(), alive: false };
        let text = told(&answer(vec![Claim { binder: Some(binder), ..claim() }]));
        assert!(
            text.contains("bound by   go, pid 7, gone; provider") && text.contains("by inheritance"),
            "{text}"
        );
    }

    #[test]
    fn the_test_is_named_with_its_runner() {
        let test = Test { framework: "nextest".to_owned(), name: "api::get\u{1b}[2J".to_owned() };
        let text = told(&answer(vec![Claim { test: Some(test), ..claim() }]));
        assert!(text.contains("\n  test       nextest api::get\\x1b[2J\n"), "{text}");
    }

    #[test]
    fn many_connections_are_told_as_a_number() {
        let connection = Claim {
            kind: ClaimKind::Connection,
            state: "ESTABLISHED".to_owned(),
            peer: Some(Peer { address: std::net::Ipv4Addr::LOCALHOST.into(), port: 9 }),
            ..claim()
        };
        let text = told(&answer(vec![connection; 10]));
        assert!(text.contains("and 7 more connections"), "{text}");
    }
}
