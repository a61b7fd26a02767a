//! What is to be said of a job first: the summary of its evidence.

use jiff::Timestamp;

use crate::model::answer::SCHEMA;
use crate::model::conflict::Conflict;
use crate::model::hold::{End, Hold};
use crate::model::job::{Job, JobState};
use crate::model::report::JobReport;

/// Ports that are named; more are counted.
const MAX_NAMED: usize = 8;

/// The evidence of a job, from what was seen of it. `incomplete` says what could not be seen.
pub fn report(
    job: Job,
    holds: Vec<Hold>,
    conflicts: Vec<Conflict>,
    incomplete: Vec<String>,
    (host, now): (String, Timestamp),
) -> JobReport {
    let leaks: Vec<Hold> = holds.iter().filter(|hold| hold.leaked_at.is_some()).cloned().collect();
    let lost: Vec<Hold> = holds.iter().filter(|hold| hold.is_lost()).cloned().collect();
    let mut summary = vec![refusals(&job, &conflicts, incomplete.is_empty())];
    summary.extend(of_leaks(&leaks));
    summary.extend(of_lost(&lost));
    summary.push(of_ports(&job, &holds));
    JobReport { schema: SCHEMA, as_of: now, host, job, incomplete, summary, holds, conflicts, leaks, lost }
}

fn refusals(job: &Job, conflicts: &[Conflict], complete: bool) -> String {
    if conflicts.is_empty() {
        let so_far = if job.state == JobState::Running { " so far" } else { "" };
        let as_far = if complete { "" } else { ", as far as could be seen" };
        return format!("No port conflict was seen in this job{so_far}{as_far}.");
    }
    let is_it = |other: Option<&Job>| other.is_some_and(|other| (&other.ci, &other.id) == (&job.ci, &job.id));
    let refused = conflicts.iter().filter(|conflict| is_it(conflict.loser.job.as_ref()));
    let (mut attempts, mut ports) = (0, Vec::new());
    for conflict in refused {
        attempts += conflict.attempts;
        ports.push(place(conflict.port, conflict.protocol.as_str()));
    }
    let others = conflicts.len() - ports.len();
    let mut parts = Vec::new();
    if attempts > 0 {
        parts.push(format!("it was refused {} ({})", times(attempts), named(ports)));
    }
    if others > 0 {
        parts.push(format!("{others} of others' binds were refused because it had the port"));
    }
    format!("Port conflicts: {}.", parts.join("; "))
}

fn of_leaks(leaks: &[Hold]) -> Option<String> {
    let still = leaks.iter().filter(|hold| hold.until.is_none()).count();
    let still = match still {
        0 => "all are gone now".to_owned(),
        1 => "one is still there".to_owned(),
        many => format!("{many} are still there"),
    };
    let left = named(leaks.iter().map(|hold| place(hold.port, hold.protocol.as_str())).collect());
    (!leaks.is_empty()).then(|| format!("It left listeners behind when it ended: {left}; {still}."))
}

fn of_lost(lost: &[Hold]) -> Option<String> {
    let by_oom = lost.iter().filter(|hold| hold.end == Some(End::OomKilled)).count();
    let oom = if by_oom > 0 { format!(", {by_oom} of them to the OOM killer") } else { String::new() };
    let ports = named(lost.iter().map(|hold| place(hold.port, hold.protocol.as_str())).collect());
    (!lost.is_empty())
        .then(|| format!("It lost listeners while their processes crashed or were killed{oom}: {ports}."))
}

fn of_ports(job: &Job, holds: &[Hold]) -> String {
    if holds.is_empty() {
        let so_far = if job.state == JobState::Running { " so far" } else { "" };
        return format!("No port was seen to be held by it{so_far}.");
    }
    let mut ports: Vec<(u16, &str)> = holds.iter().map(|hold| (hold.port, hold.protocol.as_str())).collect();
    ports.sort_unstable();
    ports.dedup();
    let (ports, holds) = (ports.len(), holds.len());
    let ports = if ports == 1 { "one port".to_owned() } else { format!("{ports} ports") };
    let holds = if holds == 1 { "once".to_owned() } else { format!("{holds} times in all") };
    format!("It held {ports}, {holds}.")
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn place(port: u16, protocol: &str) -> String {
    format!("{port}/{protocol}")
}

fn named(mut ports: Vec<String>) -> String {
    ports.sort_unstable();
    ports.dedup();
    let more = ports.len().saturating_sub(MAX_NAMED);
    ports.truncate(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", ports.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::fixtures::github;
    use crate::model::hold::fixtures::{at, hold};

    fn told(holds: Vec<Hold>, incomplete: Vec<String>) -> Vec<String> {
        report(github(JobState::Ended, "1"), holds, vec![], incomplete, ("host".to_owned(), at(9))).summary
    }

    #[test]
    fn that_nothing_happened_is_said_only_where_it_was_seen() {
        let said = told(vec![], vec![]);
        assert_eq!(said, ["No port conflict was seen in this job.", "No port was seen to be held by it."]);
        let blind = told(vec![], vec!["failed binds are not seen".to_owned()]);
        assert_eq!(blind[0], "No port conflict was seen in this job, as far as could be seen.");
    }

    #[test]
    fn leaks_and_losses_are_counted_and_named() {
        let leaked = Hold { leaked_at: Some(at(3)), ..hold(1, 7) };
        let lost = Hold { until: Some(at(3)), end: Some(End::OomKilled), port: 9000, ..hold(2, 8) };
        let said = told(vec![leaked, lost], vec![]);
        assert_eq!(said[1], "It left listeners behind when it ended: 8081/tcp; one is still there.");
        assert_eq!(
            said[2],
            "It lost listeners while their processes crashed or were killed, 1 of them to the OOM killer: 9000/tcp."
        );
        assert_eq!(said[3], "It held 2 ports, 2 times in all.");
    }
}
