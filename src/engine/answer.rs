//! Answers: claims with their holders, jobs and verdicts, from the table and the look that was taken for the question.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::ports::Entry;
use super::{Engine, Question, Topic};
use crate::judge::advice::{Sight, advice as sentences};
use crate::judge::ending;
use crate::judge::leak::{Judgement, Watching, span};
use crate::judge::owner::{self, Known};
use crate::judge::setting;
use crate::kernel::AS_ROOT;
use crate::kernel::Unreadable;
use crate::kernel::look::Findings;
use crate::model::answer::{Answer, AnswerSource, Looked, SCHEMA};
use crate::model::claim::{Binder, Claim, Owner, OwnerType, Peer, SocketRef, Verdict};
use crate::model::hold::Comeback;
use crate::model::job::{Job, JobKey, Test};
use crate::model::nat::NatClaim;
use crate::model::netns::{Netns, NetnsKey, NetnsSelector};
use crate::model::process::Holder;
use crate::model::socket::{ClaimKind, Protocol, Socket, SocketState};
use crate::model::target::Target;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// No namespace of that name, inode or process.
    #[error(
        "there is no network namespace '{0}'; `sniffer list` names those that hold ports, `ip netns` those with names"
    )]
    NoSuchNetns(NetnsSelector),
    /// The system could not be looked at.
    #[error("the system could not be looked at: {0}")]
    NoLook(String),
    /// The agent is busy or stopping.
    #[error("the agent did not answer: {0}")]
    NoAgent(&'static str),
}

impl Unanswerable {
    /// Why a look for this question failed.
    pub fn from_look(error: Unreadable, question: &Question) -> Self {
        match (error, &question.netns) {
            (Unreadable::Vanished, Some(netns)) => Unanswerable::NoSuchNetns(netns.clone()),
            (Unreadable::Denied, _) => Unanswerable::NoLook("no permission; run as root".to_owned()),
            (error, _) => Unanswerable::NoLook(format!("{error:?}")),
        }
    }
}

const ASK_AS_ROOT: &str =
    "Not everything could be seen: ask again as root before you believe that it is free.";

/// How many TCP listeners there are on the same address and port of one namespace.
type Twins = HashMap<(u64, IpAddr, u16), usize>;

/// What all claims of an answer are made from.
struct About<'a> {
    findings: &'a Findings,
    /// How far the wall clock was set since the engine's began.
    step: SignedDuration,
    twins: Twins,
    known: Known<'a>,
    /// Made once, where a claim leads to a container.
    jobs_of_containers: OnceCell<HashMap<&'a str, &'a JobKey>>,
}

impl Engine {
    /// Answers a question from a look that was planned for it and has been told to the engine.
    /// Errors: the namespace asked for does not exist.
    pub fn answer(&self, question: &Question, findings: &Findings) -> Result<Answer, Unanswerable> {
        if let (Some(netns), true) = (&question.netns, findings.namespaces.is_empty()) {
            return Err(Unanswerable::NoSuchNetns(netns.clone()));
        }
        let step = self.clock.step();
        let entries: Vec<&Entry> = findings
            .namespaces
            .iter()
            .flat_map(|netns| netns.sockets.iter().flatten())
            .filter(|socket| question.concerns(socket))
            .filter_map(|socket| self.ports.get(&socket.key))
            .collect();
        let about = About {
            findings,
            step,
            twins: twins(&entries),
            known: Known { containers: &findings.containers, places: &findings.places },
            jobs_of_containers: OnceCell::new(),
        };
        let incomplete = self.incomplete(findings, &entries);
        let mut claims: Vec<Claim> = entries
            .into_iter()
            .map(|entry| self.claim(entry, &about))
            .filter(|claim| question.topic != Topic::Leaks || claim.verdict == Verdict::Leaked)
            .collect();
        let looked_at: HashSet<NetnsKey> = findings.namespaces.iter().map(|netns| netns.key).collect();
        let nat = self.nat.claims(|netns| looked_at.contains(&netns));
        let nat = nat.filter(|(_, claim)| question.concerns_nat(claim));
        claims.extend(nat.map(|(netns, claim)| self.nat_claim(claim, netns, &about)));
        claims.sort_by_key(order);
        let here =
            findings.namespaces.first().and_then(|netns| Some((netns.key, netns.surroundings.as_ref()?)));
        let mut advice = Vec::new();
        if let Some(target) = question.target() {
            let whole = findings.read_everywhere && incomplete.is_empty();
            advice = sentences(&claims, Sight { whole, here: here.map(|(key, here)| (key.inode, here)) });
            if claims.is_empty() {
                advice.extend(here.into_iter().flat_map(|(_, here)| setting::when_free(target, here)));
                advice.extend(self.lost_lately(target, findings.taken_at));
                advice.extend(
                    incomplete.iter().any(|gap| gap.contains(AS_ROOT)).then(|| ASK_AS_ROOT.to_owned()),
                );
            }
            advice.extend(self.refused_lately(target, findings.taken_at));
        }
        if let (Topic::Target(target), Some((key, here))) = (&question.topic, here) {
            claims.extend(setting::reserved(target, here, &self.ports.netns(key)));
        }
        Ok(Answer {
            schema: SCHEMA,
            as_of: moved(findings.taken_at, step),
            source: match self.watching {
                Watching::Continuously => AnswerSource::Daemon,
                Watching::Once => AnswerSource::Oneshot,
            },
            query: question.query(),
            incomplete,
            looked: Looked {
                nat: self.policy.nat,
                netns: findings.namespaces.iter().filter(|netns| netns.sockets.is_some()).count(),
                processes: if findings.read_everywhere {
                    findings.processes_read
                } else {
                    self.processes.len()
                },
            },
            claims,
            advice,
            surroundings: here.map(|(_, here)| here.clone()),
        })
    }

