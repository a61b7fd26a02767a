//! Refused binds: noted from the kernel's events, folded where they repeat, explained by a look at the port.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::binds::{Binder, Bound};
use super::{Engine, Notice, Question, Topic};
use crate::judge::conflict::{self, Finding, GONE, Refusal};
use crate::judge::leak::span;
use crate::judge::overlap::{self, Place, Standing};
use crate::kernel::look::{Findings, Plan, WhenFree};
use crate::model::answer::SCHEMA;
use crate::model::bind::{BindEvent, CloseEvent, Outcome};
use crate::model::claim::{Claim, Owner, OwnerType, SocketRef, Verdict};
use crate::model::conflict::{Call, Cause, Conflict, Conflicts, Loser};
use crate::model::job::{JobKey, Test};
use crate::model::netns::NetnsSelector;
use crate::model::process::Holder;
use crate::model::socket::{ClaimKind, Protocol};
use crate::model::target::Target;

/// A refusal that comes this soon after the one before it continues it: a retry loop, a service that is restarted and fails.
const FOLD_WITHIN: SignedDuration = SignedDuration::from_mins(2);
/// Without a pause of this length a loop of refusals is one story, whoever has the port by turns.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// Conflicts that are remembered, the oldest go first.
const MAX_KEPT: usize = 2000;
/// Conflicts that wait for a look. Those beyond it are explained from the events alone.
const MAX_WAITING: usize = 256;

/// What repeats is by the same program of the same job or user, on the same place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FoldKey {
    call: Call,
    netns: u64,
    protocol: Protocol,
    address: IpAddr,
    port: u16,
    comm: Option<String>,
    uid: Option<u32>,
    job: Option<JobKey>,
}

/// A refusal on its way to being explained.
#[derive(Debug, Clone)]
struct Pending {
    event: BindEvent,
    call: Call,
    at: Timestamp,
    last_at: Timestamp,
    attempts: u64,
    loser: Loser,
    job: Option<JobKey>,
    /// Sockets on the port that were closed before this was told, but not before the tick of the attempt.
    closed: Vec<u64>,
    fold: FoldKey,
}

#[derive(Debug)]
enum Record {
    Pending(Box<Pending>),
    Explained(Box<Conflict>, FoldKey),
}

/// The table of conflicts.
#[derive(Debug, Default)]
pub(super) struct ConflictTable {
    records: BTreeMap<u64, Record>,
    folded: HashMap<FoldKey, u64>,
    waiting: VecDeque<u64>,
    last_id: u64,
    /// Explained ones that have yet to be remembered as they are now.
    untold: BTreeSet<u64>,
}

impl ConflictTable {
    /// Adds to a conflict that goes on; answers how often it has been counted under which cause, or `None` for a new one.
    /// `is_open` tells whether a socket still is: after a pause, refusals by other sockets are another story.
    fn fold(
        &mut self,
        key: &FoldKey,
        at: Timestamp,
        is_open: impl Fn(u64) -> bool,
    ) -> Option<Option<(Protocol, Cause)>> {
        let id = self.folded.get(key)?;
        match self.records.get_mut(id)? {
            Record::Pending(pending) => {
                (pending.last_at, pending.attempts) = (at, pending.attempts + 1);
                Some(None)
            }
            Record::Explained(conflict, _) => {
                let pause = at.duration_since(conflict.last_at);
                let cookies = conflict.blockers.iter().filter_map(cookie);
                let others =
                    pause > PAUSE && !conflict.blockers.is_empty() && !cookies.into_iter().any(is_open);
                if pause > FOLD_WITHIN || others {
                    self.folded.remove(key);
                    return None;
                }
                (conflict.last_at, conflict.attempts) = (at, conflict.attempts + 1);
                self.untold.insert(*id);
                Some(Some((conflict.protocol, conflict.cause)))
            }
        }
    }

