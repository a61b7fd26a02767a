//! Does a socket that is there stand in the way of a new one? Addresses and options, as the kernel compares them.
//!
//! Source: `inet_bind_conflict` and `inet_rcv_saddr_equal` in net/ipv4/inet_connection_sock.c, `udp_lib_lport_inuse` in
//! net/ipv4/udp.c, `__inet6_bind` in net/ipv6/af_inet6.c. Ports and namespaces are compared by the caller.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::claim::Claim;
use crate::model::socket::{ClaimKind, Protocol};

/// A socket as far as sharing a port goes. What is not known is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address. An IPv4-mapped one is of an IPv6 socket.
    pub address: IpAddr,
    /// `IPV6_V6ONLY`.
    pub v6only: bool,
    /// Interface it is bound to.
    pub ifindex: Option<u32>,
    /// `SO_REUSEADDR`.
    pub reuseaddr: Option<bool>,
    /// `SO_REUSEPORT`.
    pub reuseport: Option<bool>,
    /// Owner.
    pub uid: Option<u32>,
    /// What it does with its port.
    pub standing: Standing,
}

/// What a socket does with its port, as far as sharing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// TCP in LISTEN.
    Listens,
    /// TIME_WAIT.
    Waits,
    /// Bound, connected, or UDP.
    Other,
}

/// The place that a claim takes.
pub fn place(claim: &Claim) -> Place {
    Place {
        protocol: claim.protocol,
        address: claim.address,
        v6only: claim.v6only == Some(true),
        ifindex: claim.ifindex,
        reuseaddr: claim.reuseaddr,
        reuseport: claim.reuseport,
        uid: claim.socket.as_ref().map(|socket| socket.uid),
        standing: match (claim.kind, claim.protocol) {
            (ClaimKind::Listener, Protocol::Tcp) => Standing::Listens,
            (ClaimKind::TimeWait, _) => Standing::Waits,
            _ => Standing::Other,
        },
    }
}

/// Whether a socket that is there stands in the way of a new one on the same port; `None` where it depends on what is not known.
pub fn blocks(there: &Place, new: &Place) -> Option<bool> {
    let apart = matches!((there.ifindex, new.ifindex), (Some(a), Some(b)) if a != b);
    if there.protocol != new.protocol || apart || !addresses_meet(there, new) {
        return Some(false);
    }
    let by_address = match there.standing {
        Standing::Listens => Some(false),
        Standing::Waits | Standing::Other => both(there.reuseaddr, new.reuseaddr),
    };
    let same_owner = match there.standing {
        Standing::Waits => Some(true),
        Standing::Listens | Standing::Other => there.uid.zip(new.uid).map(|(a, b)| a == b),
    };
    let by_port = both(both(there.reuseport, new.reuseport), same_owner);
    either(by_address, by_port).map(|shared| !shared)
}

fn both(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    both(one.map(|one| !one), other.map(|other| !other)).map(|neither| !neither)
}

/// How the kernel sorts addresses here (`ipv6_addr_type`): all of IPv4 counts as mapped.
enum Kind {
    Any,
    Mapped(Ipv4Addr),
    Other(Ipv6Addr),
}

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(four) => Kind::Mapped(four),
        IpAddr::V6(six) if six.is_unspecified() => Kind::Any,
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(Kind::Other(six), Kind::Mapped),
    }
}

