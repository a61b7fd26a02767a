//! What the programs tell, decoded from bytes: the layouts of `event.h`, asserted there and in the tests here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::kernel::proc_events::{ProcessEvent, renamed};
use crate::model::bind::{Actor, Bind, BindEvent, BindFlags, CloseEvent, Outcome};
use crate::model::process::Exit;
use crate::model::socket::{Protocol, SocketOptions};

/// `sizeof(struct event)`, `sizeof(struct signed_event)`, and `offsetof(struct exec, data)`.
const EVENT_BYTES: usize = 64;
const SIGNED_BYTES: usize = 104;
const EXEC_HEAD_BYTES: usize = 376;
/// `offsetof(struct exec, program)` and its size.
const PROGRAM_AT: usize = 120;
const PROGRAM_BYTES: usize = 256;
/// `sizeof(struct bind)`, and `offsetof(struct slot, binds)`.
const BIND_BYTES: usize = 64;
const SLOT_HEAD_BYTES: usize = 64;
/// `BINDS`: those that a slot keeps.
const BINDS: u32 = 8;

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
    pub(super) const OOM: u8 = 5;
    pub(super) const BINDS: u8 = 16;
    pub(super) const CLOSE: u8 = 17;
    pub(super) const BIND_FAILED: u8 = 18;
    pub(super) const LISTEN_FAILED: u8 = 19;
    pub(super) const UNDECIDED: u8 = 20;
}

/// `enum flags`.
mod flag {
    pub(super) const REUSEADDR: u8 = 1;
    pub(super) const REUSEPORT: u8 = 2;
    pub(super) const V6ONLY: u8 = 4;
    pub(super) const PRIVILEGED: u8 = 8;
    pub(super) const UNPROVEN: u8 = 16;
}

/// `TCP_LISTEN` of linux/bpf.h.
const TCP_LISTEN: u32 = 10;

/// `STAGE_BOUND` of `enum stage`.
const STAGE_BOUND: u8 = 2;

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
    /// Its arguments, as the kernel keeps them: each ended by NUL.
    pub arguments: Vec<u8>,
    /// Whether these are all there are: 2 KiB are told.
    pub whole_arguments: bool,
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

/// What the programs tell at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something that happened.
    One(Event),
    /// What a thread has bound.
    Binds(Slot),
    /// A bind that has led to no port yet, and may be under way still: the refusal that it would be.
    Undecided {
        /// The refusal.
        bind: BindEvent,
        /// How old it was then.
        age: Duration,
    },
}

/// The last binds of a slot, as far as they succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Which slot.
    pub index: u32,
    /// Number of the first bind that is not told yet.
    pub end: u32,
    /// How far before the end each is, in order. Some were told before.
    binds: Vec<(u32, BindEvent)>,
}

impl Slot {
    /// The binds from this number on that the slot still has, and how many it has no more: they were overwritten.
    pub fn since(self, first: u32) -> (Vec<BindEvent>, u32) {
        let new = self.end.wrapping_sub(first);
        let binds: Vec<BindEvent> =
            self.binds.into_iter().filter(|(back, _)| *back <= new).map(|(_, bind)| bind).collect();
        let missed = new.saturating_sub(u32::try_from(binds.len()).unwrap_or(u32::MAX));
        (binds, missed)
    }
}

/// Decodes what was told; `None` where it is too short, or of a kind, protocol or family that is not known.
pub fn decode(bytes: &[u8]) -> Option<Told> {
    match Fields(bytes).u8(44)? {
        kind::BINDS => slot(bytes).map(Told::Binds),
        kind::UNDECIDED => match event(bytes)? {
            Event::Bind(bind) => {
                Some(Told::Undecided { bind, age: Duration::from_millis(Fields(bytes).u32(24)?.into()) })
            }
            _ => None,
        },
        _ => event(bytes).map(Told::One),
    }
}

fn event(bytes: &[u8]) -> Option<Event> {
    let event = Fields(bytes);
    bytes.get(..EVENT_BYTES)?;
    let (pid, other) = (event.u32(16)?, event.u32(24)?);
    let errno = event.i32(36)?.checked_neg().filter(|errno| *errno > 0);
    let proven = event.u8(47)? & flag::UNPROVEN == 0;
    match event.u8(44)? {
        kind::FORK => Some(Event::Process(ProcessEvent::Forked { parent: pid, child: other })),
        kind::EXEC => exec(&event, bytes),
        kind::RENAME => renamed(pid, event.u32(20)? != pid, event.comm()?).map(Event::Process),
        kind::EXIT => Some(Event::Process(ProcessEvent::Exited { pid, exit: Some(Exit::of_status(other)) })),
        kind::OOM => Some(Event::Process(ProcessEvent::OomKilled { pid })),
        kind::BIND_FAILED | kind::UNDECIDED => bind(&event, Outcome::Refused { errno, proven }),
        kind::LISTEN_FAILED => bind(&event, Outcome::ListenRefused),
        kind::CLOSE => Some(Event::Close(CloseEvent {
            at: event.duration(0)?,
            cookie: event.u64(8)?,
            pid,
            listened: other == TCP_LISTEN,
        })),
        _ => None,
    }
}

