//! Matches and targets of iptables as the kernel keeps them (linux/netfilter/x_tables.h and the headers beside it). The same
//! bytes lie in the tables of iptables-legacy and, wrapped, in rules that iptables-nft made.

use std::net::IpAddr;

use super::attributes::text;
use crate::model::nat::{Destination, Share, Traffic, number};
use crate::model::ranges::RangeSet;

/// Which addresses a table's rules have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Four,
    Six,
}

/// What a match says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// It narrows.
    Narrows(Traffic),
    /// It only explains.
    Comment(String),
}

/// What a target does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Send(Destination),
    /// It lets the rest of the rules have their turn.
    Continues,
    /// It ends the way of a packet, without sending it elsewhere.
    Ends,
}

const ANY_PORT: (u16, u16) = (0, u16::MAX);
/// `XT_TCP_INV_SRCPT`, `XT_TCP_INV_DSTPT`; the same for UDP.
const INVERTED_SOURCE: u8 = 1;
const INVERTED_DESTINATION: u8 = 2;
/// `XT_MULTIPORT_SOURCE`, `_DESTINATION`, `_EITHER`.
const MULTIPORT_DESTINATION: u8 = 1;
const MULTIPORT_MAX: usize = 15;
/// `XT_ADDRTYPE_LOCAL`, and `XT_ADDRTYPE_INVERT_SOURCE`, `_DEST`.
const ADDRTYPE_LOCAL: u16 = 1 << 2;
const ADDRTYPE_INVERTED_DESTINATION: u32 = 2;
/// `IPRANGE_SRC`, `IPRANGE_DST`, `IPRANGE_DST_INV`.
const IPRANGE_SOURCE: u8 = 1;
const IPRANGE_DESTINATION: u8 = 2;
const IPRANGE_INVERTED: u8 = 32;
/// `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED` of linux/netfilter/nf_nat.h.
const MAPS_ADDRESS: u32 = 1;
const MAPS_PORT: u32 = 2;

/// Decodes a match. One that is not known, or not as it should be, may be about anything.
pub(super) fn decode_match(name: &str, revision: u32, family: Family, bytes: &[u8]) -> Match {
    let known = match (name, revision) {
        ("comment", _) => return Match::Comment(text(bytes)),
        ("tcp", 0) => tcp(bytes),
        ("udp", 0) => udp(bytes),
        ("multiport", 0) => multiport(bytes, false),
        ("multiport", 1) => multiport(bytes, true),
        ("addrtype", 0) => addrtype_0(bytes),
        ("addrtype", 1) => addrtype_1(bytes),
        ("iprange", 1) => iprange(family, bytes),
        ("statistic", _) => Some(by_chance()),
        _ => None,
    };
    Match::Narrows(known.unwrap_or_else(unknown))
}

/// Decodes a target. One that is not known lets the rest of the rules have their turn.
pub(super) fn decode_target(name: &str, revision: u32, family: Family, bytes: &[u8]) -> Target {
    match (name, revision) {
        // Whatever cannot be read goes somewhere.
        ("DNAT" | "REDIRECT", _) => Target::Send(
            match (name, family, revision) {
                ("DNAT", Family::Four, 0) | ("REDIRECT", Family::Four, _) => old_range(bytes),
                ("DNAT" | "REDIRECT", ..) => range(family, bytes),
                _ => None,
            }
            .unwrap_or(Destination { address: None, port: None }),
        ),
        // Whole networks: where one address goes is not told by the rule alone.
        ("NETMAP", _) => Target::Send(Destination { address: None, port: None }),
        ("SNAT" | "MASQUERADE" | "REJECT" | "ACCEPT" | "DROP", _) => Target::Ends,
        _ => Target::Continues,
    }
}

/// Traffic of which nothing is known.
pub(super) fn unknown() -> Traffic {
    Traffic { share: Share::Some, ..Traffic::all() }
}

/// Traffic of which chance decides.
pub(super) fn by_chance() -> Traffic {
    Traffic { share: Share::ByChance, ..Traffic::all() }
}

/// Some of the traffic, if something else decides too.
pub(super) fn some_if(decided: bool) -> Share {
    if decided { Share::Some } else { Share::All }
}

/// Ports as a set, or all others.
pub(super) fn ports(range: (u16, u16), inverted: bool) -> RangeSet {
    let ports = RangeSet::range(range.0.into()..=range.1.into());
    if inverted { ports.inverse() } else { ports }
}

