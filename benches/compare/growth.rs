//! The agent on hosts of several sizes, while nothing happens.

use std::time::Duration;

use crate::common::daemon::Daemon;
use crate::common::load::{Load, Scale};
use crate::common::table::markdown;
use crate::common::{Failure, interrupt};

/// After the daemon is ready, before its idling is measured.
const SETTLE: Duration = Duration::from_secs(10);

impl Scale {
    pub(crate) fn words(&self) -> String {
        let Scale { processes, descriptors, listeners, namespaces } = self;
        format!(
            "{processes} processes × {descriptors} descriptors, {listeners} TCP listeners, {namespaces} network namespaces"
        )
    }
}

/// What the idle agent costs on a host of this size.
#[derive(Debug)]
pub(crate) struct Cost {
    pub(crate) scale: Scale,
    pub(crate) resident_mib: f64,
    peak_mib: f64,
    /// Of one core.
    cpu_percent: f64,
    ready_ms: f64,
}

/// Makes a host, starts the agent, watches it idle, then does something with both.
pub(crate) fn host<T>(
    scale: Scale,
    idle: u64,
    then: impl FnOnce(&Load, &Daemon) -> Result<T, Failure>,
) -> Result<(Cost, T), Failure> {
    eprintln!("making a host of {}", scale.words());
    let load = Load::make(scale)?;
    let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let mut daemon = Daemon::start(directory.path())?;
    let ready = daemon.wait_ready()?;
    interrupt::sleep(SETTLE)?;
    let idling = daemon.idle(Duration::from_secs(idle))?;
    let cost = Cost {
        scale,
        resident_mib: daemon.memory("VmRSS")?,
        peak_mib: daemon.memory("VmHWM")?,
        cpu_percent: idling.cpu_percent,
        ready_ms: ready.as_secs_f64() * 1000.0,
    };
    Ok((cost, then(&load, &daemon)?))
}

pub(crate) fn table<'a>(costs: impl Iterator<Item = &'a Cost>) -> String {
    let cells = |cost: &Cost| {
        [
            cost.scale.processes.to_string(),
            cost.scale.listeners.to_string(),
            cost.scale.namespaces.to_string(),
            format!("{:.2} %", cost.cpu_percent),
            format!("{:.0} MiB", cost.resident_mib),
            format!("{:.0} MiB", cost.peak_mib),
            format!("{:.0} ms", cost.ready_ms),
        ]
    };
    let head = [
        "processes",
        "listeners",
        "namespaces",
        "CPU of one core",
        "resident",
        "at its peak",
        "start to ready",
    ];
    markdown(head, costs.map(cells))
}
