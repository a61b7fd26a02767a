//! Holds as they are told to those who remember.

use jiff::{SignedDuration, Timestamp};

use super::{Open, Records};
use crate::engine::Engine;
use crate::model::hold::{Hold, HoldKey, Record};
use crate::model::job::JobKey;

impl Engine {
    /// Takes what is to be remembered since the last call, on the wall clock.
    pub fn take_records(&mut self) -> Records {
        let step = self.clock.step();
        let mut records = std::mem::take(&mut self.records);
        let holds = std::mem::take(&mut self.holds.ended);
        records
            .records
            .extend(holds.into_iter().map(|(hold, key, job)| self.hold_record(hold, key, job, step)));
        for key in std::mem::take(&mut self.holds.dirty) {
            let Some(open) = self.holds.open.get_mut(&key) else { continue };
            open.dirty = false;
            let (hold, job) = (open.hold.clone(), open.job.clone());
            records.records.push(self.hold_record(hold, key, job, step));
        }
        records.records.extend(self.conflict_records(step));
        records.lost += std::mem::take(&mut self.holds.lost_records);
        records
    }

    /// Everything that goes on, for a history that has missed something.
    pub fn all_records(&self) -> Vec<(Record, Option<JobKey>)> {
        let step = self.clock.step();
        let jobs = self.jobs.keys().filter_map(|key| self.job_record(key, step));
        let open = self
            .holds
            .open
            .iter()
            .map(|(key, open)| self.hold_record(open.hold.clone(), key.clone(), open.job.clone(), step));
        let ids = self.holds.open.values().map(|open| open.hold.id).collect();
        jobs.chain(open).chain([(Record::Open(ids), None)]).collect()
    }

    /// Holds that go on, for people.
    pub fn open_holds(&self) -> Vec<Hold> {
        let step = self.clock.step();
        let of = |open: &Open| self.shown_hold(open.hold.clone(), open.job.as_ref(), step);
        self.holds.open.values().map(of).collect()
    }

    pub(in crate::engine) fn job_record(
        &self,
        key: &JobKey,
        step: SignedDuration,
    ) -> Option<(Record, Option<JobKey>)> {
        Some((Record::Job(Box::new(self.job(Some(key), step)?)), Some(key.clone())))
    }

    fn hold_record(
        &self,
        hold: Hold,
        key: HoldKey,
        job: Option<JobKey>,
        step: SignedDuration,
    ) -> (Record, Option<JobKey>) {
        let hold = self.shown_hold(hold, job.as_ref(), step);
        (Record::Hold(Box::new(hold), key), job)
    }

    /// A hold with its job, on the wall clock.
    pub(in crate::engine) fn shown_hold(
        &self,
        mut hold: Hold,
        job: Option<&JobKey>,
        step: SignedDuration,
    ) -> Hold {
        // One of before a restart has a job that may not be known any more.
        hold.job = self.job(job, step).or(hold.job);
        if !step.is_zero() {
            let moved = |at: Timestamp| at.checked_add(step).unwrap_or(at);
            hold.from = moved(hold.from);
            (hold.until, hold.leaked_at) = (hold.until.map(moved), hold.leaked_at.map(moved));
            if let Some(back) = &mut hold.comeback {
                (back.lost_at, back.since) = (moved(back.lost_at), moved(back.since));
            }
        }
        hold
    }
}
