//! Holds as looks find them: those that nobody told of, what is known better of the others, and those that are no more.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Change, KeptHold, MAX_OPEN, Open, new};
use crate::engine::Engine;
use crate::engine::binds::UNSURE;
use crate::engine::ports::Entry;
use crate::judge::hold::Last;
use crate::kernel::look::Findings;
use crate::kernel::sock_diag::Depth;
use crate::model::claim::Verdict;
use crate::model::hold::{End, Hold, HoldKey};
use crate::model::job::JobKey;
use crate::model::nat::NatClaim;
use crate::model::netns::NetnsKey;
use crate::model::process::Holder;
use crate::model::socket::{ClaimKind, Protocol, SocketKey};

/// What is followed: connections come and go by thousands, and hold no port for long.
fn is_followed(kind: ClaimKind) -> bool {
    matches!(kind, ClaimKind::Listener | ClaimKind::Bound)
}

impl Engine {
    /// Takes over what a look of the interval saw: holds that nobody told of, and what has become of the others.
    pub fn follow_holds(&mut self, findings: &Findings) {
        let now = findings.taken_at;
        let deep = findings.query.depth == Depth::Everything;
        if deep {
            self.holds.open.values_mut().for_each(|open| open.unconfirmed = false);
        }
        let new: Vec<SocketKey> = self
            .ports
            .entries()
            .filter(|entry| is_followed(entry.socket.kind()) && entry.socket.port != 0)
            // What only a question's look saw may have ended long ago.
            .filter(|entry| entry.was_seen_since(now))
            .filter(|entry| !self.holds.open.contains_key(&HoldKey::Socket(entry.socket.key.cookie)))
            // Its close was told after the look.
            .filter(|entry| !self.binds.is_closed(entry.socket.key.cookie))
            .map(|entry| entry.socket.key)
            .collect();
        for key in new {
            let seen = self.ports.get(&key).map(|entry| self.seen(entry, findings));
            if let Some((hold, job)) = seen.filter(|_| self.holds.open.len() < MAX_OPEN) {
                // Closes of a storm are forgotten soon, and no look but one into everything would miss this one.
                let unconfirmed = hold.kind == ClaimKind::Bound;
                self.holds.begin(HoldKey::Socket(key.cookie), hold, job, unconfirmed);
            }
        }
        self.update_holds(findings);
        self.end_missing(findings);
        // What has ended now is in doubt until its group's kills are counted, which the same look did.
        self.count_kills(findings);
        self.follow_rules(now);
        if findings.all_netns {
            self.end_kept();
        }
    }

    /// A hold that a look found.
    fn seen(&self, entry: &Entry, findings: &Findings) -> (Hold, Option<JobKey>) {
        let socket = &entry.socket;
        let since = (entry.since.unwrap_or(findings.taken_at), entry.since.is_some());
        let place = (socket.protocol, socket.address, socket.port);
        let mut hold = new(socket.kind(), place, self.ports.netns(socket.key.netns), since);
        hold.holder = self.first_holder(entry, findings);
        hold.test = hold.holder.as_ref().and_then(|holder| self.processes.test(holder.pid)).cloned();
        (hold, entry.job.clone())
    }

    /// The oldest process that has it open, pid 1 last: it holds for others.
    fn first_holder(&self, entry: &Entry, findings: &Findings) -> Option<Arc<Holder>> {
        let order = |pid: u32| (pid == 1, self.processes.start(pid), pid);
        let first = entry.holders.iter().min_by_key(|held| order(held.pid))?;
        let mut holder = findings
            .described
            .get(first)
            .cloned()
            .unwrap_or_else(|| self.describe(first.pid, self.processes.start(first.pid), None, None));
        if holder.ancestry.is_empty() {
            holder.ancestry = holder.ppid.map(|parent| self.processes.ancestry(parent)).unwrap_or_default();
        }
        Some(Arc::new(holder))
    }

