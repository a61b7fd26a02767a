//! Process events without BPF: the proc connector (linux/cn_proc.h, linux/connector.h).
//!
//! It reports fork, exec, exit and renaming of every process of the host, to root in the initial pid and network
//! namespaces. Elsewhere the kernel takes the subscription and stays silent, or passes on events meant for others: hence
//! the wait for an event of our own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use rustix::net::RecvFlags;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_timeout,
};

use crate::model::process::Exit;

/// `NETLINK_CONNECTOR` of linux/netlink.h.
const NETLINK_CONNECTOR: isize = 11;
/// `CN_IDX_PROC`, `CN_VAL_PROC` of linux/connector.h: the multicast group is the index.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
/// `PROC_CN_MCAST_LISTEN` of linux/cn_proc.h.
const MCAST_LISTEN: u32 = 1;
/// Sizes of `struct nlmsghdr`, `struct cn_msg`, and of `struct proc_event` up to its union.
const NLMSG_BYTES: usize = 16;
const CN_MSG_BYTES: usize = 20;
const EVENT_HEAD_BYTES: usize = 16;
/// `PROC_EVENT_*` of linux/cn_proc.h.
const EVENT_NONE: u32 = 0;
const EVENT_FORK: u32 = 1;
const EVENT_EXEC: u32 = 2;
const EVENT_COMM: u32 = 0x200;
const EVENT_EXIT: u32 = 0x8000_0000;
/// An event takes about 1 KiB of the socket's budget: this holds some 8,000 of them.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Events handed on at once.
const BATCH: usize = 256;
/// The fence that proves a subscription.
const PROOF: u32 = u32::MAX;
/// The proof arrives at once or never.
const ACK_TIMEOUT: Duration = Duration::from_millis(500);

/// What happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// A process was made.
    Forked {
        /// Its parent.
        parent: u32,
        /// The new process.
        child: u32,
    },
    /// A process runs another program.
    Execed {
        /// The process.
        pid: u32,
    },
    /// A process changed its name.
    Renamed {
        /// The process.
        pid: u32,
        /// The new name.
        comm: String,
    },
    /// A process ended, or only its first thread did: the kernel tells both alike.
    Exited {
        /// The process.
        pid: u32,
        /// How, where that was told.
        exit: Option<Exit>,
    },
    /// The OOM killer has chosen a process, which will end. BPF alone tells it.
    OomKilled {
        /// The process.
        pid: u32,
    },
    /// A thread that was not its process's first ended.
    ThreadExited {
        /// The process.
        pid: u32,
    },
    /// A [`fence`] of this program: whatever happened before it has been delivered.
    Fence {
        /// Its number.
        number: u32,
    },
}

/// How a thread is called that is a fence. Names have 15 bytes (PR_SET_NAME(2const)).
const FENCE: &str = "fence:";

/// Sends a mark through the kernel's queue of events, behind all that has happened: the calling thread takes a name, which
/// is an event like any other. Where that fails the mark does not arrive; wait for it with a limit.
pub fn fence(number: u32) {
    if let Ok(name) = std::ffi::CString::new(format!("{FENCE}{number:08x}")) {
        // A kernel that refuses sends no mark.
        let _ = rustix::thread::set_name(&name);
    }
}

/// A subscription to the events of every process.
pub struct ProcEvents {
    socket: Socket,
    buffer: Vec<u8>,
}

/// Why there are no process events, as a sentence with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The privilege is missing.
    #[error("process events need CAP_NET_ADMIN in the host's first user namespace ({0}); run as root")]
    Denied(io::Error),
    /// No event of our own arrived.
    #[error(
        "the kernel gives process events only in the host's first pid and network namespaces; run the agent outside of containers or with hostPID and hostNetwork"
    )]
    Silent,
    /// The kernel has no connector, or something else failed.
    #[error("process events are not available ({0}); the kernel needs CONFIG_PROC_EVENTS")]
    Failed(io::Error),
}

