//! Jobs: one run of one CI job, recognised by its variables or its lineage.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Identity of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobKey {
    /// CI system (`github`, …), or the name of a `[[jobs.custom]]`.
    pub ci: String,
    /// The system's own id of this run of the job.
    pub id: String,
}

impl JobKey {
    /// The word that stands before the id of a command that `sniffer run` follows.
    pub const RUN: &str = "run-";

    /// Whether it is a command that `sniffer run` follows, and no job of a CI system.
    pub fn is_run(&self) -> bool {
        self.ci == "custom" && self.id.starts_with(Self::RUN)
    }
}

/// What the variables of a job's process say about the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFacts {
    /// Identity.
    pub key: JobKey,
    /// The id as people know it, where the identity needs more to be unique.
    pub id: String,
    /// Name of the job.
    pub name: Option<String>,
    /// Repository, in the CI system's notation.
    pub repository: Option<String>,
    /// Run, pipeline or build number.
    pub run: Option<String>,
    /// Address of the job's page.
    pub url: Option<String>,
}

impl JobFacts {
    /// The same job, with what somebody says of it in the place of what was known.
    pub fn with(self, said: JobFacts) -> Self {
        JobFacts {
            name: said.name.or(self.name),
            repository: said.repository.or(self.repository),
            run: said.run.or(self.run),
            url: said.url.or(self.url),
            ..self
        }
    }
}

/// Whether a job is still going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its worker is alive.
    Running,
    /// Its worker is gone.
    Ended,
    /// The worker was never seen, and nothing proves that it is gone.
    Unknown,
}

impl JobState {
    /// The word of JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Ended => "ended",
            JobState::Unknown => "unknown",
        }
    }
}

/// A job as documents show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// CI system.
    pub ci: String,
    /// The system's own id of this run of the job.
    pub id: String,
    /// Name of the job.
    pub name: Option<String>,
    /// Repository.
    pub repository: Option<String>,
    /// Run, pipeline or build number.
    pub run: Option<String>,
    /// Address of the job's page.
    pub url: Option<String>,
    /// Whether it is still going on.
    pub state: JobState,
    /// Start of the worker, where it was seen.
    pub started: Option<Timestamp>,
    /// End of the worker, where it was seen.
    pub ended: Option<Timestamp>,
}

/// A test process inside a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// Test runner.
    pub framework: String,
    /// The fullest name the process tree gives.
    pub name: String,
}
