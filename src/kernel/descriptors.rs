//! Who has which socket open: `/proc/PID/fd`, read with raw getdents and readlinkat on all cores.
//!
//! Measured: the procfs crate's own walk is 2-3 times slower, and this is the costliest look the program takes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};

use super::{Gap, Unreadable, process};
use crate::model::socket::SocketOptions;

/// Entries of a directory come in blocks of this size; 200 descriptors fit into one.
const DIRECTORY_BYTES: usize = 16 * 1024;
/// `socket:[4294967295]` and `net:[4026531833]` fit; a longer link is a file and of no interest.
const LINK_BYTES: usize = 32;

/// One open descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Descriptor {
    /// Process.
    pub pid: u32,
    /// Number in that process.
    pub fd: u32,
}

/// Descriptors by the network namespace (nsfs inode) they refer to.
pub type NetnsDescriptors = BTreeMap<u64, Vec<Descriptor>>;

/// Ways into one namespace to keep: some are open for a moment only, while somebody looks in.
const WAYS_KEPT: usize = 4;

fn add_way(netns: &mut NetnsDescriptors, inode: u64, descriptor: Descriptor) {
    let ways = netns.entry(inode).or_default();
    if ways.len() < WAYS_KEPT && ways.iter().all(|way| way.pid != descriptor.pid) {
        ways.push(descriptor);
    }
}

/// What a walk over descriptors found.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// By socket inode: every process that has it open, each with its lowest descriptor.
    pub sockets: HashMap<u32, Vec<Descriptor>>,
    /// By nsfs inode: descriptors that refer to that network namespace, of a few processes each, none of our own.
    pub netns: NetnsDescriptors,
    /// By socket inode: its options, where the walk tells them.
    pub options: HashMap<u32, SocketOptions>,
    /// Processes that could be read.
    pub read: usize,
    /// Processes that could not, for lack of rights, pid 1 left out.
    pub denied: usize,
    /// Whether pid 1 could not be read.
    pub denied_init: bool,
}

impl Scan {
    /// What an answer has to say about it.
    pub fn gaps(&self) -> impl Iterator<Item = Gap> {
        let others = (self.denied > 0).then_some(Gap::Descriptors(self.denied));
        others.into_iter().chain(self.denied_init.then_some(Gap::DescriptorsOfInit))
    }

    /// Adds a process that has a socket open; of several descriptors of one process the lowest counts.
    pub(super) fn add_socket(&mut self, inode: u32, held: Descriptor) {
        let holders = self.sockets.entry(inode).or_default();
        match holders.iter_mut().find(|known| known.pid == held.pid) {
            Some(known) => known.fd = known.fd.min(held.fd),
            None => holders.push(held),
        }
    }

    /// Adds a way into a network namespace.
    pub(super) fn add_netns(&mut self, inode: u64, held: Descriptor) {
        add_way(&mut self.netns, inode, held);
    }

    /// Brings the holders of each socket into order.
    pub(super) fn sort(&mut self) {
        for descriptors in self.sockets.values_mut() {
            descriptors.sort_unstable();
        }
    }

    fn absorb(&mut self, other: Scan) {
        for (inode, mut descriptors) in other.sockets {
            self.sockets.entry(inode).or_default().append(&mut descriptors);
        }
        for (inode, ways) in other.netns {
            for way in ways {
                add_way(&mut self.netns, inode, way);
            }
        }
        self.read += other.read;
        self.denied += other.denied;
        self.denied_init |= other.denied_init;
    }
}

/// Walks the descriptors of these processes, looking for these socket inodes (`None`: all) and for network namespaces.
pub fn scan(pids: &[u32], wanted: Option<&HashSet<u32>>, threads: usize) -> Scan {
    let next = AtomicUsize::new(0);
    let mut result = Scan::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads.max(1)).map(|_| scope.spawn(|| scan_some(pids, wanted, &next))).collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => result.absorb(part),
                Err(_) => result.denied = pids.len(),
            }
        }
    });
    result.sort();
    result
}

/// All cores, for a look that somebody waits for. To ask for them takes twenty system calls.
pub fn all_cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn scan_some(pids: &[u32], wanted: Option<&HashSet<u32>>, next: &AtomicUsize) -> Scan {
    let mut scan = Scan::default();
    let mut buffer = vec![MaybeUninit::uninit(); DIRECTORY_BYTES];
    while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
        match scan_process(*pid, wanted, &mut buffer, &mut scan) {
            Ok(()) => scan.read += 1,
            Err(Unreadable::Vanished) => {}
            // A process that is being reaped refuses before it vanishes.
            Err(_) if process::glance(*pid) == Err(Unreadable::Vanished) => {}
            Err(Unreadable::Denied | Unreadable::Malformed(_)) if *pid == 1 => scan.denied_init = true,
            Err(Unreadable::Denied | Unreadable::Malformed(_)) => scan.denied += 1,
        }
    }
    scan
}