    fn add(&mut self, pending: Pending) {
        self.last_id += 1;
        // One that is not proven may turn out to be none: until then it is beside the one that it would continue.
        self.folded.entry(pending.fold.clone()).or_insert(self.last_id);
        self.records.insert(self.last_id, Record::Pending(Box::new(pending)));
        self.waiting.push_back(self.last_id);
        while self.records.len() > MAX_KEPT {
            // Those that wait for their explanation are few, and have yet to be counted.
            let explained = self.records.iter().find_map(|(id, record)| match record {
                Record::Explained(_, key) => Some((*id, key.clone())),
                Record::Pending(_) => None,
            });
            let Some((id, key)) = explained else { return };
            self.records.remove(&id);
            self.unfold(&key, id);
        }
    }

    fn unfold(&mut self, key: &FoldKey, id: u64) {
        if self.folded.get(key) == Some(&id) {
            self.folded.remove(key);
        }
    }

    /// How many attempts on these ports were refused, and when the last.
    fn refused(&self, target: &Target) -> Option<(u64, Timestamp)> {
        let of_target = |conflict: &Conflict| {
            target.ports.contains(&conflict.port)
                && target.protocol.is_none_or(|protocol| protocol == conflict.protocol)
        };
        let explained = self.records.values().filter_map(|record| match record {
            Record::Explained(conflict, _) => Some(conflict),
            Record::Pending(_) => None,
        });
        explained.filter(|conflict| of_target(conflict)).fold(
            None,
            |sum: Option<(u64, Timestamp)>, conflict| {
                let (attempts, last) = sum.unwrap_or((0, conflict.last_at));
                Some((attempts + conflict.attempts, last.max(conflict.last_at)))
            },
        )
    }

    fn take(&mut self, id: u64) -> Option<Pending> {
        match self.records.remove(&id)? {
            Record::Pending(pending) => Some(*pending),
            explained @ Record::Explained(..) => {
                self.records.insert(id, explained);
                None
            }
        }
    }
}

impl Engine {
    /// A bind succeeded or was refused. Answers whether a look has to explain it.
    pub fn bind_event(&mut self, event: BindEvent) -> bool {
        let at = self.clock.at_monotonic(event.bind.at);
        let call = match event.outcome {
            Outcome::Bound { until, listened } => {
                let by = self.processes.binder(event.bind.pid);
                self.binds.bound(event.cookie, event.netns, &event.bind, at, by);
                if let Some(until) = until {
                    self.binds.closed(event.cookie, self.clock.at_monotonic(until));
                }
                self.hold_bound(event.cookie, listened);
                return false;
            }
            Outcome::Refused { .. } => Call::Bind,
            Outcome::ListenRefused => Call::Listen,
        };
        let start = event.by.as_ref().map(|by| self.clock.ticks(by.start));
        let process = self.processes.remembered(event.bind.pid, start);
        let (comm, job) = match &process {
            Some(process) => (Some(process.comm.clone()), process.job.clone()),
            None => (event.by.as_ref().map(|by| by.comm.clone()), None),
        };
        let fold = FoldKey {
            call,
            netns: event.netns,
            protocol: event.bind.protocol,
            address: event.bind.address,
            port: event.bind.port,
            comm: comm.clone(),
            uid: event.by.as_ref().map(|by| by.uid),
            job: job.clone(),
        };
        self.binds.asked_for(&event.bind, at, comm.as_deref());
        // One whose end is not proven is looked at before it is counted.
        let proven = !matches!(event.outcome, Outcome::Refused { proven: false, .. });
        let is_open = |cookie| self.binds.get(cookie).is_some() || self.ports.has(event.netns, cookie);
        let folded = if proven { self.conflicts.fold(&fold, at, is_open) } else { None };
        match folded {
            Some(counted) => {
                if let Some((protocol, cause)) = counted {
                    self.counters.conflicted(protocol, cause, 1);
                }
                false
            }
            None => {
                let had = self.binds.at(event.netns, event.bind.protocol, event.bind.port, at);
                let closed = had.filter(|bound| bound.until.is_some()).map(|bound| bound.cookie).collect();
                let loser = self.loser(&event, process);
                self.conflicts.add(Pending {
                    event,
                    call,
                    at,
                    last_at: at,
                    attempts: 1,
                    loser,
                    job,
                    closed,
                    fold,
                });
                true
            }
        }
    }