    fn claim<'a>(&'a self, entry: &Entry, about: &About<'a>) -> Claim {
        let (socket, findings, step) = (&entry.socket, about.findings, about.step);
        let judgement = self.judgement(entry, findings.taken_at);
        let holders = self.holders(entry, findings, step);
        let Judgement { verdict, reason, job, .. } = judgement;
        let mut claim = Claim {
            kind: socket.kind(),
            protocol: socket.protocol,
            address: socket.address,
            port: socket.port,
            v6only: socket.v6only,
            interface: socket.interface.clone(),
            ifindex: socket.ifindex,
            reuseaddr: socket.options.map(|options| options.reuseaddr),
            // Two TCP listeners can be on one address only if both said SO_REUSEPORT.
            reuseport: socket
                .options
                .map(|options| options.reuseport)
                .or_else(|| about.twins.get(&twin_key(socket)).filter(|count| **count > 1).map(|_| true)),
            state: state(socket),
            peer: socket.peer.map(|(address, port)| Peer { address, port }),
            expires_ms: socket.expires_ms,
            netns: self.ports.netns(socket.key.netns),
            socket: Some(SocketRef {
                inode: socket.inode,
                cookie: socket.key.cookie,
                uid: socket.uid,
                cgroup: socket.cgroup_id.and_then(|id| findings.cgroups.get(&id).cloned()),
            }),
            since: self.since(entry).map(|at| moved(at, step)),
            binder: self.binder(socket.key.cookie, step),
            owner: Owner::new(OwnerType::Unknown, None),
            holders,
            job: self.job(job.as_ref(), step),
            shared_with: self.shared_with(entry),
            test: self.test(entry),
            comeback: self.comeback(socket.key.cookie, step),
            verdict,
            reason,
            nat: None,
        };
        claim.owner = owner::of_socket(&claim, &about.known, socket.inode == 0);
        claim.job = claim.job.or_else(|| self.job(self.job_of_container(&claim.owner, about), step));
        claim
    }

    /// A job as it is shown.
    pub(super) fn job(&self, key: Option<&JobKey>, step: SignedDuration) -> Option<Job> {
        let mut job = self.jobs.shown(key?)?;
        job.started = job.started.map(|at| moved(at, step));
        job.ended = job.ended.map(|at| moved(at, step));
        Some(job)
    }

    /// What a rule takes, without a socket. Its verdict is that of the listener behind it.
    fn nat_claim<'a>(&'a self, claim: &NatClaim, netns: NetnsKey, about: &About<'a>) -> Claim {
        let mut shown = of_rule(claim, self.ports.netns(netns));
        shown.owner = owner::of_rule(&shown, &claim.nat, &about.known);
        let port = claim.nat.to_port.unwrap_or(shown.port);
        let behind = owner::netns_behind(&claim.nat, &about.known).and_then(|inode| {
            self.ports.entries().find(|entry| {
                let socket = &entry.socket;
                let there = (socket.key.netns.inode, socket.protocol, socket.port);
                there == (inode, claim.protocol, port) && socket.kind() == ClaimKind::Listener
            })
        });
        let judged = behind.map(|entry| self.judgement(entry, about.findings.taken_at));
        let of_listener = judged.as_ref().and_then(|judgement| judgement.job.as_ref());
        let job = of_listener.or_else(|| self.job_of_container(&shown.owner, about));
        shown.job = self.job(job, about.step);
        if let Some(Judgement { verdict, reason, .. }) = judged {
            (shown.verdict, shown.reason) = (verdict, format!("the listener behind it: {reason}"));
        }
        shown
    }

    /// The job that the container behind a claim was started for.
    fn job_of_container<'a>(&'a self, owner: &Owner, about: &About<'a>) -> Option<&'a JobKey> {
        let id = owner.container.as_deref()?;
        let jobs = about.jobs_of_containers.get_or_init(|| self.processes.jobs_of_containers());
        // Not every container has a control group of its own.
        let first = || about.known.places.iter().find(|place| place.container == id)?.first;
        jobs.get(id).copied().or_else(|| self.processes.own_job(first()?))
    }

    /// The jobs that share its port silently.
    fn shared_with(&self, entry: &Entry) -> Vec<Job> {
        let socket = &entry.socket;
        let group = (socket.key.netns, socket.protocol, socket.address, socket.port);
        self.shared
            .get(&group)
            .filter(|_| socket.kind() == ClaimKind::Listener)
            .map(|sharing| sharing.jobs.clone())
            .unwrap_or_default()
    }

    /// The test of whoever bound it, else of whoever has it open; none where those are of several.
    fn test(&self, entry: &Entry) -> Option<Test> {
        let by_binder = self.binds.get(entry.socket.key.cookie).and_then(|bound| bound.by.test.as_ref());
        let mut tests = entry.holders.iter().filter_map(|held| self.processes.test(held.pid));
        let of_holders = tests.next().filter(|first| tests.all(|test| test == *first));
        by_binder.or(of_holders).map(|test| Test::clone(test))
    }

    /// When it was bound, where that was told; a TCP socket that was not bound then, but began to listen, when it was seen to.
    fn since(&self, entry: &Entry) -> Option<Timestamp> {
        self.binds.get(entry.socket.key.cookie).map(|bound| bound.at).or(entry.since)
    }

    /// That it is a listener that had been lost.
    fn comeback(&self, cookie: u64, step: SignedDuration) -> Option<Comeback> {
        let mut back = self.holds.of_socket(cookie)?.comeback.as_deref()?.clone();
        (back.lost_at, back.since) = (moved(back.lost_at, step), moved(back.since, step));
        Some(back)
    }

    /// That a listener was lost on a port that nobody has now, as a sentence.
    fn lost_lately(&self, target: &Target, now: Timestamp) -> Option<String> {
        let (hold, times) = self.holds.lost(target, now)?;
        let (until, how) = (hold.until?, ending::words(hold)?);
        let comm = hold.holder.as_ref().and_then(|holder| holder.comm.as_deref()).unwrap_or("a process");
        let often =
            if times > 1 { format!(" It has happened {times} times in ten minutes.") } else { String::new() };
        let ago = span(now.duration_since(until));
        Some(format!(
            "{comm} listened on {}/{} until {ago} ago, and lost it: {how}.{often}",
            hold.port, hold.protocol
        ))
    }

    /// The process that bound it, alive or not.
    fn binder(&self, cookie: u64, step: SignedDuration) -> Option<Binder> {
        let by = &self.binds.get(cookie)?.by;
        let start_time = by.start.and_then(|start| self.clock.at_ticks(start));
        Some(Binder {
            pid: by.pid,
            start_time: start_time.map(|at| moved(at, step)),
            comm: by.comm.clone()?,
            alive: self.processes.lives(by.pid, by.start),
        })
    }

    fn holders(&self, entry: &Entry, findings: &Findings, step: SignedDuration) -> Vec<Holder> {
        let mut holders: Vec<Holder> = entry
            .holders
            .iter()
            .filter_map(|held| findings.described.get(held).cloned())
            .map(|mut holder| {
                holder.start_time = holder.start_time.map(|at| moved(at, step));
                holder.ancestry =
                    holder.ppid.map(|parent| self.processes.ancestry(parent)).unwrap_or_default();
                holder
            })
            .collect();
        // The oldest first: it is the likeliest to have made the socket. pid 1 holds for others.
        holders.sort_by_key(|holder| (holder.pid == 1, holder.start_time, holder.pid));
        holders
    }
}

