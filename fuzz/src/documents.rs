//! Documents that are read again: of a container engine, of the daemon by the command, of the agent before. And what is told of them.

use std::fmt::Debug;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sniffer::kernel::containers;
use sniffer::model::alert::Alert;
use sniffer::model::answer::Answer;
use sniffer::model::can_bind::CanBind;
use sniffer::model::conflict::Conflicts;
use sniffer::model::declared::{Ended, Jobs};
use sniffer::model::hold::{History, HoldKey};
use sniffer::model::report::JobReport;
use sniffer::report;
use sniffer::state::State;

/// A document of any of these kinds.
pub fn documents(bytes: &[u8]) {
    let _ = containers::parse(bytes);
    let zone = &TimeZone::UTC;
    let now: Timestamp = "2026-11-21T14:10:00Z".parse().unwrap();
    read::<State>(bytes);
    read::<HoldKey>(bytes);
    read::<Alert>(bytes);
    if let Some(answer) = read::<Answer>(bytes) {
        is_text(&report::story(&answer, "8081", zone));
        is_text(&report::list(&answer, zone));
        is_text(&report::leaks(&answer, zone));
    }
    if let Some(answer) = read::<CanBind>(bytes) {
        is_text(&report::can_bind(&answer, "8081", zone));
    }
    if let Some(conflicts) = read::<Conflicts>(bytes) {
        is_text(&report::conflicts(&conflicts, None, zone));
    }
    if let Some(history) = read::<History>(bytes) {
        is_text(&report::history(&history, "8081", None, zone));
    }
    if let Some(ended) = read::<Ended>(bytes) {
        is_text(&report::ended(&ended, zone));
        is_text(&report::annotations(&ended));
        is_text(&report::summary(&ended, zone));
    }
    if let Some(jobs) = read::<Jobs>(bytes) {
        is_text(&report::jobs(&jobs, now, zone));
    }
    if let Some(found) = read::<JobReport>(bytes) {
        is_text(&report::evidence(&found, zone));
        is_text(&report::evidence_html(&found, zone));
    }
}

/// Reads it; what is written of it reads the same.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let document: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&document).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), document);
    Some(document)
}

/// Lines, and nothing that a terminal obeys.
fn is_text(text: &str) {
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}
