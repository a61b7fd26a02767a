//! Whether the machine is quiet: what others do shows in the figures.

use std::time::{Duration, Instant};

use aya::programs::loaded_programs;

use crate::common::{Failure, interrupt};

/// Above this load average, something else is running.
pub(crate) const LOAD: f64 = 0.5;
/// So many cores may others use in a turn.
pub(crate) const CORES: f64 = 0.15;

/// One of the agent's programs in the kernel: there are as many of it as agents.
const PROGRAM: &str = "look_through";
/// The kernel frees programs a moment after their owner's end.
const FREED: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

/// Of the last minute.
pub(crate) fn load_average() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/loadavg").map_err(|error| format!("/proc/loadavg: {error}"))?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| format!("/proc/loadavg is odd: {text}"))
}

/// CPU time that the whole machine used or was denied so far, in seconds (proc_stat(5), in ticks of 10 ms).
fn busy() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/stat").map_err(|error| format!("/proc/stat: {error}"))?;
    let fields: Option<Vec<f64>> =
        stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).and_then(|numbers| {
            numbers.split_whitespace().take(8).map(|number| number.parse().ok()).collect()
        });
    match fields.as_deref() {
        Some([user, nice, system, _idle, _iowait, irq, softirq, steal]) => {
            Ok((user + nice + system + irq + softirq + steal) / 100.0)
        }
        _ => Err("/proc/stat is odd".to_owned()),
    }
}

/// Watches how many cores are in use.
#[derive(Debug)]
pub(crate) struct Watch {
    began: Instant,
    busy: f64,
}

impl Watch {
    pub(crate) fn begin() -> Result<Watch, Failure> {
        Ok(Watch { began: Instant::now(), busy: busy()? })
    }

    pub(crate) fn cores(&self) -> Result<f64, Failure> {
        Ok((busy()? - self.busy) / self.began.elapsed().as_secs_f64())
    }
}

/// Agents whose programs are loaded.
pub(crate) fn agents() -> usize {
    // One that ends while it is looked at is none.
    loaded_programs().flatten().filter(|program| program.name_as_str() == Some(PROGRAM)).count()
}

/// Waits until so many agents are there: another one may be a test's, and end soon.
pub(crate) fn await_agents(count: usize, patience: Duration) -> Result<(), Failure> {
    let until = Instant::now() + patience.max(FREED);
    while agents() != count && Instant::now() < until {
        interrupt::sleep(AGAIN)?;
    }
    Ok(())
}