    /// What a look knows better of holds that go on: kind, holder, job, and whether it has leaked.
    fn update_holds(&mut self, findings: &Findings) {
        let mut changed = Vec::new();
        for (key, open) in &self.holds.open {
            let Some(entry) = self.entry_of(key, &open.hold) else { continue };
            let hold = &open.hold;
            let described = entry.holders.iter().any(|held| findings.described.contains_key(held));
            let leaked = entry.verdict == Some(Verdict::Leaked) && hold.leaked_at.is_none();
            let netns = || self.ports.netns(entry.socket.key.netns);
            let change = Change {
                kind: Some(entry.socket.kind()).filter(|kind| *kind != hold.kind),
                netns: hold.netns.name.is_none().then(netns).filter(|netns| netns.name.is_some()),
                holder: (described && !open.described)
                    .then(|| self.better_holder(entry, open, findings))
                    .flatten(),
                job: entry.job.clone().filter(|_| open.job.is_none()),
                leaked_at: leaked.then_some(findings.taken_at),
            };
            let last = entry.holders.iter().map(|held| held.pid).find(|pid| *pid != 1);
            if change != Change::default() || last != open.last {
                changed.push((key.clone(), change, last));
            }
        }
        for (key, change, last) in changed {
            let Some(open) = self.holds.open.get_mut(&key) else { continue };
            open.last = last.or(open.last);
            if change != Change::default() {
                open.take(change);
                self.holds.touch(&key);
            }
        }
    }

    /// The socket of a hold, as it was seen last.
    fn entry_of(&self, key: &HoldKey, hold: &Hold) -> Option<&Entry> {
        let HoldKey::Socket(cookie) = *key else { return None };
        let netns = self.ports.netns_key(hold.netns.inode)?;
        self.ports.get(&SocketKey { netns, cookie })
    }

    /// The process that is shown already, as it was described now; where none is, the oldest.
    fn better_holder(&self, entry: &Entry, open: &Open, findings: &Findings) -> Option<Arc<Holder>> {
        let Some(shown) = open.hold.holder.as_ref() else { return self.first_holder(entry, findings) };
        let held = entry.holders.iter().find(|held| held.pid == shown.pid)?;
        let described = findings.described.get(held).filter(|now| now.comm.is_some())?;
        Some(Arc::new(Holder { fd: None, ancestry: shown.ancestry.clone(), ..described.clone() }))
    }

    /// The sockets whose holders have yet to be described.
    pub(in crate::engine) fn undescribed_holds(&self) -> HashSet<SocketKey> {
        let undescribed = self.holds.open.iter().filter(|(_, open)| !open.described);
        undescribed
            .filter_map(|(key, open)| self.entry_of(key, &open.hold))
            .filter(|entry| !entry.holders.is_empty())
            .map(|entry| entry.socket.key)
            .collect()
    }

    /// Whether only a look into everything can tell what has become of a hold.
    pub(in crate::engine) fn wants_everything(&self) -> bool {
        self.holds.wants_everything
    }

