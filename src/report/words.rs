//! Words for moments, processes and jobs.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::judge::ending;
use crate::judge::leak::span;
use crate::model::claim::Claim;
use crate::model::escape::Escaped;
use crate::model::hold::Comeback;
use crate::model::job::{Job, JobState, Test};
use crate::model::netns::Netns;
use crate::model::process::Holder;

/// A command line in text is cut after this many characters; JSON has all of it.
const COMMAND_CHARS: usize = 240;

/// `13:50:00 (12m ago)`, with the date where it is not today.
pub(super) fn moment(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let (local, today) = (at.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let format = if local.date() == today.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    format!("{} ({} ago)", local.strftime(format), span(now.duration_since(at)))
}

/// Name of a process, harmless for a terminal.
pub(super) fn comm(holder: &Holder) -> String {
    holder.comm.as_deref().map_or_else(|| "a process".to_owned(), |comm| Escaped(comm).to_string())
}

/// A command line, quoted where an argument would be misread, cut where it is long.
pub(super) fn command(arguments: &[String]) -> String {
    let mut line = String::new();
    for argument in arguments {
        if !line.is_empty() {
            line.push(' ');
        }
        let plain = !argument.is_empty()
            && !argument.contains(|c: char| c.is_whitespace() || "\"'\\$`&|;<>()*?#~".contains(c));
        if plain {
            line += &Escaped(argument).to_string();
        } else {
            line += &format!("'{}'", Escaped(argument).to_string().replace('\'', r"'\''"));
        }
    }
    match line.char_indices().nth(COMMAND_CHARS) {
        Some((cut, _)) => format!("{}…", line.get(..cut).unwrap_or_default()),
        None => line,
    }
}

/// `github coverage-test of envoyproxy/gateway, run 991`.
pub(super) fn job(job: &Job) -> String {
    let mut words = format!("{} {}", Escaped(&job.ci), Escaped(job.name.as_deref().unwrap_or(&job.id)));
    if let Some(repository) = &job.repository {
        words += &format!(" of {}", Escaped(repository));
    }
    if let Some(run) = &job.run {
        words += &format!(", run {}", Escaped(run));
    }
    words
}

/// `nextest api::get`.
pub(super) fn test(test: &Test) -> String {
    format!("{} {}", Escaped(&test.framework), Escaped(&test.name))
}

/// `running since 13:40:00 (2m ago)`, `ended at …`.
pub(super) fn job_state(job: &Job, now: Timestamp, zone: &TimeZone) -> String {
    match (job.state, job.started, job.ended) {
        (JobState::Running, Some(started), _) => format!("running since {}", moment(started, now, zone)),
        (JobState::Ended, _, Some(ended)) => format!("ended at {}", moment(ended, now, zone)),
        (JobState::Ended, _, None) => "has ended, when was not seen".to_owned(),
        (state, _, _) => state.as_str().to_owned(),
    }
}

/// `lost at 14:03:07 (9s ago): … killed by the OOM killer …; it came back 4.2s later …`.
pub(super) fn comeback(back: &Comeback, now: Timestamp, zone: &TimeZone) -> String {
    format!("lost at {}: {}", moment(back.lost_at, now, zone), Escaped(&ending::comeback(back)))
}

/// The namespace of a claim: its name, or its inode with what keeps it.
pub(super) fn netns(claim: &Claim) -> String {
    match (&claim.netns.name, &claim.netns.kept_by) {
        (Some(name), _) => Escaped(name).to_string(),
        (None, Some(kept_by)) => format!("{} ({})", claim.netns.inode, Escaped(kept_by)),
        (None, None) => claim.netns.inode.to_string(),
    }
}

/// Where that is not this program's own namespace: `  in network namespace blue`.
pub(super) fn foreign_netns(netns: &Netns) -> String {
    match netns.name.as_deref() {
        Some("host") => String::new(),
        Some(name) => format!("  in network namespace {}", Escaped(name)),
        None => format!("  in network namespace {}", netns.inode),
    }
}

/// `127.0.0.1:8081`, `[::1]:8081`.
pub(super) fn address(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_escaped_and_cut() {
        let words = |list: &[&str]| command(&list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["sh", "-c", "a b", ""]), "sh -c 'a b' ''");
        assert_eq!(words(&["a\u{1b}[31m\n"]), "'a\\x1b[31m\\n'");
        assert_eq!(words(&["python3", "-c", "print('a')"]), r"python3 -c 'print('\''a'\'')'");
        assert_eq!(words(&[&"é".repeat(1000)]).chars().count(), COMMAND_CHARS + 1);
    }

    #[test]
    fn moments_of_other_days_carry_their_date() {
        let at: Timestamp = "2026-11-20T23:50:00Z".parse().unwrap();
        let now: Timestamp = "2026-11-21T00:10:00Z".parse().unwrap();
        assert_eq!(moment(at, now, &TimeZone::UTC), "2026-11-20 23:50:00 (20m ago)");
        assert_eq!(moment(now, now, &TimeZone::UTC), "00:10:00 (0s ago)");
    }
}