fn scan_process(
    pid: u32,
    wanted: Option<&HashSet<u32>>,
    buffer: &mut [MaybeUninit<u8>],
    scan: &mut Scan,
) -> Result<(), Unreadable> {
    let directory = open_directory(pid)?;
    let mut entries = RawDir::new(&directory, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(fd) = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mut link = [MaybeUninit::uninit(); LINK_BYTES];
        let text = match readlinkat_raw(&directory, entry.file_name(), &mut link).map_err(Unreadable::from) {
            Ok((text, _)) => text,
            // A descriptor closed meanwhile is simply gone.
            Err(Unreadable::Vanished) => continue,
            // The directory can be open to a user to whom its links are not (ptrace(2), access mode checking).
            Err(other) => return Err(other),
        };
        match parse_link(text) {
            Link::Socket(inode) if wanted.is_none_or(|wanted| wanted.contains(&inode)) => {
                let holders = scan.sockets.entry(inode).or_default();
                if holders.last().is_none_or(|last| last.pid != pid) {
                    holders.push(Descriptor { pid, fd });
                }
            }
            Link::Netns(inode) if pid != std::process::id() => {
                add_way(&mut scan.netns, inode, Descriptor { pid, fd });
            }
            Link::Socket(_) | Link::Netns(_) | Link::Other => {}
        }
    }
    Ok(())
}

fn open_directory(pid: u32) -> Result<OwnedFd, Unreadable> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty())?)
}

/// Whether a descriptor still refers to a socket. Errors: the process is closed to this user, or odd; a vanished one is no.
pub fn refers_to(descriptor: Descriptor, inode: u32) -> Result<bool, Unreadable> {
    let mut link = [MaybeUninit::uninit(); LINK_BYTES];
    let path = format!("/proc/{}/fd/{}", descriptor.pid, descriptor.fd);
    match readlinkat_raw(CWD, path, &mut link).map_err(Unreadable::from) {
        Ok((text, _)) => Ok(matches!(parse_link(text), Link::Socket(found) if found == inode)),
        Err(Unreadable::Vanished) => Ok(false),
        Err(other) => Err(other),
    }
}

/// What a link in `/proc/PID/fd` leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A socket, with its inode in sockfs.
    Socket(u32),
    /// A network namespace, with its inode in nsfs.
    Netns(u64),
    /// Anything else.
    Other,
}

/// Reads the text of a link: `socket:[191563]`, `net:[4026531833]`.
pub fn parse_link(text: &[u8]) -> Link {
    let number = |prefix: &[u8]| -> Option<u64> {
        std::str::from_utf8(text.strip_prefix(prefix)?.strip_suffix(b"]")?).ok()?.parse().ok()
    };
    if let Some(inode) = number(b"socket:[").and_then(|inode| u32::try_from(inode).ok()) {
        Link::Socket(inode)
    } else if let Some(inode) = number(b"net:[") {
        Link::Netns(inode)
    } else {
        Link::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn links_are_told_apart() {
        assert_eq!(parse_link(b"socket:[123]"), Link::Socket(123));
        assert_eq!(parse_link(b"net:[4026531833]"), Link::Netns(4_026_531_833));
        for other in
            [&b"socket:[99999999999]"[..], b"socket:[]", b"/tmp/socket:[1]", b"pipe:[1]", b"", b"net:[x]"]
        {
            assert_eq!(parse_link(other), Link::Other);
        }
    }

    #[test]
    fn this_process_is_found_as_the_holder_of_its_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let copy = socket.try_clone().unwrap();
        let link = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = u32::try_from(link.ino()).unwrap();
        let pid = std::process::id();
        let scan = scan(&[pid, 4_194_304], Some(&HashSet::from([inode])), 2);
        let lowest = u32::try_from(socket.as_raw_fd().min(copy.as_raw_fd())).unwrap();
        let expected = Descriptor { pid, fd: lowest };
        assert_eq!(scan.sockets, HashMap::from([(inode, vec![expected])]));
        assert_eq!((scan.read, scan.denied), (1, 0), "a process that does not exist is no gap");
        assert_eq!(refers_to(expected, inode), Ok(true));
        drop((socket, copy));
        assert_eq!(refers_to(expected, inode), Ok(false));
    }
}
