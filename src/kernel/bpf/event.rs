//! What the programs tell, decoded from bytes: the layouts of `event.h`, asserted there and in the tests here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::kernel::proc_events::{ProcessEvent, renamed};
use crate::model::bind::{Actor, Bind, BindEvent, BindFlags, CloseEvent, Outcome};
use crate::model::socket::Protocol;

/// `sizeof(struct event)`, `sizeof(struct signed_event)`, and `offsetof(struct exec, data)`.
const EVENT_BYTES: usize = 64;
const SIGNED_BYTES: usize = 104;
const EXEC_HEAD_BYTES: usize = 376;
/// `offsetof(struct exec, program)` and its size.
const PROGRAM_AT: usize = 120;
const PROGRAM_BYTES: usize = 256;
/// `sizeof(struct attempt)`.
pub(super) const ATTEMPT_BYTES: usize = 56;

/// `AF_INET`, `AF_INET6`; `IPPROTO_TCP`, `IPPROTO_UDP`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// `enum kind`.
mod kind {
    pub(super) const FORK: u8 = 1;
    pub(super) const EXEC: u8 = 2;
    pub(super) const RENAME: u8 = 3;
    pub(super) const EXIT: u8 = 4;
    pub(super) const BOUND: u8 = 16;
    pub(super) const CLOSE: u8 = 17;
    pub(super) const BIND_FAILED: u8 = 18;
    pub(super) const LISTEN_FAILED: u8 = 19;
    pub(super) const HELD: u8 = 20;
}

/// `enum flags`.
mod flag {
    pub(super) const REUSEADDR: u8 = 1;
    pub(super) const REUSEPORT: u8 = 2;
    pub(super) const V6ONLY: u8 = 4;
    pub(super) const PRIVILEGED: u8 = 8;
    pub(super) const UNPROVEN: u8 = 16;
}

/// `enum stage`.
mod stage {
    pub(super) const ATTEMPT: u8 = 1;
    pub(super) const BOUND: u8 = 2;
}

/// A program that a process began to run, as it was at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Process.
    pub pid: u32,
    /// It, as it is now.
    pub by: Actor,
    /// Its parent.
    pub ppid: u32,
    /// Inode of its network namespace.
    pub netns: u64,
    /// Path of the program as it was called (or of its interpreter); relative where the caller's was.
    pub program: String,
    /// Its arguments, as the kernel keeps them: each ended by NUL. Cut after 2 KiB.
    pub arguments: Vec<u8>,
    /// Its environment, the same way.
    pub environment: Vec<u8>,
    /// Whether the environment is all there is: else the rest has to be read elsewhere.
    pub whole_environment: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A process was made, renamed, or ended.
    Process(ProcessEvent),
    /// A process runs another program.
    Exec(Box<Exec>),
    /// A socket was bound, or refused.
    Bind(BindEvent),
    /// A socket was closed.
    Close(CloseEvent),
}

/// Decodes one event; `None` for one that is too short, or of a kind, protocol or family that is not known.
pub(super) fn decode(bytes: &[u8]) -> Option<Event> {
    let event = Fields(bytes);
    bytes.get(..EVENT_BYTES)?;
    let (pid, other) = (event.u32(16)?, event.u32(24)?);
    let errno = event.i32(36)?.checked_neg().filter(|errno| *errno > 0);
    let proven = event.u8(47)? & flag::UNPROVEN == 0;
    match event.u8(44)? {
        kind::FORK => Some(Event::Process(ProcessEvent::Forked { parent: pid, child: other })),
        kind::EXEC => exec(&event, bytes),
        kind::RENAME => renamed(pid, event.u32(20)? != pid, event.comm()?).map(Event::Process),
        kind::EXIT => Some(Event::Process(ProcessEvent::Exited { pid })),
        kind::BOUND => bind(&event, Outcome::Bound { until: None }),
        kind::HELD => {
            let held = u64::from(event.u32(32)?) << 32 | u64::from(other);
            let until = event.duration(0)?.checked_add(Duration::from_nanos(held))?;
            bind(&event, Outcome::Bound { until: Some(until) })
        }
        kind::BIND_FAILED => bind(&event, Outcome::Refused { errno, proven }),
        kind::LISTEN_FAILED => bind(&event, Outcome::ListenRefused),
        kind::CLOSE => Some(Event::Close(CloseEvent { at: event.duration(0)?, cookie: event.u64(8)?, pid })),
        _ => None,
    }
}

