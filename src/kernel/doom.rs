//! The execution of a plan: whoever was planned is taken hold of, checked once more, and ended.

use std::time::Duration;

use jiff::SignedDuration;

use super::clock::BootClock;
use super::descriptors::{self, Descriptor};
use super::pidfd::{self, Ended, Handle};
use super::{Unreadable, process};
use crate::model::process::ProcessId;
use crate::model::reap::Doomed;

/// Time between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);
/// The daemon's reckoning of a start and ours may differ by so much: a tick, and a wall clock that was set by less than the daemon takes
/// for a step. That it has the very same socket open is asked besides.
const SAME_START: SignedDuration = SignedDuration::from_millis(600);

/// This user may not end it.
pub const NOT_PERMITTED: &str = "not permitted";
/// It is still there after SIGKILL.
pub const STAYED: &str = "stayed";
/// It has not that socket open any more.
pub const LET_GO: &str = "has let go of it since";

/// Ends those that are not spared, and notes what became of each. Takes seconds where one does not end at once.
pub fn act(processes: &mut [Doomed]) {
    let clock = BootClock::read();
    let (mut handles, mut held) = (Vec::new(), Vec::new());
    for doomed in processes.iter_mut().filter(|doomed| doomed.spared.is_none()) {
        match hold(doomed, &clock) {
            Ok(handle) => {
                handles.push(handle);
                held.push(doomed);
            }
            Err(Unheld::Gone) => doomed.outcome = Some("gone"),
            Err(Unheld::LetGo) => doomed.outcome = Some(LET_GO),
            Err(Unheld::Denied) => doomed.outcome = Some(NOT_PERMITTED),
        }
    }
    for (doomed, outcome) in held.into_iter().zip(pidfd::end(&handles, PATIENCE)) {
        doomed.outcome = Some(match outcome {
            Ok(Ended::Gracefully) => "ended",
            Ok(Ended::Killed) => "killed",
            Ok(Ended::Stayed) => STAYED,
            Err(_) => NOT_PERMITTED,
        });
    }
}

/// Why a process was not taken hold of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unheld {
    /// It has ended.
    Gone,
    /// The pid is another's now, or it does not have that socket open any more.
    LetGo,
    /// It is closed to this user.
    Denied,
}

impl From<Unreadable> for Unheld {
    fn from(why: Unreadable) -> Self {
        if why == Unreadable::Vanished { Unheld::Gone } else { Unheld::Denied }
    }
}

/// Takes hold of the process that was planned: the one that began at that time, and has that very socket open now.
fn hold(doomed: &Doomed, clock: &BootClock) -> Result<Handle, Unheld> {
    let handle = Handle::open(ProcessId { pid: doomed.pid, start: process::start(doomed.pid)? })?;
    let now = clock.at_ticks(handle.id().start);
    let same = doomed
        .start_time
        .zip(now)
        .is_some_and(|(planned, now)| now.duration_since(planned).abs() <= SAME_START);
    if !same {
        return Err(Unheld::LetGo);
    }
    for held in &doomed.holds {
        if descriptors::refers_to(Descriptor { pid: doomed.pid, fd: held.fd }, held.inode)? {
            return Ok(handle);
        }
    }
    Err(Unheld::LetGo)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::model::netns::Netns;
    use crate::model::reap::Held;
    use crate::model::socket::Protocol;

    /// This very process, as a plan would have it.
    fn own(fd: i32, inode: u64, clock: &BootClock) -> Doomed {
        let pid = std::process::id();
        Doomed {
            pid,
            start_time: clock.at_ticks(process::start(pid).unwrap()),
            comm: None,
            uid: None,
            user: None,
            cmdline: None,
            holds: vec![Held {
                protocol: Protocol::Tcp,
                address: [127, 0, 0, 1].into(),
                port: 1,
                netns: Netns { inode: 1, name: None, kept_by: None },
                fd: u32::try_from(fd).unwrap(),
                inode: u32::try_from(inode).unwrap(),
                reason: String::new(),
            }],
            spared: None,
            outcome: None,
        }
    }

    #[test]
    fn only_the_process_that_was_planned_is_taken_hold_of() {
        let clock = BootClock::read();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = socket.as_raw_fd();
        let inode = std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino();
        let it = own(fd, inode, &clock);
        assert!(hold(&it, &clock).is_ok());
        let let_go = own(fd, inode + 1, &clock);
        assert_eq!(hold(&let_go, &clock).err(), Some(Unheld::LetGo), "it has another socket there");
        let began = it.start_time.map(|start| start - SignedDuration::from_secs(1));
        let other = Doomed { start_time: began, ..it.clone() };
        assert_eq!(hold(&other, &clock).err(), Some(Unheld::LetGo), "its pid was another's then");
        assert_eq!(hold(&Doomed { start_time: None, ..it }, &clock).err(), Some(Unheld::LetGo));
    }
}