    /// A socket was closed.
    pub fn close_event(&mut self, event: &CloseEvent) {
        let at = self.clock.at_monotonic(event.at);
        self.binds.closed(event.cookie, at);
        self.hold_closed(event.cookie, at, event.pid, event.listened);
    }

    /// The next refusal that a look has to explain, with that look.
    pub fn next_conflict(&mut self) -> Option<(u64, Plan)> {
        // What is beyond the bound is explained without a look.
        while self.conflicts.waiting.len() > MAX_WAITING {
            let id = self.conflicts.waiting.pop_front()?;
            self.explain(id, None);
        }
        loop {
            let id = self.conflicts.waiting.pop_front()?;
            let Some(Record::Pending(pending)) = self.conflicts.records.get(&id) else { continue };
            let (event, pid) = (&pending.event, pending.event.bind.pid);
            if event.bind.port == 0 || event.netns == 0 {
                self.explain(id, None);
                continue;
            }
            let question = question(event);
            let plan = self.plan_question(&question, false);
            let mut search = plan.search;
            search.when_free = WhenFree::Say;
            let inhabitants = Some(self.processes.inhabitants());
            return Some((id, Plan { inhabitants, search, also: vec![pid], ..plan }));
        }
    }

    /// Explains a refusal from the look that was taken for it; `None` where there was none.
    pub fn explain(&mut self, id: u64, findings: Option<&Findings>) {
        let Some(mut pending) = self.conflicts.take(id) else { return };
        let event = &pending.event;
        let is_bound = |findings: &Findings| {
            let mut sockets = findings.namespaces.iter().flat_map(|netns| netns.sockets.iter().flatten());
            sockets.any(|socket| socket.key.cookie == event.cookie && socket.port == event.bind.port)
        };
        let unproven = matches!(event.outcome, Outcome::Refused { proven: false, .. });
        if unproven && (self.binds.succeeded(event.cookie, pending.at) || findings.is_some_and(is_bound)) {
            // It came to its end after all, and succeeded.
            return self.conflicts.unfold(&pending.fold, id);
        }
        let is_open = |cookie| self.binds.get(cookie).is_some() || self.ports.has(event.netns, cookie);
        if let Some(Some((protocol, cause))) = self.conflicts.fold(&pending.fold, pending.at, is_open) {
            return self.counters.conflicted(protocol, cause, pending.attempts);
        }
        if let Some(findings) = findings {
            self.complete(&mut pending, findings);
        }
        let blockers = self.blockers(&pending, findings);
        if pending.call == Call::Listen && blockers.is_empty() {
            // It began to listen and was shut down at once.
            return self.conflicts.unfold(&pending.fold, id);
        }
        let finding = self.finding(&pending, &blockers);
        self.counters.conflicted(pending.event.bind.protocol, finding.cause, pending.attempts);
        let conflict = Conflict { id, ..self.conflict(&pending, blockers, finding, findings) };
        self.notices.push(Notice::Conflict(Box::new(conflict.clone())));
        self.conflicts.folded.insert(pending.fold.clone(), id);
        self.conflicts.records.insert(id, Record::Explained(Box::new(conflict), pending.fold));
        self.conflicts.untold.insert(id);
    }

    /// That binds of these ports were refused lately, as a sentence.
    pub(super) fn refused_lately(&self, target: &Target, now: Timestamp) -> Option<String> {
        let (attempts, last) = self.conflicts.refused(target)?;
        let binds = if attempts == 1 {
            "A bind of it was".to_owned()
        } else {
            format!("{attempts} binds of it were")
        };
        let ago = span(now.duration_since(last));
        Some(format!(
            "{binds} refused, the last {ago} ago: `sniffer conflicts` tells who was and who had it."
        ))
    }

