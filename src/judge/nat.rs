//! Which ports of this host rules take, by following them from where packets come in.
//!
//! A packet goes through the chains in order, and the first rule that sends it elsewhere, or ends its way, has it. So the traffic is
//! narrowed on the way down, what was decided for all of it is left out after, and what remains at a rule that sends is a claim.
//! Where something is not understood the claim is still made: a port that may be taken is not called free.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::model::claim::{Nat, NatTarget};
use crate::model::nat::{Chain, Destination, Hook, NatClaim, Share, Table, Then, Traffic, four, number, six};
use crate::model::ranges::RangeSet;
use crate::model::socket::Protocol;

/// As deep as the kernel lets chains go (`NFT_JUMP_STACK_SIZE` of net/netfilter/nf_tables.h).
const DEEPEST: usize = 16;
/// More steps than any real set of rules takes: jumps fan out.
const STEPS: usize = 2_000_000;
/// Half of all addresses: what takes so many is shown as taking all, but those that it leaves out.
const WIDE_FOUR: u128 = 1 << 31;
const WIDE_SIX: u128 = 1 << 127;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Claims, in order of port.
    pub claims: Vec<NatClaim>,
    /// Whether not all rules could be followed.
    pub cut_short: bool,
}

/// The claims of all tables. `local`: addresses of the namespace, where they are known; what is sent to others is no claim here.
pub fn claims(tables: &[Table], local: Option<&[IpAddr]>) -> Claims {
    let local = Local::new(local);
    let mut found: Vec<Found> = Vec::new();
    let mut cut_short = false;
    for table in tables {
        let mut walk = Walk {
            chains: table.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect(),
            local: &local,
            decided: Decided::default(),
            left: STEPS,
            depth: 0,
            cut_short: false,
            found: Vec::new(),
            backend: table.backend.as_str(),
            table: &table.name,
        };
        for (hook, chain) in table.chains.iter().filter_map(|chain| Some((chain.hook?, chain))) {
            walk.decided = Decided::default();
            walk.depth = 0;
            walk.chain(chain, &Traffic::all(), &Path { hook, narrowing: None });
        }
        cut_short |= walk.cut_short;
        found.extend(walk.found);
    }
    Claims { claims: merge(found, &local), cut_short }
}

/// The addresses of a namespace, as numbers.
struct Local {
    addresses: Option<Vec<IpAddr>>,
    four: RangeSet,
    six: RangeSet,
}

impl Local {
    fn new(addresses: Option<&[IpAddr]>) -> Self {
        let Some(addresses) = addresses else {
            return Local { addresses: None, four: RangeSet::all(), six: RangeSet::all() };
        };
        let loopback =
            number(Ipv4Addr::new(127, 0, 0, 0).into())..=number(Ipv4Addr::new(127, 255, 255, 255).into());
        let of = |is_four: bool| {
            let own = addresses.iter().filter(move |address| address.is_ipv4() == is_four);
            own.map(|address| number(*address)..=number(*address))
        };
        Local {
            four: of(true).chain([loopback]).collect(),
            six: of(false)
                .chain([number(Ipv6Addr::LOCALHOST.into())..=number(Ipv6Addr::LOCALHOST.into())])
                .collect(),
            addresses: Some(addresses.to_vec()),
        }
    }
}

/// Traffic that is decided about, with all its ports at hand: most rules are about a port of their own.
#[derive(Default)]
struct Decided {
    ports: RangeSet,
    all: Vec<Traffic>,
}

impl Decided {
    fn push(&mut self, traffic: Traffic) {
        self.ports.add(&traffic.ports);
        self.all.push(traffic);
    }

    /// Leaves the ports that are not decided about.
    fn take_from(&self, left: &mut Traffic) {
        if !self.ports.meets(&left.ports) {
            return;
        }
        for done in &self.all {
            if done.ports.meets(&left.ports) && done.protocols.covers(&left.protocols) && covers(done, left) {
                left.ports = left.ports.without(&done.ports);
            }
        }
    }
}

