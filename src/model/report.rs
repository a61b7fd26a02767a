//! The evidence of a job: every port it held, every refusal on either side, what it left and what it lost.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::conflict::Conflict;
use super::hold::Hold;
use super::job::Job;

/// The document of `report`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Version of this shape.
    pub schema: u32,
    /// When it was written.
    pub as_of: Timestamp,
    /// The host it was seen on.
    pub host: String,
    /// The job.
    pub job: Job,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// What is to be said first, in sentences.
    pub summary: Vec<String>,
    /// Every port it held, the oldest first.
    pub holds: Vec<Hold>,
    /// Refusals with this job on either side, the oldest first.
    pub conflicts: Vec<Conflict>,
    /// Those of its holds that leaked.
    pub leaks: Vec<Hold>,
    /// Those of its listeners that were lost.
    pub lost: Vec<Hold>,
}

/// What a page draws: everything of a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Version of this shape.
    pub schema: u32,
    /// When it was asked.
    pub as_of: Timestamp,
    /// Begin of the time.
    pub since: Timestamp,
    /// Its end.
    pub until: Timestamp,
    /// Whether there was more than is shown.
    pub truncated: bool,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// Whether the past is remembered.
    pub history: Kept,
    /// Holds that overlap the time.
    pub holds: Vec<Hold>,
    /// Refusals in it.
    pub conflicts: Vec<Conflict>,
    /// The jobs of these.
    pub jobs: Vec<Job>,
}

/// Whether the past is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Whether it is.
    pub kept: bool,
    /// Why not.
    pub why: Option<String>,
}
