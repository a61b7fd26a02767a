//! Woodpecker: `CI=woodpecker`. A job is a workflow: its steps share a workspace, and services of one step serve the next. Host,
//! repository, pipeline and workflow together name it.
//!
//! Each step is a container, or with the local backend a process, that ends with the step; what is left is killed on cancel only.
//! Source: pipeline/frontend/metadata/environment.go, pipeline/backend/local.

use super::{Absence, System};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

#[derive(Debug)]
pub(super) struct Woodpecker;

impl System for Woodpecker {
    fn name(&self) -> &str {
        "woodpecker"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "CI",
            "CI_SYSTEM_HOST",
            "CI_REPO",
            "CI_PIPELINE_NUMBER",
            "CI_WORKFLOW_NUMBER",
            "CI_WORKFLOW_NAME",
            "CI_PIPELINE_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        variables.get("CI").filter(|ci| *ci == self.name())?;
        let get = |name| variables.get(name).map(str::to_owned);
        let (repository, pipeline) = (get("CI_REPO")?, get("CI_PIPELINE_NUMBER")?);
        let workflow = get("CI_WORKFLOW_NUMBER").or_else(|| get("CI_WORKFLOW_NAME"))?;
        let id = format!("{repository}/{pipeline}/{workflow}");
        let unique = get("CI_SYSTEM_HOST").map_or_else(|| id.clone(), |host| format!("{host}/{id}"));
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: unique },
            id,
            name: get("CI_WORKFLOW_NAME"),
            repository: Some(repository),
            run: Some(pipeline),
            url: get("CI_PIPELINE_URL"),
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

    #[test]
    fn workflows_of_a_pipeline_are_jobs() {
        let workflow = |ci, number| {
            Woodpecker.recognize(&Variables::from([
                ("CI", ci),
                ("CI_SYSTEM_HOST", "w"),
                ("CI_REPO", "o/r"),
                ("CI_PIPELINE_NUMBER", "3"),
                ("CI_WORKFLOW_NUMBER", number),
                ("CI_WORKFLOW_NAME", "test"),
            ]))
        };
        assert_ne!(workflow("woodpecker", "1").unwrap().key, workflow("woodpecker", "2").unwrap().key);
        assert_eq!(workflow("true", "1"), None, "many systems set CI");
    }

    #[test]
    fn a_step_of_the_local_backend_is_an_anchor() {
        let tree = [("server", true), ("bash", true), ("woodpecker-agen", false)];
        assert_anchor(&Woodpecker, &tree, Some("bash"));
    }
}