/// Whether both could get traffic for one address: the same one, or a wildcard that covers it.
pub fn addresses_meet(there: &Place, new: &Place) -> bool {
    // An IPv6 socket that is open to IPv4, as it was bound to the wildcard, and connected since: its IPv4 side is none that
    // anybody could ask for, but a wildcard of IPv4 meets it all the same.
    if let (Kind::Other(_), IpAddr::V4(four)) = (kind(there.address), new.address) {
        return four.is_unspecified() && !there.v6only;
    }
    match (kind(there.address), kind(new.address)) {
        (Kind::Any, Kind::Any | Kind::Other(_)) | (Kind::Other(_), Kind::Any) => true,
        (Kind::Any, Kind::Mapped(_)) => !there.v6only,
        (Kind::Mapped(_), Kind::Any) => !new.v6only,
        (Kind::Mapped(a), Kind::Mapped(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
        (Kind::Other(a), Kind::Other(b)) => a == b,
        (Kind::Mapped(_), Kind::Other(_)) | (Kind::Other(_), Kind::Mapped(_)) => false,
    }
}

/// Whether the one that is there is a TCP socket on the IPv4-mapped wildcard, and the new one asks for a mapped address.
pub fn is_mapped_under_wildcard(there: &Place, new: &Place) -> bool {
    let mapped = |place: &Place| match place.address {
        IpAddr::V6(six) if place.protocol == Protocol::Tcp => six.to_ipv4_mapped(),
        _ => None,
    };
    mapped(there).zip(mapped(new)).is_some_and(|(there, new)| there.is_unspecified() && !new.is_unspecified())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(address: &str) -> Place {
        Place {
            protocol: Protocol::Tcp,
            address: address.trim_end_matches('!').parse().unwrap(),
            v6only: address.ends_with('!'),
            ifindex: None,
            reuseaddr: Some(false),
            reuseport: Some(false),
            uid: Some(0),
            standing: Standing::Listens,
        }
    }

    #[test]
    fn wildcards_meet_what_they_cover() {
        for (one, other, meet) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "127.0.0.1", true),
            ("::", "0.0.0.0", true),
            ("::", "::1", true),
            ("::1", "127.0.0.1", false),
            ("::1!", "0.0.0.0", false),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("::ffff:127.0.0.1", "0.0.0.0", true),
        ] {
            assert_eq!(addresses_meet(&at(one), &at(other)), meet, "{one} {other}");
            assert_eq!(addresses_meet(&at(other), &at(one)), meet, "{other} {one}");
        }
        // Bound to the wildcard, connected since.
        assert!(addresses_meet(&at("::1"), &at("0.0.0.0")) && !addresses_meet(&at("::1"), &at("127.0.0.1")));
        let six = at("::!");
        assert!(!addresses_meet(&six, &at("127.0.0.1")) && !addresses_meet(&at("0.0.0.0"), &six));
        assert!(addresses_meet(&six, &at("::1")) && addresses_meet(&six, &at("::")));
    }

    #[test]
    fn interfaces_part_sockets_only_if_both_have_one() {
        let on = |ifindex| Place { ifindex, ..at("0.0.0.0") };
        assert_eq!(blocks(&on(Some(1)), &on(Some(2))), Some(false));
        for (a, b) in [(Some(1), Some(1)), (Some(1), None), (None, Some(2))] {
            assert_eq!(blocks(&on(a), &on(b)), Some(true), "{a:?} {b:?}");
        }
    }

    #[test]
    fn so_reuseaddr_lets_in_unless_somebody_listens() {
        let reusing = |standing| Place { reuseaddr: Some(true), standing, ..at("0.0.0.0") };
        assert_eq!(blocks(&reusing(Standing::Other), &reusing(Standing::Other)), Some(false));
        assert_eq!(blocks(&reusing(Standing::Waits), &reusing(Standing::Other)), Some(false));
        assert_eq!(blocks(&reusing(Standing::Listens), &reusing(Standing::Other)), Some(true));
        assert_eq!(blocks(&at("0.0.0.0"), &reusing(Standing::Other)), Some(true), "both have to say it");
    }

    #[test]
    fn so_reuseport_lets_in_the_same_user_only() {
        let sharing = |uid| Place { reuseport: Some(true), uid: Some(uid), ..at("0.0.0.0") };
        assert_eq!(blocks(&sharing(1), &sharing(1)), Some(false));
        assert_eq!(blocks(&sharing(1), &sharing(2)), Some(true));
        let waits = Place { standing: Standing::Waits, ..sharing(1) };
        assert_eq!(blocks(&waits, &sharing(2)), Some(false), "nobody owns TIME_WAIT");
    }

    #[test]
    fn what_is_not_known_matters_only_where_it_decides() {
        let unknown = Place { reuseaddr: None, reuseport: None, standing: Standing::Other, ..at("0.0.0.0") };
        assert_eq!(blocks(&unknown, &at("0.0.0.0")), Some(true), "the new one shares with nobody");
        let reusing = Place { reuseaddr: Some(true), ..at("0.0.0.0") };
        assert_eq!(blocks(&unknown, &reusing), None);
        assert_eq!(blocks(&Place { standing: Standing::Listens, ..unknown }, &reusing), Some(true));
        let sharing = Place { reuseport: Some(true), ..at("0.0.0.0") };
        assert_eq!(blocks(&Place { reuseaddr: Some(false), ..unknown }, &sharing), None);
        assert_eq!(blocks(&unknown, &Place { address: "::1".parse().unwrap(), ..sharing }), Some(false));
    }

    fn any_place() -> impl Strategy<Value = Place> {
        let addresses = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::!", "::1", "::ffff:127.0.0.1"];
        let option = || prop::option::of(any::<bool>());
        let standing = prop_oneof![Just(Standing::Listens), Just(Standing::Waits), Just(Standing::Other)];
        let fields = (
            prop::sample::select(addresses.to_vec()),
            option(),
            option(),
            prop::option::of(0..2u32),
            standing,
        );
        fields.prop_map(|(address, reuseaddr, reuseport, uid, standing)| Place {
            reuseaddr,
            reuseport,
            uid,
            standing,
            ..at(address)
        })
    }

    /// A place with whatever was not known decided in one of all ways.
    fn completed(place: Place) -> Vec<Place> {
        let both = |known: Option<bool>| known.map_or(vec![true, false], |known| vec![known]);
        let mut found = Vec::new();
        for reuseaddr in both(place.reuseaddr) {
            for reuseport in both(place.reuseport) {
                for uid in place.uid.map_or(vec![0, 1], |uid| vec![uid]) {
                    let (reuseaddr, reuseport, uid) = (Some(reuseaddr), Some(reuseport), Some(uid));
                    found.push(Place { reuseaddr, reuseport, uid, ..place });
                }
            }
        }
        found
    }

    proptest! {
        #[test]
        fn what_is_not_known_decides_nothing_and_what_is_decided_stays(there in any_place(), new in any_place()) {
            let told = blocks(&there, &new);
            for there in completed(there) {
                for new in completed(new) {
                    let known = blocks(&there, &new);
                    prop_assert!(known.is_some(), "nothing is open when all is known");
                    prop_assert!(told.is_none() || told == known, "{there:?} {new:?}");
                }
            }
        }

        #[test]
        fn a_listener_lets_nobody_in_but_by_reuseport(there in any_place(), new in any_place()) {
            let there = Place { standing: Standing::Listens, ..there };
            let lets_in = there.reuseport != Some(false) && new.reuseport != Some(false);
            if addresses_meet(&there, &new) && !lets_in {
                prop_assert_eq!(blocks(&there, &new), Some(true));
            }
            if !addresses_meet(&there, &new) {
                prop_assert_eq!(blocks(&there, &new), Some(false));
            }
        }
    }
}