/// A rule on the way that says which port it is about: it names the claim.
#[derive(Clone, Copy)]
struct Narrowing<'a> {
    chain: &'a str,
    comment: Option<&'a str>,
    by_port: bool,
}

#[derive(Clone, Copy)]
struct Path<'a> {
    hook: Hook,
    narrowing: Option<Narrowing<'a>>,
}

struct Walk<'a> {
    backend: &'static str,
    table: &'a str,
    chains: HashMap<&'a str, &'a Chain>,
    local: &'a Local,
    /// Traffic that no later rule of this hook sees.
    decided: Decided,
    left: usize,
    depth: usize,
    cut_short: bool,
    found: Vec<Found>,
}

/// Traffic that a rule sends elsewhere.
struct Found {
    traffic: Traffic,
    hook: Hook,
    backend: &'static str,
    table: String,
    chain: String,
    comment: Option<String>,
    to: Destination,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &'a Chain, traffic: &Traffic, path: &Path<'a>) {
        if self.depth == DEEPEST {
            self.cut_short = true;
            return;
        }
        self.depth += 1;
        // What returns from here goes on in the chain that jumped here.
        let mut returned = Decided::default();
        'rules: for rule in &chain.rules {
            for branch in &rule.traffic {
                if self.left == 0 {
                    self.cut_short = true;
                    break 'rules;
                }
                self.left -= 1;
                if !branch.ports.meets(&traffic.ports) {
                    continue;
                }
                let Some(seen) = self.seen(&traffic.and(branch), &returned) else { continue };
                let mut path = *path;
                let by_port = !branch.ports.is_all();
                // The first rule about the port names the service; those below it name its parts.
                if path
                    .narrowing
                    .is_none_or(|before| by_port && !(before.by_port && before.comment.is_some()))
                {
                    let comment = rule.comment.as_deref();
                    path.narrowing = Some(Narrowing { chain: &chain.name, comment, by_port });
                }
                let whole = self.follow(&rule.then, &seen, &path, rule.comment.as_deref(), &chain.name);
                match (&rule.then, whole && seen.share == Share::All) {
                    (Then::Return | Then::Goto(_), true) => returned.push(seen),
                    (Then::End | Then::Send(_), true) => self.decided.push(seen),
                    _ => {}
                }
            }
        }
        self.depth -= 1;
    }

    /// What a rule sees of traffic that is to be sent to this host.
    fn seen(&self, traffic: &Traffic, returned: &Decided) -> Option<Traffic> {
        if !traffic.four.meets(&self.local.four) && !traffic.six.meets(&self.local.six) {
            return None;
        }
        let mut left = traffic.clone();
        self.decided.take_from(&mut left);
        returned.take_from(&mut left);
        (!left.is_none()).then_some(left)
    }

    /// Goes where a rule leads. Answers whether the chain is done with that traffic.
    fn follow(
        &mut self,
        then: &Then,
        seen: &Traffic,
        path: &Path<'a>,
        comment: Option<&str>,
        chain: &str,
    ) -> bool {
        match then {
            Then::Jump(name) | Then::Goto(name) => {
                match self.chains.get(name.as_str()).copied() {
                    Some(next) => self.chain(next, seen, path),
                    // Read while it was changed, or a damaged table.
                    None => self.cut_short = true,
                }
                matches!(then, Then::Goto(_))
            }
            Then::Return | Then::End => true,
            Then::Send(to) => {
                let named = path.narrowing.and_then(|narrowing| narrowing.comment).or(comment);
                self.found.push(Found {
                    traffic: seen.clone(),
                    hook: path.hook,
                    backend: self.backend,
                    table: self.table.to_owned(),
                    chain: path.narrowing.map_or(chain, |narrowing| narrowing.chain).to_owned(),
                    comment: named.map(str::to_owned),
                    to: *to,
                });
                true
            }
        }
    }
}

