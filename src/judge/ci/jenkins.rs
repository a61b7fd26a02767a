//! Jenkins. Pipeline: `JENKINS_NODE_COOKIE`, one for each `node` block. Freestyle: `JENKINS_SERVER_COOKIE` and `BUILD_TAG`.
//!
//! There is no process that lives as long as a build: the agent's JVM runs all of them and starts one process a step.
//! Pipeline steps are started in the background and so are orphans; their scripts lie in a `durable-…` directory.
//! Source: hudson/util/ProcessTree.java, ExecutorStepExecution.java, durable-task's BourneShellScript.java.

use super::{Absence, Kin, System, first_process, topmost_of_job};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

/// What a job sets a cookie to so that Jenkins spares its processes.
const SPARED: &str = "dontKillMe";

#[derive(Debug)]
pub(super) struct Jenkins;

impl System for Jenkins {
    fn name(&self) -> &str {
        "jenkins"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "JENKINS_NODE_COOKIE",
            "JENKINS_SERVER_COOKIE",
            "BUILD_TAG",
            "BUILD_NUMBER",
            "BUILD_URL",
            "JOB_NAME",
            "GIT_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let get = |name| variables.get(name).map(str::to_owned);
        let (unique, id) = match (get("JENKINS_NODE_COOKIE"), get("JENKINS_SERVER_COOKIE"), get("BUILD_TAG"))
        {
            (Some(cookie), _, _) if cookie == SPARED => return None,
            (Some(cookie), _, _) => (cookie.clone(), cookie),
            // A pipeline's server cookie is the same for every build in a workspace: the tag tells them apart.
            (None, Some(cookie), Some(tag)) => (format!("{cookie}/{tag}"), tag),
            _ => return None,
        };
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: unique },
            id,
            name: get("JOB_NAME"),
            repository: get("GIT_URL"),
            run: get("BUILD_NUMBER"),
            url: get("BUILD_URL"),
        })
    }

    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        let of_pipeline = || {
            let index = topmost_of_job(lineage)?;
            let step = lineage.get(index)?.cmdline;
            step.iter().any(|argument| argument.contains("/durable-")).then_some(index)
        };
        first_process(lineage).or_else(of_pipeline)
    }

    fn absence(&self) -> Absence<'_> {
        Absence::ProvesNothing
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{assert_anchor, lineage};
    use super::*;

    #[test]
    fn freestyle_builds_of_one_server_are_told_apart_by_their_tag() {
        let build = |tag| {
            let variables =
                Variables::from([("JENKINS_SERVER_COOKIE", "c"), ("BUILD_TAG", tag), ("JOB_NAME", "j")]);
            Jenkins.recognize(&variables).unwrap().key
        };
        assert_ne!(build("jenkins-j-1"), build("jenkins-j-2"));
    }

    #[test]
    fn a_pipelines_node_block_is_named_by_its_cookie() {
        let variables = Variables::from([
            ("JENKINS_NODE_COOKIE", "n"),
            ("JENKINS_SERVER_COOKIE", "durable-1"),
            ("BUILD_TAG", "t"),
        ]);
        assert_eq!(Jenkins.recognize(&variables).unwrap().key.id, "n");
        assert_eq!(Jenkins.recognize(&Variables::from([("JENKINS_NODE_COOKIE", "dontKillMe")])), None);
    }

    #[test]
    fn a_step_of_the_agents_jvm_is_the_anchor_and_a_jvm_of_the_job_is_not() {
        assert_anchor(
            &Jenkins,
            &[("server", true), ("java", true), ("sh", true), ("java", false)],
            Some("sh"),
        );
        assert_anchor(&Jenkins, &[("server", true)], None);
    }

    #[test]
    fn a_pipelines_step_is_an_orphan_and_still_an_anchor() {
        let job = JobKey { ci: "jenkins".to_owned(), id: "n".to_owned() };
        let step = ["sh".to_owned(), "-c".to_owned(), "'/w@tmp/durable-1a/script.sh.copy'".to_owned()];
        let mut tree = lineage(&[("server", true), ("sh", true)], &job);
        tree[1].cmdline = &step;
        assert_eq!(Jenkins.anchor(&tree), Some(1));
    }
}
