//! `can-bind` against the kernel: thousands of first sockets and second binds, each of which is really bound, and the judgement
//! has to agree with what the kernel said in every one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

#[allow(dead_code, reason = "of the holder's calls only some are needed here")]
#[path = "common/holder/raw.rs"]
mod holders;
#[path = "can_bind/raw.rs"]
mod raw;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{PoisonError, RwLock};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::json;
use sniffer::judge::can_bind::{Wish, rule};
use sniffer::kernel::bpf::Reasons;
use sniffer::kernel::bpf::holders::OpenFiles;
use sniffer::kernel::sock_diag::{self, Depth, DiagQuery};
use sniffer::kernel::{probe, surroundings};
use sniffer::model::can_bind::Manner;
use sniffer::model::claim::Claim;
use sniffer::model::netns::NetnsKey;
use sniffer::model::socket::{ClaimKind, Protocol, Socket};
use sniffer::model::surroundings::Surroundings;

/// What a first socket does with its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Bound,
    Listens,
    /// An accepted connection, whose listener is gone.
    Accepted,
    /// An outgoing connection from an address and port of its own choice.
    Connects,
    TimeWait,
}

#[derive(Debug, Clone, Copy)]
struct How {
    protocol: Protocol,
    address: &'static str,
    v6only: bool,
    reuseaddr: bool,
    reuseport: bool,
    uid: u32,
    device: Option<&'static str>,
}

/// IPv4 and IPv6, wildcards and specific ones, mapped ones; `!` stands for IPV6_V6ONLY.
const ADDRESSES: [&str; 9] =
    ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "!::", "::1", "!::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"];

fn hows(protocol: Protocol, uids: &'static [u32], devices: &'static [Option<&'static str>]) -> Vec<How> {
    let mut hows = Vec::new();
    for address in ADDRESSES {
        for flags in 0..4 {
            for &uid in uids {
                for &device in devices {
                    hows.push(How {
                        protocol,
                        address: address.trim_start_matches('!'),
                        v6only: address.starts_with('!'),
                        reuseaddr: flags & 1 != 0,
                        reuseport: flags & 2 != 0,
                        uid,
                        device,
                    });
                }
            }
        }
    }
    hows
}

fn bind(how: &How, port: u16) -> Result<OwnedFd, Errno> {
    let address: IpAddr = how.address.parse().unwrap();
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if how.protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    // The kernel takes the owner from the file system's user id of the thread that makes the socket.
    let socket =
        raw::as_owner(how.uid, || rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None));
    let socket = socket.unwrap();
    sockopt::set_socket_reuseaddr(&socket, how.reuseaddr).unwrap();
    sockopt::set_socket_reuseport(&socket, how.reuseport).unwrap();
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, how.v6only).unwrap();
    }
    if let Some(device) = how.device {
        raw::bind_to_device(&socket, device);
    }
    rustix::net::bind(&socket, &SocketAddr::new(address, port))?;
    Ok(socket)
}

fn local(socket: &OwnedFd) -> SocketAddr {
    SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap()
}

/// A socket of the other end, to an address that reaches this one.
fn peer_of(address: SocketAddr) -> OwnedFd {
    let at: IpAddr = match address.ip() {
        IpAddr::V4(four) if four.is_unspecified() => [127, 0, 0, 1].into(),
        IpAddr::V6(six) if six.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some_and(|four| four.is_unspecified()) => {
            [127, 0, 0, 1].into()
        }
        other => other.to_canonical(),
    };
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&socket, &SocketAddr::new(at, address.port())).unwrap();
    socket
}

