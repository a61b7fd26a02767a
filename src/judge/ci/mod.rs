//! CI systems: how each names a job, and which process's exit ends it. One file a system.
//!
//! To add one: write a file with a type that implements [`System`], and name it in [`built_in`].

mod azure;
mod buildkite;
mod circleci;
mod custom;
pub mod declared;
mod drone;
mod github;
mod gitlab;
mod jenkins;
mod prow;
mod teamcity;
mod tekton;
mod woodpecker;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

pub use custom::Custom;

use super::test_runner;
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::{Process, ProcessId, Variables};

/// Where no process lives as long as a job, its steps tell of it: between two of them the agent may fetch, archive or wait by itself,
/// for minutes. Only a longer silence is believed to be the job's end.
const BETWEEN_STEPS: Duration = Duration::from_secs(600);

/// A process on the way from a job's process up to pid 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kin<'a> {
    /// Identity.
    pub id: ProcessId,
    /// Its name.
    pub comm: &'a str,
    /// Its arguments.
    pub cmdline: &'a [String],
    /// The job that its own variables name.
    pub own_job: Option<&'a JobKey>,
}

/// What the absence of a job's worker proves, for a job whose worker was never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence<'a> {
    /// The job is over where no process of this name is left that is old enough to have run it.
    OfProcess(&'a str),
    /// The job is over where none of its processes is one that lives as long as the job.
    OfAnchor,
    /// Nothing: between two steps there may be no process at all.
    ProvesNothing,
}

/// A CI system.
pub trait System: Debug + Send + Sync {
    /// The word of `ci` in documents and labels.
    fn name(&self) -> &str;

    /// The environment variables it reads; no others are ever kept.
    fn variables(&self) -> Vec<&str>;

    /// The job that a process's variables name.
    fn recognize(&self, variables: &Variables) -> Option<JobFacts>;

    /// The job that a process is of by itself: by its variables, or by whatever else it was read with.
    fn recognize_process(&self, process: &Process) -> Option<JobFacts> {
        if process.variables.is_empty() { None } else { self.recognize(&process.variables) }
    }

    /// The process whose exit ends the job (or, of a job with several in turn, one of them), as an index into the lineage.
    /// The lineage begins with a process whose own variables name the job and goes up to pid 1. By default the job's topmost process.
    fn anchor(&self, lineage: &[Kin<'_>]) -> Option<usize> {
        first_process(lineage)
    }

    /// What it proves that a job has no anchor.
    fn absence(&self) -> Absence<'_> {
        Absence::OfAnchor
    }

    /// How long a job may be without an anchor between two of its steps. Only after that is its end believed.
    fn pause(&self) -> Duration {
        match self.absence() {
            Absence::ProvesNothing => BETWEEN_STEPS,
            Absence::OfProcess(_) | Absence::OfAnchor => Duration::ZERO,
        }
    }
}

/// The systems that need no configuration.
pub fn built_in() -> Vec<Arc<dyn System>> {
    vec![
        Arc::new(github::GitHub),
        Arc::new(gitlab::GitLab),
        Arc::new(buildkite::Buildkite),
        Arc::new(azure::Azure),
        Arc::new(circleci::CircleCi),
        Arc::new(prow::Prow),
        Arc::new(jenkins::Jenkins),
        Arc::new(teamcity::TeamCity),
        Arc::new(drone::Drone),
        Arc::new(woodpecker::Woodpecker),
        Arc::new(tekton::Tekton),
        Arc::new(declared::Hooked),
        Arc::new(declared::Run),
    ]
}

/// The environment variables that are read of any process: those of these systems, and those of the runners of tests.
pub fn variables(systems: &[Arc<dyn System>]) -> impl Iterator<Item = &str> {
    systems.iter().flat_map(|system| system.variables()).chain(test_runner::VARIABLES.iter().copied())
}

/// The first system that recognises a process; configured ones come first in the list.
pub fn recognize(systems: &[Arc<dyn System>], process: &Process) -> Option<(Arc<dyn System>, JobFacts)> {
    systems.iter().find_map(|system| Some((Arc::clone(system), system.recognize_process(process)?)))
}

/// The nearest process of this name, the first of the lineage left out. A child that was forked and has run nothing yet
/// still bears its parent's name: of several in a row the topmost counts.
fn nearest_named(lineage: &[Kin<'_>], comm: &str) -> Option<usize> {
    let nearest = lineage.iter().skip(1).position(|kin| kin.comm == comm)? + 1;
    let in_a_row = lineage.iter().skip(nearest).take_while(|kin| kin.comm == comm).count();
    Some(nearest + in_a_row - 1)
}

/// The topmost process whose own variables name the job.
fn topmost_of_job(lineage: &[Kin<'_>]) -> Option<usize> {
    let job = lineage.first()?.own_job?;
    lineage.iter().rposition(|kin| kin.own_job == Some(job))
}

/// The topmost process of the job, where something that is no reaper started it. A process whose parent is pid 1
/// or the user's systemd was orphaned: a leftover, and no sign that the job goes on.
fn first_process(lineage: &[Kin<'_>]) -> Option<usize> {
    let index = topmost_of_job(lineage)?;
    // In a pid namespace of its own the job's first process is pid 1.
    if lineage.get(index).is_some_and(|kin| kin.id.pid == 1) {
        return Some(index);
    }
    let parent = lineage.get(index + 1)?;
    (parent.id.pid != 1 && parent.comm != "systemd").then_some(index)
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Process trees as literals: `("comm", in_job)`, from the process up.

    use super::*;

    /// A lineage; pid 1 is added at its end.
    pub(crate) fn lineage<'a>(tree: &[(&'a str, bool)], job: &'a JobKey) -> Vec<Kin<'a>> {
        let mut kin: Vec<Kin<'a>> = tree
            .iter()
            .enumerate()
            .map(|(index, (comm, in_job))| Kin {
                id: ProcessId { pid: 1000 - index as u32, start: 1 },
                comm,
                cmdline: &[],
                own_job: in_job.then_some(job),
            })
            .collect();
        kin.push(Kin { id: ProcessId { pid: 1, start: 0 }, comm: "systemd", cmdline: &[], own_job: None });
        kin
    }

    /// Asserts that the anchor is the process of this name.
    #[track_caller]
    pub(crate) fn assert_anchor(system: &dyn System, tree: &[(&str, bool)], expected: Option<&str>) {
        let job = JobKey { ci: system.name().to_owned(), id: "1".to_owned() };
        let lineage = lineage(tree, &job);
        let anchor = system.anchor(&lineage).map(|index| lineage[index].comm);
        assert_eq!(anchor, expected, "{tree:?}");
    }
}
