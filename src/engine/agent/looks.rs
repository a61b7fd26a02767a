//! Looks and lists: when one is taken, on a thread of its own, and what follows from it.

use std::sync::Arc;
use std::time::Instant;

use super::fences::Parked;
use super::pace::{
    BUSY_REST, EVERYTHING_EVERY, EVERYWHERE_EVERY, EVERYWHERE_REST, NEEDED_REST, PROCESSES_EVERY, QUIET_REST,
    THOROUGH_REST, TIDY_EVERY, due,
};
use super::{Cost, Loop, Message, Outside, Purpose, Reply, measured, source};
use crate::engine::{Question, Unanswerable};
use crate::kernel::look::{self, Everywhere, Findings, Plan, ProcessList};
use crate::kernel::proc_events::fence;
use crate::kernel::sock_diag::Depth;
use crate::kernel::{Gap, Unreadable, descriptors, memory};

impl<O: Outside> Loop<O> {
    pub(super) fn look_for(&mut self, question: Question, reply: Reply) {
        let plan = self.engine.plan_question(&question, due(self.pace.next_thorough, Instant::now()));
        self.look(plan, Purpose::Answer(question, reply));
    }

    /// Without events nobody knows whether anything happens.
    fn rest(&self) -> u32 {
        if self.processes_told() && !self.pace.stirred { QUIET_REST } else { BUSY_REST }
    }

    pub(super) fn processes_listed(&mut self, list: ProcessList, cost: Cost) {
        self.pace.listing = false;
        // Without events the list is all there is: it is read before every look.
        let rest = if self.processes_told() { PROCESSES_EVERY } else { self.watch.interval };
        let now = Instant::now();
        let next = Some(now + rest.max(cost.cpu * self.rest()));
        self.pace.next_wanted_list = Some(now + self.watch.interval.max(cost.cpu * BUSY_REST));
        let again = std::mem::take(&mut self.pace.list_again);
        self.pace.next_processes = if again { self.pace.next_wanted_list } else { next };
        let status = self.source(source::PROCESSES);
        status.why = list.gaps.iter().find(|gap| matches!(gap, Gap::Processes(_))).map(ToString::to_string);
        (status.up, status.took) = (status.why.is_none(), Some(cost.took));
        self.engine.process_list(list, self.reader.clock.now());
        self.pace.listed = true;
    }