/// An address with its mask, or all others. A mask with holes is told as what is around it, and as such.
pub(super) fn network(address: u128, mask: u128, bits: u32, inverted: bool) -> Option<RangeSet> {
    let all = u128::MAX.checked_shr(128 - bits).unwrap_or(0);
    let host = !mask & all;
    // Ones and nothing else from the lowest bit up.
    if host & host.wrapping_add(1) != 0 {
        return None;
    }
    let set = RangeSet::range((address & mask)..=(address & mask) | host);
    // A mask of nothing is any address, and its inverse none.
    let set = if host == all { RangeSet::all() } else { set };
    Some(if inverted { set.inverse() } else { set })
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// `struct xt_tcp`: source ports, destination ports, option, mask and value of the flags, what is inverted.
fn tcp(bytes: &[u8]) -> Option<Traffic> {
    let [option, flag_mask, _, inverted] = *bytes.get(8..12)? else { return None };
    let other = option != 0 || flag_mask != 0;
    layer_four(bytes, inverted, other)
}

/// `struct xt_udp`: source ports, destination ports, what is inverted.
fn udp(bytes: &[u8]) -> Option<Traffic> {
    layer_four(bytes, *bytes.get(8)?, false)
}

fn layer_four(bytes: &[u8], inverted: u8, other: bool) -> Option<Traffic> {
    let source = (half(bytes, 0)?, half(bytes, 2)?);
    let destination = (half(bytes, 4)?, half(bytes, 6)?);
    Some(Traffic {
        ports: if destination == ANY_PORT && inverted & INVERTED_DESTINATION == 0 {
            RangeSet::all()
        } else {
            ports(destination, inverted & INVERTED_DESTINATION != 0)
        },
        share: some_if(other || source != ANY_PORT || inverted & INVERTED_SOURCE != 0),
        ..Traffic::all()
    })
}

/// `struct xt_multiport`: kind, count, 15 ports; `_v1` adds for each whether it begins a range, and whether all is inverted.
fn multiport(bytes: &[u8], ranges: bool) -> Option<Traffic> {
    let (kind, count) = (*bytes.first()?, usize::from(*bytes.get(1)?).min(MULTIPORT_MAX));
    if kind != MULTIPORT_DESTINATION {
        return None;
    }
    let port = |n: usize| half(bytes, 2 + 2 * n);
    let begins_range =
        |n: usize| ranges && bytes.get(2 + 2 * MULTIPORT_MAX + n).is_some_and(|flag| *flag != 0);
    let mut found = Vec::with_capacity(count);
    let mut n = 0;
    while n < count {
        let first = port(n)?;
        let last = if begins_range(n) { port(n + 1)? } else { first };
        found.push(first.into()..=u128::from(last));
        n += if begins_range(n) { 2 } else { 1 };
    }
    let set: RangeSet = found.into_iter().collect();
    let inverted = ranges && *bytes.get(2 + 3 * MULTIPORT_MAX)? != 0;
    Some(Traffic { ports: if inverted { set.inverse() } else { set }, ..Traffic::all() })
}

/// `struct xt_addrtype_info`: kinds of the source, of the destination, and which of the two is inverted.
fn addrtype_0(bytes: &[u8]) -> Option<Traffic> {
    Some(destination_type(half(bytes, 0)?, half(bytes, 2)?, word(bytes, 8)? != 0))
}

/// `struct xt_addrtype_info_v1`, which has flags.
fn addrtype_1(bytes: &[u8]) -> Option<Traffic> {
    let flags = word(bytes, 4)?;
    let mut traffic =
        destination_type(half(bytes, 0)?, half(bytes, 2)?, flags & ADDRTYPE_INVERTED_DESTINATION != 0);
    // The rest of the flags limit it to an interface.
    traffic.share = traffic.share.max(some_if(flags & !3 != 0));
    Some(traffic)
}

/// Only what is sent to this host's own addresses matters here.
fn destination_type(source: u16, destination: u16, inverted: bool) -> Traffic {
    let local = destination == 0 || (destination & ADDRTYPE_LOCAL != 0) != inverted;
    let set = if local { RangeSet::all() } else { RangeSet::none() };
    Traffic { four: set.clone(), six: set, share: some_if(source != 0), ..Traffic::all() }
}

/// `struct xt_iprange_mtinfo`: first and last source, first and last destination (16 bytes each), flags.
fn iprange(family: Family, bytes: &[u8]) -> Option<Traffic> {
    let flags = *bytes.get(64)?;
    let mut traffic = Traffic { share: some_if(flags & IPRANGE_SOURCE != 0), ..Traffic::all() };
    if flags & IPRANGE_DESTINATION != 0 {
        let range = number(address(family, bytes, 32)?)..=number(address(family, bytes, 48)?);
        let set = RangeSet::range(range);
        let set = if flags & IPRANGE_INVERTED != 0 { set.inverse() } else { set };
        match family {
            Family::Four => traffic.four = set,
            Family::Six => traffic.six = set,
        }
    }
    Some(traffic)
}

/// An address at the beginning of 16 bytes.
pub(super) fn address(family: Family, bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(match family {
        Family::Four => <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into(),
        Family::Six => <[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into(),
    })
}

/// `struct nf_nat_ipv4_multi_range_compat`: count, then flags, first and last address, first and last port.
fn old_range(bytes: &[u8]) -> Option<Destination> {
    let flags = word(bytes, 4)?;
    destination(flags, address(Family::Four, bytes, 8)?, bytes.get(16..18)?)
}

/// `struct nf_nat_range` and `nf_nat_range2`: flags, first and last address, first and last port.
fn range(family: Family, bytes: &[u8]) -> Option<Destination> {
    let flags = word(bytes, 0)?;
    destination(flags, address(family, bytes, 4)?, bytes.get(36..38)?)
}

fn destination(flags: u32, address: IpAddr, port: &[u8]) -> Option<Destination> {
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some(Destination {
        address: (flags & MAPS_ADDRESS != 0).then_some(address),
        port: (flags & MAPS_PORT != 0).then_some(port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrows(name: &str, revision: u32, bytes: &[u8]) -> Traffic {
        match decode_match(name, revision, Family::Four, bytes) {
            Match::Narrows(traffic) => traffic,
            Match::Comment(comment) => panic!("{comment:?}"),
        }
    }

    fn halves(halves: &[u16]) -> Vec<u8> {
        halves.iter().flat_map(|half| half.to_ne_bytes()).collect()
    }

    #[test]
    fn ports_are_those_of_the_destination() {
        let mut bytes = halves(&[0, 65535, 8080, 8090]);
        bytes.extend([0, 0, 0, 0]);
        let traffic = narrows("tcp", 0, &bytes);
        assert_eq!((traffic.ports.clone(), traffic.share), (ports((8080, 8090), false), Share::All));
        bytes[11] = INVERTED_DESTINATION;
        assert_eq!(narrows("tcp", 0, &bytes).ports, ports((8080, 8090), true));
        bytes[0] = 1;
        assert_eq!(narrows("tcp", 0, &bytes).share, Share::Some, "the source's port decides too");
        assert_eq!(narrows("tcp", 0, &bytes[..11]), unknown());
        assert_eq!(narrows("udp", 7, &bytes), unknown(), "another revision");
        assert_eq!(narrows("quake", 0, &bytes), unknown());
    }

    #[test]
    fn multiport_has_ports_and_ranges() {
        let mut bytes = vec![MULTIPORT_DESTINATION, 3];
        let mut list = [0u16; MULTIPORT_MAX];
        list[..3].copy_from_slice(&[80, 8000, 8010]);
        bytes.extend(halves(&list));
        let mut begins = [0u8; MULTIPORT_MAX];
        begins[1] = 1;
        bytes.extend(begins);
        bytes.push(0);
        let expected: RangeSet = [80..=80, 8000..=8010].into_iter().collect();
        assert_eq!(narrows("multiport", 1, &bytes).ports, expected);
        let single: RangeSet = [80..=80, 8000..=8000, 8010..=8010].into_iter().collect();
        assert_eq!(narrows("multiport", 0, &bytes).ports, single);
        *bytes.last_mut().unwrap() = 1;
        assert_eq!(narrows("multiport", 1, &bytes).ports, expected.inverse());
        bytes[1] = 255;
        narrows("multiport", 1, &bytes);
    }

    #[test]
    fn what_is_not_for_this_host_is_no_claim() {
        let local = |flags: u32| [halves(&[0, ADDRTYPE_LOCAL]), flags.to_ne_bytes().to_vec()].concat();
        assert_eq!(narrows("addrtype", 1, &local(0)), Traffic::all());
        assert!(narrows("addrtype", 1, &local(ADDRTYPE_INVERTED_DESTINATION)).is_none());
    }

    #[test]
    fn masks_are_networks() {
        let ten = 0x0a00_0000;
        let set = network(ten, 0xff00_0000, 32, false).unwrap();
        assert_eq!(set, RangeSet::range(ten..=0x0aff_ffff));
        assert_eq!(network(ten, 0xff00_0000, 32, true), Some(set.inverse()));
        assert_eq!(network(0, 0, 32, false), Some(RangeSet::all()));
        assert_eq!(network(ten, 0xff00_ff00, 32, false), None);
        assert_eq!(network(1, u128::MAX, 128, false), Some(RangeSet::one(1u8)));
        assert_eq!(network(0, 0, 128, true), Some(RangeSet::none()));
    }

    #[test]
    fn a_target_says_where_to() {
        let mut old = [1u32.to_ne_bytes(), 3u32.to_ne_bytes(), [10, 0, 0, 7], [10, 0, 0, 7]].concat();
        old.extend([0x1f, 0x90, 0x1f, 0x90]);
        let there = Destination { address: Some([10, 0, 0, 7].into()), port: Some(8080) };
        assert_eq!(decode_target("DNAT", 0, Family::Four, &old), Target::Send(there));
        let mut new = 3u32.to_ne_bytes().to_vec();
        new.extend([[10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; 2].concat());
        new.extend([0x1f, 0x90, 0x1f, 0x90, 0, 0, 0, 0]);
        assert_eq!(decode_target("DNAT", 2, Family::Four, &new), Target::Send(there));
        let nowhere = Destination { address: None, port: None };
        assert_eq!(decode_target("DNAT", 2, Family::Four, &new[..8]), Target::Send(nowhere));
        assert_eq!(decode_target("MARK", 2, Family::Four, &[]), Target::Continues);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100), which in 0..9usize, revision in 0..3u32) {
            let name = ["tcp", "udp", "multiport", "addrtype", "iprange", "comment", "DNAT", "REDIRECT", "x"][which];
            for family in [Family::Four, Family::Six] {
                decode_match(name, revision, family, &bytes);
                decode_target(name, revision, family, &bytes);
            }
        }
    }
}