    fn loser(&self, event: &BindEvent, process: Option<super::processes::Remembered>) -> Loser {
        let by = event.by.as_ref();
        let mut loser = Loser {
            pid: event.bind.pid,
            start_time: by.and_then(|by| self.clock.at_ticks(self.clock.ticks(by.start))),
            ppid: None,
            uid: by.map(|by| by.uid),
            user: None,
            comm: by.map(|by| by.comm.clone()),
            exe: None,
            cmdline: None,
            cwd: None,
            unit: None,
            container: None,
            ancestry: Vec::new(),
            job: None,
            test: None,
        };
        if let Some(process) = process {
            loser.start_time =
                loser.start_time.or_else(|| process.start.and_then(|start| self.clock.at_ticks(start)));
            loser.ppid = Some(process.ppid);
            loser.comm = Some(process.comm).filter(|comm| !comm.is_empty()).or(loser.comm);
            loser.cmdline = Some(process.cmdline);
            loser.exe =
                process.told.as_ref().map(|(path, _)| path.clone()).filter(|path| path.starts_with('/'));
            loser.uid = loser.uid.or(process.told.map(|(_, uid)| uid));
            (loser.unit, loser.container) = (process.unit, process.container);
            loser.ancestry = process.ancestry;
            loser.test = process.test.map(|test| Test::clone(&test));
        }
        loser
    }

    /// What only a living process tells of itself.
    fn complete(&self, pending: &mut Pending, findings: &Findings) {
        let loser = &mut pending.loser;
        let alive = findings
            .also
            .get(&loser.pid)
            .filter(|seen| seen.start_time == loser.start_time || loser.start_time.is_none());
        if let Some(Holder { exe, cwd, user, uid, unit, container, cmdline, ppid, .. }) = alive.cloned() {
            loser.exe = exe.or(loser.exe.take());
            (loser.cwd, loser.user) = (cwd, user);
            loser.uid = loser.uid.or(uid);
            loser.unit = loser.unit.take().or(unit);
            loser.container = loser.container.take().or(container);
            loser.cmdline = loser.cmdline.take().or(cmdline);
            loser.ppid = loser.ppid.or(ppid);
        }
    }

    /// Who had the port: what the look found that was there at that moment, and what was closed since.
    fn blockers(&self, pending: &Pending, findings: Option<&Findings>) -> Vec<Claim> {
        let event = &pending.event;
        let answer = findings.and_then(|findings| self.answer(&question(event), findings).ok());
        let wanted = wanted(event);
        let mut blockers: Vec<Claim> = answer.map(|answer| answer.claims).unwrap_or_default();
        blockers.retain(|claim| {
            let later = cookie(claim)
                .and_then(|cookie| self.binds.get(cookie))
                .is_some_and(|bound| bound.at > pending.at);
            let listens = pending.call == Call::Bind
                || (claim.kind == ClaimKind::Listener && wanted.reuseport != Some(true));
            let itself = cookie(claim) == Some(event.cookie);
            // It was refused: what is not known was no reason to let it in.
            let blocks = overlap::blocks(&overlap::place(claim), &wanted) != Some(false);
            !later && !itself && listens && blocks
        });
        // A listener's own connections stand behind it.
        let listener_has =
            blockers.iter().any(|claim| matches!(claim.kind, ClaimKind::Listener | ClaimKind::Bound));
        if listener_has {
            blockers.retain(|claim| matches!(claim.kind, ClaimKind::Listener | ClaimKind::Bound));
        }
        let found: Vec<u64> = blockers.iter().filter_map(cookie).collect();
        // What no look could find is known from its bind.
        let looked =
            findings.is_some_and(|findings| findings.namespaces.iter().any(|netns| netns.sockets.is_some()));
        // The clock of binds ticks: of what was closed in the tick of the attempt nobody knows whether it was before it, unless
        // the same thread did both, whose deeds are told in order.
        let certain = !blockers.is_empty();
        let had = self.binds.at(event.netns, event.bind.protocol, event.bind.port, pending.at);
        let gone = had
            .filter(|bound| bound.cookie != event.cookie && !found.contains(&bound.cookie))
            .filter(|bound| match bound.until {
                Some(until) if until == pending.at && bound.tid == event.bind.tid => {
                    !pending.closed.contains(&bound.cookie)
                }
                Some(until) if until == pending.at => !certain && bound.by.pid != event.bind.pid,
                Some(_) => true,
                None => !looked,
            })
            .filter(|bound| overlap::addresses_meet(&place_of(bound), &wanted));
        blockers.extend(gone.map(|bound| self.gone(bound)));
        blockers
    }

