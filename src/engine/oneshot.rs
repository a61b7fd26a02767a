//! One look, the same table and judgement: how the verbs answer without a daemon.

use super::answer::Unanswerable;
use super::{Engine, Policy, Question};
use crate::judge::leak::Watching;
use crate::kernel::bpf::Reasons;
use crate::kernel::bpf::holders::{self, OpenFiles};
use crate::kernel::look;
use crate::kernel::process::Reader;
use crate::model::answer::Answer;

/// Looks at the system and answers. Blocking: tens of milliseconds on a small host, up to a second on a large one.
pub fn answer(policy: Policy, reader: &Reader, question: &Question) -> Result<Answer, Unanswerable> {
    if holders::pays()
        && let Ok(files) = OpenFiles::load(Reasons::InBrief)
    {
        // Without it /proc is read, which takes longer and finds the same.
        let _ = reader.open_files.set(files);
    }
    let mut engine = Engine::new(policy, reader.clock, Watching::Once);
    engine.process_list(look::processes(reader, &engine.known_processes()), reader.clock.now());
    let findings = look::look(&engine.plan_question(question, true), reader)
        .map_err(|error| Unanswerable::from_look(error, question))?;
    engine.findings(&findings);
    engine.answer(question, &findings)
}
