//! Buildkite: `BUILDKITE_JOB_ID`, new for every retry; `buildkite-agent bootstrap` carries it and lives as long as the job.
//!
//! Source: buildkite/agent's agent/job_runner.go, internal/process/signal_notwindows.go.

use super::System;
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

#[derive(Debug)]
pub(super) struct Buildkite;

impl System for Buildkite {
    fn name(&self) -> &str {
        "buildkite"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "BUILDKITE_JOB_ID",
            "BUILDKITE_LABEL",
            "BUILDKITE_STEP_KEY",
            "BUILDKITE_PIPELINE_SLUG",
            "BUILDKITE_ORGANIZATION_SLUG",
            "BUILDKITE_BUILD_NUMBER",
            "BUILDKITE_BUILD_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let id = variables.get("BUILDKITE_JOB_ID")?;
        let get = |name| variables.get(name).map(str::to_owned);
        let repository = match (get("BUILDKITE_ORGANIZATION_SLUG"), get("BUILDKITE_PIPELINE_SLUG")) {
            (Some(organization), Some(pipeline)) => Some(format!("{organization}/{pipeline}")),
            (_, pipeline) => pipeline,
        };
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.to_owned() },
            id: id.to_owned(),
            name: get("BUILDKITE_STEP_KEY").or_else(|| get("BUILDKITE_LABEL")),
            repository,
            run: get("BUILDKITE_BUILD_NUMBER"),
            url: get("BUILDKITE_BUILD_URL").map(|build| format!("{build}#{id}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn the_bootstrap_ends_the_job() {
        let tree = [("server", true), ("bash", true), ("buildkite-agent", true), ("buildkite-agent", false)];
        let job = JobKey { ci: "buildkite".to_owned(), id: "1".to_owned() };
        let lineage = super::super::fixtures::lineage(&tree, &job);
        assert_eq!(Buildkite.anchor(&lineage), Some(2));
        assert_anchor(&Buildkite, &[("server", true)], None);
    }

    #[test]
    fn the_jobs_page_is_the_builds_page_with_its_id() {
        let variables =
            Variables::from([("BUILDKITE_JOB_ID", "u-1"), ("BUILDKITE_BUILD_URL", "https://b/o/p/builds/3")]);
        assert_eq!(
            Buildkite.recognize(&variables).unwrap().url.as_deref(),
            Some("https://b/o/p/builds/3#u-1")
        );
    }
}
