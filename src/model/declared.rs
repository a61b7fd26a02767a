//! Jobs that hooks declare: what `sniffer job` asks and what it is answered.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::conflict::Conflict;
use super::job::{Job, JobKey};
use super::process::ProcessId;

/// Longer texts are refused: ids, names and addresses are shorter.
const TEXT_BYTES: usize = 512;

/// What `job start` declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The CI system's own id of this run of the job.
    pub id: String,
    /// CI system; without one `custom`.
    pub ci: Option<String>,
    /// Name of the job.
    pub name: Option<String>,
    /// Repository, in the CI system's notation.
    pub repository: Option<String>,
    /// Run, pipeline or build number.
    pub run: Option<String>,
    /// Address of the job's page.
    pub url: Option<String>,
    /// This process and its descendants are the job's, and its end is the job's.
    pub process: Option<ProcessId>,
}

impl Start {
    /// What is wrong with it, in a sentence.
    pub fn mistake(&self) -> Option<String> {
        let texts = [&self.ci, &self.name, &self.repository, &self.run, &self.url];
        if self.id.is_empty() {
            return Some("the id is empty; give the CI system's own id of this run of the job".to_owned());
        }
        if self.ci.as_deref().unwrap_or("custom") == "custom" && self.id.starts_with(JobKey::RUN) {
            return Some(format!(
                "an id that begins with '{}' is one of `sniffer run`; choose another",
                JobKey::RUN
            ));
        }
        std::iter::once(&self.id).chain(texts.into_iter().flatten()).find_map(|text| {
            if text.len() > TEXT_BYTES {
                return Some(format!("a text is longer than {TEXT_BYTES} bytes; shorten it"));
            }
            text.chars()
                .any(char::is_control)
                .then(|| "a text has control characters; leave them out".to_owned())
        })
    }
}

/// What `job end` declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The job's id.
    pub id: String,
    /// Its CI system, where the id alone does not name one job.
    pub ci: Option<String>,
}

/// The document of `job start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Version of this shape.
    pub schema: u32,
    /// The job.
    pub job: Job,
}

/// The document of `job end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Version of this shape.
    pub schema: u32,
    /// When it was looked.
    pub as_of: Timestamp,
    /// The job.
    pub job: Job,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// What its processes still hold, but for programs that may outlive jobs.
    pub left: Vec<Claim>,
    /// Binds of its processes that were refused, the newest last.
    pub conflicts: Vec<Conflict>,
}

/// The document of `job list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// Version of this shape.
    pub schema: u32,
    /// When it was asked.
    pub as_of: Timestamp,
    /// The jobs that are known, the oldest first.
    pub jobs: Vec<Job>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_id_is_refused() {
        let start = |id: &str, ci: Option<&str>| Start {
            id: id.to_owned(),
            ci: ci.map(str::to_owned),
            name: None,
            repository: None,
            run: None,
            url: None,
            process: None,
        };
        assert_eq!(start("7", None).mistake(), None);
        assert_eq!(start("run-7", Some("github")).mistake(), None);
        for (id, part) in
            [("", "empty"), ("run-7", "sniffer run"), ("a\nb", "control"), (&"x".repeat(513), "longer")]
        {
            let mistake = start(id, None).mistake();
            assert!(mistake.as_ref().is_some_and(|why| why.contains(part)), "{id}: {mistake:?}");
        }
        let named = Start { name: Some("\u{1b}[2J".to_owned()), ..start("7", None) };
        assert!(named.mistake().is_some());
    }
}