fn of_rule(claim: &NatClaim, netns: Netns) -> Claim {
    let place = (claim.address, claim.v6only);
    let reason = "a rule has no process".to_owned();
    Claim {
        nat: Some(claim.nat.clone()),
        ..Claim::without_socket(
            ClaimKind::NatRule,
            claim.protocol,
            place,
            *claim.ports.start(),
            netns,
            reason,
        )
    }
}

fn moved(at: Timestamp, step: SignedDuration) -> Timestamp {
    at.checked_add(step).unwrap_or(at)
}

fn state(socket: &Socket) -> String {
    match (socket.protocol, socket.state) {
        // UDP borrows TCP's numbers: CLOSE means "no peer".
        (Protocol::Udp, SocketState::Close) => "UNCONN".to_owned(),
        (Protocol::Tcp, SocketState::Close) => SocketState::BoundInactive.to_string(),
        (_, state) => state.to_string(),
    }
}

fn twin_key(socket: &Socket) -> (u64, IpAddr, u16) {
    (socket.key.netns.inode, socket.address, socket.port)
}

fn twins(entries: &[&Entry]) -> Twins {
    let mut twins = Twins::new();
    for socket in entries.iter().map(|entry| &entry.socket) {
        if socket.protocol == Protocol::Tcp && socket.kind() == ClaimKind::Listener {
            *twins.entry(twin_key(socket)).or_insert(0) += 1;
        }
    }
    twins.retain(|_, count| *count > 1);
    twins
}

/// What takes the port for good comes first, then the program's own namespace, then by port and address.
fn order(claim: &Claim) -> (u16, ClaimKind, bool, u64, Protocol, IpAddr, u64) {
    let cookie = claim.socket.as_ref().map_or(0, |socket| socket.cookie);
    let abroad = claim.netns.name.as_deref() != Some("host");
    (claim.port, claim.kind, abroad, claim.netns.inode, claim.protocol, claim.address, cookie)
}
