//! Azure Pipelines (microsoft/azure-pipelines-agent): `VSTS_PROCESS_LOOKUP_ID` is new for every job; `Agent.Worker` lives as long
//! as the job.
//!
//! `SYSTEM_JOBID` is the same in every attempt and never names a run of a job alone. Source: src/Agent.Worker/JobExtension.cs.

use super::{Absence, Kin, System, first_process, nearest_named};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

const WORKER: &str = "Agent.Worker";

#[derive(Debug)]
pub(super) struct Azure;

impl System for Azure {
    fn name(&self) -> &str {
        "azure"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "VSTS_PROCESS_LOOKUP_ID",
            "AGENT_JOBNAME",
            "BUILD_REPOSITORY_NAME",
            "BUILD_BUILDID",
            "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI",
            "SYSTEM_TEAMPROJECT",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let id = variables.get("VSTS_PROCESS_LOOKUP_ID").filter(|id| id.starts_with("vsts_"))?;
        let get = |name| variables.get(name).map(str::to_owned);
        let run = get("BUILD_BUILDID");
        let url = match (get("SYSTEM_TEAMFOUNDATIONCOLLECTIONURI"), get("SYSTEM_TEAMPROJECT"), &run) {
            (Some(server), Some(project), Some(run)) => {
                let server = server.trim_end_matches('/');
                // Projects may have a blank in their names.
                Some(format!("{server}/{}/_build/results?buildId={run}", project.replace(' ', "%20")))
            }
            _ => None,
        };
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.to_owned() },
            id: id.to_owned(),
            name: get("AGENT_JOBNAME"),
            repository: get("BUILD_REPOSITORY_NAME"),
            run,
            url,
        })
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
    fn two_jobs_of_one_build_are_told_apart_by_their_lookup_id() {
        let job = |id| {
            Azure
                .recognize(&Variables::from([
                    ("VSTS_PROCESS_LOOKUP_ID", id),
                    ("AGENT_JOBNAME", "Linux tests"),
                    ("BUILD_BUILDID", "77"),
                    ("SYSTEM_TEAMFOUNDATIONCOLLECTIONURI", "https://dev.azure.com/org/"),
                    ("SYSTEM_TEAMPROJECT", "My Project"),
                ]))
                .unwrap()
        };
        let (one, two) = (job("vsts_1"), job("vsts_2"));
        assert_ne!(one.key, two.key);
        assert_eq!(
            one.url.as_deref(),
            Some("https://dev.azure.com/org/My%20Project/_build/results?buildId=77")
        );
        assert_eq!(Azure.recognize(&Variables::from([("VSTS_PROCESS_LOOKUP_ID", "")])), None);
    }

    #[test]
    fn the_worker_ends_the_job_not_the_listener() {
        let tree = [
            ("server", true),
            ("bash", true),
            ("node", true),
            ("Agent.Worker", false),
            ("Agent.Listener", false),
        ];
        assert_anchor(&Azure, &tree, Some("Agent.Worker"));
        assert_anchor(&Azure, &[("server", true)], None);
    }
}