/// The first socket, with whatever has to stay open for it; none where the kernel takes no such one.
fn first(how: &How, does: Does) -> Option<(Vec<OwnedFd>, u16)> {
    let _nobody_walks = WALKS.read().unwrap_or_else(PoisonError::into_inner);
    let socket = bind(how, 0).ok()?;
    let at = local(&socket);
    let kept = match does {
        Does::Bound => vec![socket],
        Does::Listens => {
            rustix::net::listen(&socket, 8).unwrap();
            vec![socket]
        }
        Does::Accepted | Does::TimeWait => {
            rustix::net::listen(&socket, 8).unwrap();
            let client = peer_of(at);
            let accepted = rustix::net::accept(&socket).unwrap();
            drop(socket);
            if does == Does::Accepted {
                vec![accepted, client]
            } else {
                // Who closes first waits.
                drop(accepted);
                let mut end = [0; 1];
                assert_eq!(
                    rustix::net::recv(&client, &mut end, rustix::net::RecvFlags::empty()).unwrap().0,
                    0
                );
                drop(client);
                vec![]
            }
        }
        Does::Connects if how.protocol == Protocol::Udp => {
            // Nobody has to be there.
            let to = if at.is_ipv4() {
                "127.0.0.1"
            } else if at.ip().to_canonical().is_ipv4() {
                "::ffff:127.0.0.1"
            } else {
                "::1"
            };
            rustix::net::connect(&socket, &SocketAddr::new(to.parse().unwrap(), 9)).ok()?;
            vec![socket]
        }
        Does::Connects => {
            let six = at.is_ipv6() && at.ip().to_canonical().is_ipv6();
            let other =
                How { address: if six { "::1" } else { "127.0.0.1" }, v6only: false, device: None, ..*how };
            let server = bind(&How { uid: 0, reuseaddr: false, reuseport: false, ..other }, 0).unwrap();
            rustix::net::listen(&server, 8).unwrap();
            let mut to = local(&server);
            if at.is_ipv6() && !six {
                to = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), to.port());
            }
            rustix::net::connect(&socket, &to).ok()?;
            vec![socket, server]
        }
    };
    Some((kept, at.port()))
}

/// A socket as the claim of an answer, as far as the judgement reads it.
fn claim(socket: &Socket) -> Claim {
    let kind = socket.kind();
    let mut claim: Claim = serde_json::from_value(json!({
        "kind": kind, "protocol": socket.protocol, "address": socket.address, "port": socket.port,
        "v6only": socket.v6only, "interface": null,
        "reuseaddr": socket.options.map(|options| options.reuseaddr),
        "reuseport": socket.options.map(|options| options.reuseport),
        "state": socket.state.to_string(), "netns": {"inode": 1, "name": null},
        "socket": {"inode": socket.inode, "cookie": socket.key.cookie, "uid": socket.uid, "cgroup": null},
        "since": null, "binder": null, "holders": [], "owner": {"type": "unknown", "name": null},
        "job": null, "test": null, "verdict": "unattributed", "reason": "", "nat": null
    }))
    .unwrap();
    claim.ifindex = socket.ifindex;
    claim
}

/// A walk over open files has each in its hands for a moment: a socket that another test of this process closes in that very moment is
/// let go when the walk's read(2) ends, and the next bind there would be refused. So nobody binds while somebody walks.
static WALKS: RwLock<()> = RwLock::new(());

struct Sight {
    netns: NetnsKey,
    here: Surroundings,
    files: OpenFiles,
}

impl Sight {
    /// The claims on a port, as the kernel tells them.
    fn claims(&self, port: u16) -> Vec<Claim> {
        let _nobody_binds = WALKS.write().unwrap_or_else(PoisonError::into_inner);
        let query = DiagQuery { ports: Some(port..=port), depth: Depth::Everything };
        let mut sockets = sock_diag::dump(self.netns, &query).unwrap();
        // Before Linux 6.8 nothing but an open file tells of a bound socket.
        if !sock_diag::lists_bound_sockets() {
            let bound = self.files.bound().unwrap().into_iter();
            let mut there =
                bound.filter(|bound| bound.netns == self.netns.inode).map(|bound| bound.socket(self.netns));
            sockets.extend(there.by_ref().filter(|socket| socket.port == port));
        }
        let options = self.files.options().unwrap();
        let inodes: HashSet<u32> = sockets.iter().map(|socket| socket.inode).collect();
        let mut by_file = None;
        for socket in &mut sockets {
            let known = options.get(&socket.key.cookie).copied().or_else(|| {
                let scan = by_file.get_or_insert_with(|| self.files.scan(&inodes, 0).unwrap());
                scan.options.get(&socket.inode).copied()
            });
            socket.tell_options(known);
            assert!(socket.options.is_some(), "nothing tells the options of {socket:?}");
        }
        sockets.iter().map(claim).collect()
    }
}

