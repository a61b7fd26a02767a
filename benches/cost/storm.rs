//! Two processes that bind at full speed, at the same time: nothing that they do may be lost.

use std::time::{Duration, Instant};

use crate::common::daemon::Daemon;
use crate::common::{Failure, interrupt};
use crate::worker::{Work, Worker};

const BINDS: usize = 50_000;
/// Of two processes. A bind and the close that follows at once are one event, or two where the agent looks in between.
pub(crate) const EVENTS: f64 = (2 * BINDS) as f64;
const EBPF: &str = "ebpf";
/// The daemon publishes its counters at least every second: two readings this far apart that agree are final.
const SETTLED: Duration = Duration::from_millis(1500);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// By storm.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    pub(crate) lost: Vec<f64>,
    pub(crate) told: Vec<f64>,
    pub(crate) binds_per_second: Vec<f64>,
}

pub(crate) fn measure(daemon: &Daemon, storms: usize) -> Result<Storm, Failure> {
    let mut workers = [Worker::start(Work::Storm)?, Worker::start(Work::Storm)?];
    let mut storm = Storm::default();
    for _ in 0..storms {
        let (told, lost) = settled(daemon, 0.0)?;
        let began = Instant::now();
        for worker in &mut workers {
            worker.order(&format!("1 {BINDS}"))?;
        }
        for worker in &mut workers {
            worker.answer()?;
        }
        storm.binds_per_second.push(2.0 * BINDS as f64 / began.elapsed().as_secs_f64());
        let (told_after, lost_after) = settled(daemon, told + EVENTS)?;
        storm.told.push(told_after - told);
        storm.lost.push(lost_after - lost);
    }
    Ok(storm)
}

/// Events told and lost, once so many were told and they rise no more.
fn settled(daemon: &Daemon, enough: f64) -> Result<(f64, f64), Failure> {
    let read = || -> Result<(f64, f64), Failure> {
        Ok((daemon.metric("sniffer_events_total", EBPF)?, daemon.metric("sniffer_events_lost_total", EBPF)?))
    };
    let until = Instant::now() + SETTLE_TIMEOUT;
    let mut before = read()?;
    loop {
        interrupt::sleep(SETTLED)?;
        let after = read()?;
        // Others on the machine cause a few events all the time.
        let rests = after.0 >= enough && after.0 - before.0 < EVENTS / 500.0;
        if rests || Instant::now() > until {
            return Ok(after);
        }
        before = after;
    }
}
