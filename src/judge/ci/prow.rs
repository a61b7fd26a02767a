//! Prow: `PROW_JOB_ID`, which every container of the job's pod has from its first process on (`entrypoint`, which wraps the test).
//!
//! `BUILD_ID` and `JOB_NAME` are Jenkins' names too, and mean nothing alone. Source: pkg/pod-utils/downwardapi/jobspec.go,
//! pkg/entrypoint/run.go.

use super::System;
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

#[derive(Debug)]
pub(super) struct Prow;

impl System for Prow {
    fn name(&self) -> &str {
        "prow"
    }

    fn variables(&self) -> Vec<&str> {
        vec!["PROW_JOB_ID", "JOB_NAME", "BUILD_ID", "REPO_OWNER", "REPO_NAME"]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let id = variables.get("PROW_JOB_ID")?;
        let get = |name| variables.get(name).map(str::to_owned);
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.to_owned() },
            id: id.to_owned(),
            name: get("JOB_NAME"),
            // A periodic job has none.
            repository: get("REPO_OWNER")
                .zip(get("REPO_NAME"))
                .map(|(owner, name)| format!("{owner}/{name}")),
            run: get("BUILD_ID"),
            url: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn the_names_it_shares_with_jenkins_are_read_with_its_own_id_only() {
        let shared = [("JOB_NAME", "pull-unit"), ("BUILD_ID", "9"), ("REPO_OWNER", "k"), ("REPO_NAME", "t")];
        assert_eq!(Prow.recognize(&Variables::from(shared)), None);
        let [a, b, c, d] = shared;
        let job = Prow.recognize(&Variables::from([a, b, c, d, ("PROW_JOB_ID", "u-1")])).unwrap();
        assert_eq!((job.name.as_deref(), job.repository.as_deref()), (Some("pull-unit"), Some("k/t")));
    }

    #[test]
    fn the_entrypoint_of_the_container_ends_the_job() {
        let tree = [("server", true), ("make", true), ("entrypoint", true), ("containerd-shim", false)];
        assert_anchor(&Prow, &tree, Some("entrypoint"));
    }

    #[test]
    fn seen_from_inside_its_container_the_entrypoint_is_pid_1() {
        let job = JobKey { ci: "prow".to_owned(), id: "1".to_owned() };
        let mut tree = super::super::fixtures::lineage(&[("server", true), ("entrypoint", true)], &job);
        tree.pop();
        tree[1].id.pid = 1;
        assert_eq!(Prow.anchor(&tree), Some(1));
    }
}
