//! What the kernel sends: netlink messages, process events, records of the BPF programs.

use sniffer::kernel::bpf::{self, Told, holders};
use sniffer::kernel::netlink::{Reply, split};
use sniffer::kernel::{links, proc_events as connector, sock_diag as sockets, surroundings};
use sniffer::model::netns::NetnsKey;
use sniffer::model::socket::Protocol;

const NETNS: NetnsKey = NetnsKey { device: 4, inode: 9 };
/// Size of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// A datagram: messages of addresses or interfaces.
pub fn netlink(bytes: &[u8]) {
    let replies: Vec<_> = split(bytes).collect();
    assert!(replies.len() <= bytes.len() / HEADER_BYTES + 1, "each takes its header at the least");
    let errors = replies.iter().filter(|reply| reply.is_err()).count();
    assert!(
        errors == 0 || (errors == 1 && replies.last().is_some_and(Result::is_err)),
        "an error is the end"
    );
    for payload in payloads(bytes).into_iter().chain([bytes]) {
        links::decode(payload);
        surroundings::decode(payload);
    }
}

/// A datagram of sock_diag(7).
pub fn sock_diag(bytes: &[u8]) {
    for payload in payloads(bytes).into_iter().chain([bytes]) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if let Some(socket) = sockets::decode(NETNS, protocol, payload) {
                assert_ne!(socket.port, 0, "a socket without a port holds none");
                assert_eq!((socket.protocol, socket.key.netns), (protocol, NETNS));
                assert_ne!(socket.peer.map(|(_, port)| port), Some(0));
            }
        }
    }
}

fn payloads(bytes: &[u8]) -> Vec<&[u8]> {
    split(bytes)
        .filter_map(|reply| match reply {
            Ok(Reply::Payload { bytes, .. }) => Some(bytes),
            _ => None,
        })
        .collect()
}

/// A datagram of the proc connector.
pub fn proc_events(bytes: &[u8]) {
    let events = connector::decode_all(bytes);
    assert!(events.len() <= bytes.len() / HEADER_BYTES, "each takes its header at the least");
}

/// A record of the ring, or of one of the walks.
pub fn bpf_events(bytes: &[u8]) {
    const BINDS: usize = 8;
    match bpf::decode(bytes) {
        Some(Told::Binds(slot)) => {
            for first in [0, 1, slot.end, slot.end.wrapping_sub(3), u32::MAX] {
                let new = slot.end.wrapping_sub(first);
                let (binds, missed) = slot.clone().since(first);
                assert!(
                    binds.len() <= BINDS
                        && binds.len() as u64 + u64::from(missed) == u64::from(new).max(binds.len() as u64)
                );
            }
        }
        Some(Told::One(_) | Told::Undecided { .. }) | None => {}
    }
    holders::decode(bytes);
    holders::decode_options(bytes);
    if let Some(bound) = holders::decode_bound(bytes) {
        assert_eq!(bound.socket(NETNS).key.netns, NETNS);
    }
}
