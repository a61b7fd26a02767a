//! One look, the same table and judgement: how the verbs answer without a daemon.

use std::thread;

use super::answer::Unanswerable;
use super::{Engine, Policy, Question, Topic};
use crate::judge::leak::Watching;
use crate::kernel::bpf::Reasons;
use crate::kernel::bpf::holders::{self, OpenFiles};
use crate::kernel::look;
use crate::kernel::process::Reader;
use crate::model::answer::Answer;

/// Looks at the system and answers. Blocking: tens of milliseconds on a small host, up to a second on a large one.
pub fn answer(policy: Policy, reader: &Reader, question: &Question) -> Result<Answer, Unanswerable> {
    let mut engine = Engine::new(policy, reader.clock, Watching::Once);
    let processes = thread::scope(|scope| {
        let wants_options = matches!(question.topic, Topic::Bind { shares: true, .. });
        let loading = scope
            .spawn(move || (wants_options || holders::pays()).then(|| OpenFiles::load(Reasons::InBrief)));
        let processes = look::processes(reader, &engine.known_processes());
        // Without it /proc is read, which takes longer and finds the same.
        if let Ok(Some(Ok(files))) = loading.join() {
            let _ = reader.open_files.set(files);
        }
        processes
    });
    engine.process_list(processes, reader.clock.now());
    let findings = look::look(&engine.plan_question(question, true), reader)
        .map_err(|error| Unanswerable::from_look(error, question))?;
    engine.findings(&findings);
    engine.answer(question, &findings)
}
