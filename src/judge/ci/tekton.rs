//! Tekton: a job is a TaskRun, which is a pod. No variable names it: the containers of its steps begin with Tekton's own entrypoint,
//! and the pod's uid stands in the path of their cgroup.
//!
//! Source: cmd/entrypoint, pkg/pod/entrypoint.go (`/tekton/bin/entrypoint`), kubelet's cgroup names.

use super::System;
use crate::model::cgroup_path;
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::{Process, Variables};

/// Where Tekton puts its entrypoint, in a volume of its own.
const ENTRYPOINT: &str = "/tekton/bin/entrypoint";

#[derive(Debug)]
pub(super) struct Tekton;

impl System for Tekton {
    fn name(&self) -> &str {
        "tekton"
    }

    fn variables(&self) -> Vec<&str> {
        Vec::new()
    }

    fn recognize(&self, _variables: &Variables) -> Option<JobFacts> {
        None
    }

    fn recognize_process(&self, process: &Process) -> Option<JobFacts> {
        process.cmdline.first().filter(|program| *program == ENTRYPOINT)?;
        let id = cgroup_path::pod(process.cgroup.as_deref()?)?;
        Some(JobFacts {
            key: JobKey { ci: self.name().to_owned(), id: id.clone() },
            id,
            name: None,
            repository: None,
            run: None,
            url: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;
    use crate::model::process::fixtures::literal;

    const POD: &str = "0f4e1c2a-1b2c-4d5e-8f90-a1b2c3d4e5f6";

    fn step(program: &str, cgroup: &str) -> Option<JobFacts> {
        let mut process = literal(7, 1, "entrypoint");
        process.cmdline = [program, "-wait_file", "/tekton/downward/ready"].map(str::to_owned).to_vec();
        process.cgroup = Some(cgroup.to_owned());
        Tekton.recognize_process(&process)
    }

    #[test]
    fn the_steps_of_one_pod_are_one_job() {
        let container = "4f1c9e0b7a6d5c4b3a29181706f5e4d3c2b1a0998877665544332211aabbccdd";
        let slice = format!(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/cri-containerd-{container}.scope",
            POD.replace('-', "_")
        );
        let plain = format!("/kubepods/besteffort/pod{POD}/{container}");
        for cgroup in [slice, plain] {
            assert_eq!(step(ENTRYPOINT, &cgroup).unwrap().id, POD, "{cgroup}");
            assert_eq!(step("/bin/entrypoint", &cgroup), None);
        }
        assert_eq!(step(ENTRYPOINT, "/system.slice/cron.service"), None);
    }

    #[test]
    fn the_entrypoint_ends_its_step() {
        // What it starts has no sign of its own; it is in the job by descent.
        let tree = [("entrypoint", true), ("containerd-shim", false)];
        assert_anchor(&Tekton, &tree, Some("entrypoint"));
    }
}
