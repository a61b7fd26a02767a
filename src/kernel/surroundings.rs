//! The settings and addresses of the calling thread's network namespace that a bind depends on (ip(7), ip-sysctl of the
//! kernel's documentation, rtnetlink(7)).

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::links;
use super::netlink::Dumper;
use crate::model::surroundings::{LocalAddress, Surroundings};

/// `RTM_GETADDR` of linux/rtnetlink.h.
const RTM_GETADDR: u16 = 22;

/// A number, or two.
const NUMBER_BYTES: usize = 64;
const SHORT_LIST_BYTES: usize = 1024;
/// All ports, each second by itself.
const LIST_BYTES: usize = 65_536 * 3;

/// Reads them. What cannot be read is left out.
pub fn read() -> Surroundings {
    let is_set = |name: &str| setting(name, NUMBER_BYTES).is_some_and(|text| text.trim() == "1");
    Surroundings {
        nonlocal_four: is_set("ipv4/ip_nonlocal_bind"),
        nonlocal_six: is_set("ipv6/ip_nonlocal_bind"),
        six: setting("ipv6/ip_nonlocal_bind", NUMBER_BYTES).is_some(),
        addresses: addresses().ok(),
        interfaces: links::names().map(|names| names.into_iter().collect()).unwrap_or_default(),
        ..settings()
    }
}

/// The settings about ports alone.
pub fn settings() -> Surroundings {
    Surroundings {
        ephemeral: ephemeral().map(|(first, last)| first..=last),
        reserved: reserved().map(|text| parse_ranges(&text)).unwrap_or_default(),
        unprivileged_from: setting("ipv4/ip_unprivileged_port_start", NUMBER_BYTES)
            .and_then(|text| text.trim().parse().ok()),
        windows: is_of_windows(rustix::system::uname().release().to_bytes()),
        ..Surroundings::default()
    }
}

/// `5.15.153.1-microsoft-standard-WSL2`; the first WSL said `Microsoft`.
fn is_of_windows(release: &[u8]) -> bool {
    release.to_ascii_lowercase().windows(9).any(|part| part == b"microsoft")
}

/// `net.ipv4.ip_local_port_range`: the ports that the kernel chooses from.
pub fn ephemeral() -> Option<(u16, u16)> {
    parse_range(&setting("ipv4/ip_local_port_range", NUMBER_BYTES)?)
}

/// `net.ipv4.ip_local_reserved_ports`, which is short nearly everywhere.
fn reserved() -> Option<String> {
    let read = |bytes| setting("ipv4/ip_local_reserved_ports", bytes);
    read(SHORT_LIST_BYTES).filter(|text| text.len() < SHORT_LIST_BYTES / 2).or_else(|| read(LIST_BYTES))
}

/// A setting of so many bytes at most. It is read at once: of a list the kernel writes as much as there is room for, and nothing to a
/// second read (`proc_do_large_bitmap` of kernel/sysctl.c).
fn setting(name: &str, bytes: usize) -> Option<String> {
    let mut text = vec![0; bytes];
    let read = File::open(format!("/proc/sys/net/{name}")).ok()?.read(&mut text).ok()?;
    text.truncate(read);
    String::from_utf8(text).ok()
}

/// Two numbers with space between them.
pub fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `8080,9000-9010`; what is neither is left out.
pub fn parse_ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

/// The addresses of interfaces. Errors: those of netlink.
pub fn addresses() -> std::io::Result<Vec<LocalAddress>> {
    let mut request = vec![0; AddressMessage::default().buffer_len()];
    AddressMessage::default().emit(&mut request);
    Dumper::open(NETLINK_ROUTE)?.dump(RTM_GETADDR, &request, |found, payload| found.extend(decode(payload)))
}

/// The local address of one message of `RTM_GETADDR` (`struct ifaddrmsg` and attributes): of a peer-to-peer interface `IFA_ADDRESS`
/// is the other end.
pub fn decode(payload: &[u8]) -> Option<LocalAddress> {
    let message = AddressMessage::parse(payload).ok()?;
    let (mut own, mut any): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(address),
            AddressAttribute::Address(address) => any = Some(address),
            _ => {}
        }
    }
    Some(LocalAddress {
        address: own.or(any)?,
        prefix: message.header.prefix_len,
        ifindex: message.header.index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_numbers_and_ranges() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32768, 60999)));
        for odd in ["", "1", "1 x", "70000 80000"] {
            assert_eq!(parse_range(odd), None, "{odd:?}");
        }
        assert_eq!(parse_ranges("8080,9000-9010\n"), [8080..=8080, 9000..=9010]);
        assert_eq!(parse_ranges("\n"), []);
        assert_eq!(parse_ranges("x,70000,1-2"), [1..=2]);
    }

    #[test]
    fn a_kernel_of_windows_says_so() {
        assert!(is_of_windows(b"5.15.153.1-microsoft-standard-WSL2"));
        assert!(is_of_windows(b"4.4.0-19041-Microsoft"));
        assert!(!is_of_windows(b"6.18.0-amd64") && !is_of_windows(b""));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_long_list_of_reserved_ports_is_read_whole() {
        let list: Vec<String> = (0..2000).map(|n| (10_000 + 2 * n).to_string()).collect();
        let reserved = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", list.join(",")).unwrap();
            settings().reserved
        });
        let reserved = reserved.join().unwrap();
        assert_eq!((reserved.len(), reserved.last()), (2000, Some(&(13_998..=13_998))));
    }

    #[test]
    fn this_host_has_a_loopback() {
        let here = read();
        assert_eq!(here.is_local("127.0.0.1".parse().unwrap()), Some(true));
        assert_eq!(here.is_local("192.0.2.77".parse().unwrap()), Some(false));
        assert_eq!(here.ifindex("lo"), Some(1));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            decode(&bytes);
        }
    }
}