impl ProcEvents {
    /// Subscribes, and waits for the proof that events arrive and mean what they say.
    pub fn subscribe() -> Result<Self, Unavailable> {
        let mut socket = Socket::new(NETLINK_CONNECTOR).map_err(Unavailable::Failed)?;
        socket.bind(&SocketAddr::new(0, CN_IDX_PROC)).map_err(refused)?;
        let fd = as_fd(&socket);
        // Beyond the system's limit only with CAP_NET_ADMIN; a smaller buffer loses events sooner, and says so when it does.
        set_socket_recv_buffer_size_force(fd, RECEIVE_BUFFER_BYTES)
            .or_else(|_| set_socket_recv_buffer_size(fd, RECEIVE_BUFFER_BYTES))
            .map_err(|errno| Unavailable::Failed(errno.into()))?;
        set_socket_timeout(fd, Timeout::Recv, Some(ACK_TIMEOUT))
            .map_err(|errno| Unavailable::Failed(errno.into()))?;
        socket.send(&subscription(), 0).map_err(refused)?;
        let mut events = ProcEvents { socket, buffer: vec![0; 16 * 1024] };
        events.wait_for_proof()?;
        set_socket_timeout(as_fd(&events.socket), Timeout::Recv, None)
            .map_err(|errno| Unavailable::Failed(errno.into()))?;
        Ok(events)
    }

    /// Waits for a fence of our own. Any other event proves nothing: while somebody else is subscribed, the kernel sends
    /// events to every socket of the group, and into a pid namespace with numbers that mean other processes there.
    fn wait_for_proof(&mut self) -> Result<(), Unavailable> {
        // Joined only by its end: a thread that cannot be started sends no proof.
        let _ = std::thread::Builder::new().spawn(|| fence(PROOF)).map(std::thread::JoinHandle::join);
        let end = Instant::now() + ACK_TIMEOUT;
        while Instant::now() < end {
            match self.receive_some() {
                Ok(events) if events.contains(&ProcessEvent::Fence { number: PROOF }) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if means_lost(&error) => {}
                Err(error) => return Err(Unavailable::Failed(error)),
            }
        }
        Err(Unavailable::Silent)
    }

    /// Waits for the next events, and takes along what else has arrived, up to a bound. Errors: `ENOBUFS` when events were
    /// lost; anything else ends the subscription. An error after the first events shows with the next call.
    pub fn receive_some(&mut self) -> io::Result<Vec<ProcessEvent>> {
        let mut events = decode_all(self.receive(RecvFlags::empty())?);
        while events.len() < BATCH {
            let Ok(bytes) = self.receive(RecvFlags::DONTWAIT) else { break };
            events.extend(decode_all(bytes));
        }
        Ok(events)
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<&[u8]> {
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let read = self.socket.recv(&mut self.buffer.as_mut_slice(), flags)?;
        Ok(self.buffer.get(..read).unwrap_or_default())
    }
}

/// Whether this error says that events were lost and the subscription goes on (netlink(7)).
pub fn means_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

fn as_fd(socket: &Socket) -> BorrowedFd<'_> {
    debug_assert!(socket.as_raw_fd() >= 0);
    socket.as_fd()
}

fn refused(error: io::Error) -> Unavailable {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Unavailable::Denied(error),
        // Nobody serves the connector in a namespace that is not the first one.
        io::ErrorKind::ConnectionRefused => Unavailable::Silent,
        _ => Unavailable::Failed(error),
    }
}

