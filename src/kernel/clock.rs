//! The one place that reads a clock (clock_gettime(2)).
//!
//! The agent reckons on a steady line: boot time plus an offset taken once. A wall clock that steps (NTP after boot, a
//! resumed machine) then ends no grace early; what people see is moved to the wall clock when an answer is made.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Wall-clock time, in whole microseconds, as documents carry it.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Time since boot, suspend included.
pub fn since_boot() -> Duration {
    let boot = clock_gettime(ClockId::Boottime);
    Duration::new(boot.tv_sec.try_into().unwrap_or(0), boot.tv_nsec.try_into().unwrap_or(0))
}

/// `CLOCK_MONOTONIC`, which leaves out suspend: what the kernel's programs stamp events with.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// How long the host has been suspended since boot, to the tenth of a second: the two clocks are read one after the other.
fn suspended() -> Duration {
    let millis = since_boot().saturating_sub(monotonic()).as_millis();
    Duration::from_millis(u64::try_from((millis + 50) / 100 * 100).unwrap_or(0))
}

/// CPU time that this program has used, all threads together: what a look costs, however long it waits for a core.
pub fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.try_into().unwrap_or(0), used.tv_nsec.try_into().unwrap_or(0))
}

/// The steady line, and the way from it to the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct BootClock {
    booted: Timestamp,
    ticks_per_second: u64,
}

/// Less than this is no step: the two clocks are read one after the other, and NTP slews.
const NO_STEP: SignedDuration = SignedDuration::from_millis(500);

impl BootClock {
    /// Takes the offset between the two clocks.
    pub fn read() -> Self {
        let booted = now().checked_sub(since_boot()).unwrap_or(Timestamp::UNIX_EPOCH);
        BootClock { booted, ticks_per_second: rustix::param::clock_ticks_per_second().max(1) }
    }

    /// The moment of boot, on the steady line: where that begins.
    pub fn booted(&self) -> Timestamp {
        self.booted
    }

    /// Now, on the steady line, in whole microseconds.
    pub fn now(&self) -> Timestamp {
        let now = self.booted.checked_add(since_boot()).unwrap_or(self.booted);
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// How far the wall clock has stepped away from the steady line since the offset was taken.
    pub fn step(&self) -> SignedDuration {
        let step = now().duration_since(self.now());
        if step.abs() < NO_STEP { SignedDuration::ZERO } else { step }
    }

    /// A moment on the monotonic clock, on the steady line. Of a host that was suspended since, it comes out too late by that.
    /// The same moment gives the same answer, so that what was told in order stays in order.
    pub fn at_monotonic(&self, at: Duration) -> Timestamp {
        let at = self.booted.checked_add(at + suspended()).unwrap_or(self.booted);
        Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
    }

    /// Time since boot in the ticks of /proc.
    pub fn ticks(&self, since_boot: Duration) -> u64 {
        let ticks = since_boot.as_nanos() * u128::from(self.ticks_per_second) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// A moment given in ticks since boot, on the steady line; resolution 10 ms on Linux.
    pub fn at_ticks(&self, ticks: u64) -> Option<Timestamp> {
        let millis = u128::from(ticks) * 1000 / u128::from(self.ticks_per_second);
        let at = self.booted.checked_add(Duration::from_millis(u64::try_from(millis).ok()?)).ok()?;
        Timestamp::from_millisecond(at.as_millisecond()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_step_both_clocks_agree() {
        let clock = BootClock::read();
        assert_eq!(clock.step(), SignedDuration::ZERO);
        let start = clock.at_ticks(crate::kernel::process::start(std::process::id()).unwrap()).unwrap();
        assert!(start <= now() && start > now() - SignedDuration::from_hours(1), "{start}");
    }

    #[test]
    fn a_step_is_told() {
        let mut clock = BootClock::read();
        clock.booted -= SignedDuration::from_hours(3);
        assert_eq!(clock.step().as_hours(), 3);
    }
}