/// Whether all addresses of the other are in the first.
fn covers(one: &Traffic, other: &Traffic) -> bool {
    one.four.covers(&other.four) && one.six.covers(&other.six)
}

/// What makes two claims the same: a service has several servers, and a rule may stand in two hooks. In the order of answers.
type Key = (u16, u16, Protocol, Place, &'static str, Option<String>);

/// An address, and whether it leaves out IPv4.
type Place = (IpAddr, Option<bool>);

impl Local {
    /// Whether a rule for these addresses is for all that packets are sent to here; a claim is shown with a wildcard for most.
    fn is_within(&self, traffic: &Traffic) -> bool {
        let within = |own: &RangeSet, set: &RangeSet, wide: u128| !is_wide(set, wide) || set.covers(own);
        within(&self.four, &traffic.four, WIDE_FOUR) && within(&self.six, &traffic.six, WIDE_SIX)
    }
}

fn is_wide(set: &RangeSet, wide: u128) -> bool {
    set.ranges().fold(0u128, |size, range| size.saturating_add(range.end() - range.start())) >= wide
}

fn merge(found: Vec<Found>, local: &Local) -> Vec<NatClaim> {
    let mut claims: BTreeMap<Key, NatClaim> = BTreeMap::new();
    for mut found in found {
        if !local.is_within(&found.traffic) {
            found.traffic.share = Share::Some;
        }
        let takes = |protocol: &Protocol| found.traffic.protocols.contains(protocol.number().into());
        let protocols: Vec<Protocol> = Protocol::ALL.into_iter().filter(takes).collect();
        for place in places_of(&found.traffic, local) {
            for ports in found.traffic.ports.ranges().filter_map(|range| ports(&range)) {
                for protocol in &protocols {
                    let key = (
                        *ports.start(),
                        *ports.end(),
                        *protocol,
                        place,
                        found.backend,
                        found.comment.clone(),
                    );
                    claims
                        .entry(key)
                        .and_modify(|claim| found.join(&mut claim.nat))
                        .or_insert_with(|| found.claim(*protocol, place, ports.clone()));
                }
            }
        }
    }
    claims.into_values().collect()
}

impl Found {
    fn claim(&self, protocol: Protocol, (address, v6only): Place, ports: RangeInclusive<u16>) -> NatClaim {
        let nat = Nat {
            backend: self.backend.to_owned(),
            table: self.table.clone(),
            chain: self.chain.clone(),
            to_address: self.to.address,
            to_port: self.to.port,
            comment: self.comment.clone(),
            last_port: (ports.start() != ports.end()).then_some(*ports.end()),
            conditional: self.traffic.share == Share::Some,
            local_only: self.hook == Hook::Output,
            others: Vec::new(),
        };
        NatClaim { protocol, address, v6only, ports, nat }
    }

    /// Makes a claim this one's too.
    fn join(&self, nat: &mut Nat) {
        nat.conditional &= self.traffic.share == Share::Some;
        nat.local_only &= self.hook == Hook::Output;
        let to = NatTarget { address: self.to.address, port: self.to.port };
        let first = NatTarget { address: nat.to_address, port: nat.to_port };
        if to != first && !nat.others.contains(&to) {
            nat.others.push(to);
        }
    }
}

fn ports(range: &RangeInclusive<u128>) -> Option<RangeInclusive<u16>> {
    let first = u16::try_from(*range.start()).ok()?;
    Some(first..=u16::try_from(*range.end()).unwrap_or(u16::MAX))
}

/// The addresses that a claim is shown with: a wildcard, or each of this host's that are in it.
fn places_of(traffic: &Traffic, local: &Local) -> Vec<Place> {
    let narrow = |set: &RangeSet, is_four: bool| -> Vec<Place> {
        let own = set.ranges().flat_map(|range| own(&range, local, is_four));
        own.map(|address| (address, (!is_four).then_some(true))).collect()
    };
    let (any_four, any_six) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    match (is_wide(&traffic.four, WIDE_FOUR), is_wide(&traffic.six, WIDE_SIX)) {
        (true, true) => vec![(any_six, Some(false))],
        (true, false) => [vec![(any_four, None)], narrow(&traffic.six, false)].concat(),
        (false, true) => [narrow(&traffic.four, true), vec![(any_six, Some(true))]].concat(),
        (false, false) => [narrow(&traffic.four, true), narrow(&traffic.six, false)].concat(),
    }
}

/// The addresses of this host in a range; where they are not known, or it is of the loopback's network, the range's first.
fn own(range: &RangeInclusive<u128>, local: &Local, is_four: bool) -> Vec<IpAddr> {
    let first = if is_four { four(*range.start()) } else { Some(six(*range.start())) };
    let Some(addresses) = &local.addresses else { return first.into_iter().collect() };
    let own: Vec<IpAddr> = addresses
        .iter()
        .filter(|address| address.is_ipv4() == is_four && range.contains(&number(**address)))
        .copied()
        .collect();
    if own.is_empty() { first.filter(IpAddr::is_loopback).into_iter().collect() } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::nat::{Backend, Rule};

    fn tcp(ports: RangeInclusive<u16>) -> Traffic {
        Traffic {
            protocols: RangeSet::one(6u8),
            ports: RangeSet::range((*ports.start()).into()..=(*ports.end()).into()),
            ..Traffic::all()
        }
    }

    fn to(last: u8) -> Then {
        Then::Send(Destination { address: Some([10, 0, 0, last].into()), port: Some(80) })
    }

    fn rule(traffic: Traffic, then: Then) -> Rule {
        Rule { traffic: vec![traffic], comment: None, then }
    }

    fn said(rule: Rule, comment: &str) -> Rule {
        Rule { comment: Some(comment.to_owned()), ..rule }
    }

    fn chain(name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
        Chain { name: name.to_owned(), hook, rules }
    }

    fn table(chains: Vec<Chain>) -> Vec<Table> {
        vec![Table { backend: Backend::Nftables, name: "nat".to_owned(), chains }]
    }

    const HERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::LOCALHOST)];

    /// `8080-8090 → 10.0.0.1`, for each claim.
    fn found(rules: Vec<Rule>) -> Vec<(u16, u16, String)> {
        let tables = table(vec![chain("PREROUTING", Some(Hook::Prerouting), rules)]);
        let Claims { claims, cut_short } = claims(&tables, Some(&HERE));
        assert!(!cut_short);
        let shown = |claim: &NatClaim| (*claim.ports.start(), *claim.ports.end(), claim.nat.destination());
        claims.iter().map(shown).collect()
    }

    #[test]
    fn the_first_rule_that_sends_a_packet_has_it() {
        let rules = vec![
            rule(tcp(8080..=8080), to(1)),
            rule(tcp(8085..=8085), Then::End),
            rule(tcp(8079..=8090), to(2)),
            rule(tcp(8088..=8088), to(3)),
        ];
        let expected = [(8079, 8079, 2), (8080, 8080, 1), (8081, 8084, 2), (8086, 8090, 2)];
        let expected = expected.map(|(first, last, to)| (first, last, format!("10.0.0.{to}:80")));
        assert_eq!(found(rules), expected);
    }

    #[test]
    fn what_only_some_of_the_traffic_meets_hides_nothing() {
        let some = Traffic { share: Share::Some, ..tcp(80..=80) };
        let ports: Vec<(u16, String)> =
            found(vec![rule(some.clone(), Then::End), rule(some, to(1)), rule(tcp(80..=80), to(2))])
                .into_iter()
                .map(|(first, _, to)| (first, to))
                .collect();
        assert_eq!(ports, [(80, "10.0.0.1:80 and 1 more".to_owned())]);
    }

    #[test]
    fn traffic_to_other_hosts_is_no_claim_on_this_one() {
        let at = |address: [u8; 4]| Traffic {
            four: RangeSet::one(u32::from_be_bytes(address)),
            six: RangeSet::none(),
            ..tcp(443..=443)
        };
        assert_eq!(found(vec![rule(at([10, 96, 0, 1]), to(1))]), []);
        assert_eq!(found(vec![rule(at([192, 0, 2, 1]), to(1))]).len(), 1);
        let tables = table(vec![chain("p", Some(Hook::Prerouting), vec![rule(at([10, 96, 0, 1]), to(1))])]);
        assert_eq!(claims(&tables, None).claims.len(), 1, "whose address it is nobody knows");
    }

    #[test]
    fn a_service_is_one_claim_with_its_name_and_its_servers() {
        let chance = Traffic { share: Share::ByChance, ..Traffic::all() };
        let tables = table(vec![
            chain(
                "PREROUTING",
                Some(Hook::Prerouting),
                vec![rule(Traffic::all(), Then::Jump("KUBE-NODEPORTS".into()))],
            ),
            chain(
                "OUTPUT",
                Some(Hook::Output),
                vec![rule(Traffic::all(), Then::Jump("KUBE-NODEPORTS".into()))],
            ),
            chain(
                "KUBE-NODEPORTS",
                None,
                vec![said(rule(tcp(30080..=30080), Then::Jump("KUBE-SVC-1".into())), "default/web:http")],
            ),
            chain(
                "KUBE-SVC-1",
                None,
                vec![
                    said(rule(chance, Then::Jump("KUBE-SEP-1".into())), "-> one"),
                    rule(Traffic::all(), Then::Jump("KUBE-SEP-2".into())),
                ],
            ),
            chain("KUBE-SEP-1", None, vec![rule(tcp(0..=u16::MAX), to(1))]),
            chain("KUBE-SEP-2", None, vec![rule(tcp(0..=u16::MAX), to(2))]),
        ]);
        let claims = claims(&tables, Some(&HERE)).claims;
        let [claim] = claims.as_slice() else { panic!("{claims:?}") };
        assert_eq!(claim.nat.comment.as_deref(), Some("default/web:http"));
        assert_eq!((claim.nat.others.len(), claim.nat.conditional, claim.nat.local_only), (1, false, false));
    }

    #[test]
    fn a_chain_that_returns_goes_on_where_it_was_called() {
        let tables = table(vec![
            chain(
                "PREROUTING",
                Some(Hook::Prerouting),
                vec![rule(Traffic::all(), Then::Jump("users".into())), rule(tcp(1..=3), to(9))],
            ),
            chain("users", None, vec![rule(tcp(2..=2), Then::Return), rule(tcp(1..=2), to(1))]),
        ]);
        let found: Vec<_> = claims(&tables, Some(&HERE))
            .claims
            .into_iter()
            .map(|claim| (claim.ports, claim.nat.destination()))
            .collect();
        assert_eq!(found, [(1..=1, "10.0.0.1:80".to_owned()), (2..=3, "10.0.0.9:80".to_owned())]);
    }

    #[test]
    fn chains_that_lead_nowhere_or_in_circles_end_and_are_said() {
        let round = table(vec![
            chain("a", Some(Hook::Prerouting), vec![rule(Traffic::all(), Then::Jump("b".into())); 3]),
            chain("b", None, vec![rule(Traffic::all(), Then::Goto("a".into())), rule(tcp(1..=1), to(1))]),
        ]);
        assert!(claims(&round, Some(&HERE)).cut_short);
        let lost = table(vec![chain(
            "a",
            Some(Hook::Prerouting),
            vec![rule(Traffic::all(), Then::Jump("x".into()))],
        )]);
        assert!(claims(&lost, Some(&HERE)).cut_short);
    }
}