    pub(super) fn looked(&mut self, Parked { findings, cost, purpose, .. }: Parked) {
        if let Purpose::Interval(depth) = purpose {
            self.pace.looking = false;
            let thorough =
                depth == Depth::Everything || findings.as_ref().is_ok_and(|seen| seen.read_everywhere);
            if !thorough {
                self.pace.plain_cost = cost.cpu;
            }
            // The thorough looks have a rest of their own: the plain ones go on.
            let (now, plain) = (Instant::now(), self.pace.plain_cost);
            let interval = self.watch.interval.saturating_sub(cost.took);
            self.pace.next_busy_look = Some(now + plain * BUSY_REST);
            let next = Some(now + interval.max(plain * self.rest()));
            let again = std::mem::take(&mut self.pace.look_again);
            self.pace.next_look = if again { self.pace.next_busy_look } else { next };
            if depth == Depth::Everything && findings.is_ok() {
                let next = Some(now + EVERYTHING_EVERY.max(cost.cpu * EVERYWHERE_REST));
                self.pace.next_wanted_everything = Some(now + cost.cpu * BUSY_REST);
                self.pace.next_everything = if again { self.pace.next_wanted_everything } else { next };
            }
            // What happened during the look may have happened behind its back.
            if std::mem::take(&mut self.pace.stirred) {
                self.stir();
            }
        }
        let findings = match findings {
            Ok(findings) => findings,
            Err(error) => {
                match purpose {
                    Purpose::Answer(question, reply) => {
                        let _ = reply.send(Err(Unanswerable::from_look(error, &question)));
                    }
                    Purpose::Conflict(id) => self.explained(id, None),
                    // The others may fail for what was asked: a namespace that is no more.
                    Purpose::Interval(_) => {
                        let status = self.source(source::SOCKETS);
                        (status.up, status.why) = (false, Some(format!("{error:?}")));
                    }
                }
                return;
            }
        };
        self.engine.findings(&findings);
        self.pace.changed = true;
        if findings.read_everywhere {
            let now = Instant::now();
            self.pace.next_needed = Some(now + cost.cpu * NEEDED_REST);
            self.pace.next_thorough = Some(now + cost.cpu * THOROUGH_REST);
            self.pace.next_everywhere = Some(now + EVERYWHERE_EVERY.max(cost.cpu * EVERYWHERE_REST));
            let status = self.source(source::DESCRIPTORS);
            (status.up, status.took) = (true, Some(cost.took));
        }
        match purpose {
            Purpose::Interval(_) => {
                self.engine.judge(self.reader.clock.now());
                self.engine.follow_holds(&findings);
                let status = self.source(source::SOCKETS);
                (status.up, status.why, status.took) = (true, None, Some(cost.took));
                self.ready = true;
                for (question, reply) in std::mem::take(&mut self.waiting) {
                    self.look_for(question, reply);
                }
            }
            Purpose::Answer(question, reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.engine.answer(&question, &findings));
            }
            Purpose::Conflict(id) => self.explained(id, Some(&findings)),
        }
    }

    pub(super) fn explained(&mut self, id: u64, findings: Option<&Findings>) {
        self.explaining = self.explaining.saturating_sub(1);
        self.engine.explain(id, findings);
        self.explain_conflicts();
    }

    pub(super) fn list_processes(&mut self) {
        (self.pace.listing, self.pace.list_again) = (true, false);
        let known = self.engine.known_processes();
        let (reader, messages) = (Arc::clone(&self.reader), self.messages.clone());
        std::thread::spawn(move || {
            let (list, cost) = measured(|| look::processes(&reader, &known));
            // The loop may have ended meanwhile.
            let _ = messages.blocking_send(Message::Processes(list, cost));
        });
    }

    pub(super) fn take_interval_look(&mut self) {
        let now = Instant::now();
        (self.pace.looking, self.pace.look_again, self.pace.stirred) = (true, false, false);
        let wanted = self.engine.wants_everything() && due(self.pace.next_wanted_everything, now);
        let everything = wanted || due(self.pace.next_everything, now);
        let depth = if everything { Depth::Everything } else { Depth::Listeners };
        let everywhere = if due(self.pace.next_everywhere, now) {
            Everywhere::Always
        } else if due(self.pace.next_needed, now) {
            Everywhere::WhenNeeded
        } else {
            Everywhere::Never
        };
        // Nobody waits for the later ones: one core is enough.
        let threads = if self.ready { 1 } else { descriptors::all_cores() };
        let plan = self.engine.plan(depth, everywhere, threads);
        self.look(plan, Purpose::Interval(depth));
    }

    pub(super) fn look(&mut self, plan: Plan, purpose: Purpose) {
        let (reader, messages) = (Arc::clone(&self.reader), self.messages.clone());
        self.fences.last = self.fences.last.wrapping_add(1);
        let number = self.fences.last;
        // Storms and long answers leave memory in pieces that nothing else gives back. Nobody waits for this kind of look.
        let now = Instant::now();
        let tidies = matches!(purpose, Purpose::Interval(_)) && due(self.pace.next_tidy, now);
        if tidies {
            self.pace.next_tidy = Some(now + TIDY_EVERY);
        }
        let hurry = self.hurry.clone();
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || {
                let looked = measured(|| look::look(&plan, &reader).map(Box::new));
                if tidies {
                    memory::trim();
                }
                fence(number);
                if let Some(hurry) = hurry {
                    hurry.now();
                }
                looked
            });
            let (findings, cost) = looked.await.unwrap_or_else(|error| {
                (Err(Unreadable::Malformed(format!("the look failed: {error}"))), Cost::default())
            });
            let _ = messages.send(Message::Looked(number, findings, cost, purpose)).await;
        });
    }
}
