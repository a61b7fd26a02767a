//! Jobs that somebody declares: `sniffer run`, outside of any CI system.

use super::{Absence, Kin, System, nearest_named};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

/// Names a command that `sniffer run` follows, for whatever that starts.
pub const RUN: &str = "SNIFFER_RUN_ID";
/// The process that lives as long as the command.
const RUNNER: &str = "sniffer";

#[derive(Debug)]
pub(super) struct Declared;

impl System for Declared {
    fn name(&self) -> &str {
        "custom"
    }

    fn variables(&self) -> Vec<&str> {
        vec![RUN]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let id = format!("run-{}", variables.get(RUN)?);
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.clone() },
            id,
            name: variables.get(crate::judge::test_runner::NAMED).map(str::to_owned),
            repository: None,
            run: None,
            url: None,
        })
    }

    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        nearest_named(lineage, RUNNER)
    }

    fn absence(&self) -> Absence<'_> {
        Absence::OfProcess(RUNNER)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn a_command_that_is_run_is_a_job_that_ends_with_its_runner() {
        let tree = [("server", true), ("make", true), ("sniffer", false), ("bash", false)];
        assert_anchor(&Declared, &tree, Some("sniffer"));
        let job = Declared
            .recognize(&Variables::from([("SNIFFER_RUN_ID", "7.99"), ("SNIFFER_TEST_NAME", "smoke")]))
            .unwrap();
        assert_eq!((job.id.as_str(), job.name.as_deref()), ("run-7.99", Some("smoke")));
        assert_eq!(Declared.recognize(&Variables::from([("SNIFFER_TEST_NAME", "smoke")])), None);
    }
}
