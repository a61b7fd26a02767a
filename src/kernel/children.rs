//! A command with everything that it starts: orphans become children of this process (a subreaper, prctl(2)), signals are handed on,
//! and what is left when the command has ended is found.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgid, getpgrp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, WaitStatus, getpid, set_child_subreaper, wait};

use super::process;
use crate::model::process::ProcessId;

/// Those that are handed on: what people and runners end or steer a command with.
const HANDED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// `SI_KERNEL` of siginfo.h: the terminal's own signals, which it sends to all of the process group.
const BY_KERNEL: i32 = 0x80;
/// How often it is looked whether what is left has ended.
const TICK: Duration = Duration::from_millis(20);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A running command, of which nothing gets lost.
#[derive(Debug)]
pub struct Family {
    command: u32,
    signals: SignalFd,
    heard: SigSet,
    /// Children that were there before: whoever ran another program in their place left them.
    before: BTreeSet<ProcessId>,
}

impl Family {
    /// Starts a command. Errors: there is no such program, or it cannot be run.
    #[allow(unsafe_code, reason = "the command is to have no signal blocked or ignored that was not before")]
    pub fn start(mut command: Command) -> io::Result<Self> {
        let before = descendants(&BTreeSet::new()).into_iter().collect();
        set_child_subreaper(Some(getpid()))?;
        // Where it is ignored nobody is told of a child's end.
        // SAFETY: no handler is set.
        let ignored = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl)? };
        let mut heard = SigSet::empty();
        HANDED_ON.into_iter().chain([Signal::SIGCHLD]).for_each(|signal| heard.add(signal));
        // Before the command is there, so that its end cannot be missed.
        let mask = heard.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let restore = move || {
            // SAFETY: it is what was set before, a handler of nobody: this program sets none.
            unsafe { signal(Signal::SIGCHLD, ignored)? };
            Ok(mask.thread_set_mask()?)
        };
        // SAFETY: between fork and exec only calls are allowed that are safe in a signal handler, as these are.
        unsafe { command.pre_exec(restore) };
        let signals = SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let child: Child = command.spawn()?;
        Ok(Family { command: child.id(), signals, heard, before })
    }

    /// Waits for the end of the command and hands on signals meanwhile.
    pub fn wait(&self) -> io::Result<End> {
        loop {
            if let Some(end) = self.reap().command {
                return Ok(end);
            }
            self.rest(None)?;
            while let Ok(Some(signal)) = self.signals.read_signal() {
                self.hand_on(signal.ssi_signo, signal.ssi_code);
            }
        }
    }

    fn hand_on(&self, signal: u32, code: i32) {
        let signal = i32::try_from(signal).ok().and_then(|number| Signal::try_from(number).ok());
        let command = i32::try_from(self.command).ok().map(Pid::from_raw);
        if let (Some(signal), Some(command)) = (signal, command)
            && signal != Signal::SIGCHLD
            && !(code == BY_KERNEL && getpgid(Some(command)) == Ok(getpgrp()))
        {
            // It may just have ended, and then it is not waited for yet: nobody else has its pid.
            let _ = kill(command, signal);
        }
    }

    /// Waits for a signal, so long at most.
    fn rest(&self, time: Option<Duration>) -> io::Result<()> {
        let time = time.map(|time| Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() });
        match poll(&mut [PollFd::new(&self.signals.as_fd(), PollFlags::IN)], time.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes leave of the children that have ended.
    fn reap(&self) -> Reaped {
        let mut reaped = Reaped { any: false, command: None };
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            reaped.any = true;
            if u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.command) {
                reaped.command = Some(how(status));
            }
        }
        reaped
    }

    /// What is left of it after so long at most: it ends by itself, or is answered. A signal ends the wait.
    pub fn left(&self, grace: Duration) -> Vec<ProcessId> {
        let until = Instant::now() + grace;
        loop {
            let left = self.descendants();
            if left.is_empty()
                || Instant::now() >= until
                || self.rest(Some(TICK)).is_err()
                || self.is_called()
            {
                return left;
            }
        }
    }

    /// What it started and is there now. One that ended while /proc was read may have started another meanwhile that was not listed
    /// yet, so nothing is there only if no child ended during the look: whatever is there descends from a child.
    fn descendants(&self) -> Vec<ProcessId> {
        self.reap();
        loop {
            let found = descendants(&self.before);
            if !self.reap().any || !found.is_empty() {
                return found;
            }
        }
    }

    /// Whether another signal came than that of a child's end.
    fn is_called(&self) -> bool {
        let mut called = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            called |= i32::try_from(signal.ssi_signo) != Ok(Signal::SIGCHLD as i32);
        }
        called
    }

    /// From now on signals mean this process.
    pub fn hear(&self) {
        let _ = self.heard.thread_unblock();
    }
}

/// Which children had ended.
struct Reaped {
    any: bool,
    command: Option<End>,
}

fn how(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Code(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Code(1),
    }
}

/// Whether /proc is of this process's own pid namespace: only then its numbers are those of kill(2).
pub fn proc_is_own() -> bool {
    std::fs::read_link("/proc/self")
        .is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str())
}

/// The processes that descend from this one but not from these, by /proc.
fn descendants(without: &BTreeSet<ProcessId>) -> Vec<ProcessId> {
    let mut children: BTreeMap<u32, Vec<ProcessId>> = BTreeMap::new();
    for pid in process::pids().unwrap_or_default() {
        if let Ok((id, parent)) = process::parentage(pid) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found: BTreeSet<ProcessId> = BTreeSet::new();
    let mut parents = vec![std::process::id()];
    while let Some(parent) = parents.pop() {
        let own = children.remove(&parent).unwrap_or_default();
        for child in own.into_iter().filter(|child| !without.contains(child)) {
            found.insert(child);
            parents.push(child.pid);
        }
    }
    found.into_iter().collect()
}

/// Ends this process as the command was ended: by the same signal, without another core file.
pub fn end_by(signal: i32) {
    use nix::sys::resource::{Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = SigSet::from(signal).thread_unblock();
        let _ = raise(signal);
    }
}