    /// A socket that no look found, as a claim.
    fn gone(&self, bound: &Bound) -> Claim {
        let by = &bound.by;
        let holder = self.describe(by.pid, by.start, by.comm.clone(), by.ppid);
        let job = bound.by.job.as_ref().and_then(|key| self.jobs.shown(key));
        Claim {
            kind: if bound.protocol == Protocol::Tcp { ClaimKind::Bound } else { ClaimKind::Listener },
            protocol: bound.protocol,
            address: bound.address,
            port: bound.port,
            v6only: None,
            interface: None,
            ifindex: None,
            reuseaddr: None,
            reuseport: None,
            state: if bound.until.is_some() { GONE } else { "BOUND" }.to_owned(),
            peer: None,
            expires_ms: None,
            netns: self.ports.netns_of_inode(bound.netns),
            socket: Some(SocketRef {
                inode: 0,
                cookie: bound.cookie,
                uid: holder.uid.unwrap_or_default(),
                cgroup: None,
            }),
            since: Some(bound.at),
            binder: None,
            owner: Owner::new(OwnerType::Process, holder.comm.clone()),
            holders: vec![holder],
            job,
            shared_with: Vec::new(),
            test: bound.by.test.as_ref().map(|test| Test::clone(test)),
            comeback: None,
            verdict: Verdict::Unattributed,
            reason: match bound.until {
                Some(_) => "it was closed before it could be looked at",
                None => "it is known from its bind: its network namespace could not be looked into",
            }
            .to_owned(),
            nat: None,
        }
    }

    fn finding(&self, pending: &Pending, blockers: &[Claim]) -> Finding {
        let event = &pending.event;
        let bind = &event.bind;
        let (askers, asked) = self.binds.askers(bind.protocol, bind.port);
        let job = pending.job.as_ref().and_then(|key| self.jobs.shown(key));
        let kin: Vec<u32> = pending.loser.ancestry.iter().map(|kin| kin.pid).filter(|pid| *pid > 1).collect();
        let related = |by: &Binder| {
            by.pid == bind.pid
                || kin.contains(&by.pid)
                || (by.job.is_some() && by.job == pending.job)
                || by.ppid.is_some_and(|ppid| ppid > 1 && Some(ppid) == pending.loser.ppid)
        };
        let gave_away = self
            .binds
            .gave_away((event.netns, bind.protocol, bind.port), pending.at, related)
            .map(|until| pending.at.duration_since(until));
        conflict::explain(
            &Refusal {
                call: pending.call,
                errno: match event.outcome {
                    Outcome::Refused { errno, .. } => errno,
                    _ => None,
                },
                protocol: bind.protocol,
                port: bind.port,
                at: pending.at,
                pid: bind.pid,
                job: job.as_ref(),
                privileged: event.by.as_ref().map(|by| by.privileged),
                ephemeral: self.ephemeral,
                gave_away,
                askers: &askers,
                asked,
            },
            blockers,
        )
    }

