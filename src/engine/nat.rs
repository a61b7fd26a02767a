//! Claims of NAT rules, by namespace. They are judged anew only where the rules or the addresses have changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::judge::nat::{self, Claims};
use crate::kernel::look::{Findings, NatFound};
use crate::model::nat::NatClaim;
use crate::model::netns::NetnsKey;
use crate::model::socket::Protocol;

/// The rules of all namespaces that have any.
#[derive(Debug, Default)]
pub(super) struct NatTable(BTreeMap<NetnsKey, Rules>);

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
        for (key, found) in
            findings.namespaces.iter().filter_map(|netns| Some((netns.key, netns.nat.as_ref()?)))
        {
            match self.0.get_mut(&key) {
                Some(rules) if rules.seen_at > at => {}
                Some(rules) if is_same(&rules.found, found) => rules.seen_at = at,
                _ if found.tables.is_empty() => {
                    self.0.remove(&key);
                }
                _ => {
                    let claims = nat::claims(&found.tables, found.addresses.as_deref());
                    self.0.insert(key, Rules { found: found.clone(), claims, seen_at: at });
                }
            }
        }
        if findings.all_netns {
            let seen: HashSet<NetnsKey> = findings.namespaces.iter().map(|found| found.key).collect();
            self.0.retain(|key, rules| seen.contains(key) || rules.seen_at > at);
        }
    }

    /// The claims in these namespaces.
    pub(super) fn claims(
        &self,
        mut wanted: impl FnMut(NetnsKey) -> bool,
    ) -> impl Iterator<Item = (NetnsKey, &NatClaim)> {
        let wanted = self.0.iter().filter(move |(key, _)| wanted(**key));
        wanted.flat_map(|(key, rules)| rules.claims.claims.iter().map(|claim| (*key, claim)))
    }

    /// Namespaces whose rules could not all be followed.
    pub(super) fn cut_short(&self) -> impl Iterator<Item = NetnsKey> {
        self.0.iter().filter(|(_, rules)| rules.claims.cut_short).map(|(key, _)| *key)
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