fn subscription() -> Vec<u8> {
    let body = MCAST_LISTEN.to_ne_bytes();
    let mut bytes = Vec::new();
    let length = (NLMSG_BYTES + CN_MSG_BYTES + body.len()) as u32;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(3u16.to_ne_bytes()); // NLMSG_DONE: the connector's messages have no type of their own
    bytes.extend([0; 10]);
    bytes.extend(CN_IDX_PROC.to_ne_bytes());
    bytes.extend(CN_VAL_PROC.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend((body.len() as u16).to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(body);
    bytes
}

/// Decodes the events of one datagram (`struct cn_msg` with `struct proc_event`, linux/cn_proc.h); malformed and unknown ones are left
/// out.
pub fn decode_all(mut bytes: &[u8]) -> Vec<ProcessEvent> {
    let mut events = Vec::new();
    while let Some(length) =
        word(bytes, 0).map(|length| length as usize).filter(|length| *length >= NLMSG_BYTES)
    {
        let Some(message) = bytes.get(..length) else { break };
        events.extend(message.get(NLMSG_BYTES + CN_MSG_BYTES..).and_then(decode));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    events
}

fn decode(event: &[u8]) -> Option<ProcessEvent> {
    let what = word(event, 0)?;
    let data = event.get(EVENT_HEAD_BYTES..)?;
    let pid = word(data, 4)?;
    let of_thread = word(data, 0)? != pid;
    match what {
        EVENT_FORK => {
            let (thread, child) = (word(data, 8)?, word(data, 12)?);
            (thread == child).then_some(ProcessEvent::Forked { parent: pid, child })
        }
        EVENT_EXEC => Some(ProcessEvent::Execed { pid }),
        EVENT_COMM => {
            let name = data.get(8..24)?.split(|byte| *byte == 0).next()?;
            renamed(pid, of_thread, String::from_utf8_lossy(name).into_owned())
        }
        EVENT_EXIT if of_thread => Some(ProcessEvent::ThreadExited { pid }),
        EVENT_EXIT => Some(ProcessEvent::Exited { pid, exit: word(data, 8).map(Exit::of_status) }),
        EVENT_NONE => None,
        _ => None,
    }
}

/// What a new name means: of a process's first thread it is the process's, of another thread of ours it may be a fence.
pub(super) fn renamed(pid: u32, of_thread: bool, comm: String) -> Option<ProcessEvent> {
    match (of_thread, pid == std::process::id()) {
        (false, _) => Some(ProcessEvent::Renamed { pid, comm }),
        (true, true) => fence_number(&comm).map(|number| ProcessEvent::Fence { number }),
        (true, false) => None,
    }
}

fn fence_number(comm: &str) -> Option<u32> {
    u32::from_str_radix(comm.strip_prefix(FENCE)?, 16).ok()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: u32, data: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; NLMSG_BYTES + CN_MSG_BYTES];
        bytes.extend(what.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(data.iter().flat_map(|word| word.to_ne_bytes()));
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn processes_are_told_from_threads() {
        let fork = event(EVENT_FORK, &[10, 10, 20, 20, 0, 0]);
        assert_eq!(decode_all(&fork), [ProcessEvent::Forked { parent: 10, child: 20 }]);
        assert_eq!(decode_all(&event(EVENT_FORK, &[10, 10, 21, 10, 0, 0])), []);
        assert_eq!(
            decode_all(&event(EVENT_EXIT, &[20, 20, 9, 17, 0, 0])),
            [ProcessEvent::Exited { pid: 20, exit: Some(Exit { code: None, signal: Some(9) }) }]
        );
        assert_eq!(
            decode_all(&event(EVENT_EXIT, &[21, 10, 0, 17, 0, 0])),
            [ProcessEvent::ThreadExited { pid: 10 }]
        );
    }

    #[test]
    fn several_events_in_one_datagram_are_all_taken() {
        let mut bytes = event(EVENT_EXEC, &[5, 5, 0, 0, 0, 0]);
        bytes.extend(event(EVENT_COMM, &[5, 5, u32::from_ne_bytes(*b"java"), 0, 0, 0]));
        assert_eq!(
            decode_all(&bytes),
            [ProcessEvent::Execed { pid: 5 }, ProcessEvent::Renamed { pid: 5, comm: "java".to_owned() }]
        );
    }

    #[test]
    fn a_fence_of_a_thread_of_ours_is_told_from_other_names() {
        let named = |tid: u32, pid: u32, name: &[u8; 16]| {
            let words = name.chunks(4).map(|chunk| u32::from_ne_bytes(chunk.try_into().unwrap()));
            let data: Vec<u32> = [tid, pid].into_iter().chain(words).collect();
            decode_all(&event(EVENT_COMM, &data))
        };
        let own = std::process::id();
        assert_eq!(named(own + 1, own, b"fence:0000002a\0\0"), [ProcessEvent::Fence { number: 42 }]);
        assert_eq!(named(own + 1, own, b"tokio-rt-worker\0"), []);
        assert_eq!(named(8, 7, b"fence:0000002a\0\0"), [], "other processes cannot send one");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_loop(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            decode_all(&bytes);
        }
    }
}
