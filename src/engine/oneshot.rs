//! One look, the same table and judgement: how the verbs answer without a daemon.

use std::collections::{BTreeMap, HashMap};

use super::answer::Unanswerable;
use super::{Engine, Policy, Question, Topic};
use crate::judge::leak::Watching;
use crate::kernel::bpf::holders;
use crate::kernel::look::{self, Findings, ProcessList};
use crate::kernel::memory;
use crate::kernel::process::Reader;
use crate::kernel::sock_diag;
use crate::model::answer::Answer;
use crate::model::cgroup_path;
use crate::model::process::Process;

/// Looks at the system and answers. Blocking: tens of milliseconds on a small host, up to a second on a large one.
pub fn answer(policy: Policy, reader: &Reader, question: &Question) -> Result<Answer, Unanswerable> {
    memory::map_large();
    let mut engine = Engine::new(policy, reader.clock, Watching::Once);
    let wants_options = matches!(question.topic, Topic::Bind { shares: true, .. });
    let wants_bound = !sock_diag::lists_bound_sockets();
    reader.open_files.begin(move || wants_options || wants_bound || holders::pays());
    let findings = look::look(&engine.plan_question(question, true), reader)
        .map_err(|error| Unanswerable::from_look(error, question))?;
    engine.process_list(processes(reader, &findings), reader.clock.now());
    engine.findings(&findings);
    engine.answer(question, &findings)
}

/// The processes that the answer depends on: the holders and their ancestors. Where one of them is of a job, or of a container, which
/// may be a job's, all processes of the host are: who else is in that job decides whether it goes on.
fn processes(reader: &Reader, findings: &Findings) -> ProcessList {
    let taken_at = reader.clock.now();
    let mut lineage: BTreeMap<u32, Process> =
        findings.processes.iter().map(|process| (process.id.pid, process.clone())).collect();
    let mut parents: Vec<u32> = lineage.values().map(|process| process.ppid).collect();
    while let Some(pid) = parents.pop() {
        if pid != 0
            && !lineage.contains_key(&pid)
            && let Ok(process) = reader.read(pid)
        {
            parents.push(process.ppid);
            lineage.insert(pid, process);
        }
    }
    if !findings.places.is_empty() || !findings.containers.is_empty() || lineage.values().any(may_have_job) {
        return look::processes(reader, &HashMap::new());
    }
    ProcessList {
        taken_at,
        alive: lineage.keys().copied().collect(),
        netns: lineage.values().filter_map(|process| Some((process.id.pid, process.netns?))).collect(),
        fresh: lineage.into_values().collect(),
        gaps: Vec::new(),
        of_host: true,
    }
}

fn may_have_job(process: &Process) -> bool {
    !process.variables.is_empty() || process.cgroup.as_deref().and_then(cgroup_path::container).is_some()
}
