//! Jobs that somebody declares: `sniffer run`, outside of any CI system.

use super::{Kin, System};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

/// Names a command that `sniffer run` follows, for whatever that starts: `PID.START.NAMESPACE` of the process that follows it.
pub const RUN: &str = "SNIFFER_RUN_ID";

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
        let id = format!("{}{}", JobKey::RUN, variables.get(RUN)?);
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.clone() },
            id,
            name: variables.get(crate::judge::test_runner::NAMED).map(str::to_owned),
            repository: None,
            run: None,
            url: None,
        })
    }

    /// The process that follows the command, by its start: in a pid namespace it has another number.
    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        let id = &lineage.first()?.own_job?.id;
        let start: u64 = id.split('.').nth(1)?.parse().ok()?;
        // What is told in ticks and in nanoseconds may differ by one. Its child may have begun in the same tick.
        lineage.iter().rposition(|kin| kin.id.start.abs_diff(start) <= 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_run_is_a_job_that_ends_with_whoever_follows_it() {
        let run = Variables::from([("SNIFFER_RUN_ID", "7.99.4026531836"), ("SNIFFER_TEST_NAME", "smoke")]);
        let job = Declared.recognize(&run).unwrap();
        assert_eq!((job.id.as_str(), job.name.as_deref()), ("run-7.99.4026531836", Some("smoke")));
        assert!(job.key.is_run());
        assert_eq!(Declared.recognize(&Variables::from([("SNIFFER_TEST_NAME", "smoke")])), None);
        let mut tree = super::super::fixtures::lineage(
            &[("server", true), ("make", true), ("sniffer-0.3", false), ("bash", false)],
            &job.key,
        );
        for (kin, start) in tree.iter_mut().zip([130, 100, 99, 50]) {
            kin.id.start = start;
        }
        assert_eq!(Declared.anchor(&tree), Some(2), "whatever it is called");
        assert_eq!(Declared.anchor(&tree[..1]), None);
    }
}
