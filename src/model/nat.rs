//! Rules that send the traffic of a port elsewhere (DNAT, redirection), in one form for all that make them: nftables, iptables
//! on either of its backends, IPVS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::claim::Nat;
use super::ranges::RangeSet;
use super::socket::Protocol;

/// What of the traffic a rule is for. Each set narrows: a packet has to be in all of them, its destination in `four` or in `six`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Protocols, by their number (`IPPROTO_*`).
    pub protocols: RangeSet,
    /// Destination ports.
    pub ports: RangeSet,
    /// IPv4 destinations, as numbers.
    pub four: RangeSet,
    /// IPv6 destinations, as numbers.
    pub six: RangeSet,
    /// How much of what is in these sets.
    pub share: Share,
}

/// How much of its traffic a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    /// All of it.
    All,
    /// What chance gives to it: other rules are for the rest.
    ByChance,
    /// Some of it: where it comes from decides too, by which interface, a mark, or what is not understood.
    Some,
}

impl Traffic {
    /// All of it.
    pub fn all() -> Self {
        Traffic {
            protocols: RangeSet::all(),
            ports: RangeSet::all(),
            four: RangeSet::all(),
            six: RangeSet::all(),
            share: Share::All,
        }
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        Traffic {
            protocols: self.protocols.and(&other.protocols),
            ports: self.ports.and(&other.ports),
            four: self.four.and(&other.four),
            six: self.six.and(&other.six),
            share: self.share.max(other.share),
        }
    }

    /// Of how many ranges it is made.
    pub fn size(&self) -> usize {
        [&self.protocols, &self.ports, &self.four, &self.six].map(RangeSet::count).iter().sum()
    }

    /// Whether no packet can be in it.
    pub fn is_none(&self) -> bool {
        self.protocols.is_none() || self.ports.is_none() || (self.four.is_none() && self.six.is_none())
    }
}

/// Where traffic is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Another address; `None` for this host itself.
    pub address: Option<IpAddr>,
    /// Another port, the first of several; `None` leaves it.
    pub port: Option<u16>,
}

/// What a rule does with its traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// Goes through another chain, and comes back if nothing there decides.
    Jump(String),
    /// Goes through another chain instead of the rest of this one.
    Goto(String),
    /// Leaves this chain.
    Return,
    /// Nothing after it in this hook sees that traffic.
    End,
    /// Sends it elsewhere.
    Send(Destination),
}

/// A rule, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// It is for all of these.
    pub traffic: Vec<Traffic>,
    /// What is written at it.
    pub comment: Option<String>,
    /// What it does.
    pub then: Then,
}

/// Where a chain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Traffic that arrives.
    Prerouting,
    /// Traffic of this host's own processes.
    Output,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, without its table.
    pub name: String,
    /// Where it begins, if packets come to it by themselves.
    pub hook: Option<Hook>,
    /// Rules, in order.
    pub rules: Vec<Rule>,
}

/// What made a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// nftables, which iptables-nft uses too.
    Nftables,
    /// iptables by its own interface to the kernel.
    Iptables,
    /// The virtual servers of IPVS.
    Ipvs,
}

impl Backend {
    /// The word of JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
            Backend::Ipvs => "ipvs",
        }
    }
}

/// A table of chains; a chain can go to chains of its own table only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What made it.
    pub backend: Backend,
    /// Its name.
    pub name: String,
    /// Chains.
    pub chains: Vec<Chain>,
}

impl Table {
    /// Whether a rule of it may send traffic of these ports elsewhere, on whatever way packets come to that rule.
    pub fn may_send(&self, ports: &RangeSet) -> bool {
        let rules = self.chains.iter().flat_map(|chain| &chain.rules);
        let mut sending = rules.filter(|rule| matches!(rule.then, Then::Send(_)));
        sending.any(|rule| rule.traffic.iter().any(|traffic| traffic.ports.meets(ports)))
    }
}

/// A claim on ports by a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatClaim {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The address whose traffic it takes, a wildcard for all of this host's.
    pub address: IpAddr,
    /// Whether it leaves out IPv4, null for an address of that.
    pub v6only: Option<bool>,
    /// The ports.
    pub ports: RangeInclusive<u16>,
    /// The rule.
    pub nat: Nat,
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// An IPv4 address of a number, if it is one.
pub fn four(number: u128) -> Option<IpAddr> {
    u32::try_from(number).ok().map(|number| Ipv4Addr::from(number).into())
}

/// An IPv6 address of a number.
pub fn six(number: u128) -> IpAddr {
    Ipv6Addr::from(number).into()
}
