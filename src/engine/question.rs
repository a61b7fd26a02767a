//! Questions, and the look that each needs: what to ask the kernel for, where, and whom to suspect first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;

use super::Engine;
use super::ports::Entry;
use crate::judge::leak::Watching;
use crate::kernel::descriptors::Descriptor;
use crate::kernel::look::{Candidates, Describe, Everywhere, Plan, Search, WhenFree};
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::model::answer::Query;
use crate::model::claim::Verdict;
use crate::model::nat::NatClaim;
use crate::model::netns::NetnsSelector;
use crate::model::socket::{Socket, SocketKey};
use crate::model::target::Target;

/// A question that is answered from a look of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub topic: Topic,
    /// Only this namespace.
    pub netns: Option<NetnsSelector>,
}

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// `who-holds TARGET`.
    Target(Target),
    /// `list`.
    All,
    /// `leaks`.
    Leaks,
    /// `can-bind`: whatever is on these ports, and what else a bind depends on.
    Bind {
        /// The ports.
        target: Target,
        /// Whether the bind would share its port with others that let it.
        shares: bool,
    },
}

impl Question {
    pub(super) fn target(&self) -> Option<&Target> {
        match &self.topic {
            Topic::Target(target) | Topic::Bind { target, .. } => Some(target),
            Topic::All | Topic::Leaks => None,
        }
    }

    /// Whether a socket belongs into the answer. A bind may be refused for sockets of other addresses too.
    pub(super) fn concerns(&self, socket: &Socket) -> bool {
        match &self.topic {
            Topic::Target(target) => target.matches(socket),
            Topic::Bind { target, .. } => Target { address: None, ..target.clone() }.matches(socket),
            Topic::All | Topic::Leaks => true,
        }
    }

    /// Whether a claim of a rule belongs into the answer.
    pub(super) fn concerns_nat(&self, claim: &NatClaim) -> bool {
        let meets = |target: &Target| target.meets(claim.protocol, claim.address, claim.v6only, &claim.ports);
        match &self.topic {
            Topic::Target(target) | Topic::Bind { target, .. } => meets(target),
            Topic::All => true,
            Topic::Leaks => false,
        }
    }

    pub(super) fn query(&self) -> Query {
        Query::new(self.target(), self.netns.as_ref())
    }
}

fn on_port(entry: &Entry, ports: Option<&RangeInclusive<u16>>) -> bool {
    ports.is_none_or(|ports| ports.contains(&entry.socket.port))
}

impl Engine {
    /// The look that keeps the table right, to be taken at every interval.
    pub fn plan(&mut self, depth: Depth, everywhere: Everywhere, threads: usize) -> Plan {
        let first = self.processes.take_recent();
        // Reading everywhere also finds who was handed a socket that seemed settled.
        // Whoever holds a port is described once, for the history; that needs to be read again.
        let undescribed = self.undescribed_holds();
        let is_settled = |entry: &Entry| entry.settled && !undescribed.contains(&entry.socket.key);
        let known = |entry: &&Entry| is_settled(entry) && everywhere != Everywhere::Always;
        let settled = self.ports.entries().filter(known).map(|entry| entry.socket.key).collect();
        let search = Search {
            settled,
            candidates: self.candidates(|entry| !is_settled(entry)),
            first,
            everywhere,
            when_free: WhenFree::Say,
            connections: false,
            threads,
        };
        let describe = Describe::Only(undescribed);
        let inhabitants = Some(self.processes.inhabitants());
        let oom_in = self.oom_in();
        Plan {
            inhabitants,
            oom_in,
            ..self.plan_with(DiagQuery { ports: None, depth }, None, search, describe)
        }
    }

    /// The look that answers a question. The daemon knows whom to ask; a one-shot verb reads every process.
    /// `thorough` says that the daemon may read every process too, where the port seems free.
    pub fn plan_question(&self, question: &Question, thorough: bool) -> Plan {
        let ports = question.target().map(|target| target.ports.clone());
        let search = match self.watching {
            Watching::Once => Search::unprepared(),
            Watching::Continuously => Search {
                settled: self.known_orphans(question),
                candidates: self.candidates(|entry| on_port(entry, ports.as_ref())),
                first: self.likely_holders(ports.as_ref()),
                // Only that walk tells of all sockets whether they share.
                everywhere: match question.topic {
                    Topic::Bind { shares: true, .. } => Everywhere::Always,
                    _ => Everywhere::WhenNeeded,
                },
                when_free: if thorough { WhenFree::Search } else { WhenFree::Say },
                ..Search::unprepared()
            },
        };
        let describe = match question.topic {
            Topic::Leaks => {
                let suspect =
                    |entry: &&Entry| matches!(entry.verdict, Some(Verdict::Leaked | Verdict::Grace));
                Describe::Only(self.ports.entries().filter(suspect).map(|entry| entry.socket.key).collect())
            }
            Topic::Target(_) | Topic::All | Topic::Bind { .. } => Describe::Everybody,
        };
        let query = DiagQuery { ports, depth: Depth::Everything };
        let plan = self.plan_with(query, question.netns.clone(), search, describe);
        Plan {
            target: question.target().cloned(),
            for_bind: matches!(question.topic, Topic::Bind { .. }),
            owners: true,
            ..plan
        }
    }

    fn plan_with(
        &self,
        query: DiagQuery,
        only: Option<NetnsSelector>,
        search: Search,
        describe: Describe,
    ) -> Plan {
        Plan {
            only,
            netns_descriptors: self.netns_descriptors.clone(),
            netns_mounts: self.netns_mounts.clone(),
            describe,
            nat: self.policy.nat,
            ..Plan::new(query, search)
        }
    }

    /// Who had each socket open, and whoever descends from them.
    fn candidates(&self, wanted: impl Fn(&Entry) -> bool) -> HashMap<SocketKey, Candidates> {
        self.ports
            .entries()
            .filter(|entry| !entry.holders.is_empty() && wanted(entry))
            .map(|entry| {
                let heirs = entry.holders.iter().flat_map(|held| {
                    let descendants = self.processes.descendants(held.pid);
                    descendants.into_iter().map(|pid| Descriptor { pid, fd: held.fd })
                });
                let holding: HashSet<u32> = entry.holders.iter().map(|held| held.pid).collect();
                let heirs: BTreeSet<Descriptor> = heirs.filter(|heir| !holding.contains(&heir.pid)).collect();
                let candidates =
                    Candidates { holders: entry.holders.clone(), heirs: heirs.into_iter().collect() };
                (entry.socket.key, candidates)
            })
            .collect()
    }

    /// For `list`: sockets that no process had open when all were read. Whoever asks for one port waits for another reading.
    fn known_orphans(&self, question: &Question) -> HashSet<SocketKey> {
        match question.topic {
            Topic::Target(_) | Topic::Bind { .. } => HashSet::new(),
            Topic::All | Topic::Leaks => {
                let keys = self.ports.entries().map(|entry| entry.socket.key);
                keys.filter(|key| self.ports.is_known_orphan(key)).collect()
            }
        }
    }

    /// The processes that have something else open on these ports (the listener of a connection), and the newest ones.
    fn likely_holders(&self, ports: Option<&RangeInclusive<u16>>) -> Vec<u32> {
        let of_interest = self.ports.entries().filter(|entry| on_port(entry, ports));
        let holding = of_interest.flat_map(|entry| &entry.holders).map(|held| held.pid);
        holding.chain(self.processes.recent()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}
