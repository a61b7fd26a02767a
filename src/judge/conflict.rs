//! Why was a bind refused, and what helps? From who was refused and who had the port at that moment.

use jiff::{SignedDuration, Timestamp};

use super::leak::span;
use crate::model::claim::{Claim, OwnerType, Verdict};
use crate::model::conflict::{Call, Cause};
use crate::model::job::{Job, JobState};
use crate::model::process::Holder;
use crate::model::socket::{ClaimKind, Protocol};

/// `EINVAL`, `EADDRINUSE`, … of errno(3), as far as bind(2) and listen(2) give them.
const ERRNOS: [(i32, &str); 8] = [
    (1, "EPERM"),
    (13, "EACCES"),
    (19, "ENODEV"),
    (22, "EINVAL"),
    (97, "EAFNOSUPPORT"),
    (98, "EADDRINUSE"),
    (99, "EADDRNOTAVAIL"),
    (105, "ENOBUFS"),
];

/// Programs that hold published ports of containers.
const PUBLISHERS: [&str; 5] = ["docker-proxy", "dockerd", "rootlessport", "pasta", "slirp4netns"];

/// What is known of a refused call.
#[derive(Debug, Clone)]
pub struct Refusal<'a> {
    /// Which call.
    pub call: Call,
    /// errno, where the kernel told it.
    pub errno: Option<i32>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port that was asked for.
    pub port: u16,
    /// When.
    pub at: Timestamp,
    /// Process.
    pub pid: u32,
    /// Its job.
    pub job: Option<&'a Job>,
    /// Whether it may bind ports below 1024; `None` where that was not looked up.
    pub privileged: Option<bool>,
    /// Where the kernel's own choice of ports lies, where that is known.
    pub ephemeral: Option<(u16, u16)>,
    /// How long before it the same side had asked the kernel for a free port, got this one, and closed it again.
    pub gave_away: Option<SignedDuration>,
    /// Programs that asked for this very port lately, the loser's among them, and how many times in all.
    pub askers: &'a [String],
    /// How many times they asked.
    pub asked: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Finding {
    /// errno's name.
    pub errno: Option<&'static str>,
    /// Whether the kernel told it.
    pub errno_known: bool,
    /// Why, in one word.
    pub cause: Cause,
    /// Why, and what to do.
    pub explanation: String,
}

/// Explains a refusal by what blocked it, the likeliest blocker first.
pub fn explain(refusal: &Refusal<'_>, blockers: &[Claim]) -> Finding {
    let known = refusal.errno.and_then(name);
    let in_use = known == Some("EADDRINUSE") || refusal.errno.is_none();
    let blocker = blockers.first().filter(|_| in_use);
    let errno = known.or(blocker.map(|_| "EADDRINUSE"));
    let cause = blocker.map_or(Cause::Unknown, |claim| cause(refusal, claim));
    let mut sentences = Vec::new();
    match blocker {
        Some(claim) => {
            sentences.push(who(refusal, claim, cause));
            sentences.extend(pattern(refusal).filter(|_| cause != Cause::SameProcess));
            sentences.extend(cure(refusal, claim, cause));
        }
        None => sentences.push(without_blocker(refusal, errno)),
    }
    if errno.is_none() && refusal.errno.is_some() {
        sentences.push(format!("errno {}.", refusal.errno.unwrap_or_default()));
    }
    Finding { errno, errno_known: refusal.errno.is_some(), cause, explanation: sentences.join(" ") }
}

fn name(errno: i32) -> Option<&'static str> {
    ERRNOS.iter().find(|(number, _)| *number == errno).map(|(_, name)| *name)
}

