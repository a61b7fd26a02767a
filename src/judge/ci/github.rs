//! GitHub Actions (actions/runner): `RUNNER_TRACKING_ID` is new for every job; `Runner.Worker` lives as long as the job.
//!
//! `GITHUB_JOB` and `GITHUB_RUN_ID` are the same in every leg of a matrix and never name a job.
//! Source: src/Runner.Worker/JobExtension.cs, GitHubContext.cs.

use super::{Absence, Kin, System, first_process, nearest_named};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

const WORKER: &str = "Runner.Worker";

#[derive(Debug)]
pub(super) struct GitHub;

impl System for GitHub {
    fn name(&self) -> &str {
        "github"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "RUNNER_TRACKING_ID",
            "GITHUB_JOB",
            "GITHUB_REPOSITORY",
            "GITHUB_RUN_ID",
            "GITHUB_RUN_ATTEMPT",
            "GITHUB_SERVER_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let id = variables.get("RUNNER_TRACKING_ID").filter(|id| id.starts_with("github_"))?;
        let get = |name| variables.get(name).map(str::to_owned);
        let (repository, run) = (get("GITHUB_REPOSITORY"), get("GITHUB_RUN_ID"));
        let url = match (get("GITHUB_SERVER_URL"), &repository, &run) {
            (Some(server), Some(repository), Some(run)) => {
                Some(format!("{server}/{repository}/actions/runs/{run}"))
            }
            _ => None,
        };
        let key = JobKey { ci: self.name().to_owned(), id: id.to_owned() };
        Some(JobFacts { key, id: id.to_owned(), name: get("GITHUB_JOB"), repository, run, url })
    }

    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        nearest_named(lineage, WORKER).or_else(|| first_process(lineage))
    }

    fn absence(&self) -> Absence<'_> {
        Absence::OfProcess(WORKER)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn two_legs_of_a_matrix_are_two_jobs() {
        let leg = |id| {
            let variables = Variables::from([
                ("RUNNER_TRACKING_ID", id),
                ("GITHUB_JOB", "test"),
                ("GITHUB_RUN_ID", "991"),
                ("GITHUB_REPOSITORY", "envoyproxy/gateway"),
                ("GITHUB_SERVER_URL", "https://github.com"),
            ]);
            GitHub.recognize(&variables).unwrap()
        };
        let (one, two) = (leg("github_a"), leg("github_b"));
        assert_ne!(one.key, two.key);
        assert_eq!(one.url.as_deref(), Some("https://github.com/envoyproxy/gateway/actions/runs/991"));
        assert_eq!(one.name.as_deref(), Some("test"));
    }

    #[test]
    fn a_process_that_blanked_its_tracking_id_is_not_recognised_by_what_is_left() {
        let variables =
            Variables::from([("RUNNER_TRACKING_ID", ""), ("GITHUB_JOB", "test"), ("GITHUB_RUN_ID", "1")]);
        assert_eq!(GitHub.recognize(&variables), None);
    }

    #[test]
    fn the_worker_ends_the_job_not_the_listener() {
        let tree = [("server", true), ("bash", true), ("Runner.Worker", false), ("Runner.Listener", false)];
        assert_anchor(&GitHub, &tree, Some("Runner.Worker"));
    }

    #[test]
    fn an_orphan_of_a_job_says_nothing_about_its_end() {
        assert_anchor(&GitHub, &[("server", true)], None);
    }

    #[test]
    fn a_forked_copy_of_the_worker_is_not_the_worker() {
        let job = JobKey { ci: "github".to_owned(), id: "1".to_owned() };
        let tree = [
            ("server", true),
            ("Runner.Worker", false),
            ("Runner.Worker", false),
            ("Runner.Listener", false),
        ];
        assert_eq!(GitHub.anchor(&super::super::fixtures::lineage(&tree, &job)), Some(2));
    }
}
