//! `sniffer reap`: a plan first, and its execution with `--yes`.

use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;

use super::ask::{Whom, ask};
use super::{ANSWERED, Failure, OTHERWISE, printed};
use crate::engine::{Question, Topic};
use crate::judge::reap::{Wish, plan};
use crate::kernel::clock::BootClock;
use crate::kernel::descriptors::{self, Descriptor};
use crate::kernel::pidfd::{self, Ended, Handle};
use crate::kernel::{Unreadable, process};
use crate::model::answer::SCHEMA;
use crate::model::claim::Claim;
use crate::model::process::ProcessId;
use crate::model::reap::{Doomed, Reap};
use crate::model::socket::ClaimKind;
use crate::model::target::{Target, TargetError};
use crate::report;

/// Time between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);
/// The daemon's reckoning of a start and ours may differ by so much: a tick, and a wall clock that was set by less than the daemon takes
/// for a step. That it has the very same socket open is asked besides.
const SAME_START: SignedDuration = SignedDuration::from_millis(600);

/// Options of `reap`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The holders of this port, leaked or not: 8081, 127.0.0.1:8081/tcp or 8000-8100
    #[arg(required_unless_present_any = ["job", "leaked"])]
    target: Option<String>,
    /// What this job left, as far as it is judged leaked
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "leaked"])]
    job: Option<String>,
    /// Everything that is judged leaked
    #[arg(long, conflicts_with = "target")]
    leaked: bool,
    /// Act: without it the plan is printed and nothing is done
    #[arg(long)]
    yes: bool,
    /// Only this network namespace: a name (host is your own), an inode, or PID:n
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Plans, and acts if asked to.
pub(super) fn run(options: &Options) -> Result<u8, Failure> {
    let (topic, wish, whom) = match (&options.target, &options.job) {
        (Some(target), _) => {
            let target: Target = target.parse().map_err(|error: TargetError| error.to_string())?;
            (Topic::Target(target), Wish::Named, Whom::DaemonOrMyself)
        }
        (None, Some(job)) => (Topic::Leaks, Wish::Job(job.clone()), Whom::Daemon),
        (None, None) => (Topic::Leaks, Wish::Leaked, Whom::Daemon),
    };
    let netns = options.netns.as_deref().map(str::parse).transpose();
    let netns = netns.map_err(|why: String| format!("--netns: {why}"))?;
    let answer = ask(&Question { topic, netns }, whom)?;
    let processes = plan(&answer.claims, &wish);
    let mut reap =
        Reap { schema: SCHEMA, acted: options.yes, incomplete: answer.incomplete.clone(), processes };
    if options.yes {
        permitted(&reap.processes)?;
        act(&mut reap.processes);
    }
    printed(if options.json {
        report::print_json(&reap)
    } else {
        report::print(&report::reap(&reap, answer.as_of, &super::zone()))
    })?;
    for gap in &answer.incomplete {
        report::complain(&format!("not seen: {gap}"));
    }
    let refused = reap.processes.iter().filter(|doomed| doomed.outcome == Some(NOT_PERMITTED)).count();
    if refused > 0 {
        return Err(format!("{refused} processes may not be ended by this user; run as root"));
    }
    let unseen = |claim: &&Claim| {
        matches!(claim.kind, ClaimKind::Listener | ClaimKind::Bound) && claim.holders.is_empty()
    };
    if let Some(claim) = answer.claims.iter().find(unseen) {
        let cure = if rustix::process::geteuid().is_root() { "" } else { "; run as root" };
        return Err(format!("who holds port {} could not be seen{cure}", claim.port));
    }
    let stayed = reap.processes.iter().any(|doomed| [Some(STAYED), Some(LET_GO)].contains(&doomed.outcome));
    Ok(if stayed { OTHERWISE } else { ANSWERED })
}

const NOT_PERMITTED: &str = "not permitted";
const STAYED: &str = "stayed";
const LET_GO: &str = "has let go of it since";

/// Root may end every process, others their own. Nothing is done where one of them may not be ended.
fn permitted(processes: &[Doomed]) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    let foreign = |doomed: &&Doomed| doomed.spared.is_none() && own != 0 && doomed.uid != Some(own);
    match processes.iter().find(foreign) {
        Some(doomed) => Err(format!(
            "process {} belongs to {}: nothing was done; run as root or as that user",
            doomed.pid,
            doomed
                .user
                .clone()
                .or_else(|| doomed.uid.map(|uid| format!("uid {uid}")))
                .unwrap_or_else(|| "another user".to_owned())
        )),
        None => Ok(()),
    }
}

fn act(processes: &mut [Doomed]) {
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
