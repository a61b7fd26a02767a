//! A CI system that the operator describes: `[[jobs.custom]]` in config.toml.

use super::{Absence, Kin, System, nearest_named, topmost_of_job};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

/// One `[[jobs.custom]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custom {
    /// The word of `ci`.
    pub name: String,
    /// Variables that together name one job.
    pub id_env: Vec<String>,
    /// Name of the process whose exit ends the job; without it the job's first process does.
    pub ends: Option<String>,
}

impl System for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    fn variables(&self) -> Vec<&str> {
        self.id_env.iter().map(String::as_str).collect()
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let values: Option<Vec<&str>> = self.id_env.iter().map(|name| variables.get(name)).collect();
        let id = values?.join("/");
        Some(JobFacts {
            key: JobKey { ci: self.name.clone(), id: id.clone() },
            id,
            name: None,
            repository: None,
            run: None,
            url: None,
        })
    }

    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        match &self.ends {
            Some(comm) => nearest_named(lineage, comm),
            None => topmost_of_job(lineage),
        }
    }

    fn absence(&self) -> Absence<'_> {
        match &self.ends {
            Some(comm) => Absence::OfProcess(comm),
            None => Absence::OfAnchor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    fn custom(ends: Option<&str>) -> Custom {
        Custom {
            name: "my-ci".to_owned(),
            id_env: vec!["A".to_owned(), "B".to_owned()],
            ends: ends.map(str::to_owned),
        }
    }

    #[test]
    fn all_its_variables_together_name_the_job() {
        let both = Variables::from([("A", "1"), ("B", "2")]);
        assert_eq!(custom(None).recognize(&both).unwrap().key.id, "1/2");
        assert_eq!(custom(None).recognize(&Variables::from([("A", "1")])), None);
    }

    #[test]
    fn the_named_process_or_else_the_first_one_ends_the_job() {
        let tree = [("server", true), ("sh", true), ("my-ci-worker", false)];
        assert_anchor(&custom(Some("my-ci-worker")), &tree, Some("my-ci-worker"));
        assert_anchor(&custom(None), &tree, Some("sh"));
    }
}
