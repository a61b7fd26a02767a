//! Documents about the past, made from the file: the same for the daemon and for a command without one.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{Asked, Reader};
use crate::judge::evidence;
use crate::kernel::host;
use crate::model::answer::SCHEMA;
use crate::model::conflict::Conflicts;
use crate::model::hold::History;
use crate::model::job::Job;
use crate::model::report::{JobReport, Kept, Timeline};

/// Holds that a timeline shows at the most: a browser has to draw them.
const MAX_DRAWN: usize = 20_000;

/// Refusals that are told at the most, the newest: each brings both sides in full.
pub const MAX_CONFLICTS: usize = 2000;

/// That there were more.
pub fn left_out() -> String {
    format!("those before the last {MAX_CONFLICTS} are left out: narrow it with --since")
}

/// The document of `history`. Errors: SQLite's.
pub fn history(reader: &Reader, asked: &Asked, now: Timestamp) -> rusqlite::Result<History> {
    let shown = reader.holds(asked)?;
    Ok(History {
        schema: SCHEMA,
        as_of: now,
        kept_since: reader.kept_since()?,
        incomplete: Vec::new(),
        truncated: shown.truncated,
        holds: shown.found,
    })
}

/// The document of `conflicts`, as far as the file knows. Errors: SQLite's.
pub fn conflicts(reader: &Reader, since: Option<Timestamp>, now: Timestamp) -> rusqlite::Result<Conflicts> {
    let shown = reader.conflicts(&Asked { since, limit: Some(MAX_CONFLICTS), ..Asked::default() })?;
    Ok(Conflicts {
        schema: SCHEMA,
        as_of: now,
        watched_since: None,
        remembered_since: reader.kept_since()?,
        incomplete: shown.truncated.then(left_out).into_iter().collect(),
        pending: 0,
        conflicts: shown.found,
    })
}

/// Everything of a time. Errors: SQLite's.
pub fn timeline(
    reader: &Reader,
    (since, until): (Timestamp, Timestamp),
    now: Timestamp,
) -> rusqlite::Result<Timeline> {
    let (since, until) = (since.min(until), since.max(until));
    let asked = Asked { since: Some(since), until: Some(until), limit: Some(MAX_DRAWN), ..Asked::default() };
    let (holds, conflicts) = (reader.holds(&asked)?, reader.conflicts(&asked)?);
    let mut timeline = Timeline {
        schema: SCHEMA,
        as_of: now,
        since,
        until,
        truncated: holds.truncated || conflicts.truncated,
        incomplete: Vec::new(),
        history: Kept { kept: true, why: None },
        holds: holds.found,
        conflicts: conflicts.found,
        jobs: Vec::new(),
    };
    timeline.jobs = jobs(&timeline);
    Ok(timeline)
}

/// The jobs that a timeline names.
pub fn jobs(timeline: &Timeline) -> Vec<Job> {
    let of_holds = timeline.holds.iter().filter_map(|hold| hold.job.as_deref());
    let of_losers = timeline.conflicts.iter().filter_map(|conflict| conflict.loser.job.as_ref());
    let mut jobs: Vec<Job> = of_holds.chain(of_losers).cloned().collect();
    jobs.sort_by(|one, other| (&one.ci, &one.id, &one.url).cmp(&(&other.ci, &other.id, &other.url)));
    jobs.dedup_by(|one, other| (&one.ci, &one.id, &one.url) == (&other.ci, &other.id, &other.url));
    jobs
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum NoReport {
    /// No job of this id is remembered.
    #[error(
        "no job '{0}' is remembered; `sniffer job list` names those that are known, and ids are as the CI system has them"
    )]
    Unknown(String),
    /// Several have this id.
    #[error("several jobs have the id '{0}' ({1}): say which with --ci")]
    Ambiguous(String, String),
    /// The file.
    #[error("{0}")]
    File(#[from] rusqlite::Error),
}

/// The evidence of a job. Errors: there is none, or several.
pub fn report(
    reader: &Reader,
    id: &str,
    ci: Option<&str>,
    incomplete: Vec<String>,
    now: Timestamp,
) -> Result<JobReport, NoReport> {
    let mut jobs = reader.jobs(id, ci)?;
    let (row, job) = match jobs.pop() {
        None => return Err(NoReport::Unknown(id.to_owned())),
        Some(job) if jobs.is_empty() || ci.is_some() => job,
        Some((row, job)) => {
            // The newest of one system; of several nobody knows which was meant.
            let mut systems: Vec<String> = jobs.iter().map(|(_, job)| job.ci.clone()).collect();
            systems.push(job.ci.clone());
            systems.sort_unstable();
            systems.dedup();
            if systems.len() > 1 {
                return Err(NoReport::Ambiguous(id.to_owned(), systems.join(", ")));
            }
            (row, job)
        }
    };
    let (holds, conflicts) = (reader.holds_of_job(row)?, reader.conflicts_of_job(&job)?);
    Ok(evidence::report(job, holds, conflicts, incomplete, (host::name(), now)))
}

/// What a file cannot say without its agent; `None` while that was there a moment ago. Errors: SQLite's.
pub fn unwatched(reader: &Reader, now: Timestamp, zone: &TimeZone) -> rusqlite::Result<Option<String>> {
    const A_MOMENT: SignedDuration = SignedDuration::from_secs(15);
    Ok(match reader.alive_until()? {
        Some(alive) if now.duration_since(alive) <= A_MOMENT => None,
        Some(alive) => {
            let at = alive.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
            Some(format!("no agent has watched since {at}: what is shown to go on went on then"))
        }
        None => Some("no agent has written to this file yet".to_owned()),
    })
}