fn cause(refusal: &Refusal<'_>, blocker: &Claim) -> Cause {
    match blocker.kind {
        ClaimKind::TimeWait => return Cause::TimeWait,
        ClaimKind::Connection if !blocker.holders.iter().any(|holder| holder.pid == refusal.pid) => {
            return Cause::OutgoingConnection;
        }
        _ => {}
    }
    if blocker.holders.iter().any(|holder| holder.pid == refusal.pid) {
        return Cause::SameProcess;
    }
    let publishes = |holder: &Holder| holder.comm.as_deref().is_some_and(|comm| PUBLISHERS.contains(&comm));
    if blocker.holders.iter().any(publishes) {
        return Cause::ContainerPublish;
    }
    match &blocker.job {
        Some(job) if refusal.job.is_some_and(|mine| same(mine, job)) => Cause::SameJob,
        Some(_) if blocker.verdict == Verdict::Exempt => Cause::HostService,
        Some(job) if job.state == JobState::Ended => Cause::LeakedListener,
        Some(_) => Cause::ConcurrentJob,
        None if blocker.holders.is_empty() && blocker.owner.kind != OwnerType::Kernel => Cause::Unknown,
        None => Cause::HostService,
    }
}

fn same(one: &Job, other: &Job) -> bool {
    (&one.ci, &one.id, &one.run, &one.name) == (&other.ci, &other.id, &other.run, &other.name)
}

fn who(refusal: &Refusal<'_>, claim: &Claim, cause: Cause) -> String {
    let port = format!("{}/{}", refusal.port, refusal.protocol);
    let holder = claim.holders.first().map_or_else(
        || "a process that could not be found".to_owned(),
        |holder| format!("{} (pid {})", holder.comm.as_deref().unwrap_or("a process"), holder.pid),
    );
    let of_job = claim.job.as_ref().map(|job| format!(" of {}", job_words(job))).unwrap_or_default();
    let gone = claim.state == GONE;
    let had = if gone { "had it at that moment and has let go of it since" } else { "has it" };
    match cause {
        Cause::LeakedListener => {
            format!("{port} was taken: {holder}{of_job}, a job that has ended, {had}.")
        }
        Cause::ConcurrentJob => {
            format!("{port} was taken: {holder}{of_job}, another job on this host, {had}.")
        }
        Cause::SameJob => format!("{port} was taken: {holder}, of the same job, {had}."),
        Cause::SameProcess => format!("{port} was taken by the process itself: it had bound it before."),
        Cause::OutgoingConnection => {
            let peer = claim.peer.as_ref().map(|peer| format!(" to {}:{}", peer.address, peer.port));
            format!(
                "{port} is the local port of a connection{} of {holder}{of_job}.",
                peer.unwrap_or_default()
            )
        }
        Cause::TimeWait => {
            let left = claim.expires_ms.map(|left| format!(", for {}s more", left.div_ceil(1000)));
            format!(
                "{port} is in TIME_WAIT: the kernel keeps it after a connection was closed{}.",
                left.unwrap_or_default()
            )
        }
        Cause::HostService => format!("{port} was taken: {holder}{}, of no CI job, {had}.", unit(claim)),
        Cause::ContainerPublish => format!("{port} is published for a container: {holder} {had}."),
        Cause::Unknown => format!("{port} was taken by a socket that no process was found to have open."),
    }
}

/// The state of a blocker that was closed before it could be looked at.
pub const GONE: &str = "CLOSED";

fn unit(claim: &Claim) -> String {
    let unit = claim.holders.first().and_then(|holder| holder.unit.as_deref());
    unit.map(|unit| format!(" of {unit}")).unwrap_or_default()
}

fn job_words(job: &Job) -> String {
    let name = job.name.as_deref().unwrap_or(&job.id);
    let repository = job.repository.as_deref().map(|name| format!(" of {name}")).unwrap_or_default();
    format!("{} job {name}{repository}", job.ci)
}

/// What happens again and again, as a sentence.
fn pattern(refusal: &Refusal<'_>) -> Option<String> {
    if let Some(ago) = refusal.gave_away {
        return Some(format!(
            "It had asked the kernel for a free port, got {}, closed it, and bound it again {} later: meanwhile somebody else got it. Keep the socket open and hand it on, or bind port 0 where it is used.",
            refusal.port,
            span(ago),
        ));
    }
    is_fixed(refusal).then(|| {
        format!(
            "{} is a fixed (hard-coded) port: {} asked for it {} times. Make it a variable, and let each test set it to 0, to a port of its own (sniffer run --ports 1), or to nothing where it needs no listener.",
            refusal.port,
            refusal.askers.join(", "),
            refusal.asked
        )
    })
}

