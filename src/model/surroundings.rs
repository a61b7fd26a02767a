//! What a network namespace allows to bind, apart from its sockets: settings, addresses, interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// What a bind in one network namespace depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `net.ipv4.ip_local_port_range`: the ports that the kernel chooses from.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// `net.ipv4.ip_local_reserved_ports`: those it does not choose.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// `net.ipv4.ip_unprivileged_port_start`: lower ports want `CAP_NET_BIND_SERVICE`.
    pub unprivileged_from: Option<u16>,
    /// `net.ipv4.ip_nonlocal_bind`.
    pub nonlocal_four: bool,
    /// `net.ipv6.ip_nonlocal_bind`.
    pub nonlocal_six: bool,
    /// Whether there is IPv6.
    pub six: bool,
    /// Whether a TCP socket on `::ffff:0.0.0.0` lets another have an IPv4-mapped address beside it, where that matters.
    pub mapped_wildcard_is_narrow: bool,
    /// Whether this Linux runs inside of Windows (WSL), whose programs may hold its ports.
    pub windows: bool,
    /// Addresses; `None` where they could not be read.
    pub addresses: Option<Vec<LocalAddress>>,
    /// Names of interfaces, by index.
    pub interfaces: Vec<(u32, String)>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddress {
    /// Address.
    pub address: IpAddr,
    /// Length of its network's prefix, in bits.
    pub prefix: u8,
    /// Index of the interface.
    pub ifindex: u32,
}

impl Surroundings {
    /// Whether bind(2) takes this address for a local one: addresses of interfaces, all of 127.0.0.0/8 where the loopback is up,
    /// broadcast and multicast (`inet_addr_type` of net/ipv4/fib_frontend.c, `ipv6_chk_addr` of net/ipv6/addrconf.c). `None`
    /// where the addresses are not known. Local routes that are no address (AnyIP) are not known.
    pub fn is_local(&self, address: IpAddr) -> Option<bool> {
        match address {
            IpAddr::V4(four) => self.is_local_four(four),
            IpAddr::V6(six) => match six.to_ipv4_mapped() {
                Some(four) => self.is_local_four(four),
                None => self.is_local_six(six),
            },
        }
    }

    fn is_local_four(&self, asked: Ipv4Addr) -> Option<bool> {
        if asked.is_unspecified() || asked.is_multicast() || asked.is_broadcast() || self.nonlocal_four {
            return Some(true);
        }
        Some(self.addresses.as_ref()?.iter().any(|local| {
            let IpAddr::V4(address) = local.address else { return false };
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(local.prefix.into())).unwrap_or(0);
            let same_network = (address.to_bits() ^ asked.to_bits()) & mask == 0;
            let host = asked.to_bits() & !mask;
            // The network's own address and its broadcast are of it too, but in the smallest ones.
            let special = local.prefix < 31 && (host == 0 || host == !mask);
            address == asked || (same_network && (address.is_loopback() || special))
        }))
    }

    fn is_local_six(&self, asked: Ipv6Addr) -> Option<bool> {
        if asked.is_unspecified() || asked.is_multicast() || self.nonlocal_six {
            return Some(true);
        }
        Some(self.addresses.as_ref()?.iter().any(|local| local.address == IpAddr::V6(asked)))
    }

    /// Index of an interface.
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.interfaces.iter().find(|(_, known)| known == name).map(|(index, _)| *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_local_as_the_kernel_takes_it() {
        let local = |address: &str, prefix, ifindex| LocalAddress {
            address: address.parse().unwrap(),
            prefix,
            ifindex,
        };
        let here = Surroundings {
            addresses: Some(vec![
                local("127.0.0.1", 8, 1),
                local("10.1.2.3", 24, 2),
                local("fd00::1", 64, 2),
            ]),
            ..Surroundings::default()
        };
        for (address, expected) in [
            ("0.0.0.0", true),
            ("127.9.9.9", true),
            ("10.1.2.3", true),
            ("10.1.2.4", false),
            ("10.1.2.255", true),
            ("::ffff:10.1.2.3", true),
            ("::ffff:10.1.2.4", false),
            ("fd00::1", true),
            ("fd00::2", false),
            ("::", true),
        ] {
            assert_eq!(here.is_local(address.parse().unwrap()), Some(expected), "{address}");
        }
        let blind = Surroundings::default();
        assert_eq!(blind.is_local("10.1.2.3".parse().unwrap()), None);
        let bold = Surroundings { nonlocal_four: true, ..here };
        assert_eq!(bold.is_local("10.1.2.4".parse().unwrap()), Some(true));
    }
}