fn exec(event: &Fields<'_>, bytes: &[u8]) -> Option<Event> {
    let (arguments, environment) = (event.u32(104)? as usize, event.u32(108)? as usize);
    let data = bytes.get(EXEC_HEAD_BYTES..)?;
    let all = event.u32(116)? as usize;
    Some(Event::Exec(Box::new(Exec {
        pid: event.u32(16)?,
        by: event.actor()?,
        ppid: event.u32(24)?,
        netns: event.u32(28)?.into(),
        program: text(bytes.get(PROGRAM_AT..PROGRAM_AT + PROGRAM_BYTES)?),
        arguments: data.get(..arguments)?.to_vec(),
        environment: data.get(arguments..arguments.checked_add(environment)?)?.to_vec(),
        whole_environment: environment == all,
    })))
}

fn bind(event: &Fields<'_>, outcome: Outcome) -> Option<Event> {
    let flags = event.u8(47)?;
    Some(Event::Bind(BindEvent {
        outcome,
        netns: event.u32(28)?.into(),
        cookie: event.u64(8)?,
        ifindex: Some(event.u32(32)?).filter(|index| *index != 0 && event.u8(44) != Some(kind::HELD)),
        flags: BindFlags {
            reuseaddr: flags & flag::REUSEADDR != 0,
            reuseport: flags & flag::REUSEPORT != 0,
            v6only: flags & flag::V6ONLY != 0,
        },
        bind: Bind {
            at: event.duration(0)?,
            pid: event.u32(16)?,
            tid: event.u32(20)?,
            protocol: protocol(event.u8(45)?)?,
            address: event.address(event.u8(46)?, 48)?,
            port: event.u16(40)?,
            asked_port: event.u16(42)?,
        },
        // Where another process told it, there is no signature.
        by: event.actor(),
    }))
}

/// What a thread's slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) cookie: u64,
    pub(super) bind: Bind,
    pub(super) netns: u64,
    /// Whether it is known to have succeeded; of an attempt nothing tells yet how it ended.
    pub(super) bound: bool,
}

/// Decodes a slot; `None` for an empty one.
pub(super) fn decode_slot(bytes: &[u8]) -> Option<Slot> {
    let slot = Fields(bytes.get(..ATTEMPT_BYTES)?);
    let bound = match slot.u8(32)? {
        stage::ATTEMPT => false,
        stage::BOUND => true,
        _ => return None,
    };
    let bind = Bind {
        at: slot.duration(0)?,
        pid: slot.u32(16)?,
        tid: slot.u32(20)?,
        protocol: protocol(slot.u8(33)?)?,
        address: slot.address(slot.u8(34)?, 40)?,
        port: slot.u16(28)?,
        asked_port: slot.u16(30)?,
    };
    Some(Slot { cookie: slot.u64(8)?, bind, netns: slot.u32(24)?.into(), bound })
}

fn protocol(number: u8) -> Option<Protocol> {
    match number {
        IPPROTO_TCP => Some(Protocol::Tcp),
        IPPROTO_UDP => Some(Protocol::Udp),
        _ => None,
    }
}

/// The fields of `struct event`, by their offsets.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }

    fn i32(&self, at: usize) -> Option<i32> {
        self.bytes(at).map(i32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_ne_bytes)
    }

    fn duration(&self, at: usize) -> Option<Duration> {
        self.u64(at).map(Duration::from_nanos)
    }

    fn comm(&self) -> Option<String> {
        self.0.get(84..100).map(text)
    }

    fn actor(&self) -> Option<Actor> {
        self.0.get(..SIGNED_BYTES)?;
        Some(Actor {
            start: self.duration(64)?,
            cgroup_id: self.u64(72)?,
            uid: self.u32(80)?,
            comm: self.comm()?,
            privileged: self.u8(47)? & flag::PRIVILEGED != 0,
        })
    }

    fn address(&self, family: u8, at: usize) -> Option<IpAddr> {
        match family {
            AF_INET => Some(Ipv4Addr::from(self.bytes::<4>(at)?).into()),
            AF_INET6 => Some(Ipv6Addr::from(self.bytes::<16>(at)?).into()),
            _ => None,
        }
    }
}

