//! Which ports of this host rules take, by following them from where packets come in.
//!
//! A packet goes through the chains in order, and the first rule that sends it elsewhere, or ends its way, has it. So the traffic is
//! narrowed on the way down, what was decided for all of it is left out after, and what remains at a rule that sends is a claim.
//! Where something is not understood the claim is still made: a port that may be taken is not called free.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::model::claim::{Nat, NatTarget};
use crate::model::nat::{Chain, Destination, Hook, NatClaim, Share, Table, Then, Traffic, four, number, six};
use crate::model::ranges::RangeSet;
use crate::model::socket::Protocol;

/// As deep as the kernel lets chains go (`NFT_JUMP_STACK_SIZE` of net/netfilter/nf_tables.h).
const DEEPEST: usize = 16;
/// More work than any real rules of a namespace take, in looks at traffic that is decided about: jumps fan out, and whoever has a
/// namespace of his own writes rules into it as he likes. A fraction of a second.
const WORK: usize = 2_000_000;
/// So many ranges in a rule's sets are as much work as a step.
const RANGES_A_STEP: usize = 8;
/// More claims of a namespace are not told one by one: there are 65,535 ports.
const CLAIMS: usize = 100_000;
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
    let mut merged = Merged::default();
    let mut left = WORK;
    for table in tables {
        let mut walk = Walk {
            chains: table.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect(),
            local: &local,
            decided: Decided::default(),
            left,
            depth: 0,
            merged: &mut merged,
            backend: table.backend.as_str(),
            table: &table.name,
        };
        for (hook, chain) in table.chains.iter().filter_map(|chain| Some((chain.hook?, chain))) {
            walk.decided = Decided::default();
            walk.depth = 0;
            walk.chain(chain, &Traffic::all(), &Path { hook, narrowing: None });
        }
        left = walk.left;
    }
    Claims { claims: merged.claims.into_values().collect(), cut_short: merged.cut_short }
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

    /// Leaves the ports that are not decided about. Answers how much work that was.
    fn take_from(&self, left: &mut Traffic) -> usize {
        if !self.ports.meets(&left.ports) {
            return 0;
        }
        for done in &self.all {
            if done.ports.meets(&left.ports) && done.protocols.covers(&left.protocols) && covers(done, left) {
                left.ports = left.ports.without(&done.ports);
            }
        }
        self.all.len()
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
    /// Work that may still be done.
    left: usize,
    depth: usize,
    merged: &'a mut Merged,
}

