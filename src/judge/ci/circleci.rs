//! CircleCI: `CIRCLE_WORKFLOW_JOB_ID`, with `CIRCLE_NODE_INDEX` where a job runs on several machines at once.
//!
//! On a machine of one's own the runner starts a task agent (`circleci-agent`) for each job, which starts a shell for each step; in a
//! container the container's first process lives as long as the job. Source: circleci.com/docs, variables and machine-runner reference.

use super::{Absence, Kin, System, first_process, nearest_named};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

const TASK_AGENT: &str = "circleci-agent";

#[derive(Debug)]
pub(super) struct CircleCi;

impl System for CircleCi {
    fn name(&self) -> &str {
        "circleci"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "CIRCLE_WORKFLOW_JOB_ID",
            "CIRCLE_NODE_INDEX",
            "CIRCLE_NODE_TOTAL",
            "CIRCLE_JOB",
            "CIRCLE_PROJECT_USERNAME",
            "CIRCLE_PROJECT_REPONAME",
            "CIRCLE_BUILD_NUM",
            "CIRCLE_BUILD_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let job = variables.get("CIRCLE_WORKFLOW_JOB_ID")?;
        let get = |name| variables.get(name).map(str::to_owned);
        let several = variables.get("CIRCLE_NODE_TOTAL").is_some_and(|total| total != "1");
        let id = match get("CIRCLE_NODE_INDEX").filter(|_| several) {
            Some(index) => format!("{job}/{index}"),
            None => job.to_owned(),
        };
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.clone() },
            id,
            name: get("CIRCLE_JOB"),
            repository: get("CIRCLE_PROJECT_USERNAME")
                .zip(get("CIRCLE_PROJECT_REPONAME"))
                .map(|(owner, name)| format!("{owner}/{name}")),
            run: get("CIRCLE_BUILD_NUM"),
            url: get("CIRCLE_BUILD_URL"),
        })
    }

    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        nearest_named(lineage, TASK_AGENT).or_else(|| first_process(lineage))
    }

    fn absence(&self) -> Absence<'_> {
        // Between two steps the task agent may save a cache for minutes; whether it was there is not known.
        Absence::ProvesNothing
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn each_machine_of_a_parallel_job_is_a_job() {
        let on = |index, total| {
            CircleCi
                .recognize(&Variables::from([
                    ("CIRCLE_WORKFLOW_JOB_ID", "u-1"),
                    ("CIRCLE_NODE_INDEX", index),
                    ("CIRCLE_NODE_TOTAL", total),
                    ("CIRCLE_PROJECT_USERNAME", "o"),
                    ("CIRCLE_PROJECT_REPONAME", "r"),
                ]))
                .unwrap()
        };
        assert_ne!(on("0", "2").key, on("1", "2").key);
        assert_eq!(on("0", "1").id, "u-1");
        assert_eq!(on("0", "1").repository.as_deref(), Some("o/r"));
    }

    #[test]
    fn the_task_agent_ends_the_job_and_in_a_container_its_first_process() {
        let tree = [("server", true), ("bash", true), ("circleci-agent", false), ("circleci-runner", false)];
        assert_anchor(&CircleCi, &tree, Some("circleci-agent"));
        assert_anchor(&CircleCi, &[("server", true), ("sh", true), ("containerd-shim", false)], Some("sh"));
    }
}