#[derive(Default)]
struct Tally {
    agreed: usize,
    /// By what the first socket did.
    by_first: BTreeMap<String, usize>,
    outcomes: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Tally {
    /// Binds each of the second ones beside the first. Answers how many it took: after one that leaves a trace in the kernel the first
    /// has to be made anew. A port remembers the user and the address of the last socket that was bound with SO_REUSEPORT and lets a like
    /// one in without a look at the others (`sk_reuseport_match` of net/ipv4/inet_connection_sock.c), whatever interface it was for.
    fn compare(&mut self, sight: &Sight, does: Does, one: &How, port: u16, seconds: &[How]) -> usize {
        let claims = sight.claims(port);
        let _nobody_walks = WALKS.read().unwrap_or_else(PoisonError::into_inner);
        for (number, second) in seconds.iter().enumerate() {
            let manner = Manner {
                reuseaddr: second.reuseaddr,
                reuseport: second.reuseport,
                v6only: second.v6only,
                uid: second.uid,
                interface: second.device.map(str::to_owned),
            };
            let address = second.address.parse().unwrap();
            let wish = Wish { protocol: second.protocol, address, port, manner: &manner };
            let told = rule(&wish, &claims, &sight.here).errno;
            let got = bind(second, port).map(drop).map_err(name);
            if told == Some(got) {
                self.agreed += 1;
                *self.by_first.entry(format!("{does:?}")).or_insert(0) += 1;
                *self.outcomes.entry(format!("{got:?}")).or_insert(0) += 1;
            } else {
                self.wrong
                    .push(format!("{does:?} {one:?}\n  then {second:?}\n  kernel {got:?}, told {told:?}"));
            }
            if got.is_ok() && second.reuseport && second.device != one.device {
                return number + 1;
            }
        }
        seconds.len()
    }
}

fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::ADDRINUSE => "EADDRINUSE",
        Errno::ADDRNOTAVAIL => "EADDRNOTAVAIL",
        Errno::INVAL => "EINVAL",
        Errno::ACCESS => "EACCES",
        Errno::AFNOSUPPORT => "EAFNOSUPPORT",
        other => panic!("{other}"),
    }
}

/// An interface besides the loopback, and its other end.
const CABLE: (&str, &str) = ("one", "other");

/// Makes a pair of interfaces (veth(4)) in the calling thread's network namespace, by rtnetlink(7): no tool is there in a machine without
/// a system.
fn lay_cable() {
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    // `IFLA_IFNAME`, `IFLA_LINKINFO`, `IFLA_INFO_KIND`, `IFLA_INFO_DATA`, `VETH_INFO_PEER`; `struct ifinfomsg` is zero.
    let named = |name: &str| [&[0; 16][..], &attribute(3, &[name.as_bytes(), &[0]].concat())].concat();
    let pair = attribute(2, &attribute(1, &named(CABLE.1)));
    let body = [named(CABLE.0), attribute(18, &[attribute(1, b"veth"), pair].concat())].concat();
    let length = u32::try_from(16 + body.len()).unwrap();
    // `RTM_NEWLINK`, `NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE`.
    let (kind, flags) = (16u16, 0x1u16 | 0x4 | 0x200 | 0x400);
    let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    let socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    socket.send(&[head, body].concat(), 0).unwrap();
    let mut answer = vec![0; 4096];
    socket.recv(&mut answer.as_mut_slice(), 0).unwrap();
    assert_eq!(i32::from_ne_bytes(answer[16..20].try_into().unwrap()), 0, "an interface could not be made");
}

fn own_netns() -> NetnsKey {
    let meta = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
    NetnsKey { device: meta.dev(), inode: meta.ino() }
}

