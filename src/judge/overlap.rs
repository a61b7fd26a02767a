//! Do two sockets want the same port? Addresses and options, as the kernel compares them.
//!
//! Source: `inet_rcv_saddr_equal` and `inet_bind_conflict` in net/ipv4/inet_connection_sock.c, `udp_lib_lport_inuse` in
//! net/ipv4/udp.c. Ports and namespaces are compared by the caller.

use std::net::{IpAddr, Ipv4Addr};

use crate::model::bind::BindFlags;
use crate::model::socket::Protocol;

/// A socket as far as sharing a port goes. Options that are not known are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address.
    pub address: IpAddr,
    /// `IPV6_V6ONLY`.
    pub v6only: bool,
    /// Interface it is bound to.
    pub ifindex: Option<u32>,
    /// Options.
    pub flags: Option<BindFlags>,
    /// Whether it listens.
    pub listens: bool,
}

/// Whether both could get traffic for one address: the same one, or a wildcard that covers it.
pub fn addresses_meet(one: &Place, other: &Place) -> bool {
    match (family_view(one.address), family_view(other.address)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
        (IpAddr::V6(a), IpAddr::V6(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
        (IpAddr::V6(six), IpAddr::V4(_)) => six.is_unspecified() && !one.v6only,
        (IpAddr::V4(_), IpAddr::V6(six)) => six.is_unspecified() && !other.v6only,
    }
}

/// An IPv4-mapped address is compared as IPv4.
fn family_view(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, |four: Ipv4Addr| IpAddr::V4(four)),
        four => four,
    }
}

/// Whether a socket that is there stands in the way of a new one on the same port. Options that are not known are taken to
/// forbid sharing: the question is asked where a bind was refused.
pub fn blocks(there: &Place, new: &Place) -> bool {
    let apart = matches!((there.ifindex, new.ifindex), (Some(a), Some(b)) if a != b);
    if there.protocol != new.protocol || apart || !addresses_meet(there, new) {
        return false;
    }
    let (Some(a), Some(b)) = (there.flags, new.flags) else { return true };
    let by_address = a.reuseaddr && b.reuseaddr && (there.protocol == Protocol::Udp || !there.listens);
    let by_port = a.reuseport && b.reuseport;
    !(by_address || by_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str) -> Place {
        Place {
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            v6only: false,
            ifindex: None,
            flags: Some(BindFlags::default()),
            listens: true,
        }
    }

    #[test]
    fn wildcards_meet_what_they_cover() {
        for (one, other, meet) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "127.0.0.1", true),
            ("::", "::1", true),
            ("::1", "127.0.0.1", false),
            ("::1", "0.0.0.0", false),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("::ffff:127.0.0.1", "0.0.0.0", true),
        ] {
            assert_eq!(addresses_meet(&place(one), &place(other)), meet, "{one} {other}");
            assert_eq!(addresses_meet(&place(other), &place(one)), meet, "{other} {one}");
        }
        let only = Place { v6only: true, ..place("::") };
        assert!(!addresses_meet(&only, &place("127.0.0.1")) && addresses_meet(&only, &place("::1")));
    }

    #[test]
    fn sockets_share_where_both_said_so() {
        let with = |reuseaddr, reuseport, listens| Place {
            flags: Some(BindFlags { reuseaddr, reuseport, v6only: false }),
            listens,
            ..place("127.0.0.1")
        };
        assert!(
            blocks(&with(true, false, true), &with(true, false, false)),
            "a listener does not share by SO_REUSEADDR"
        );
        assert!(!blocks(&with(true, false, false), &with(true, false, false)));
        assert!(!blocks(&with(false, true, true), &with(false, true, false)));
        assert!(blocks(&with(false, true, true), &with(true, false, false)));
        let unknown = Place { flags: None, ..place("127.0.0.1") };
        assert!(blocks(&unknown, &with(true, true, false)), "what is not known is taken to forbid it");
    }

    #[test]
    fn sockets_of_two_interfaces_do_not_meet() {
        let on = |ifindex| Place { ifindex, ..place("0.0.0.0") };
        assert!(!blocks(&on(Some(1)), &on(Some(2))));
        assert!(blocks(&on(Some(1)), &on(None)) && blocks(&on(Some(1)), &on(Some(1))));
    }
}
