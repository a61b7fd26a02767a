//! Drone: a job is a stage (a pipeline): its steps share a workspace, and services of one step serve the next. No variable holds its
//! id; host, repository, build and stage together do.
//!
//! Each step is a container, or with the exec runner a process, that ends with the step. Source: drone/runner-go, environ.

use super::{Absence, System};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

#[derive(Debug)]
pub(super) struct Drone;

impl System for Drone {
    fn name(&self) -> &str {
        "drone"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "DRONE_SYSTEM_HOST",
            "DRONE_REPO",
            "DRONE_BUILD_NUMBER",
            "DRONE_STAGE_NUMBER",
            "DRONE_STAGE_NAME",
            "DRONE_BUILD_LINK",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let get = |name| variables.get(name).map(str::to_owned);
        let (repository, build) = (get("DRONE_REPO")?, get("DRONE_BUILD_NUMBER")?);
        let stage = get("DRONE_STAGE_NUMBER")?;
        let id = format!("{repository}/{build}/{stage}");
        let unique = get("DRONE_SYSTEM_HOST").map_or_else(|| id.clone(), |host| format!("{host}/{id}"));
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: unique },
            id,
            name: get("DRONE_STAGE_NAME"),
            repository: Some(repository),
            run: Some(build),
            url: get("DRONE_BUILD_LINK"),
        })
    }

    fn absence(&self) -> Absence<'_> {
        Absence::ProvesNothing
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    fn stage(host: &str, number: &str) -> JobFacts {
        Drone
            .recognize(&Variables::from([
                ("DRONE_SYSTEM_HOST", host),
                ("DRONE_REPO", "o/r"),
                ("DRONE_BUILD_NUMBER", "12"),
                ("DRONE_STAGE_NUMBER", number),
                ("DRONE_STAGE_NAME", "test"),
            ]))
            .unwrap()
    }

    #[test]
    fn stages_of_a_build_are_jobs_and_so_are_those_of_two_servers() {
        assert_ne!(stage("a", "1").key, stage("a", "2").key);
        assert_ne!(stage("a", "1").key, stage("b", "1").key);
        assert_eq!(stage("a", "1").id, "o/r/12/1");
    }

    #[test]
    fn a_step_is_an_anchor_as_a_process_and_as_a_container() {
        assert_anchor(&Drone, &[("server", true), ("bash", true), ("drone-runner-ex", false)], Some("bash"));
        assert_anchor(&Drone, &[("server", true), ("sh", true), ("containerd-shim", false)], Some("sh"));
    }
}