/// Whether several programs ask for the same port by its number.
fn is_fixed(refusal: &Refusal<'_>) -> bool {
    refusal.gave_away.is_none() && refusal.askers.len() > 1
}

fn cure(refusal: &Refusal<'_>, claim: &Claim, cause: Cause) -> Option<String> {
    let kill = || {
        let pids: Vec<String> = claim.holders.iter().map(|holder| holder.pid.to_string()).collect();
        format!("kill {}", pids.join(" "))
    };
    let free = "bind port 0 and pass on what you get, or give each job a port of its own";
    Some(match cause {
        Cause::LeakedListener if claim.state == GONE => {
            "Let the job stop what it starts in a step that always runs.".to_owned()
        }
        Cause::LeakedListener => {
            format!("End it: {}. Let the job stop what it starts in a step that always runs.", kill())
        }
        // What cures a fixed port is said already.
        Cause::ConcurrentJob | Cause::SameJob if is_fixed(refusal) => return None,
        Cause::ConcurrentJob | Cause::SameJob => format!("Cure: {free}."),
        Cause::SameProcess => "Close the first socket before, or use it.".to_owned(),
        Cause::OutgoingConnection => match refusal.ephemeral {
            Some((first, last)) if (first..=last).contains(&refusal.port) => format!(
                "The kernel chooses such ports from {first}-{last} (ip_local_port_range): listen on one outside of it, or reserve it in ip_local_reserved_ports."
            ),
            _ => "Set SO_REUSEADDR, or listen on another port.".to_owned(),
        },
        Cause::TimeWait => "Set SO_REUSEADDR before the bind: then it passes.".to_owned(),
        Cause::HostService => format!("Stop it if it is not wanted, or {free}."),
        Cause::ContainerPublish => "Publish the container on another port, or on none.".to_owned(),
        Cause::Unknown => return None,
    })
}

