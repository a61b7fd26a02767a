//! A socket that takes a local port, as the kernel's `sock_diag` describes it.
//!
//! Facts from `linux/inet_diag.h` and `net/tcp_states.h`. Identity is (netns, cookie); the inode
//! joins a socket to `/proc/PID/fd`, and is 0 where no file refers to it (TIME_WAIT, orphans).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::netns::NetnsKey;

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both, in the order in which they are shown.
    pub const ALL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

    /// The number of IP (`IPPROTO_TCP`, `IPPROTO_UDP`).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// The lower-case word users write and metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(()),
        }
    }
}

/// State of a socket: the kernel's TCP states, which UDP borrows (`CLOSE` is a UDP socket without a peer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketState {
    /// `TCP_ESTABLISHED`; for UDP a socket with a peer.
    Established,
    /// `TCP_SYN_SENT`.
    SynSent,
    /// `TCP_SYN_RECV` and `TCP_NEW_SYN_RECV`.
    SynRecv,
    /// `TCP_FIN_WAIT1`.
    FinWait1,
    /// `TCP_FIN_WAIT2`.
    FinWait2,
    /// `TCP_TIME_WAIT`.
    TimeWait,
    /// `TCP_CLOSE`.
    Close,
    /// `TCP_CLOSE_WAIT`.
    CloseWait,
    /// `TCP_LAST_ACK`.
    LastAck,
    /// `TCP_LISTEN`.
    Listen,
    /// `TCP_CLOSING`.
    Closing,
    /// `TCP_BOUND_INACTIVE`: bound, neither listening nor connected. A pseudo state of sock_diag since Linux 6.8.
    BoundInactive,
    /// A value this program does not know.
    Unknown(u8),
}

impl SocketState {
    /// Decodes the kernel's number (`net/tcp_states.h`).
    pub const fn from_kernel(value: u8) -> Self {
        match value {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            13 => Self::BoundInactive,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for SocketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::BoundInactive => "BOUND",
            Self::Unknown(value) => return write!(f, "UNKNOWN({value})"),
        };
        f.write_str(word)
    }
}

/// How a socket takes its port, which decides how often the agent has to look for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimKind {
    /// TCP in LISTEN, or UDP bound with no peer.
    Listener,
    /// TCP bound, neither listening nor connected.
    Bound,
    /// A DNAT or redirect rule that takes the port's traffic.
    NatRule,
    /// A connected socket whose local port it is.
    Connection,
    /// TIME_WAIT: the kernel keeps the port for up to 60 s.
    TimeWait,
    /// A kernel setting or lease.
    Reserved,
}

impl ClaimKind {
    /// Those that are counted, also where there are none.
    pub const COUNTED: [ClaimKind; 5] = [
        ClaimKind::Listener,
        ClaimKind::Bound,
        ClaimKind::NatRule,
        ClaimKind::Connection,
        ClaimKind::TimeWait,
    ];

    /// The word of JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClaimKind::Listener => "listener",
            ClaimKind::Bound => "bound",
            ClaimKind::Connection => "connection",
            ClaimKind::TimeWait => "time_wait",
            ClaimKind::NatRule => "nat_rule",
            ClaimKind::Reserved => "reserved",
        }
    }
}

/// Identity of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey {
    /// The namespace it lives in.
    pub netns: NetnsKey,
    /// The kernel's socket cookie: never reused within one boot.
    pub cookie: u64,
}

impl SocketKey {
    /// The kernel's cookies count from 1. Where nobody has asked for a socket's, it has none: then this stands there, with its inode.
    pub const NO_COOKIE: u64 = 1 << 63;
}

/// The options of a socket that let others bind beside it (socket(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_REUSEADDR`.
    pub reuseaddr: bool,
    /// `SO_REUSEPORT`.
    pub reuseport: bool,
    /// `IPV6_V6ONLY` (ipv6(7)), which binding to a specific IPv6 address sets too; false for IPv4.
    pub v6only: bool,
}

/// One socket with a local port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Identity.
    pub key: SocketKey,
    /// Transport protocol.
    pub protocol: Protocol,
    /// State at the moment of the dump.
    pub state: SocketState,
    /// Local address. An IPv4-mapped IPv6 address stays IPv6, as the kernel keeps it.
    pub address: IpAddr,
    /// Local port, never 0.
    pub port: u16,
    /// Peer, where there is one.
    pub peer: Option<(IpAddr, u16)>,
    /// `IPV6_V6ONLY`; `None` for IPv4 and where the kernel does not say.
    pub v6only: Option<bool>,
    /// Index of the interface it is bound to (`SO_BINDTODEVICE`), in its own namespace.
    pub ifindex: Option<u32>,
    /// Name of that interface, where it could be asked.
    pub interface: Option<String>,
    /// Inode of its file in sockfs; 0 means that no file refers to it.
    pub inode: u32,
    /// Owner, as the kernel keeps it (the creator's fsuid).
    pub uid: u32,
    /// cgroup v2 id of the creator, which outlives the process. `None` on old kernels.
    pub cgroup_id: Option<u64>,
    /// Time left, for TIME_WAIT, in milliseconds.
    pub expires_ms: Option<u32>,
    /// Options; `None` where nothing could tell them.
    pub options: Option<SocketOptions>,
}

impl Socket {
    /// Adds its options. Of TIME_WAIT sock_diag does not tell whether it is for IPv6 only.
    pub fn tell_options(&mut self, options: Option<SocketOptions>) {
        self.options = options;
        if self.address.is_ipv6() {
            self.v6only = self.v6only.or(options.map(|options| options.v6only));
        }
    }

    /// Which kind of claim this socket is.
    pub fn kind(&self) -> ClaimKind {
        match (self.protocol, self.state) {
            (Protocol::Tcp, SocketState::Listen) => ClaimKind::Listener,
            (Protocol::Tcp, SocketState::BoundInactive | SocketState::Close) => ClaimKind::Bound,
            (_, SocketState::TimeWait) => ClaimKind::TimeWait,
            (Protocol::Udp, _) if self.peer.is_none() => ClaimKind::Listener,
            _ => ClaimKind::Connection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(protocol: Protocol, state: SocketState, peer: bool) -> Socket {
        let address = IpAddr::from([127, 0, 0, 1]);
        Socket {
            key: SocketKey { netns: NetnsKey { device: 4, inode: 1 }, cookie: 1 },
            protocol,
            state,
            address,
            port: 80,
            peer: peer.then_some((address, 9)),
            v6only: None,
            ifindex: None,
            interface: None,
            inode: 1,
            uid: 0,
            cgroup_id: None,
            expires_ms: None,
            options: None,
        }
    }

    #[test]
    fn udp_socket_without_peer_is_a_listener() {
        assert_eq!(socket(Protocol::Udp, SocketState::Close, false).kind(), ClaimKind::Listener);
        assert_eq!(socket(Protocol::Udp, SocketState::Established, true).kind(), ClaimKind::Connection);
    }

    #[test]
    fn tcp_kinds_follow_the_state() {
        for (state, kind) in [
            (SocketState::Listen, ClaimKind::Listener),
            (SocketState::BoundInactive, ClaimKind::Bound),
            (SocketState::TimeWait, ClaimKind::TimeWait),
            (SocketState::Established, ClaimKind::Connection),
            (SocketState::Unknown(77), ClaimKind::Connection),
        ] {
            assert_eq!(socket(Protocol::Tcp, state, false).kind(), kind, "{state}");
        }
    }

    #[test]
    fn unknown_kernel_states_are_kept() {
        assert_eq!(SocketState::from_kernel(200).to_string(), "UNKNOWN(200)");
    }
}