    /// Ends holds whose sockets are no more and whose close nobody told: by what became of their processes.
    fn end_missing(&mut self, findings: &Findings) {
        let namespaces: HashSet<u64> = findings.namespaces.iter().map(|netns| netns.key.inode).collect();
        let read: HashSet<u64> = findings
            .namespaces
            .iter()
            .filter(|netns| netns.sockets.is_some())
            .map(|netns| netns.key.inode)
            .collect();
        let deep = findings.query.depth == Depth::Everything;
        // What may have begun after the look was taken says nothing.
        let is_missing = |key: &HoldKey, open: &Open| {
            let hold = &open.hold;
            let looked = read.contains(&hold.netns.inode) && (deep || hold.kind == ClaimKind::Listener);
            let netns_gone = findings.all_netns && !namespaces.contains(&hold.netns.inode);
            let is_socket = matches!(key, HoldKey::Socket(_));
            is_socket
                && (netns_gone || looked)
                && findings.taken_at.duration_since(hold.from) > UNSURE
                && self.entry_of(key, hold).is_none()
        };
        // A listener that listens no more may be bound still: a look into everything would tell.
        let may_be_bound = |key: &HoldKey, hold: &Hold| {
            let HoldKey::Socket(cookie) = *key else { return false };
            !deep
                && hold.protocol == Protocol::Tcp
                && namespaces.contains(&hold.netns.inode)
                && self.binds.get(cookie).is_some()
        };
        let missing = self.holds.open.iter().filter(|(key, open)| is_missing(key, open));
        let (doubtful, gone): (Vec<_>, Vec<_>) = missing
            .map(|(key, open)| (may_be_bound(key, &open.hold), key.clone()))
            .partition(|(may_be_bound, _)| *may_be_bound);
        let unconfirmed = self.holds.open.values().any(|open| open.unconfirmed);
        self.holds.wants_everything = unconfirmed || !doubtful.is_empty();
        for (_, key) in gone {
            let Some(open) = self.holds.open.get(&key) else { continue };
            let netns_gone = !namespaces.contains(&open.hold.netns.inode);
            // Whoever bound it may have left it to another long ago.
            let last = open.last.or(open.hold.holder.as_ref().map(|holder| holder.pid));
            let ended = last.and_then(|pid| self.ends.of(pid)).cloned();
            let lives = last.is_some_and(|pid| self.processes.start(pid).is_some());
            let until = ended.as_ref().map_or(findings.taken_at, |ended| ended.at);
            self.finish_hold(&key, until, ended, if lives { Last::Alive } else { Last::Nobody }, netns_gone);
        }
    }

    /// What was killed, and by the OOM killer, as its counters show.
    fn count_kills(&mut self, findings: &Findings) {
        for (hold, key, job) in self.holds.doubtful.counted(&findings.oom_kills) {
            let end = hold.end.unwrap_or(End::Unknown);
            if hold.is_lost() {
                self.counters.lost_listener(end);
            }
            if end == End::OomKilled {
                self.holds.amend_loss(&hold);
                self.holds.ended.push((hold, key, job));
            }
        }
    }

    /// The control groups whose kills are to be counted.
    pub(in crate::engine) fn oom_in(&self) -> Vec<String> {
        self.holds.doubtful.wanted(self.holds.open.values().map(|open| &open.hold))
    }

    /// Rules of NAT hold ports as sockets do.
    fn follow_rules(&mut self, now: Timestamp) {
        let mut there = HashSet::new();
        let mut begun = Vec::new();
        // What is there at the first look is of unknown age.
        let first = !std::mem::replace(&mut self.holds.followed, true);
        for (netns, claim) in self.nat.claims(|_| true) {
            let key = HoldKey::Rule(format!(
                "{}/{}/{}/{}/{}/{}/{}",
                netns.inode,
                claim.protocol.as_str(),
                claim.address,
                claim.ports.start(),
                claim.nat.chain,
                claim.nat.destination(),
                claim.nat.comment.as_deref().unwrap_or_default(),
            ));
            if there.insert(key.clone()) && !self.holds.open.contains_key(&key) {
                begun.push((key, self.rule(netns, claim, now, first)));
            }
        }
        let gone: Vec<HoldKey> = self
            .holds
            .open
            .keys()
            .filter(|key| matches!(key, HoldKey::Rule(_)) && !there.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.holds.finish(&key, now, (End::Closed, None));
        }
        for (key, hold) in begun {
            self.holds.begin(key, hold, None, false);
        }
    }

    fn rule(&self, netns: NetnsKey, claim: &NatClaim, now: Timestamp, first: bool) -> Hold {
        let place = (claim.protocol, claim.address, *claim.ports.start());
        let mut hold = new(ClaimKind::NatRule, place, self.ports.netns(netns), (now, !first));
        hold.nat = Some(Box::new(claim.nat.clone()));
        hold
    }

    /// The first look is done: what was kept and is not there has ended while no agent watched.
    fn end_kept(&mut self) {
        let until = self.holds.kept_until;
        for (key, KeptHold { mut hold, job, .. }) in std::mem::take(&mut self.holds.kept) {
            hold.until = Some(until.max(hold.from));
            hold.end = Some(End::AgentRestart);
            self.holds.ended.push((hold, key, job));
        }
    }
}
