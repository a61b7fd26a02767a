//! One look, the same table and judgement: how the verbs answer without a daemon.

use super::answer::Unanswerable;
use super::{Engine, Policy, Question, Topic};
use crate::judge::leak::Watching;
use crate::kernel::bpf::holders;
use crate::kernel::look::{self, Detail};
use crate::kernel::memory;
use crate::kernel::process::Reader;
use crate::model::answer::Answer;

/// Looks at the system and answers. Blocking: tens of milliseconds on a small host, up to a second on a large one.
pub fn answer(policy: Policy, reader: &Reader, question: &Question) -> Result<Answer, Unanswerable> {
    memory::map_large();
    let mut engine = Engine::new(policy, reader.clock, Watching::Once);
    let wants_options = matches!(question.topic, Topic::Bind { shares: true, .. });
    reader.open_files.begin(move || wants_options || holders::pays());
    let processes = look::processes(reader, &engine.known_processes(), Detail::ForJobs);
    engine.process_list(processes, reader.clock.now());
    let findings = look::look(&engine.plan_question(question, true), reader)
        .map_err(|error| Unanswerable::from_look(error, question))?;
    engine.findings(&findings);
    engine.answer(question, &findings)
}
