//! Jobs that somebody declares: by hooks (`sniffer job`), and with `sniffer run`, outside of any CI system.

use std::time::Duration;

use super::{Absence, Kin, System};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

/// Names a command that `sniffer run` follows, for whatever that starts: `PID.START.NAMESPACE` of the process that follows it.
pub const RUN: &str = "SNIFFER_RUN_ID";

/// Names the job that hooks declare, for whatever is started with it.
pub const JOB: &str = "SNIFFER_JOB_ID";

/// A job that hooks declare: it ends when they say so.
#[derive(Debug)]
pub(super) struct Hooked;

impl System for Hooked {
    fn name(&self) -> &str {
        "custom"
    }

    fn variables(&self) -> Vec<&str> {
        vec![JOB]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        let id = variables.get(JOB).filter(|id| !id.starts_with(JobKey::RUN))?.to_owned();
        let key = JobKey { ci: self.name().to_owned(), id: id.clone() };
        Some(JobFacts { key, id, name: None, repository: None, run: None, url: None })
    }

    fn anchor(&self, _lineage: &[Kin<'_>]) -> Option<usize> {
        None
    }

    fn absence(&self) -> Absence<'_> {
        Absence::ProvesNothing
    }

    /// The process that was named for it is the whole job's, and no step of it.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Debug)]
pub(super) struct Run;

impl System for Run {
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
    fn a_job_that_hooks_declare_has_no_process_that_ends_it() {
        let job = Hooked.recognize(&Variables::from([("SNIFFER_JOB_ID", "nightly-7")])).unwrap();
        assert_eq!((job.key.ci.as_str(), job.id.as_str()), ("custom", "nightly-7"));
        assert_eq!(Hooked.recognize(&Variables::from([("SNIFFER_JOB_ID", "run-7")])), None);
        super::super::fixtures::assert_anchor(
            &Hooked,
            &[("server", true), ("bash", true), ("sshd", false)],
            None,
        );
    }

    #[test]
    fn a_command_that_is_run_is_a_job_that_ends_with_whoever_follows_it() {
        let run = Variables::from([("SNIFFER_RUN_ID", "7.99.4026531836"), ("SNIFFER_TEST_NAME", "smoke")]);
        let job = Run.recognize(&run).unwrap();
        assert_eq!((job.id.as_str(), job.name.as_deref()), ("run-7.99.4026531836", Some("smoke")));
        assert!(job.key.is_run());
        assert_eq!(Run.recognize(&Variables::from([("SNIFFER_TEST_NAME", "smoke")])), None);
        let mut tree = super::super::fixtures::lineage(
            &[("server", true), ("make", true), ("sniffer-0.3", false), ("bash", false)],
            &job.key,
        );
        for (kin, start) in tree.iter_mut().zip([130, 100, 99, 50]) {
            kin.id.start = start;
        }
        assert_eq!(Run.anchor(&tree), Some(2), "whatever it is called");
        assert_eq!(Run.anchor(&tree[..1]), None);
    }
}
