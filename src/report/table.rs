//! `list` and `leaks` as tables: a line a claim, connections of one process on one port as one.

use std::collections::BTreeMap;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::tz::TimeZone;

use super::words;
use crate::model::answer::Answer;
use crate::model::claim::{Claim, OwnerType};
use crate::model::escape::Escaped;
use crate::model::socket::ClaimKind;

/// Every claim, for people.
pub fn list(answer: &Answer, zone: &TimeZone) -> String {
    let mut text = String::new();
    if answer.claims.is_empty() {
        text += "No port is held.\n";
    } else {
        text += &rows(answer, zone);
    }
    not_seen(&mut text, answer);
    text
}

/// Every leaked listener, for people.
pub fn leaks(answer: &Answer, zone: &TimeZone) -> String {
    let mut text = String::new();
    if answer.claims.is_empty() {
        text += "Nothing has leaked.\n";
    } else {
        text += &rows(answer, zone);
        text += "\n`sniffer who-holds PORT` tells each one's story and how to end it.\n";
    }
    not_seen(&mut text, answer);
    text
}

fn not_seen(text: &mut String, answer: &Answer) {
    for (number, gap) in answer.incomplete.iter().enumerate() {
        *text += &format!("{}Not seen: {}\n", if number == 0 { "\n" } else { "" }, Escaped(gap));
    }
}

fn rows(answer: &Answer, zone: &TimeZone) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "PORT", "PROTO", "ADDRESS", "STATE", "NETNS", "HOLDER", "USER", "JOB", "VERDICT", "SINCE",
    ]);
    let mut passing: BTreeMap<_, (&Claim, usize)> = BTreeMap::new();
    for claim in &answer.claims {
        if matches!(claim.kind, ClaimKind::Connection | ClaimKind::TimeWait) {
            let pid = claim.holders.first().map(|holder| holder.pid);
            let key = (claim.port, claim.state.as_str(), claim.netns.inode, pid);
            passing.entry(key).or_insert((claim, 0)).1 += 1;
        } else {
            table.add_row(row(claim, &claim.state, answer, zone));
        }
    }
    for (claim, count) in passing.into_values() {
        let state = if count > 1 { format!("{} ×{count}", claim.state) } else { claim.state.clone() };
        table.add_row(row(claim, &state, answer, zone));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

fn row(claim: &Claim, state: &str, answer: &Answer, zone: &TimeZone) -> [String; 10] {
    let dash = || "-".to_owned();
    let holder = claim.holders.first();
    [
        match claim.nat.as_ref().and_then(|nat| nat.last_port) {
            Some(last) => format!("{}-{last}", claim.port),
            None => claim.port.to_string(),
        },
        claim.protocol.to_string(),
        claim.address.to_string(),
        Escaped(state).to_string(),
        claim
            .netns
            .name
            .as_deref()
            .map_or_else(|| claim.netns.inode.to_string(), |name| Escaped(name).to_string()),
        holder.map_or_else(
            || nobody(claim),
            |holder| {
                let others = claim.holders.len() - 1;
                let more = if others > 0 { format!(" +{others}") } else { String::new() };
                format!("{} ({}){more}", words::comm(holder), holder.pid)
            },
        ),
        holder.and_then(|holder| holder.user.as_deref()).map_or_else(dash, |user| Escaped(user).to_string()),
        claim.job.as_ref().map_or_else(dash, words::job),
        claim.verdict.as_str().to_owned(),
        claim.since.map_or_else(dash, |since| words::moment(since, answer.as_of, zone)),
    ]
}

fn nobody(claim: &Claim) -> String {
    match (&claim.nat, &claim.owner.name) {
        (Some(_), Some(name)) => format!("{} {}", claim.owner.kind.as_str(), Escaped(name)),
        (Some(nat), None) => format!("→ {}", nat.destination()),
        (None, _) if claim.owner.kind == OwnerType::Kernel => "the kernel".to_owned(),
        (None, _) => "none found".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::fixtures::answer;
    use super::*;
    use crate::model::claim::fixtures::claim;

    #[test]
    fn connections_of_one_process_are_one_line() {
        let connection = Claim { kind: ClaimKind::Connection, state: "ESTABLISHED".to_owned(), ..claim() };
        let text = list(&answer(vec![claim(), connection.clone(), connection]), &TimeZone::UTC);
        insta::assert_snapshot!(text);
    }
}
