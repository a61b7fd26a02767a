//! How processes ended, as far as that was told: kept for as long as what they had open may be asked about.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use crate::model::process::Exit;

/// Ends are remembered this long: a look may come late on a busy host,
const KEPT: SignedDuration = SignedDuration::from_mins(2);
/// and so many at the most.
const MAX: usize = 8192;

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) at: Timestamp,
    /// `None` where nobody told.
    pub(super) exit: Option<Exit>,
    /// Whether the OOM killer chose it.
    pub(super) by_oom: bool,
}

/// The table, by pid: of a pid that is used again, the end of whoever had it last.
#[derive(Debug, Default)]
pub(super) struct Ends {
    ended: HashMap<u32, Ended>,
    /// Chosen by the OOM killer, and not ended yet.
    chosen: HashMap<u32, Timestamp>,
    next_clean: Option<Timestamp>,
}

impl Ends {
    /// The OOM killer has chosen a process.
    pub(super) fn chosen(&mut self, pid: u32, now: Timestamp) {
        self.clean(now);
        self.chosen.insert(pid, now);
    }

    /// A process has ended. One whose end is told twice ended as was told with its status.
    pub(super) fn ended(&mut self, pid: u32, exit: Option<Exit>, now: Timestamp) {
        self.clean(now);
        let by_oom = self.chosen.remove(&pid).is_some();
        let known = self.ended.get(&pid).is_some_and(|ended| ended.exit.is_some());
        if exit.is_some() || !known {
            self.ended.insert(pid, Ended { at: now, exit, by_oom });
        }
    }

    /// A process of this pid begins.
    pub(super) fn began(&mut self, pid: u32) {
        self.ended.remove(&pid);
        self.chosen.remove(&pid);
    }

    /// How the process that had this pid ended; `None` while one has it.
    pub(super) fn of(&self, pid: u32) -> Option<&Ended> {
        self.ended.get(&pid)
    }

    fn clean(&mut self, now: Timestamp) {
        let is_time = self.next_clean.is_none_or(|next| now >= next);
        if self.ended.len() < MAX && !is_time {
            return;
        }
        let young = |at: Timestamp| now.duration_since(at) < KEPT;
        self.next_clean = now.checked_add(KEPT).ok();
        self.ended.retain(|_, ended| young(ended.at));
        self.chosen.retain(|_, at| young(*at));
        if self.ended.len() >= MAX {
            // A storm: the older half goes.
            let mut moments: Vec<Timestamp> = self.ended.values().map(|ended| ended.at).collect();
            let middle = moments.len() / 2;
            let (_, median, _) = moments.select_nth_unstable(middle);
            let median = *median;
            self.ended.retain(|_, ended| ended.at > median);
        }
        if self.chosen.len() >= MAX {
            self.chosen.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ports::fixtures::at;

    const KILLED: Option<Exit> = Some(Exit { code: None, signal: Some(Exit::KILL) });

    #[test]
    fn whom_the_oom_killer_chose_was_ended_by_it() {
        let mut ends = Ends::default();
        ends.chosen(7, at(0));
        ends.ended(7, KILLED, at(1));
        ends.ended(8, KILLED, at(1));
        ends.ended(7, None, at(2));
        let of = |pid| ends.of(pid).map(|ended| (ended.by_oom, ended.exit));
        assert_eq!((of(7), of(8), of(9)), (Some((true, KILLED)), Some((false, KILLED)), None));
        ends.began(7);
        assert_eq!(ends.of(7), None, "another process has the pid");
    }

    #[test]
    fn memory_is_bounded_in_a_storm_of_short_processes() {
        let mut ends = Ends::default();
        for pid in 0..100_000 {
            ends.chosen(pid + 1, at(0));
            ends.ended(pid, KILLED, at(i64::from(pid) / 10_000));
        }
        assert!(ends.ended.len() <= MAX && ends.chosen.len() <= MAX);
        assert!(ends.of(99_999).is_some());
    }
}
