//! Processes that ended a short time ago: what they did is told after their end.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::processes::Remembered;

/// They are remembered this long,
const KEPT: SignedDuration = SignedDuration::from_secs(10);
/// and this many at the most.
const MAX: usize = 4096;

/// Them, the last at the end.
#[derive(Debug, Default)]
pub(super) struct Graves(VecDeque<(Timestamp, Remembered)>);

impl Graves {
    /// One has ended.
    pub(super) fn bury(&mut self, process: Remembered, now: Timestamp) {
        let old = |at: &Timestamp| now.duration_since(*at) > KEPT;
        while self.0.len() >= MAX || self.0.front().is_some_and(|(at, _)| old(at)) {
            self.0.pop_front();
        }
        self.0.push_back((now, process));
    }

    /// The last one with this pid of which `is_it` says so.
    pub(super) fn last(&self, pid: u32, is_it: impl Fn(&Remembered) -> bool) -> Option<&Remembered> {
        self.0.iter().rev().map(|(_, process)| process).find(|process| process.pid == pid && is_it(process))
    }
}
