//! `sniffer conflicts`: what the daemon has seen of failed binds.

use std::path::Path;

use super::history::{past, past_moment};
use super::{ANSWERED, Failure, OTHERWISE, printed};
use crate::history::document;
use crate::kernel::clock;
use crate::model::conflict::Conflicts;
use crate::report;

/// Failed binds.
pub(super) fn run(since: Option<&str>, db: Option<&Path>, json: bool) -> Result<u8, Failure> {
    let zone = super::zone();
    let since = past_moment("--since", since)?;
    let path = match since {
        Some(since) => format!("/v1/conflicts?since={since}"),
        None => "/v1/conflicts".to_owned(),
    };
    let answer: Conflicts = past(db, &path, |reader, gap| {
        let found = document::conflicts(reader, since, clock::now());
        let mut found = found.map_err(|error| error.to_string())?;
        // That the last daemon saw none says nothing of now.
        if db.is_none() && found.conflicts.is_empty() {
            return Err(unseen());
        }
        found.incomplete.extend(gap);
        Ok(found)
    })?;
    if answer.watched_since.is_none() && answer.conflicts.is_empty() && db.is_none() {
        // "None" from an agent that cannot see them is no answer.
        return Err(answer.incomplete.first().cloned().unwrap_or_default());
    }
    printed(if json {
        report::print_json(&answer)
    } else {
        report::print(&report::conflicts(&answer, since, &zone))
    })?;
    Ok(if answer.conflicts.is_empty() { OTHERWISE } else { ANSWERED })
}

fn unseen() -> Failure {
    "no sniffer daemon answers, and the last one saw no bind fail; it alone sees them: start it with `sniffer daemon` or `systemctl start sniffer`"
        .to_owned()
}
