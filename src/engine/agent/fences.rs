//! Looks that wait until the events before them have been told: otherwise they would tell of processes whose past is not known.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::{Cost, Purpose};
use crate::kernel::Unreadable;
use crate::kernel::look::Findings;

/// Them.
#[derive(Debug, Default)]
pub(super) struct Fences {
    pub(super) last: u32,
    pub(super) arrived: HashSet<u32>,
    pub(super) parked: HashMap<u32, Parked>,
}

#[derive(Debug)]
pub(super) struct Parked {
    pub(super) findings: Result<Box<Findings>, Unreadable>,
    pub(super) cost: Cost,
    pub(super) purpose: Purpose,
    pub(super) until: Instant,
}

impl Fences {
    /// Everything that happened before this look was over has been told: the look, if it has been taken.
    pub(super) fn arrived(&mut self, number: u32) -> Option<Parked> {
        let parked = self.parked.remove(&number);
        if parked.is_none() {
            self.arrived.insert(number);
        }
        parked
    }

    /// Looks whose fence got lost wait no longer.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Parked> {
        // Fences that came after their look was taken all the same.
        if self.parked.is_empty() && self.arrived.len() > 1000 {
            self.arrived.clear();
        }
        self.parked.extract_if(|_, parked| parked.until <= now).map(|(_, parked)| parked).collect()
    }
}
