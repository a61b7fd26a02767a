//! Processes to end: held by a descriptor, so that a signal reaches that process or none (pidfd_open(2), since Linux 5.3).

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Unreadable, process};
use crate::model::process::ProcessId;

/// A process that can be ended without ever meeting another one that got its pid.
#[derive(Debug)]
pub struct Handle {
    id: ProcessId,
    fd: OwnedFd,
}

/// What became of a process that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It ended by itself, or upon SIGTERM.
    Gracefully,
    /// It had to be killed.
    Killed,
    /// It is still there.
    Stayed,
}

impl Handle {
    /// Takes hold of a process. Errors: it has ended, perhaps with another in its place; or it is closed to this user.
    pub fn open(id: ProcessId) -> Result<Self, Unreadable> {
        let pid = i32::try_from(id.pid).ok().and_then(Pid::from_raw).ok_or(Unreadable::Vanished)?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        // Who has the pid now keeps it as long as nobody waits for it; whether that is the one meant its start tells.
        if process::start(id.pid)? != id.start {
            return Err(Unreadable::Vanished);
        }
        Ok(Handle { id, fd })
    }

    /// Which process it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends a signal. Errors: no permission; an ended process is none.
    pub fn signal(&self, signal: Signal) -> Result<(), Unreadable> {
        match pidfd_send_signal(&self.fd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Waits for its end; answers whether that came.
    pub fn wait(&self, until: Instant) -> bool {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(left) = Timespec::try_from(left) else { return false };
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// Ends processes: SIGTERM to all, some time, SIGKILL to those that are left. Answers what became of each, in order.
pub fn end(handles: &[Handle], patience: Duration) -> Vec<Result<Ended, Unreadable>> {
    const AFTER_KILL: Duration = Duration::from_secs(2);
    let asked: Vec<Result<(), Unreadable>> =
        handles.iter().map(|handle| handle.signal(Signal::TERM)).collect();
    let until = Instant::now() + patience;
    let gone: Vec<bool> = handles.iter().map(|handle| handle.wait(until)).collect();
    let left = handles.iter().zip(&gone).filter(|(_, gone)| !**gone);
    for (handle, _) in left {
        // One that may not be killed could not be asked to end either.
        let _ = handle.signal(Signal::KILL);
    }
    let until = Instant::now() + AFTER_KILL;
    let outcome = |((handle, asked), gone): ((&Handle, Result<(), Unreadable>), bool)| {
        asked?;
        Ok(match gone {
            true => Ended::Gracefully,
            false if handle.wait(until) => Ended::Killed,
            false => Ended::Stayed,
        })
    };
    handles.iter().zip(asked).zip(gone).map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn started(script: &str) -> (Child, ProcessId) {
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        // It has said that it is ready.
        let mut byte = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        let pid = child.id();
        (child, ProcessId { pid, start: process::start(pid).unwrap() })
    }

    #[test]
    fn those_that_do_not_hear_are_killed() {
        let (mut polite, one) = started("echo; exec sleep 30");
        let (mut deaf, other) = started("trap '' TERM; echo; while :; do sleep 0.05; done");
        let handles = [Handle::open(one).unwrap(), Handle::open(other).unwrap()];
        let ended = end(&handles, Duration::from_millis(300));
        assert_eq!(ended, [Ok(Ended::Gracefully), Ok(Ended::Killed)]);
        polite.wait().unwrap();
        deaf.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_same_pid_is_never_meant() {
        let (mut child, id) = started("echo; exec sleep 30");
        let before = ProcessId { start: id.start - 1, ..id };
        assert_eq!(Handle::open(before).map(|handle| handle.id()), Err(Unreadable::Vanished));
        let handle = Handle::open(id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(handle.signal(Signal::KILL), Ok(()), "it has ended, and nobody else is hit");
        assert!(Handle::open(id).is_err());
    }
}
