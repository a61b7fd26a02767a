//! Netlink requests: a dump, whose replies are walked to their end, or a question with one reply (netlink(7), RFC 3549).
//!
//! Ours rather than a crate's because the end matters: an errno inside NLMSG_DONE and the INTR flag must be noticed,
//! since a dump that is silently short would become a wrong "free".

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer,
};
use netlink_sys::Socket;

/// Size of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// The kernel fills at most 32 KiB of a dump at a time (`netlink_dump` in net/netlink/af_netlink.c).
const BUFFER_BYTES: usize = 64 * 1024;
/// A dump that was interrupted by a change is taken again, this often at most.
const ATTEMPTS: usize = 4;

/// A socket for dumps of one protocol in the calling thread's namespace, with its buffer.
pub struct Dumper {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Dumper {
    /// Opens a netlink socket (`NETLINK_SOCK_DIAG`, …). It belongs to the calling thread's network namespace and keeps
    /// that alive: drop it before leaving.
    pub fn open(protocol: isize) -> io::Result<Self> {
        Ok(Dumper { socket: Socket::new(protocol)?, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends one dump request and gives every reply's payload to `each`. On a retry after an interrupted dump `each` sees
    /// messages again: collect into something that [`Dumper::dump`] can restart with `restart`.
    pub fn dump<T>(
        &mut self,
        message_type: u16,
        payload: &[u8],
        mut each: impl FnMut(&mut Vec<T>, &[u8]),
    ) -> io::Result<Vec<T>> {
        let request = encode(message_type, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            if let Dump::Whole = self.attempt(&request, |payload| each(&mut found, payload))? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the kernel's table changed under every attempt to read it"))
    }

    /// Sends a request that has one reply, and gives its payload.
    pub fn ask(&mut self, message_type: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.socket.send(&encode(message_type, NLM_F_REQUEST, payload)?, 0)?;
        let read = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
        let received = self.buffer.get(..read).unwrap_or_default();
        match split(received).next().ok_or_else(|| malformed("an empty reply"))?? {
            Reply::Payload { bytes, .. } => Ok(bytes.to_vec()),
            Reply::Done { .. } => Err(malformed("an end instead of a reply")),
        }
    }

    fn attempt(&mut self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<Dump> {
        self.socket.send(request, 0)?;
        let mut result = Dump::Whole;
        loop {
            let read = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            let received =
                self.buffer.get(..read).ok_or_else(|| malformed("a reply larger than its buffer"))?;
            for reply in split(received) {
                match reply? {
                    Reply::Payload { bytes, interrupted } => {
                        if interrupted {
                            result = Dump::Interrupted;
                        }
                        each(bytes);
                    }
                    Reply::Done { interrupted } => {
                        return Ok(if interrupted { Dump::Interrupted } else { result });
                    }
                }
            }
        }
    }
}

enum Dump {
    Whole,
    Interrupted,
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// What was asked for.
    Payload {
        /// Behind the header.
        bytes: &'a [u8],
        /// The table changed meanwhile (`NLM_F_DUMP_INTR`).
        interrupted: bool,
    },
    /// The end of a dump.
    Done {
        /// The table changed meanwhile.
        interrupted: bool,
    },
}

fn encode(message_type: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER_BYTES + payload.len()).map_err(|_| malformed("a request too large"))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(message_type.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]); // sequence and port id: one request at a time on a socket of its own
    bytes.extend(payload);
    Ok(bytes)
}

/// Splits one datagram into messages (`struct nlmsghdr` of linux/netlink.h); a malformed one ends the walk with an error.
pub fn split(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Reply<'_>>> {
    let mut broken = false;
    std::iter::from_fn(move || {
        if bytes.is_empty() || broken {
            return None;
        }
        let reply = next_reply(&mut bytes);
        broken = reply.is_err();
        Some(reply)
    })
}

fn next_reply<'a>(bytes: &mut &'a [u8]) -> io::Result<Reply<'a>> {
    let message = NetlinkBuffer::new_checked(*bytes).map_err(|_| malformed("a truncated message"))?;
    let (kind, length) = (message.message_type(), message.length() as usize);
    let interrupted = message.flags() & NLM_F_DUMP_INTR != 0;
    let body =
        bytes.get(HEADER_BYTES..length).ok_or_else(|| malformed("a message shorter than its header"))?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    match kind {
        NLMSG_DONE | NLMSG_ERROR => match errno(body) {
            Some(0) | None if kind == NLMSG_DONE => Ok(Reply::Done { interrupted }),
            Some(errno) if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(malformed("an acknowledgement in the middle of a dump")),
        },
        NLMSG_OVERRUN => Err(malformed("an overrun")),
        _ => Ok(Reply::Payload { bytes: body, interrupted }),
    }
}

/// The (positive) errno with which NLMSG_ERROR and NLMSG_DONE begin.
fn errno(body: &[u8]) -> Option<i32> {
    let bytes: [u8; 4] = body.get(..4)?.try_into().ok()?;
    i32::from_ne_bytes(bytes).checked_neg()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn an_errno_inside_done_is_an_error() {
        let bytes = message(NLMSG_DONE, 0, &(-13i32).to_ne_bytes());
        let error = split(&bytes).next().unwrap().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(13));
    }

    #[test]
    fn an_interrupted_dump_is_noticed() {
        let bytes = message(20, NLM_F_DUMP_INTR, b"1234");
        assert!(matches!(split(&bytes).next(), Some(Ok(Reply::Payload { interrupted: true, .. }))));
    }

    #[test]
    fn a_truncated_message_is_an_error_not_an_end() {
        let bytes = message(20, 0, b"12345678");
        for cut in 1..bytes.len() {
            assert!(matches!(split(&bytes[..cut]).next(), Some(Err(_))), "cut at {cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_loop(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            proptest::prop_assert!(split(&bytes).count() <= bytes.len());
        }
    }
}
