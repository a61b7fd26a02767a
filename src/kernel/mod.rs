//! The only I/O with the system: netlink, /proc, cgroups, the clock. The only place where unsafe code may be.
//!
//! Nothing here judges: functions return what the kernel said, with what could not be seen as [`Gap`]s.
//! Nothing here keeps a descriptor into a foreign namespace longer than one look (an observer disturbs nothing).

pub mod bpf;
pub mod capability;
pub mod cgroup;
pub mod children;
pub mod clock;
pub mod containers;
pub mod descriptors;
pub mod doom;
pub mod host;
pub mod lease;
pub mod links;
pub mod look;
pub mod memory;
pub mod mounts;
pub mod nat;
pub mod netlink;
pub mod netns;
pub mod oom;
pub mod pidfd;
pub mod probe;
pub mod proc_events;
pub mod process;
pub mod sock_diag;
pub mod sockopt;
pub mod surroundings;
pub mod unix_http;
pub mod users;

use std::fmt;

/// Why one item could not be read. Vanished is normal, denied is said, malformed is a surprise worth a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// It ended while it was being looked at.
    Vanished,
    /// The privilege is missing.
    Denied,
    /// The kernel said something this program does not understand.
    Malformed(String),
}

impl From<rustix::io::Errno> for Unreadable {
    fn from(errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        match errno {
            Errno::NOENT | Errno::SRCH | Errno::NOTDIR => Unreadable::Vanished,
            Errno::ACCESS | Errno::PERM => Unreadable::Denied,
            other => Unreadable::Malformed(other.to_string()),
        }
    }
}

impl From<std::io::Error> for Unreadable {
    fn from(error: std::io::Error) -> Self {
        match rustix::io::Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Unreadable::Malformed(error.to_string()),
        }
    }
}

impl From<procfs::ProcError> for Unreadable {
    fn from(error: procfs::ProcError) -> Self {
        match error {
            procfs::ProcError::NotFound(_) => Unreadable::Vanished,
            procfs::ProcError::PermissionDenied(_) => Unreadable::Denied,
            procfs::ProcError::Io(error, _) => error.into(),
            other => Unreadable::Malformed(other.to_string()),
        }
    }
}

/// Something that could not be seen, counted, so that an answer can say what is missing and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gap {
    /// Processes of other users, whose descriptors are closed to this user.
    Descriptors(usize),
    /// The descriptors of pid 1. Worth a word only where a socket has no holder: pid 1 holds for others.
    DescriptorsOfInit,
    /// Holders, or ancestors of holders, whose environment is closed to this user.
    Environments(usize),
    /// Processes whose network namespace is closed to this user.
    ProcessNetns(usize),
    /// A namespace that could not be entered.
    EnterNetns(u64, String),
    /// A namespace whose sockets could not be read.
    ReadNetns(u64, String),
    /// The process list itself.
    Processes(String),
    /// Mounted namespaces.
    Mounts(String),
    /// Namespaces kept alive by nothing but a descriptor, or by a mount elsewhere, were not looked for anew.
    HiddenNetns,
    /// The names of containers.
    Containers(String),
    /// The NAT rules of a namespace.
    Nat(u64, String),
    /// The kernel does not list bound sockets that do not listen.
    BoundSockets,
}

impl Gap {
    /// Whether it is about namespaces as such, and holds until the next look into all of them.
    pub fn lasts(&self) -> bool {
        let of_this_look = matches!(self, Gap::HiddenNetns | Gap::BoundSockets | Gap::Containers(_));
        !self.is_of_descriptors() && !of_this_look
    }

    /// Inode of the network namespace that it is about, if it is about one.
    pub fn netns(&self) -> Option<u64> {
        match self {
            Gap::EnterNetns(inode, _) | Gap::ReadNetns(inode, _) | Gap::Nat(inode, _) => Some(*inode),
            _ => None,
        }
    }

    /// Whether it is about who has what open.
    pub fn is_of_descriptors(&self) -> bool {
        matches!(self, Gap::Descriptors(_) | Gap::DescriptorsOfInit)
    }
}

/// The remedy for what is denied.
pub const AS_ROOT: &str = "run as root, with the capabilities that `sniffer doctor` lists";

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gap::Descriptors(n) => write!(
                f,
                "the open files of {n} processes could not be read (they belong to others), so a holder may be missing; {AS_ROOT}"
            ),
            Gap::DescriptorsOfInit => {
                write!(f, "the open files of pid 1 could not be read, so it may be a holder; {AS_ROOT}")
            }
            Gap::Environments(n) => write!(
                f,
                "the environment of {n} processes behind these ports could not be read, so a job may be missing; {AS_ROOT}"
            ),
            Gap::ProcessNetns(n) => write!(
                f,
                "the network namespaces of {n} processes could not be read, so a namespace may be missing; {AS_ROOT}"
            ),
            Gap::EnterNetns(inode, why) => write!(
                f,
                "network namespace {inode} could not be entered ({why}), so its ports are unknown; {AS_ROOT}"
            ),
            Gap::ReadNetns(inode, why) => {
                write!(f, "the sockets of network namespace {inode} could not be read ({why})")
            }
            Gap::Processes(why) => write!(f, "the list of processes could not be read ({why})"),
            Gap::Mounts(why) => write!(f, "mounted network namespaces could not be listed ({why})"),
            Gap::HiddenNetns => write!(
                f,
                "network namespaces that only an open file, or a mount of another mount namespace, keeps alive were looked for a short time ago and not again; ask again in some seconds"
            ),
            Gap::Containers(why) => write!(
                f,
                "a container engine did not say how its containers are called ({why}), so they are shown by their ids"
            ),
            Gap::Nat(inode, why) => write!(
                f,
                "the NAT rules of network namespace {inode} are not known ({why}), so one may take a port's traffic"
            ),
            Gap::BoundSockets => write!(
                f,
                "this kernel does not list TCP sockets that are bound and do not listen (Linux 6.8 does), and its programs, which find them too, cannot be used, so such a holder may be missing"
            ),
        }
    }
}
