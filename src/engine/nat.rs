//! Claims of NAT rules, by namespace. They are judged anew only where the rules or the addresses have changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::judge::nat::{self, Claims};
use crate::kernel::look::{Findings, NatFound};
use crate::model::nat::NatClaim;
use crate::model::netns::NetnsKey;
use crate::model::socket::Protocol;

/// Claims of all namespaces but the agent's own that are kept; those of one more are told of as not known. A job may make namespaces
/// without end.
const CLAIMS_ELSEWHERE: usize = 100_000;

/// The rules of all namespaces that have any.
#[derive(Debug, Default)]
pub(super) struct NatTable {
    rules: BTreeMap<NetnsKey, Rules>,
    /// The agent's own namespace, once a look at all has named it.
    own: Option<NetnsKey>,
}

#[derive(Debug)]
struct Rules {
    found: NatFound,
    claims: Claims,
    /// The newest look that saw them: an older one says nothing against it.
    seen_at: Timestamp,
}

impl NatTable {
    /// Takes over what a look saw.
    pub(super) fn apply(&mut self, findings: &Findings) {
        let at = findings.taken_at;
        if findings.all_netns {
            self.own = findings.namespaces.first().map(|own| own.key);
        }
        for (key, found) in
            findings.namespaces.iter().filter_map(|netns| Some((netns.key, netns.nat.as_ref()?)))
        {
            match self.rules.get_mut(&key) {
                Some(rules) if rules.seen_at > at => {}
                Some(rules) if is_same(&rules.found, found) => rules.seen_at = at,
                _ if found.tables.is_empty() => {
                    self.rules.remove(&key);
                }
                _ => {
                    let mut claims = nat::claims(&found.tables, found.addresses.as_deref());
                    if self.own != Some(key) && self.elsewhere(key) + claims.claims.len() > CLAIMS_ELSEWHERE {
                        claims = Claims { claims: Vec::new(), cut_short: true };
                    }
                    self.rules.insert(key, Rules { found: found.clone(), claims, seen_at: at });
                }
            }
        }
        if findings.all_netns {
            let seen: HashSet<NetnsKey> = findings.namespaces.iter().map(|found| found.key).collect();
            self.rules.retain(|key, rules| seen.contains(key) || rules.seen_at > at);
        }
    }

    /// How many claims there are in other namespaces than this one and the agent's own.
    fn elsewhere(&self, key: NetnsKey) -> usize {
        let others = self.rules.iter().filter(|(other, _)| **other != key && Some(**other) != self.own);
        others.map(|(_, rules)| rules.claims.claims.len()).sum()
    }

    /// The claims in these namespaces.
    pub(super) fn claims(
        &self,
        mut wanted: impl FnMut(NetnsKey) -> bool,
    ) -> impl Iterator<Item = (NetnsKey, &NatClaim)> {
        let wanted = self.rules.iter().filter(move |(key, _)| wanted(**key));
        wanted.flat_map(|(key, rules)| rules.claims.claims.iter().map(|claim| (*key, claim)))
    }

    /// Namespaces whose rules could not all be followed.
    pub(super) fn cut_short(&self) -> impl Iterator<Item = NetnsKey> {
        self.rules.iter().filter(|(_, rules)| rules.claims.cut_short).map(|(key, _)| *key)
    }

    /// How many claims there are.
    pub(super) fn counts(&self) -> HashMap<Protocol, usize> {
        let mut counts = HashMap::new();
        for (_, claim) in self.claims(|_| true) {
            *counts.entry(claim.protocol).or_insert(0) += 1;
        }
        counts
    }
}

fn is_same(one: &NatFound, other: &NatFound) -> bool {
    Arc::ptr_eq(&one.tables, &other.tables) && one.addresses == other.addresses
}

#[cfg(test)]
mod tests {
    use super::super::ports::fixtures;
    use super::*;
    use crate::kernel::look::NetnsFound;
    use crate::model::nat::{Backend, Chain, Destination, Hook, Rule, Table, Then, Traffic};

    /// A namespace with a rule that takes so many ports, none beside another, for TCP and UDP.
    fn netns(inode: u64, ports: u32) -> NetnsFound {
        let odd = (0..ports).map(|n| u128::from(2 * n + 1)..=u128::from(2 * n + 1)).collect();
        let then = Then::Send(Destination { address: None, port: Some(1) });
        let rule = Rule { traffic: vec![Traffic { ports: odd, ..Traffic::all() }], comment: None, then };
        let chain = Chain { name: "c".to_owned(), hook: Some(Hook::Prerouting), rules: vec![rule] };
        let table = Table { backend: Backend::Nftables, name: "t".to_owned(), chains: vec![chain] };
        let nat = Some(NatFound { tables: Arc::new(vec![table]), addresses: None });
        let first = fixtures::findings(1, None).namespaces.remove(0);
        NetnsFound { key: NetnsKey { inode, ..first.key }, nat, ..first }
    }

    #[test]
    fn namespaces_full_of_claims_are_told_of_and_leave_the_agents_own_as_it_is() {
        let mut table = NatTable::default();
        let namespaces = vec![netns(1, 30_000), netns(2, 30_000), netns(3, 30_000), netns(4, 10)];
        table.apply(&Findings { namespaces, ..fixtures::findings(1, None) });
        let counts =
            |table: &NatTable| [1, 2, 3, 4].map(|inode| table.claims(|netns| netns.inode == inode).count());
        assert_eq!(counts(&table), [60_000, 60_000, 0, 20]);
        assert_eq!(table.cut_short().map(|netns| netns.inode).collect::<Vec<_>>(), [3]);
        // Where others have let go of theirs there is room again.
        let namespaces = vec![netns(1, 30_001), netns(2, 0), netns(3, 29_999), netns(4, 10)];
        table.apply(&Findings { namespaces, ..fixtures::findings(2, None) });
        assert_eq!(counts(&table), [60_002, 0, 59_998, 20]);
    }
}