fn without_blocker(refusal: &Refusal<'_>, errno: Option<&str>) -> String {
    match errno {
        Some("EINVAL") => "The socket was bound already: a second bind of one socket always fails.".to_owned(),
        Some("EACCES") => "The port needs a privilege: those below ip_unprivileged_port_start need CAP_NET_BIND_SERVICE.".to_owned(),
        Some("EADDRNOTAVAIL") => "The address is none of this network namespace's own.".to_owned(),
        Some("EADDRINUSE") => "Nothing was found that has it: it may have been let go of in the same moment.".to_owned(),
        Some(_) => "No port conflict: the kernel refused the call for another reason.".to_owned(),
        None if refusal.port == 0 => {
            "The kernel was to choose a port and did not: none may be free in ip_local_port_range.".to_owned()
        }
        None if refusal.port < 1024 && refusal.privileged == Some(false) => {
            "Nothing has it; the process lacked CAP_NET_BIND_SERVICE, which ports below ip_unprivileged_port_start need."
                .to_owned()
        }
        None => "Nothing was found that has it: it was let go of in the same moment, the address is none of this network namespace's own, or a security policy refused the call.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::Peer;
    use crate::model::claim::fixtures::{claim, github, holder};

    fn refusal() -> Refusal<'static> {
        Refusal {
            call: Call::Bind,
            errno: None,
            protocol: Protocol::Tcp,
            port: 8081,
            at: Timestamp::UNIX_EPOCH,
            pid: 77,
            job: None,
            privileged: None,
            ephemeral: None,
            gave_away: None,
            askers: &[],
            asked: 0,
        }
    }

    #[test]
    fn the_cause_follows_from_both_sides() {
        let mine = github(JobState::Running, "1");
        let by = |job: Option<Job>| Claim { job, holders: vec![holder(21, "server")], ..claim() };
        let cause_of = |refusal: &Refusal<'_>, claim: Claim| explain(refusal, &[claim]).cause;
        let of_job = Refusal { job: Some(&mine), ..refusal() };
        assert_eq!(cause_of(&of_job, by(Some(github(JobState::Running, "1")))), Cause::SameJob);
        assert_eq!(cause_of(&of_job, by(Some(github(JobState::Running, "2")))), Cause::ConcurrentJob);
        assert_eq!(cause_of(&of_job, by(Some(github(JobState::Ended, "2")))), Cause::LeakedListener);
        assert_eq!(cause_of(&of_job, by(None)), Cause::HostService);
        assert_eq!(cause_of(&Refusal { pid: 21, ..refusal() }, by(None)), Cause::SameProcess);
        let proxy = Claim { holders: vec![holder(5, "docker-proxy")], ..claim() };
        assert_eq!(cause_of(&of_job, proxy), Cause::ContainerPublish);
        let waiting = Claim { kind: ClaimKind::TimeWait, holders: vec![], expires_ms: Some(9001), ..claim() };
        assert_eq!(cause_of(&of_job, waiting), Cause::TimeWait);
        assert_eq!(explain(&of_job, &[]).cause, Cause::Unknown);
    }

    #[test]
    fn an_errno_that_nobody_told_is_inferred_from_who_has_it_and_marked() {
        let blocker = Claim { holders: vec![holder(21, "server")], ..claim() };
        let found = explain(&refusal(), std::slice::from_ref(&blocker));
        assert_eq!((found.errno, found.errno_known), (Some("EADDRINUSE"), false));
        let told = explain(&Refusal { errno: Some(98), ..refusal() }, std::slice::from_ref(&blocker));
        assert_eq!((told.errno, told.errno_known), (Some("EADDRINUSE"), true));
        assert_eq!(explain(&refusal(), &[]).errno, None, "nothing is invented");
        let other = explain(&Refusal { errno: Some(99), ..refusal() }, &[blocker]);
        assert_eq!((other.errno, other.cause), (Some("EADDRNOTAVAIL"), Cause::Unknown));
    }

    #[test]
    fn explanations_name_the_port_the_pattern_and_the_cure() {
        let askers = ["gateway.test".to_owned(), "provider.test".to_owned()];
        let fixed = Refusal { askers: &askers, asked: 5, ..refusal() };
        let blocker = Claim {
            holders: vec![holder(21, "provider.test")],
            job: Some(github(JobState::Running, "2")),
            ..claim()
        };
        insta::assert_snapshot!(explain(&fixed, std::slice::from_ref(&blocker)).explanation, @"8081/tcp was taken: provider.test (pid 21) of github job test of o/r, another job on this host, has it. 8081 is a fixed (hard-coded) port: gateway.test, provider.test asked for it 5 times. Make it a variable, and let each test set it to 0, to a port of its own (sniffer run --ports 1), or to nothing where it needs no listener.");
        let gave = Refusal { gave_away: Some(SignedDuration::from_millis(12)), ..refusal() };
        assert!(
            explain(&gave, &[blocker])
                .explanation
                .contains("got 8081, closed it, and bound it again 12ms later")
        );
        let peer = Some(Peer { address: "10.0.0.1".parse().unwrap(), port: 443 });
        let connection = Claim {
            kind: ClaimKind::Connection,
            peer,
            holders: vec![holder(30, "curl")],
            job: None,
            ..claim()
        };
        let inside = Refusal { ephemeral: Some((8000, 9000)), ..refusal() };
        insta::assert_snapshot!(explain(&inside, &[connection]).explanation, @"8081/tcp is the local port of a connection to 10.0.0.1:443 of curl (pid 30). The kernel chooses such ports from 8000-9000 (ip_local_port_range): listen on one outside of it, or reserve it in ip_local_reserved_ports.");
    }
}
