//! What the kernel has, read without the agent's code: every network namespace that a process, a mount or a descriptor keeps, and in each
//! the sockets that hold a port (sock_diag(7), `struct inet_diag_req_v2` and `inet_diag_msg` of linux/inet_diag.h).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST | NLM_F_DUMP`, `NLMSG_ERROR`, `NLMSG_DONE`.
const BY_FAMILY: u16 = 20;
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `IPPROTO_TCP`, `IPPROTO_UDP`; `AF_INET`, `AF_INET6`.
const TCP: u8 = 6;
const UDP: u8 = 17;
const FAMILIES: [u8; 2] = [2, 10];
/// `TCP_CLOSE`, which a UDP socket without a peer has too, `TCP_LISTEN`, `TCP_BOUND_INACTIVE`.
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const BOUND_INACTIVE: u8 = 13;
const TCP_STATES: u32 = 1 << LISTEN | 1 << BOUND_INACTIVE;
/// The kernel fills 32 KiB at the most.
const BUFFER_BYTES: usize = 64 * 1024;

/// A socket that holds a port.
#[derive(Debug)]
pub(super) struct Held {
    /// Whether it waits for others: it listens, or is a UDP socket without a peer.
    pub(super) waits: bool,
    /// What it is, for people.
    words: String,
}

/// Sockets by namespace and cookie, which no other socket ever has.
pub(super) type Sockets = BTreeMap<(u64, u64), Held>;

/// The sockets of all namespaces: TCP that listens or is bound, and UDP with a port.
pub(super) fn sockets() -> Sockets {
    let mut found = Sockets::new();
    for (inode, way) in namespaces() {
        // One that ended meanwhile has no sockets any more.
        let Ok(namespace) = File::open(way) else { continue };
        if namespace.metadata().map(|meta| meta.ino()).ok() == Some(inode) {
            found.extend(std::thread::spawn(move || of_namespace(inode, &namespace)).join().unwrap());
        }
    }
    found
}

/// Network namespaces by inode, with a way into each.
pub(super) fn namespaces() -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
    let mut add = |way: PathBuf| {
        if let Some(inode) = namespace_of(&way) {
            found.entry(inode).or_insert(way);
        }
    };
    for process in fs::read_dir("/proc").unwrap().flatten() {
        if process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            add(process.path().join("ns/net"));
            let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            descriptors.for_each(|descriptor| add(descriptor.path()));
        }
    }
    for name in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if let Ok(meta) = name.metadata() {
            found.entry(meta.ino()).or_insert(name.path());
        }
    }
    found
}

/// The network namespace that a link of /proc leads to.
pub(super) fn namespace_of(link: &std::path::Path) -> Option<u64> {
    fs::read_link(link).ok()?.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn of_namespace(inode: u64, namespace: &File) -> Sockets {
    match setns(namespace, CloneFlags::CLONE_NEWNET) {
        Ok(()) => {}
        // A name whose mount is in another mount namespace is an empty file here.
        Err(Errno::EINVAL) => return Sockets::new(),
        Err(errno) => panic!("{errno}"),
    }
    let mut found = Sockets::new();
    for (protocol, states) in [(TCP, TCP_STATES), (UDP, u32::MAX)] {
        for family in FAMILIES {
            for message in dump(family, protocol, states).unwrap() {
                // Port in network byte order; state; cookie behind the addresses and the interface.
                let port = u16::from_be_bytes([message[4], message[5]]);
                let half = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
                if port != 0 {
                    let cookie = u64::from(half(44)) | u64::from(half(48)) << 32;
                    let state = message[1];
                    let words = format!("protocol {protocol} family {family} port {port} state {state}");
                    let waits = matches!((protocol, state), (TCP, LISTEN) | (UDP, CLOSE));
                    found.insert((inode, cookie), Held { waits, words });
                }
            }
        }
    }
    found
}

/// The messages of a dump, without their headers. Errors: the kernel's.
fn dump(family: u8, protocol: u8, states: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut request = Vec::new();
    request.extend(72u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, protocol, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.resize(72, 0);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send(&request, 0)?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
    loop {
        let read = socket.recv(&mut buffer.as_mut_slice(), 0)?;
        let mut rest = &buffer[..read];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                DONE => return Ok(found),
                ERROR => {
                    let errno = i32::from_ne_bytes(rest[16..20].try_into().unwrap());
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => found.push(rest[16..length].to_vec()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The same as the agent lists them: sockets that listen or are bound, and UDP.
pub(super) fn listed(document: &Value) -> Sockets {
    let bound = sniffer::kernel::sock_diag::lists_bound_sockets();
    let is_meant = |claim: &&Value| {
        // Before Linux 6.8 sock_diag names none that is bound and does not listen; the agent finds them as open files.
        claim["protocol"] == "udp" || claim["kind"] == "listener" || (claim["kind"] == "bound" && bound)
    };
    let socket = |claim: &Value| {
        // A rule has none.
        let cookie = claim["socket"]["cookie"].as_u64()?;
        let words =
            format!("{} {}:{} {}", claim["protocol"], claim["address"], claim["port"], claim["state"]);
        let waits = claim["kind"] == "listener";
        Some(((claim["netns"]["inode"].as_u64().unwrap(), cookie), Held { waits, words }))
    };
    document["claims"].as_array().unwrap().iter().filter(is_meant).filter_map(socket).collect()
}

/// In what the agent's list differs from what the kernel had both before and after it, or at one of these times.
pub(super) fn differences(before: &Sockets, listed: &Sockets, after: &Sockets) -> Vec<String> {
    let keys = |sockets: &Sockets| sockets.keys().copied().collect::<BTreeSet<_>>();
    let (first, last, told) = (keys(before), keys(after), keys(listed));
    let missed = first.intersection(&last).filter(|key| !told.contains(key));
    let invented = told.iter().filter(|key| !first.contains(key) && !last.contains(key));
    let missed = missed.map(|key| format!("not listed: {key:?} {}", before[key].words));
    missed.chain(invented.map(|key| format!("listed only: {key:?} {}", listed[key].words))).collect()
}