    fn conflict(
        &self,
        pending: &Pending,
        blockers: Vec<Claim>,
        finding: Finding,
        findings: Option<&Findings>,
    ) -> Conflict {
        let bind = &pending.event.bind;
        let known =
            findings.and_then(|findings| findings.namespaces.first()).map(|netns| netns.shown.clone());
        let Finding { errno, errno_known, cause, explanation } = finding;
        let mut loser = pending.loser.clone();
        loser.job = pending.job.as_ref().and_then(|key| self.jobs.shown(key));
        Conflict {
            id: 0,
            at: pending.at,
            last_at: pending.last_at,
            call: pending.call,
            protocol: bind.protocol,
            address: bind.address,
            port: bind.port,
            netns: known.unwrap_or_else(|| self.ports.netns_of_inode(pending.event.netns)),
            errno: errno.map(str::to_owned),
            errno_known,
            attempts: pending.attempts,
            loser,
            blockers,
            cause,
            explanation,
        }
    }

    /// Numbers of conflicts begin after this one.
    pub(super) fn conflicts_begin_after(&mut self, id: u64) {
        self.conflicts.last_id = self.conflicts.last_id.max(id);
    }

    /// What is to be remembered of conflicts since the last call.
    pub(super) fn conflict_records(
        &mut self,
        step: SignedDuration,
    ) -> Vec<(crate::model::hold::Record, Option<JobKey>)> {
        let ids = std::mem::take(&mut self.conflicts.untold);
        let explained = ids.into_iter().filter_map(|id| match self.conflicts.records.get(&id)? {
            Record::Explained(conflict, _) => Some(at_wall_clock(conflict, step)),
            Record::Pending(_) => None,
        });
        explained.map(|conflict| (crate::model::hold::Record::Conflict(conflict.into()), None)).collect()
    }

    /// The conflicts that were seen since a moment, on the wall clock.
    pub fn conflicts(&self, since: Option<Timestamp>, now: Timestamp) -> Conflicts {
        let step = self.clock.step();
        let moved = |at: Timestamp| at.checked_add(step).unwrap_or(at);
        let explained = self.conflicts.records.values().filter_map(|record| match record {
            Record::Explained(conflict, _) => Some(conflict),
            Record::Pending(_) => None,
        });
        let conflicts = explained
            .map(|conflict| at_wall_clock(conflict, step))
            .filter(|conflict| since.is_none_or(|since| conflict.last_at >= since))
            .collect();
        Conflicts {
            schema: SCHEMA,
            as_of: moved(now),
            watched_since: None,
            remembered_since: None,
            incomplete: Vec::new(),
            pending: self
                .conflicts
                .records
                .values()
                .filter(|record| matches!(record, Record::Pending(_)))
                .count(),
            conflicts,
        }
    }
}

fn at_wall_clock(conflict: &Conflict, step: SignedDuration) -> Conflict {
    let moved = |at: Timestamp| at.checked_add(step).unwrap_or(at);
    Conflict { at: moved(conflict.at), last_at: moved(conflict.last_at), ..conflict.clone() }
}

fn cookie(claim: &Claim) -> Option<u64> {
    claim.socket.as_ref().map(|socket| socket.cookie)
}

fn question(event: &BindEvent) -> Question {
    let port = event.bind.port;
    Question {
        topic: Topic::Target(Target {
            ports: port..=port,
            protocol: Some(event.bind.protocol),
            address: None,
        }),
        netns: Some(NetnsSelector::Inode(event.netns)),
    }
}

fn wanted(event: &BindEvent) -> Place {
    Place {
        protocol: event.bind.protocol,
        address: event.bind.address,
        v6only: event.flags.v6only,
        ifindex: event.ifindex,
        reuseaddr: Some(event.flags.reuseaddr),
        reuseport: Some(event.flags.reuseport),
        uid: event.by.as_ref().map(|by| by.uid),
        standing: Standing::Other,
    }
}

fn place_of(bound: &Bound) -> Place {
    Place {
        protocol: bound.protocol,
        address: bound.address,
        // With the option not known, a wildcard may cover IPv4 too.
        v6only: false,
        ifindex: None,
        reuseaddr: None,
        reuseport: None,
        uid: None,
        standing: Standing::Other,
    }
}
