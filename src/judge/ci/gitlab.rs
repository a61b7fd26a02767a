//! GitLab Runner: `CI_JOB_ID`. The shell executor starts a shell for each of a job's scripts; the variables are exported
//! inside it, so that shell has none itself and its children do. Normal ends kill nothing.
//!
//! Source: gitlab-runner's shells/bash.go, helpers/process, docs/executors/shell.md.

use std::time::Duration;

use super::{Kin, System, first_process, nearest_named};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

const RUNNER: &str = "gitlab-runner";
/// Between two scripts of a job the runner has no shell for it, for well under a second; this is generous.
const BETWEEN_SCRIPTS: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct GitLab;

impl System for GitLab {
    fn name(&self) -> &str {
        "gitlab"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "CI_JOB_ID",
            "GITLAB_CI",
            "CI_SERVER_URL",
            "CI_JOB_NAME",
            "CI_PROJECT_PATH",
            "CI_PIPELINE_ID",
            "CI_JOB_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        variables.get("GITLAB_CI")?;
        let id = variables.get("CI_JOB_ID")?;
        let get = |name| variables.get(name).map(str::to_owned);
        // Job numbers are unique within one server only.
        let unique = get("CI_SERVER_URL").map_or_else(|| id.to_owned(), |server| format!("{server}#{id}"));
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: unique },
            id: id.to_owned(),
            name: get("CI_JOB_NAME"),
            repository: get("CI_PROJECT_PATH"),
            run: get("CI_PIPELINE_ID"),
            url: get("CI_JOB_URL"),
        })
    }

    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        nearest_named(lineage, RUNNER).map(|runner| runner - 1).or_else(|| first_process(lineage))
    }

    fn pause(&self) -> Duration {
        BETWEEN_SCRIPTS
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn the_same_number_on_two_servers_is_two_jobs() {
        let job = |server| {
            let variables =
                Variables::from([("GITLAB_CI", "true"), ("CI_JOB_ID", "7"), ("CI_SERVER_URL", server)]);
            GitLab.recognize(&variables).unwrap().key
        };
        assert_ne!(job("https://a"), job("https://b"));
    }

    #[test]
    fn the_shell_without_variables_ends_the_job() {
        let tree = [("server", true), ("make", true), ("bash", false), ("gitlab-runner", false)];
        assert_anchor(&GitLab, &tree, Some("bash"));
    }

    #[test]
    fn in_a_container_the_containers_first_process_ends_the_job() {
        let tree = [("server", true), ("sh", true), ("containerd-shim", false)];
        assert_anchor(&GitLab, &tree, Some("sh"));
    }

    #[test]
    fn woodpecker_also_sets_ci_but_is_not_gitlab() {
        assert_eq!(GitLab.recognize(&Variables::from([("CI_JOB_ID", "7")])), None);
    }
}