/// Traffic that a rule sends elsewhere.
struct Found<'a> {
    traffic: Traffic,
    hook: Hook,
    backend: &'static str,
    table: &'a str,
    chain: &'a str,
    comment: Option<&'a str>,
    to: Destination,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &'a Chain, traffic: &Traffic, path: &Path<'a>) {
        if self.depth == DEEPEST {
            self.merged.cut_short = true;
            return;
        }
        self.depth += 1;
        // What returns from here goes on in the chain that jumped here.
        let mut returned = Decided::default();
        'rules: for rule in &chain.rules {
            for branch in &rule.traffic {
                if self.left == 0 {
                    self.merged.cut_short = true;
                    break 'rules;
                }
                self.spend(1 + (branch.size() + traffic.size()) / RANGES_A_STEP);
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
                    // Where nothing is written at it, the chain that it leads to may say what it is for: a map has one for each port.
                    let chain = match &rule.then {
                        Then::Jump(to) | Then::Goto(to) if by_port && comment.is_none() => to,
                        _ => &chain.name,
                    };
                    path.narrowing = Some(Narrowing { chain, comment, by_port });
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
    fn seen(&mut self, traffic: &Traffic, returned: &Decided) -> Option<Traffic> {
        if !traffic.four.meets(&self.local.four) && !traffic.six.meets(&self.local.six) {
            return None;
        }
        let mut left = traffic.clone();
        let work = self.decided.take_from(&mut left) + returned.take_from(&mut left);
        self.spend(work);
        (!left.is_none()).then_some(left)
    }

    fn spend(&mut self, work: usize) {
        self.left = self.left.saturating_sub(work);
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
                    None => self.merged.cut_short = true,
                }
                matches!(then, Then::Goto(_))
            }
            Then::Return | Then::End => true,
            Then::Send(to) => {
                let named = path.narrowing.and_then(|narrowing| narrowing.comment).or(comment);
                let found = Found {
                    traffic: seen.clone(),
                    hook: path.hook,
                    backend: self.backend,
                    table: self.table,
                    chain: path.narrowing.map_or(chain, |narrowing| narrowing.chain),
                    comment: named,
                    to: *to,
                };
                let work = self.merged.add(found, self.local);
                self.spend(work);
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

/// Claims, each once.
#[derive(Default)]
struct Merged {
    claims: BTreeMap<Key, NatClaim>,
    cut_short: bool,
}

impl Merged {
    /// Adds what a rule takes. Answers how much work that was.
    fn add(&mut self, mut found: Found<'_>, local: &Local) -> usize {
        if !local.is_within(&found.traffic) {
            found.traffic.share = Share::Some;
        }
        let takes = |protocol: &Protocol| found.traffic.protocols.contains(protocol.number().into());
        let protocols: Vec<Protocol> = Protocol::ALL.into_iter().filter(takes).collect();
        // Each range of addresses is held against each of this host's.
        let own = local.addresses.as_ref().map_or(1, Vec::len);
        let mut work = found.traffic.size() * own / RANGES_A_STEP;
        for place in places_of(&found.traffic, local) {
            for ports in found.traffic.ports.ranges().filter_map(|range| ports(&range)) {
                for protocol in &protocols {
                    work += 1 + self.add_one(&found, *protocol, place, ports.clone()) / RANGES_A_STEP;
                }
            }
        }
        work
    }

    /// Answers how many other servers it was compared with.
    fn add_one(
        &mut self,
        found: &Found<'_>,
        protocol: Protocol,
        place: Place,
        ports: RangeInclusive<u16>,
    ) -> usize {
        let comment = found.comment.map(str::to_owned);
        let key = (*ports.start(), *ports.end(), protocol, place, found.backend, comment);
        let full = self.claims.len() >= CLAIMS;
        match self.claims.entry(key) {
            Entry::Occupied(mut claim) => {
                found.join(&mut claim.get_mut().nat);
                claim.get().nat.others.len()
            }
            Entry::Vacant(_) if full => {
                self.cut_short = true;
                0
            }
            Entry::Vacant(vacant) => {
                vacant.insert(found.claim(protocol, place, ports));
                0
            }
        }
    }
}

impl Found<'_> {
    fn claim(&self, protocol: Protocol, (address, v6only): Place, ports: RangeInclusive<u16>) -> NatClaim {
        let nat = Nat {
            backend: self.backend.to_owned(),
            table: self.table.to_owned(),
            chain: self.chain.to_owned(),
            to_address: self.to.address,
            to_port: self.to.port,
            comment: self.comment.map(str::to_owned),
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
    fn whoever_writes_rules_without_end_gets_an_answer_in_time_that_says_so() {
        let one = |port: u16, last: u8| rule(tcp(port..=port), to(last));
        // Each rule of a chain goes through all of the next: a thousand to the power of sixteen ways.
        let name = |n: usize| format!("c{n}");
        let deep = (0..DEEPEST).map(|n| {
            let rules = vec![rule(Traffic::all(), Then::Jump(name(n + 1))); 1000];
            chain(&name(n), (n == 0).then_some(Hook::Prerouting), rules)
        });
        let deep = table(deep.chain([chain(&name(DEEPEST), None, vec![one(1, 1)])]).collect());
        // Every rule is held against all before it.
        let some = |n: u32| Traffic { four: RangeSet::one(n), six: RangeSet::none(), ..Traffic::all() };
        let local: Vec<IpAddr> = (0..20_000).map(|n| Ipv4Addr::from(n).into()).collect();
        let rules = (0..20_000).map(|n| rule(some(n), Then::End));
        let broad = table(vec![chain("a", Some(Hook::Prerouting), rules.collect())]);
        // All of 64 K ports at once, apart from each other, for each of many addresses.
        let odd: RangeSet = (0..32_768u32).map(|n| u128::from(2 * n + 1)..=u128::from(2 * n + 1)).collect();
        let ports = Traffic { ports: odd, ..Traffic::all() };
        let rules = (0..100).map(|n| rule(Traffic { four: RangeSet::one(n as u32), ..ports.clone() }, to(n)));
        let many = table(vec![chain("a", Some(Hook::Prerouting), rules.collect())]);
        for (what, tables) in [("deep", &deep), ("broad", &broad), ("many", &many)] {
            let Claims { claims, cut_short } = claims(tables, Some(&local));
            assert!(cut_short && claims.len() <= CLAIMS, "{what}: {}", claims.len());
        }
    }

    #[test]
    fn what_is_written_nowhere_may_be_the_name_of_the_chain_that_a_map_leads_to() {
        let tables = table(vec![
            chain(
                "services",
                Some(Hook::Prerouting),
                vec![rule(tcp(30080..=30080), Then::Goto("external-1".into()))],
            ),
            chain("external-1", None, vec![rule(Traffic::all(), to(1))]),
        ]);
        let claims = claims(&tables, Some(&HERE)).claims;
        assert_eq!((claims.len(), claims[0].nat.chain.as_str()), (1, "external-1"));
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