fn exec(event: &Fields<'_>, bytes: &[u8]) -> Option<Event> {
    let (arguments, environment) = (event.u32(104)? as usize, event.u32(108)? as usize);
    let data = bytes.get(EXEC_HEAD_BYTES..)?;
    let (all_arguments, all_environment) = (event.u32(112)? as usize, event.u32(116)? as usize);
    Some(Event::Exec(Box::new(Exec {
        pid: event.u32(16)?,
        by: event.actor()?,
        ppid: event.u32(24)?,
        netns: event.u32(28)?.into(),
        program: text(bytes.get(PROGRAM_AT..PROGRAM_AT + PROGRAM_BYTES)?),
        arguments: data.get(..arguments)?.to_vec(),
        whole_arguments: arguments == all_arguments,
        environment: data.get(arguments..arguments.checked_add(environment)?)?.to_vec(),
        whole_environment: environment == all_environment,
    })))
}

fn bind(event: &Fields<'_>, outcome: Outcome) -> Option<Event> {
    let flags = event.u8(47)?;
    Some(Event::Bind(BindEvent {
        outcome,
        netns: event.u32(28)?.into(),
        cookie: event.u64(8)?,
        ifindex: Some(event.u32(32)?).filter(|index| *index != 0),
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

fn slot(bytes: &[u8]) -> Option<Slot> {
    let head = Fields(bytes);
    let (index, end) = (head.u32(28)?, head.u32(36)?);
    let place = |back: u32| SLOT_HEAD_BYTES + (end.wrapping_sub(back) % BINDS) as usize * BIND_BYTES;
    bytes.get(..SLOT_HEAD_BYTES + BINDS as usize * BIND_BYTES)?;
    let binds =
        (1..=BINDS).rev().filter_map(|back| Some((back, success(bytes.get(place(back)..)?)?))).collect();
    Some(Slot { index, end, binds })
}

/// A bind that succeeded; `None` for a place that none is in.
fn success(bytes: &[u8]) -> Option<BindEvent> {
    let bind = Fields(bytes);
    if bind.u8(63)? != STAGE_BOUND {
        return None;
    }
    let until = bind.duration(16)?;
    Some(BindEvent {
        outcome: Outcome::Bound {
            until: Some(until).filter(|until| !until.is_zero()),
            listened: !until.is_zero() && u32::from(bind.u8(58)?) == TCP_LISTEN,
        },
        netns: bind.u32(32)?.into(),
        cookie: bind.u64(8)?,
        ifindex: None,
        flags: BindFlags::default(),
        bind: Bind {
            at: bind.duration(0)?,
            pid: bind.u32(24)?,
            tid: bind.u32(28)?,
            protocol: protocol(bind.u8(56)?)?,
            address: bind.address(bind.u8(57)?, 40)?,
            port: bind.u16(36)?,
            asked_port: bind.u16(38)?,
        },
        by: None,
    })
}

/// `SO_REUSEADDR` and `SO_REUSEPORT` of `enum flags`.
pub(super) fn options(flags: u32) -> SocketOptions {
    SocketOptions {
        reuseaddr: flags & u32::from(flag::REUSEADDR) != 0,
        reuseport: flags & u32::from(flag::REUSEPORT) != 0,
        v6only: flags & u32::from(flag::V6ONLY) != 0,
    }
}

fn protocol(number: u8) -> Option<Protocol> {
    match number {
        IPPROTO_TCP => Some(Protocol::Tcp),
        IPPROTO_UDP => Some(Protocol::Udp),
        _ => None,
    }
}

/// The fields of a struct of `event.h`, by their offsets.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }

    fn i32(&self, at: usize) -> Option<i32> {
        self.bytes(at).map(i32::from_ne_bytes)
    }

    pub(super) fn u64(&self, at: usize) -> Option<u64> {
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

    pub(super) fn address(&self, family: u8, at: usize) -> Option<IpAddr> {
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
        let Some(Event::Bind(event)) = event(&raw(kind::BIND_FAILED)) else { panic!("a bind") };
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
            let Some(Event::Bind(event)) = event(&bytes) else { panic!("a bind") };
            assert_eq!(event.outcome, Outcome::Refused { errno: None, proven: true }, "{odd}");
        }
    }

    #[test]
    fn a_refusal_that_another_process_told_names_nobody() {
        let bytes = raw(kind::BIND_FAILED);
        let Some(Event::Bind(event)) = event(&bytes[..EVENT_BYTES]) else { panic!("a bind") };
        assert_eq!((event.bind.pid, event.by), (10, None));
        let mut bytes = raw(kind::UNDECIDED);
        bytes[47] |= flag::UNPROVEN;
        bytes[24..28].copy_from_slice(&12u32.to_ne_bytes());
        let Some(Told::Undecided { bind, age }) = decode(&bytes) else { panic!("an attempt") };
        assert_eq!(age, Duration::from_millis(12));
        assert_eq!(bind.outcome, Outcome::Refused { errno: Some(98), proven: false });
    }

    /// A slot with the binds of these numbers, whose cookies are their numbers too; those of even ones are closed.
    fn raw_slot(end: u32, numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
        let mut bytes = vec![0; SLOT_HEAD_BYTES + BINDS as usize * BIND_BYTES];
        bytes[28] = 5;
        bytes[36..40].copy_from_slice(&end.to_ne_bytes());
        bytes[44] = kind::BINDS;
        for number in numbers {
            let bind = &mut bytes[SLOT_HEAD_BYTES + (number % BINDS) as usize * BIND_BYTES..][..BIND_BYTES];
            bind[0] = 1;
            bind[8..12].copy_from_slice(&number.to_ne_bytes());
            bind[16] = if number % 2 == 0 { 9 } else { 0 };
            bind[36..38].copy_from_slice(&8081u16.to_ne_bytes());
            bind[56..58].copy_from_slice(&[IPPROTO_UDP, AF_INET6]);
            bind[58] = TCP_LISTEN as u8;
            bind[63] = STAGE_BOUND;
        }
        bytes
    }

    #[test]
    fn of_a_slot_only_what_is_new_is_told() {
        let since = |bytes: &[u8], first: u32| {
            let Some(Told::Binds(slot)) = decode(bytes) else { panic!("a slot") };
            assert_eq!(slot.index, 5);
            let (binds, missed) = slot.since(first);
            (binds.iter().map(|bind| bind.cookie).collect::<Vec<_>>(), missed)
        };
        let full = raw_slot(20, 12..20);
        assert_eq!(since(&full, 17), (vec![17, 18, 19], 0));
        assert_eq!(since(&full, 20), (vec![], 0));
        assert_eq!(since(&full, 10), ((12..20).collect(), 2), "two were overwritten");
        let begun = raw_slot(2, [0, 1]);
        assert_eq!(since(&begun, 0), (vec![0, 1], 0));
        let torn = raw_slot(2, [1]);
        assert_eq!(since(&torn, 0), (vec![1], 1), "one was overwritten while the slot was read");
        let around = raw_slot(1, [u32::MAX, 0]);
        assert_eq!(since(&around, u32::MAX), (vec![u64::from(u32::MAX), 0], 0));
        assert_eq!(decode(&full[..full.len() - 1]), None);
    }

    #[test]
    fn a_bind_of_a_slot_is_open_or_closed() {
        let Some(Told::Binds(slot)) = decode(&raw_slot(2, [0, 1])) else { panic!("a slot") };
        let (told, _) = slot.since(0);
        let closed = Outcome::Bound { until: Some(Duration::from_nanos(9)), listened: true };
        let outcomes: Vec<_> = told.iter().map(|bind| bind.outcome).collect();
        assert_eq!(outcomes, [closed, Outcome::Bound { until: None, listened: false }]);
        assert_eq!((told[0].bind.port, told[0].bind.asked_port), (8081, 0));
        assert_eq!(
            (told[0].bind.address, told[0].bind.protocol),
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), Protocol::Udp)
        );
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
        let Some(Event::Exec(exec)) = event(&bytes) else { panic!("an exec") };
        assert_eq!((exec.arguments.as_slice(), exec.environment.as_slice()), (&b"true\0"[..], &b"A=1\0"[..]));
        assert_eq!((exec.program.as_str(), exec.ppid, exec.whole_environment), ("/bin/true", 12, false));
        bytes.pop();
        assert_eq!(event(&bytes), None, "it says that more follows than there is");
    }

    #[test]
    fn a_fence_is_told_from_a_name() {
        let mut bytes = raw(kind::RENAME);
        assert_eq!(event(&bytes), None, "a thread's name is of no interest");
        bytes[20..24].copy_from_slice(&10u32.to_ne_bytes());
        let comm = "server".to_owned();
        assert_eq!(event(&bytes), Some(Event::Process(ProcessEvent::Renamed { pid: 10, comm })));
        bytes[16..20].copy_from_slice(&std::process::id().to_ne_bytes());
        bytes[84..100].copy_from_slice(b"fence:0000002a\0\0");
        assert_eq!(event(&bytes), Some(Event::Process(ProcessEvent::Fence { number: 42 })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..700)) {
            decode(&bytes);
        }

        #[test]
        fn no_slot_panics(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 45..700), first: u32) {
            bytes[44] = kind::BINDS;
            if let Some(Told::Binds(slot)) = decode(&bytes) {
                proptest::prop_assert!(slot.since(first).0.len() <= BINDS as usize);
            }
        }

        #[test]
        fn no_exec_panics(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let mut bytes = raw(kind::EXEC);
            bytes.extend(tail);
            decode(&bytes);
        }
    }
}
