//! Jobs, and what they hold when they end: for people, and as GitHub's annotations and summary.

use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::model::claim::Claim;
use crate::model::conflict::Conflict;
use crate::model::declared::{Ended, Jobs};
use crate::model::escape::Escaped;
use crate::model::job::Job;

/// What helps against a listener that is left.
const CURE: &str = "Stop it where the job cleans up (a trap, a fixture, t.Cleanup), also when it fails.";

/// A job has begun.
pub fn started(job: &Job) -> String {
    format!("Job {} has begun ({} {}).\n", words::job(job), Escaped(&job.ci), Escaped(&job.id))
}

/// Every job that is known.
pub fn jobs(jobs: &Jobs, now: Timestamp, zone: &TimeZone) -> String {
    if jobs.jobs.is_empty() {
        return "No job is known.\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["CI", "ID", "NAME", "REPOSITORY", "RUN", "STATE"]);
    let shown = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| Escaped(text).to_string());
    for job in &jobs.jobs {
        table.add_row([
            Escaped(&job.ci).to_string(),
            Escaped(&job.id).to_string(),
            shown(job.name.as_ref()),
            shown(job.repository.as_ref()),
            shown(job.run.as_ref()),
            words::job_state(job, now, zone),
        ]);
    }
    format!("{}\n", table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

/// What a job holds at its end, and what it was refused.
pub fn ended(ended: &Ended, zone: &TimeZone) -> String {
    let mut text = format!("Job {} has ended.\n", words::job(&ended.job));
    if ended.left.is_empty() && ended.conflicts.is_empty() {
        text += "It holds no port, and no bind of it was seen to fail.\n";
    }
    for claim in &ended.left {
        let _ = writeln!(text, "  left     {}", left(claim));
    }
    for conflict in &ended.conflicts {
        let at = words::moment(conflict.at, ended.as_of, zone);
        let _ = writeln!(text, "  refused  {at}: {}", refused(conflict));
        let _ = writeln!(text, "           {}", Escaped(&conflict.explanation));
    }
    if !ended.left.is_empty() {
        let _ = writeln!(text, "{CURE}");
    }
    for gap in &ended.incomplete {
        let _ = writeln!(text, "Not seen: {}", Escaped(gap));
    }
    text
}

/// `tcp 127.0.0.1:8081 by redis (pid 7): redis-server --port 8081`.
fn left(claim: &Claim) -> String {
    let place = words::address(claim.address, claim.port);
    let netns = words::foreign_netns(&claim.netns);
    let by = match claim.holders.first() {
        Some(holder) => {
            let command = holder.cmdline.as_deref().map(|line| format!(": {}", words::command(line)));
            format!("{} (pid {}){}", words::comm(holder), holder.pid, command.unwrap_or_default())
        }
        None => "no process that was found".to_owned(),
    };
    format!("{} {place}{netns} by {by}", claim.protocol)
}

/// `server (pid 7) could not have tcp 127.0.0.1:8081 (EADDRINUSE)`.
fn refused(conflict: &Conflict) -> String {
    let comm = Escaped(conflict.loser.comm.as_deref().unwrap_or("a process")).to_string();
    let place = words::address(conflict.address, conflict.port);
    let errno = conflict.errno.as_deref().map(|errno| format!(" ({})", Escaped(errno)));
    let (pid, protocol) = (conflict.loser.pid, conflict.protocol);
    format!("{comm} (pid {pid}) could not have {protocol} {place}{}", errno.unwrap_or_default())
}

/// A warning for everything that is left or was refused, as commands of GitHub's workflows.
pub fn annotations(ended: &Ended) -> String {
    let mut text = String::new();
    for claim in &ended.left {
        let title = format!("Port {}/{} is still held", claim.port, claim.protocol);
        warn(&mut text, &title, &format!("{}. {CURE}", left(claim)));
    }
    for conflict in &ended.conflicts {
        let title = format!("Port {}/{} was refused", conflict.port, conflict.protocol);
        warn(&mut text, &title, &format!("{}. {}", refused(conflict), Escaped(&conflict.explanation)));
    }
    for gap in &ended.incomplete {
        let _ = writeln!(text, "sniffer: not seen: {}", data(&Escaped(gap).to_string()));
    }
    if ended.left.is_empty() && ended.conflicts.is_empty() {
        text += "sniffer: this job holds no port, and no bind of it was seen to fail.\n";
    }
    text
}

fn warn(text: &mut String, title: &str, message: &str) {
    let title = data(title).replace(':', "%3A").replace(',', "%2C");
    let _ = writeln!(text, "::warning title={title}::{}", data(message));
}

/// The one character that the runner decodes and that is no control character.
fn data(text: &str) -> String {
    text.replace('%', "%25")
}

/// The same as Markdown; empty where there is nothing to tell.
pub fn summary(ended: &Ended, zone: &TimeZone) -> String {
    let mut text = String::new();
    if !ended.left.is_empty() {
        text += "### Ports that this job left held\n\n| port | address | process | pid | command |\n|---|---|---|---|---|\n";
        for claim in &ended.left {
            let holder = claim.holders.first();
            let command = holder.and_then(|holder| holder.cmdline.as_deref()).map(words::command);
            let _ = writeln!(
                text,
                "| {}/{} | {} | {} | {} | {} |",
                claim.port,
                claim.protocol,
                markdown(&claim.address.to_string()),
                markdown(&holder.map(words::comm).unwrap_or_default()),
                holder.map(|holder| holder.pid.to_string()).unwrap_or_default(),
                markdown(&command.unwrap_or_default()),
            );
        }
        let _ = writeln!(text, "\n{}\n", markdown(CURE));
    }
    if !ended.conflicts.is_empty() {
        text += "### Binds of this job that failed\n\n| time | refused | times | why |\n|---|---|---|---|\n";
        for conflict in &ended.conflicts {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                markdown(&words::moment(conflict.at, ended.as_of, zone)),
                markdown(&refused(conflict)),
                conflict.attempts,
                markdown(&Escaped(&conflict.explanation).to_string()),
            );
        }
        text.push('\n');
    }
    text
}

/// Text that is no markup: every character of ASCII that could be some is escaped.
fn markdown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '|' => safe += "&#124;",
            c if c.is_ascii_punctuation() && !matches!(c, ',' | '.' | '/' | '-' | ':' | '(' | ')' | '%') => {
                safe.push('\\');
                safe.push(c);
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::fixtures::{claim, holder};
    use crate::model::job::JobState;
    use crate::model::process::Holder;

    fn at() -> Timestamp {
        "2026-11-21T14:03:07Z".parse().unwrap()
    }

    fn ended_with(comm: &str, cmdline: &[&str]) -> Ended {
        let job = Job {
            ci: "github".to_owned(),
            id: "github_1f0c".to_owned(),
            name: Some("coverage".to_owned()),
            repository: Some("envoyproxy/gateway".to_owned()),
            run: Some("991".to_owned()),
            url: None,
            state: JobState::Ended,
            started: Some(at()),
            ended: Some(at()),
        };
        let cmdline = Some(cmdline.iter().map(|part| (*part).to_owned()).collect());
        let left = Claim { holders: vec![Holder { cmdline, ..holder(77, comm) }], ..claim() };
        Ended { schema: 1, as_of: at(), job, incomplete: Vec::new(), left: vec![left], conflicts: Vec::new() }
    }

    #[test]
    fn what_a_job_left_is_told_to_people() {
        let ended = super::ended(&ended_with("redis", &["redis-server", "--port", "8081"]), &TimeZone::UTC);
        insta::assert_snapshot!(ended);
    }

    #[test]
    fn a_job_that_left_nothing_is_told_so() {
        let clean = Ended { left: Vec::new(), ..ended_with("x", &[]) };
        assert!(super::ended(&clean, &TimeZone::UTC).contains("holds no port"));
        assert_eq!(summary(&clean, &TimeZone::UTC), "");
        assert!(!annotations(&clean).contains("::warning"));
    }

    #[test]
    fn foreign_names_are_no_commands_and_no_markup() {
        let hostile = ended_with("a\n::error::x", &["|<b>`*_[x](y)", "%0A::set-output name=x::y"]);
        let annotations = annotations(&hostile);
        assert_eq!(annotations.lines().count(), 1, "{annotations}");
        assert!(annotations.contains("%250A::set-output"), "{annotations}");
        let summary = summary(&hostile, &TimeZone::UTC);
        assert!(!summary.contains("<b>") && !summary.contains("[x](y)"), "{summary}");
        insta::assert_snapshot!(format!("{annotations}\n{summary}"));
    }

    #[test]
    fn jobs_are_listed() {
        let job = ended_with("x", &[]).job;
        let running = Job {
            state: JobState::Running,
            ended: None,
            id: "7\n".to_owned(),
            repository: None,
            ..job.clone()
        };
        let all = Jobs { schema: 1, as_of: at(), jobs: vec![job, running] };
        insta::assert_snapshot!(jobs(&all, at(), &TimeZone::UTC));
        assert_eq!(jobs(&Jobs { jobs: Vec::new(), ..all }, at(), &TimeZone::UTC), "No job is known.\n");
    }
}
