//! Holds as they are told to those who remember.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::Records;
use crate::engine::Engine;
use crate::model::hold::{Hold, HoldKey, Record};
use crate::model::job::{Job, JobKey};

/// Jobs as they are now, on the wall clock: thousands of holds may be of one.
struct Jobs<'a> {
    engine: &'a Engine,
    step: SignedDuration,
    known: HashMap<JobKey, Option<Arc<Job>>>,
}

impl<'a> Jobs<'a> {
    fn of(engine: &'a Engine) -> Self {
        Jobs { engine, step: engine.clock.step(), known: HashMap::new() }
    }

    fn job(&mut self, key: &JobKey) -> Option<Arc<Job>> {
        if let Some(known) = self.known.get(key) {
            return known.clone();
        }
        let job = self.engine.job(Some(key), self.step).map(Arc::new);
        self.known.insert(key.clone(), job.clone());
        job
    }

    /// A hold with its job, on the wall clock.
    fn shown(&mut self, mut hold: Hold, job: Option<&JobKey>) -> Hold {
        // One of before a restart has a job that may not be known any more.
        hold.job = job.and_then(|key| self.job(key)).or(hold.job);
        move_to(&mut hold, self.step);
        hold
    }

    fn record(&mut self, hold: Hold, key: HoldKey, job: Option<JobKey>) -> (Record, Option<JobKey>) {
        (Record::Hold(Box::new(self.shown(hold, job.as_ref())), key), job)
    }
}

/// Moves all moments of a hold: how long it lasted stays.
fn move_to(hold: &mut Hold, step: SignedDuration) {
    if step.is_zero() {
        return;
    }
    let moved = |at: Timestamp| at.checked_add(step).unwrap_or(at);
    hold.from = moved(hold.from);
    (hold.until, hold.leaked_at) = (hold.until.map(moved), hold.leaked_at.map(moved));
    if let Some(back) = &mut hold.comeback {
        (back.lost_at, back.since) = (moved(back.lost_at), moved(back.since));
    }
}

impl Engine {
    /// Takes what is to be remembered since the last call, on the wall clock.
    pub fn take_records(&mut self) -> Records {
        let mut told = std::mem::take(&mut self.records);
        let ended = std::mem::take(&mut self.holds.ended);
        let changed: Vec<_> = std::mem::take(&mut self.holds.dirty)
            .into_iter()
            .filter_map(|key| {
                let open = self.holds.open.get_mut(&key)?;
                open.dirty = false;
                Some((open.hold.clone(), key, open.job.clone()))
            })
            .collect();
        let mut jobs = Jobs::of(self);
        let holds = ended.into_iter().chain(changed);
        told.records.extend(holds.map(|(hold, key, job)| jobs.record(hold, key, job)));
        told.records.extend(self.conflict_records(self.clock.step()));
        told.lost += std::mem::take(&mut self.holds.lost_records);
        told
    }

    /// Everything that goes on, for a history that has missed something.
    pub fn all_records(&self) -> Vec<(Record, Option<JobKey>)> {
        let mut jobs = Jobs::of(self);
        let mut records: Vec<_> =
            self.jobs.keys().filter_map(|key| self.job_record(key, jobs.step)).collect();
        let open = self.holds.open.iter();
        records.extend(open.map(|(key, open)| jobs.record(open.hold.clone(), key.clone(), open.job.clone())));
        let ids = self.holds.open.values().map(|open| open.hold.id).collect();
        records.push((Record::Open(ids), None));
        records
    }

    /// Holds that go on, for people.
    pub fn open_holds(&self) -> Vec<Hold> {
        let mut jobs = Jobs::of(self);
        self.holds.open.values().map(|open| jobs.shown(open.hold.clone(), open.job.as_ref())).collect()
    }

    pub(in crate::engine) fn job_record(
        &self,
        key: &JobKey,
        step: SignedDuration,
    ) -> Option<(Record, Option<JobKey>)> {
        Some((Record::Job(Box::new(self.job(Some(key), step)?)), Some(key.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hold::fixtures::{at, hold};

    #[test]
    fn a_clock_that_was_set_back_changes_no_length() {
        let mut moved = Hold { until: Some(at(90)), leaked_at: Some(at(60)), ..hold(1, 7) };
        move_to(&mut moved, SignedDuration::from_hours(-1));
        let an_hour = SignedDuration::from_hours(1);
        assert_eq!((moved.from, moved.until), (at(0) - an_hour, Some(at(90) - an_hour)));
        assert_eq!(moved.leaked_at, Some(at(60) - an_hour));
    }
}
