//! How often the loop may look: each kind of look rests for a multiple of what it cost.

use std::time::{Duration, Instant};

/// A program that has just started binds its ports within this time, mostly: the look that an event causes waits for it.
pub(super) const START_UP: Duration = Duration::from_millis(250);
/// Bound sockets and connections cost a walk of the kernel's whole hash table: not at every interval.
pub(super) const EVERYTHING_EVERY: Duration = Duration::from_secs(60);
/// The pids are compared with /proc this often, though events tell of them.
pub(super) const PROCESSES_EVERY: Duration = Duration::from_secs(60);
/// All descriptors are read at most this often,
pub(super) const EVERYWHERE_EVERY: Duration = Duration::from_secs(60);
/// and then only after this multiple of what it cost: 1/500 of a core at most.
pub(super) const EVERYWHERE_REST: u32 = 500;
/// Reading all descriptors because a listener has no holder may cost 1/50 of a core.
pub(super) const NEEDED_REST: u32 = 50;
/// The same because a port that somebody asks for seems free may cost 1/10 of a core while people ask.
pub(super) const THOROUGH_REST: u32 = 10;
/// A look rests for this multiple of what it cost, however short the interval: while processes come and go 1/50 of a core,
pub(super) const BUSY_REST: u32 = 50;
/// and while nothing happens 1/400.
pub(super) const QUIET_REST: u32 = 400;

/// Memory that was freed is given back this often, which takes milliseconds.
pub(super) const TIDY_EVERY: Duration = Duration::from_secs(60);

/// When which look may be taken again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pub(super) looking: bool,
    pub(super) listing: bool,
    pub(super) listed: bool,
    pub(super) look_again: bool,
    pub(super) list_again: bool,
    /// Whether the status says something new.
    pub(super) changed: bool,
    pub(super) next_status: Option<Instant>,
    /// Whether processes came or went since the last look began.
    pub(super) stirred: bool,
    pub(super) next_look: Option<Instant>,
    pub(super) next_busy_look: Option<Instant>,
    pub(super) plain_cost: Duration,
    pub(super) next_everything: Option<Instant>,
    /// The same where a hold is in doubt.
    pub(super) next_wanted_everything: Option<Instant>,
    pub(super) next_everywhere: Option<Instant>,
    pub(super) next_needed: Option<Instant>,
    pub(super) next_thorough: Option<Instant>,
    pub(super) next_processes: Option<Instant>,
    pub(super) next_wanted_list: Option<Instant>,
    pub(super) next_tidy: Option<Instant>,
    pub(super) next_notices: Option<Instant>,
}

pub(super) fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_none_or(|at| at <= now)
}