/// Text that is ended by NUL, or fills its field.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; SIGNED_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &5_000_000_000u64.to_ne_bytes());
        put(8, &77u64.to_ne_bytes());
        put(16, &10u32.to_ne_bytes());
        put(20, &11u32.to_ne_bytes());
        put(24, &12u32.to_ne_bytes());
        put(28, &4_026_531_833u32.to_ne_bytes());
        put(36, &(-98i32).to_ne_bytes());
        put(40, &8081u16.to_ne_bytes());
        put(42, &8081u16.to_ne_bytes());
        put(44, &[kind, IPPROTO_TCP, AF_INET, flag::REUSEADDR]);
        put(48, &[127, 0, 0, 1]);
        put(64, &3_000_000_000u64.to_ne_bytes());
        put(84, b"server\0");
        bytes
    }

    #[test]
    fn a_refused_bind_is_decoded_with_who_tried_it() {
        let Some(Event::Bind(event)) = decode(&raw(kind::BIND_FAILED)) else { panic!("a bind") };
        assert_eq!(event.outcome, Outcome::Refused { errno: Some(98), proven: true });
        assert_eq!((event.bind.port, event.bind.address), (8081, IpAddr::from([127, 0, 0, 1])));
        assert_eq!((event.netns, event.cookie, event.bind.at.as_secs()), (4_026_531_833, 77, 5));
        assert_eq!((event.bind.pid, event.bind.tid), (10, 11));
        assert_eq!(event.flags, BindFlags { reuseaddr: true, ..BindFlags::default() });
        assert_eq!(event.by.map(|by| (by.comm, by.start.as_secs())), Some(("server".to_owned(), 3)));
    }

    #[test]
    fn a_failure_of_unknown_errno_has_none() {
        let mut bytes = raw(kind::BIND_FAILED);
        for odd in [0, 7, i32::MIN] {
            bytes[36..40].copy_from_slice(&i32::to_ne_bytes(odd));
            let Some(Event::Bind(event)) = decode(&bytes) else { panic!("a bind") };
            assert_eq!(event.outcome, Outcome::Refused { errno: None, proven: true }, "{odd}");
        }
    }

    #[test]
    fn a_bind_that_another_process_told_names_nobody() {
        let bytes = raw(kind::BOUND);
        let Some(Event::Bind(event)) = decode(&bytes[..EVENT_BYTES]) else { panic!("a bind") };
        assert_eq!((event.outcome, event.by), (Outcome::Bound { until: None }, None));
    }

    #[test]
    fn a_slot_is_empty_or_an_attempt_or_a_bind() {
        let mut bytes = vec![0; ATTEMPT_BYTES];
        bytes[8] = 77;
        bytes[16] = 10;
        bytes[24] = 9;
        bytes[28..30].copy_from_slice(&8081u16.to_ne_bytes());
        bytes[32..35].copy_from_slice(&[stage::ATTEMPT, IPPROTO_UDP, AF_INET6]);
        let slot = decode_slot(&bytes).unwrap();
        assert_eq!((slot.cookie, slot.bind.pid, slot.bind.port, slot.bind.asked_port), (77, 10, 8081, 0));
        assert_eq!((slot.bind.address, slot.netns), (IpAddr::from(Ipv6Addr::UNSPECIFIED), 9));
        assert!(!slot.bound);
        bytes[32] = stage::BOUND;
        assert!(decode_slot(&bytes).unwrap().bound);
        bytes[32] = 0;
        assert_eq!(decode_slot(&bytes), None);
    }

    #[test]
    fn a_socket_that_lived_shortly_is_one_event_with_both_its_ends() {
        let mut bytes = raw(kind::HELD);
        bytes[24..28].copy_from_slice(&7u32.to_ne_bytes());
        bytes[32..36].copy_from_slice(&1u32.to_ne_bytes());
        let Some(Event::Bind(event)) = decode(&bytes) else { panic!("a bind") };
        let until = Duration::from_nanos(5_000_000_000 + 4_294_967_296 + 7);
        assert_eq!((event.outcome, event.ifindex), (Outcome::Bound { until: Some(until) }, None));
    }

    #[test]
    fn an_exec_brings_its_arguments_and_says_whether_its_environment_is_whole() {
        let mut bytes = raw(kind::EXEC);
        for word in [5u32, 4, 5, 9] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(b"/bin/true");
        bytes.resize(EXEC_HEAD_BYTES, 0);
        bytes.extend(b"true\0A=1\0");
        let Some(Event::Exec(exec)) = decode(&bytes) else { panic!("an exec") };
        assert_eq!((exec.arguments.as_slice(), exec.environment.as_slice()), (&b"true\0"[..], &b"A=1\0"[..]));
        assert_eq!((exec.program.as_str(), exec.ppid, exec.whole_environment), ("/bin/true", 12, false));
        bytes.pop();
        assert_eq!(decode(&bytes), None, "it says that more follows than there is");
    }

    #[test]
    fn a_fence_is_told_from_a_name() {
        let mut bytes = raw(kind::RENAME);
        assert_eq!(decode(&bytes), None, "a thread's name is of no interest");
        bytes[20..24].copy_from_slice(&10u32.to_ne_bytes());
        let comm = "server".to_owned();
        assert_eq!(decode(&bytes), Some(Event::Process(ProcessEvent::Renamed { pid: 10, comm })));
        bytes[16..20].copy_from_slice(&std::process::id().to_ne_bytes());
        bytes[84..100].copy_from_slice(b"fence:0000002a\0\0");
        assert_eq!(decode(&bytes), Some(Event::Process(ProcessEvent::Fence { number: 42 })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            decode(&bytes);
            decode_slot(&bytes);
        }

        #[test]
        fn no_exec_panics(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let mut bytes = raw(kind::EXEC);
            bytes.extend(tail);
            decode(&bytes);
        }
    }
}
