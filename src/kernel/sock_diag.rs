//! Sockets with a local port, from `NETLINK_SOCK_DIAG` (sock_diag(7), linux/inet_diag.h), in the calling thread's namespace.
//!
//! The port filter runs in the kernel (inet_diag bytecode). Measured on Linux 6.18 with 262,144 buckets: a dump of
//! listeners or UDP costs about 20 µs a family, one of bound sockets or connections 170-230 µs, since it walks the
//! whole hash table: that is what [`Depth`] is for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use netlink_bindings::inet_diag::{BytecodeOp, BytecodeOpCode, Msg, PushRequestAttrs, Req, ReqV2};
use netlink_bindings::utils::find_attr;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::io::Errno;

use super::netlink::Dumper;
use crate::model::netns::NetnsKey;
use crate::model::socket::{Protocol, Socket, SocketKey, SocketState};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `TCPDIAG_GETSOCK` of linux/inet_diag.h: the request before families had handlers of their own; it answers for all.
const TCPDIAG_GETSOCK: u16 = 18;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `INET_DIAG_SKV6ONLY` of linux/inet_diag.h.
const ATTR_V6ONLY: u16 = 11;
/// `INET_DIAG_CGROUP_ID` of linux/inet_diag.h, since Linux 5.8.
const ATTR_CGROUP_ID: u16 = 21;
const STATE_LISTEN: u32 = 1 << 10;
/// Every state, `TCP_BOUND_INACTIVE` (13) included; kernels before 6.8 ignore that bit.
const STATE_ANY: u32 = u32::MAX;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// TCP listeners and UDP sockets: cheap, done at every interval.
    Listeners,
    /// Bound sockets, connections and TIME_WAIT too.
    Everything,
}

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiagQuery {
    /// Only these local ports; `None` for all.
    pub ports: Option<RangeInclusive<u16>>,
    /// How deep to look.
    pub depth: Depth,
}

/// Since when sock_diag lists TCP sockets that are bound and do not listen (`TCP_BOUND_INACTIVE`).
const BOUND_SINCE: (u32, u32) = (6, 8);

/// Whether this kernel lists them, by its version: only a bind of our own would prove it, and nobody asked for one.
/// `sniffer doctor` tries it.
pub fn lists_bound_sockets() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= BOUND_SINCE
}

/// Dumps the sockets of the calling thread's network namespace, which the caller says is `netns`.
/// Errors: a netlink error of the socket or the dump; a short dump is always an error.
pub fn dump(netns: NetnsKey, query: &DiagQuery) -> io::Result<Vec<Socket>> {
    let mut dumper = Dumper::open(NETLINK_SOCK_DIAG)?;
    let mut sockets = dump_tcp(&mut dumper, netns, query)?;
    for family in [AF_INET, AF_INET6] {
        sockets.extend(dump_family(&mut dumper, netns, Protocol::Udp, family, query)?);
    }
    Ok(sockets)
}

/// Both families in one walk of the kernel's table, by the older request that names none; where a kernel has dropped it,
/// a walk for each.
fn dump_tcp(dumper: &mut Dumper, netns: NetnsKey, query: &DiagQuery) -> io::Result<Vec<Socket>> {
    let mut head = Req::new();
    head.states = states(Protocol::Tcp, query.depth);
    let request = with_ports(head.as_slice(), query);
    let both = dumper.dump(TCPDIAG_GETSOCK, &request, |found, payload| {
        found.extend(decode(netns, Protocol::Tcp, payload));
    });
    both.or_else(|_| {
        let mut sockets = dump_family(dumper, netns, Protocol::Tcp, AF_INET, query)?;
        sockets.extend(dump_family(dumper, netns, Protocol::Tcp, AF_INET6, query)?);
        Ok(sockets)
    })
}

fn dump_family(
    dumper: &mut Dumper,
    netns: NetnsKey,
    protocol: Protocol,
    family: u8,
    query: &DiagQuery,
) -> io::Result<Vec<Socket>> {
    let mut head = ReqV2::new();
    head.family = family;
    head.protocol = protocol.number();
    head.states = states(protocol, query.depth);
    let request = with_ports(head.as_slice(), query);
    let found = dumper.dump(SOCK_DIAG_BY_FAMILY, &request, |found, payload| {
        found.extend(decode(netns, protocol, payload));
    });
    match found {
        // A kernel without IPv6 (ipv6.disable=1) has no handler for it: nothing can be bound there.
        Err(error) if family == AF_INET6 && error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
            Ok(Vec::new())
        }
        found => found,
    }
}

fn states(protocol: Protocol, depth: Depth) -> u32 {
    match (protocol, depth) {
        (Protocol::Tcp, Depth::Listeners) => STATE_LISTEN,
        _ => STATE_ANY,
    }
}

fn with_ports(head: &[u8], query: &DiagQuery) -> Vec<u8> {
    let mut bytes = head.to_vec();
    if let Some(ports) = &query.ports {
        PushRequestAttrs::new(&mut bytes as &mut Vec<u8>).push_bytecode(&port_filter(ports));
    }
    bytes
}

