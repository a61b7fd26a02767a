//! Judges what the tables hold: leaks and silent sharing, with a notice for every change.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use jiff::Timestamp;

use super::Engine;
use super::ports::Entry;
use crate::judge::exempt::{self, Program};
use crate::judge::leak::{self, HolderStanding, Judgement};
use crate::judge::sharing::{self, Member};
use crate::model::claim::Verdict;
use crate::model::conflict::Conflict;
use crate::model::job::{Job, JobState};
use crate::model::netns::Netns;
use crate::model::socket::{ClaimKind, Protocol, SocketKey};

/// A change that is worth a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A job was met, or ended.
    Job(JobState, Box<Job>),
    /// A listener leaked (`true`), or a leaked one is gone or excused (`false`).
    Leak(bool, Box<Leak>),
    /// A bind was refused. Those that repeat it are not told.
    Conflict(Box<Conflict>),
    /// A port is shared silently by several jobs (`true`), or not any more (`false`).
    Shared(bool, Box<Sharing>),
}

/// A port that several jobs share without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// Where.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// The jobs.
    pub jobs: Vec<Job>,
}

/// A leaked listener, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The socket.
    pub key: SocketKey,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Local port.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// First holder's pid and name.
    pub holder: Option<(u32, String)>,
    /// The job that left it.
    pub job: Option<Job>,
    /// Why.
    pub reason: String,
}

impl Engine {
    /// Judges every listener; a change to or from leaked is noticed.
    pub fn judge(&mut self, now: Timestamp) {
        self.decide_jobs(now);
        let mut leaks = HashMap::new();
        let mut verdicts = Vec::new();
        self.verdict_until = None;
        for entry in self.ports.entries() {
            let key = entry.socket.key;
            let judgement = self.judgement(entry, now);
            self.verdict_until = [self.verdict_until, judgement.until].into_iter().flatten().min();
            let unsure = !entry.settled && judgement.verdict == Verdict::Leaked;
            if judgement.verdict == Verdict::Leaked && (!unsure || self.leaks.contains_key(&key)) {
                let leak = self.leaks.get(&key).cloned().unwrap_or_else(|| self.leak(entry, &judgement));
                leaks.insert(key, Leak { reason: judgement.reason, ..leak });
            }
            let verdict = if unsure { Verdict::Grace } else { judgement.verdict };
            verdicts.push((key, verdict, judgement.job));
        }
        self.ports.set_verdicts(verdicts);
        for (key, leak) in &leaks {
            if !self.leaks.contains_key(key) {
                self.counters.leaked(leak);
                self.notices.push(Notice::Leak(true, Box::new(leak.clone())));
            }
        }
        for (key, leak) in std::mem::take(&mut self.leaks) {
            if !leaks.contains_key(&key) {
                self.notices.push(Notice::Leak(false, Box::new(leak)));
            }
        }
        self.leaks = leaks;
        self.judge_sharing();
    }

    /// Finds the ports that several jobs share silently; a change is noticed.
    fn judge_sharing(&mut self) {
        let listeners = self.ports.entries().filter(|entry| entry.socket.kind() == ClaimKind::Listener);
        let groups = sharing::shared(listeners.map(|entry| Member {
            key: entry.socket.key,
            protocol: entry.socket.protocol,
            address: entry.socket.address,
            port: entry.socket.port,
            jobs: entry.holders.iter().filter_map(|held| self.processes.job(held.pid)).collect(),
        }));
        let mut shared = BTreeMap::new();
        for (group, jobs) in groups {
            let (netns, protocol, address, port) = group;
            let jobs = jobs.iter().filter_map(|key| self.jobs.shown(key)).collect();
            let sharing = Sharing { protocol, address, port, netns: self.ports.netns(netns), jobs };
            if !self.shared.contains_key(&group) {
                self.notices.push(Notice::Shared(true, Box::new(sharing.clone())));
            }
            shared.insert(group, sharing);
        }
        for (group, sharing) in std::mem::take(&mut self.shared) {
            if !shared.contains_key(&group) {
                self.notices.push(Notice::Shared(false, Box::new(sharing)));
            }
        }
        self.shared = shared;
    }

    fn leak(&self, entry: &Entry, judgement: &Judgement) -> Leak {
        let holder = entry.holders.first().map(|held| {
            let comm = self.processes.program(held.pid).map(|(comm, _)| comm.to_owned()).unwrap_or_default();
            (held.pid, comm)
        });
        Leak {
            key: entry.socket.key,
            protocol: entry.socket.protocol.as_str(),
            port: entry.socket.port,
            netns: self.ports.netns(entry.socket.key.netns),
            holder,
            job: judgement.job.as_ref().and_then(|key| self.jobs.shown(key)),
            reason: judgement.reason.clone(),
        }
    }

    pub(super) fn judgement(&self, entry: &Entry, now: Timestamp) -> Judgement {
        let holders: Vec<HolderStanding> = entry.holders.iter().map(|held| self.standing(held.pid)).collect();
        leak::judge(entry.socket.kind(), &holders, now, self.policy.grace, self.watching)
    }

    fn standing(&self, pid: u32) -> HolderStanding {
        let exempt = self
            .processes
            .program(pid)
            .and_then(|(comm, cmdline)| exempt::entry(&self.policy.exempt, Program { comm, cmdline }))
            .map(str::to_owned);
        HolderStanding { exempt, job: self.processes.job(pid).and_then(|job| self.jobs.standing(job)) }
    }

    /// When the first verdict changes by the passing of time alone.
    pub fn verdict_until(&self) -> Option<Timestamp> {
        self.verdict_until
    }
}