/// Runs on a thread of its own, in a network namespace of its own.
fn agree(cases: impl FnOnce(&Sight, &mut Tally) + Send + 'static) -> Tally {
    let thread = std::thread::spawn(move || {
        holders::new_netns_with_loopback();
        lay_cable();
        let files = OpenFiles::load(Reasons::InBrief).unwrap();
        let here = Surroundings {
            mapped_wildcard_is_narrow: probe::mapped_wildcard_is_narrow(),
            ..surroundings::read()
        };
        let sight = Sight { netns: own_netns(), here, files };
        let mut tally = Tally::default();
        cases(&sight, &mut tally);
        tally
    });
    let tally = thread.join().unwrap();
    let some: Vec<&str> = tally.wrong.iter().take(20).map(String::as_str).collect();
    assert!(some.is_empty(), "{} of {} are wrong:\n{}", tally.wrong.len(), tally.agreed, some.join("\n"));
    tally
}

#[test]
#[ignore = "needs root"]
fn the_kernel_agrees_on_tcp() {
    let tally = agree(|sight, tally| {
        let seconds = hows(Protocol::Tcp, &[0], &[None]);
        for does in [Does::Bound, Does::Listens, Does::Accepted, Does::Connects, Does::TimeWait] {
            for one in &seconds {
                let Some((_kept, port)) = first(one, does) else { continue };
                tally.compare(sight, does, one, port, &seconds);
            }
        }
    });
    assert!(tally.agreed > 4000 && tally.outcomes.len() >= 2, "{} {:?}", tally.agreed, tally.outcomes);
    let many = tally.by_first.values().all(|agreed| *agreed > 700);
    assert!(tally.by_first.len() == 5 && many, "{:?}", tally.by_first);
}

#[test]
#[ignore = "needs root"]
fn the_kernel_agrees_on_udp() {
    let tally = agree(|sight, tally| {
        let seconds = hows(Protocol::Udp, &[0], &[None]);
        for does in [Does::Bound, Does::Connects] {
            for one in &seconds {
                let Some((_kept, port)) = first(one, does) else { continue };
                tally.compare(sight, does, one, port, &seconds);
            }
        }
    });
    assert!(tally.agreed > 1000 && tally.outcomes.len() >= 2, "{} {:?}", tally.agreed, tally.outcomes);
    let many = tally.by_first.values().all(|agreed| *agreed > 700);
    assert!(tally.by_first.len() == 2 && many, "{:?}", tally.by_first);
}

#[test]
#[ignore = "needs root"]
fn the_kernel_agrees_on_users_and_interfaces() {
    const USERS: &[u32] = &[0, 1000];
    const DEVICES: &[Option<&str>] = &[None, Some("lo"), Some(CABLE.0)];
    let tally = agree(|sight, tally| {
        for protocol in Protocol::ALL {
            let all = hows(protocol, USERS, DEVICES);
            // Every combination would be 90,000: each first one meets every thirteenth second one, not always the same.
            for (number, one) in all.iter().enumerate() {
                let seconds: Vec<How> = all.iter().copied().skip(number % 13).step_by(13).collect();
                let does = if protocol == Protocol::Tcp { Does::Listens } else { Does::Bound };
                let mut seconds = seconds.as_slice();
                while let (false, Some((_kept, port))) = (seconds.is_empty(), first(one, does)) {
                    seconds = &seconds[tally.compare(sight, does, one, port, seconds)..];
                }
            }
        }
    });
    assert!(tally.agreed > 4000, "{}", tally.agreed);
}

#[test]
#[ignore = "needs root"]
fn a_connection_that_the_kernel_gave_its_port_is_in_the_way() {
    agree(|sight, tally| {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let one = hows(Protocol::Tcp, &[0], &[None])[0];
        assert!(sight.claims(port).iter().any(|claim| claim.kind == ClaimKind::Connection));
        tally.compare(sight, Does::Connects, &one, port, &hows(Protocol::Tcp, &[0], &[None]));
        assert!(client.as_raw_fd() >= 0);
    });
}