/// inet_diag bytecode for `first <= sport <= last`. Each operation is followed by one that carries its port; a jump to 4
/// bytes past the end refuses the socket (`inet_diag_bc_run` in net/ipv4/inet_diag.c).
fn port_filter(ports: &RangeInclusive<u16>) -> Vec<u8> {
    let op = |code: u8, yes: u8, no: u16| {
        let mut op = BytecodeOp::new();
        (op.code, op.yes, op.no) = (code, yes, no);
        op
    };
    [
        op(BytecodeOpCode::SportGe as u8, 8, 20),
        op(0, 0, *ports.start()),
        op(BytecodeOpCode::SportLe as u8, 8, 12),
        op(0, 0, *ports.end()),
    ]
    .iter()
    .flat_map(|op| op.as_slice().to_vec())
    .collect()
}

/// Decodes one `struct inet_diag_msg` with its attributes; `None` for a message that is too short or has no local port.
pub fn decode(netns: NetnsKey, protocol: Protocol, payload: &[u8]) -> Option<Socket> {
    let msg = Msg::new_from_slice(payload.get(..Msg::len())?)?;
    let attributes = payload.get(Msg::len()..)?;
    let port = msg.sockid.sport();
    if port == 0 {
        return None;
    }
    let state = SocketState::from_kernel(msg.state);
    let peer_port = msg.sockid.dport();
    let v6only = find_attr(attributes, ATTR_V6ONLY).and_then(|value| value.first()).map(|flag| *flag != 0);
    Some(Socket {
        key: SocketKey { netns, cookie: cookie(msg.sockid.cookie) },
        protocol,
        state,
        address: address(msg.family, msg.sockid.src)?,
        port,
        peer: if peer_port == 0 { None } else { Some((address(msg.family, msg.sockid.dst)?, peer_port)) },
        v6only,
        ifindex: (msg.sockid.r#if != 0).then_some(msg.sockid.r#if),
        interface: None,
        inode: msg.inode,
        uid: msg.uid,
        cgroup_id: find_attr(attributes, ATTR_CGROUP_ID)
            .and_then(|value| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))),
        expires_ms: (state == SocketState::TimeWait).then_some(msg.expires),
        options: None,
    })
}

fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// The cookie is two native 32-bit words, the low one first (`sock_diag_save_cookie` in net/core/sock_diag.c).
fn cookie(bytes: [u8; 8]) -> u64 {
    let [a, b, c, d, e, f, g, h] = bytes;
    u64::from(u32::from_ne_bytes([a, b, c, d])) | u64::from(u32::from_ne_bytes([e, f, g, h])) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: NetnsKey = NetnsKey { device: 4, inode: 9 };

    fn listener(port: u16) -> Vec<u8> {
        let mut msg = Msg::new();
        (msg.family, msg.state, msg.uid, msg.inode) = (AF_INET, 10, 1001, 77);
        msg.sockid.set_sport(port);
        msg.sockid.src[..4].copy_from_slice(&[127, 0, 0, 1]);
        msg.sockid.cookie = [1, 0, 0, 0, 2, 0, 0, 0];
        let mut bytes = msg.as_slice().to_vec();
        bytes.extend([12, 0, 21, 0]);
        bytes.extend(0x1234u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_listener_is_decoded_with_its_cgroup() {
        let socket = decode(NETNS, Protocol::Tcp, &listener(8081)).unwrap();
        assert_eq!((socket.port, socket.inode, socket.cgroup_id), (8081, 77, Some(0x1234)));
        assert_eq!(socket.key.cookie, 0x2_0000_0001);
        assert_eq!(socket.v6only, None);
    }

    #[test]
    fn a_socket_without_a_port_takes_none() {
        assert_eq!(decode(NETNS, Protocol::Udp, &listener(0)), None);
    }

    #[test]
    fn a_listener_on_this_machine_is_found_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        for depth in [Depth::Listeners, Depth::Everything] {
            let found = dump(NETNS, &DiagQuery { ports: Some(port..=port), depth }).unwrap();
            assert_eq!(found.iter().map(|socket| socket.port).collect::<Vec<_>>(), [port], "{depth:?}");
        }
        let six = std::net::TcpListener::bind("[::1]:0").unwrap();
        let port6 = six.local_addr().unwrap().port();
        let query = DiagQuery { ports: Some(port6..=port6), depth: Depth::Everything };
        assert_eq!(dump(NETNS, &query).unwrap().len(), 1, "both families are in the answer");
        let above = port.checked_add(1).unwrap();
        let found = dump(NETNS, &DiagQuery { ports: Some(above..=above), depth: Depth::Listeners }).unwrap();
        assert!(found.iter().all(|socket| socket.port == above), "the kernel filters by port");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            decode(NETNS, Protocol::Tcp, &bytes);
        }
    }
}
