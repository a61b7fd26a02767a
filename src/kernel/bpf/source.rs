//! The events of the attached programs, drained from their ring, and attempts whose end nothing has told.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::event::{self, Event, Told};
use super::load::{self, Hook, Loaded, PROGRAMS};
use super::{Gain, Reasons, Unavailable};
use crate::kernel::proc_events::{ProcessEvent, fence};
use crate::kernel::process;
use crate::model::bind::{BindEvent, Outcome};

/// The programs, compiled: `scripts/bpf` makes it from `events.bpf.c`, CI compares.
static OBJECT: &[u8] = aya::include_bytes_aligned!("events.bpf.o");

/// Whoever wakes for the first event waits this long for others, unless somebody is in a hurry: each waking costs the process
/// that causes it several microseconds, and in a storm there are 200 a second instead of thousands.
const GATHER: Duration = Duration::from_millis(5);
/// Events handed on at once.
const BATCH: usize = 4096;
/// Without an event the counters are read this often.
const IDLE: Duration = Duration::from_millis(100);
/// An attempt that nothing has decided is believed to be refused after this time.
const OVERDUE: Duration = Duration::from_millis(100);
/// A thread that is not seen to leave its bind for this long was starved of the processor for good: it is believed no more.
const STARVED: Duration = Duration::from_secs(5);
/// The slots are looked through this often while binds begin, and whenever somebody is in a hurry.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Slots there are, and how many a run of the program looks through (`SLOTS`, `LOOKED_THROUGH` of `events.bpf.c`).
const SLOTS: u32 = 1024;
const LOOKED_THROUGH: u32 = 64;

/// The fence that proves that pids mean what they say. It arrives at once or never.
const PROOF: u32 = u32::MAX;
const PROOF_TIMEOUT: Duration = Duration::from_millis(500);

/// What was drained.
#[derive(Debug, Default)]
pub struct Drained {
    /// In order.
    pub events: Vec<Event>,
    /// Binds and listens that began since the last time: what takes ports may have changed.
    pub binds: u64,
    /// Events that were dropped since the last time, for want of room.
    pub lost: u64,
}

/// Counters of all cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    /// Binds and listens that began.
    begun: u64,
    lost: u64,
}

/// Lets the source gather no longer: somebody waits for what has happened so far.
#[derive(Debug, Clone)]
pub struct Hurry(Arc<OwnedFd>);

impl Hurry {
    fn new() -> io::Result<Self> {
        Ok(Hurry(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Now.
    pub fn now(&self) {
        // A full counter is a signal too.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

/// The attached programs and the events they send. Dropped, everything ends.
pub struct Source {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, [u64; 3]>,
    missing: Vec<(Gain, String)>,
    hurry: Hurry,
    before: Counted,
    next_look: Instant,
    /// Numbers of the binds that come next, by slot.
    next: Vec<u32>,
    /// Binds that were told as refused though their sockets are open still, by cookie and moment, and whether they were
    /// undecided at the last look.
    told: HashMap<(u64, Duration), bool>,
    /// Whether the slots may hold something new.
    unlooked: bool,
    /// Whether the ring was empty after the last reading.
    emptied: bool,
    /// Fences that were read and not handed on yet.
    fences: Vec<Event>,
}

impl Source {
    /// Loads and attaches whatever this kernel takes. Errors: not even binds can be watched.
    pub fn load(reasons: Reasons) -> Result<Self, Unavailable> {
        let mut source = Source::of(OBJECT, &PROGRAMS, reasons)?;
        source.look_through().map_err(|error| {
            Unavailable::Failed(format!(
                "its programs cannot be run (BPF_PROG_TEST_RUN, Linux 5.10): {error}"
            ))
        })?;
        source.prove()?;
        Ok(source)
    }

    /// Waits for a fence of our own: in another pid namespace the kernel's numbers mean other processes.
    fn prove(&mut self) -> Result<(), Unavailable> {
        if !self.has(Gain::Processes) {
            return Ok(());
        }
        let failed = |error: io::Error| Unavailable::Failed(error.to_string());
        // Joined by its end: a thread that cannot be started sends no proof.
        let _ = std::thread::Builder::new().spawn(|| fence(PROOF)).map(std::thread::JoinHandle::join);
        self.hurry.now();
        let end = Instant::now() + PROOF_TIMEOUT;
        while Instant::now() < end {
            let proof = Event::Process(ProcessEvent::Fence { number: PROOF });
            if self.receive().map_err(failed)?.events.contains(&proof) {
                return Ok(());
            }
        }
        Err(Unavailable::ForeignPids)
    }

    fn of(object: &[u8], programs: &[(Gain, &str, Hook)], reasons: Reasons) -> Result<Self, Unavailable> {
        let Loaded { mut ebpf, missing } = load::attach_all(object, programs, reasons)?;
        Ok(Source {
            ring: load::map(&mut ebpf, "ring")?,
            counters: load::map(&mut ebpf, "counters")?,
            ebpf,
            missing,
            hurry: Hurry::new().map_err(|error| Unavailable::Failed(error.to_string()))?,
            before: Counted::default(),
            next_look: Instant::now(),
            next: vec![0; SLOTS as usize],
            told: HashMap::new(),
            unlooked: false,
            emptied: true,
            fences: Vec::new(),
        })
    }

    /// What this kernel does not give, each with its reason.
    pub fn missing(&self) -> &[(Gain, String)] {
        &self.missing
    }

    /// Whether this much is there.
    pub fn has(&self, gain: Gain) -> bool {
        self.missing.iter().all(|(lost, _)| *lost != gain)
    }

    /// The way to make it hand on at once what has happened.
    pub fn hurry(&self) -> Hurry {
        self.hurry.clone()
    }

    /// Waits for events and takes those that have come; none after a while without any. Errors: the source has ended.
    pub fn receive(&mut self) -> io::Result<Drained> {
        let hurried = self.wait()?;
        let mut drained = Drained::default();
        self.drain(&mut drained);
        let fences = std::mem::take(&mut self.fences);
        let counted = self.counted()?;
        let before = std::mem::replace(&mut self.before, counted);
        drained.binds = counted.begun.saturating_sub(before.begun);
        self.unlooked |= drained.binds > 0;
        // What the slots hold may explain a refusal, and has happened before a fence that is here arrived.
        let refused = |event: &Event| matches!(event, Event::Bind(event) if !matches!(event.outcome, Outcome::Bound { .. }));
        let due =
            Instant::now() >= self.next_look || !fences.is_empty() || drained.events.iter().any(refused);
        if self.unlooked && (hurried || due) {
            self.next_look = Instant::now() + LOOK_EVERY;
            self.unlooked = false;
            if self.emptied {
                // One that is undecided no more is told by an event, which may be on its way.
                self.told.retain(|_, undecided| std::mem::replace(undecided, false));
            }
            self.look_through()?;
            self.drain(&mut drained);
            // Those that arrived meanwhile stand for what the slots may hold still, and wait for another look.
            if !self.fences.is_empty() {
                self.hurry.now();
            }
        }
        drained.events.extend(fences);
        drained.lost += counted.lost.saturating_sub(before.lost);
        Ok(drained)
    }

    /// Takes what is in the ring. Fences are put aside: they come after all that is told with them.
    fn drain(&mut self, drained: &mut Drained) {
        for _ in 0..BATCH {
            let Some(told) = self.ring.next().map(|item| event::decode(&item)) else {
                self.emptied = true;
                return;
            };
            match told {
                None => {}
                Some(Told::Binds(slot)) => {
                    let Some(next) = self.next.get_mut(slot.index as usize) else {
                        drained.lost += 1;
                        continue;
                    };
                    // It may have been told by two cores at once: then the second has nothing new.
                    if slot.end.wrapping_sub(*next) <= u32::MAX / 2 {
                        let first = std::mem::replace(next, slot.end);
                        let (binds, missed) = slot.since(first);
                        drained.lost += u64::from(missed);
                        drained.events.extend(binds.into_iter().map(Event::Bind));
                    }
                }
                Some(Told::Undecided { bind, age }) => {
                    drained.events.extend(self.decided(bind, age).map(Event::Bind));
                }
                Some(Told::One(event)) if !self.is_news(&event) => {}
                Some(Told::One(fence @ Event::Process(ProcessEvent::Fence { .. }))) => {
                    self.fences.push(fence);
                }
                Some(Told::One(event)) => drained.events.push(event),
            }
        }
        self.emptied = false;
    }

    /// Whether this has not been told yet: a refusal may have been when it was undecided.
    fn is_news(&mut self, event: &Event) -> bool {
        match event {
            Event::Bind(event) => self.told.remove(&(event.cookie, event.bind.at)).is_none(),
            Event::Close(_) => true,
            // Some of a group that lacks a program may have told something before it was detached.
            Event::Process(_) | Event::Exec(_) => self.has(Gain::Processes),
        }
    }

    /// Has the programs tell what the slots hold.
    fn look_through(&mut self) -> io::Result<()> {
        let program = self.ebpf.program(load::LOOK_THROUGH).ok_or(io::ErrorKind::NotFound)?;
        let program: &RawTracePoint = program.try_into().map_err(io::Error::other)?;
        for part in 0..SLOTS / LOOKED_THROUGH {
            let mut options = RawTracePointRunOptions::new();
            options.args[0] = part.into();
            program.test_run(options).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// An attempt that had led to no port at that age: refused, if its thread is in no bind any more. Its socket is open still.
    fn decided(&mut self, bind: BindEvent, age: Duration) -> Option<BindEvent> {
        let (pid, tid, at) = (bind.bind.pid, bind.bind.tid, bind.bind.at);
        let outside = || process::is_outside_calls(pid, tid, &process::BINDING_CALLS);
        if age <= OVERDUE || (age <= STARVED && !outside()) {
            self.unlooked = true;
            return None;
        }
        // Where the kernel was to choose the port, it may do so later: IP_BIND_ADDRESS_NO_PORT of ip(7).
        let told = self.told.insert((bind.cookie, at), true).is_some();
        Some(bind).filter(|bind| !told && bind.bind.asked_port != 0)
    }

    /// Answers whether somebody is in a hurry.
    fn wait(&self) -> io::Result<bool> {
        let ring = self.ring.as_fd();
        let mut both = [PollFd::new(&self.hurry.0, PollFlags::IN), PollFd::new(&ring, PollFlags::IN)];
        wait_for(&mut both, IDLE)?;
        let [hurry, ring] = both;
        let mut hurried = !hurry.revents().is_empty();
        if !hurried && !ring.revents().is_empty() {
            hurried = wait_for(&mut [PollFd::new(&self.hurry.0, PollFlags::IN)], GATHER)?;
        }
        self.hurry.clear();
        Ok(hurried)
    }

    fn counted(&self) -> io::Result<Counted> {
        let cores = self.counters.get(&0, 0).map_err(io::Error::other)?;
        let mut sum = Counted::default();
        for [attempts, listens, lost] in cores.iter() {
            sum.begun = sum.begun.wrapping_add(*attempts).wrapping_add(*listens);
            sum.lost = sum.lost.wrapping_add(*lost);
        }
        Ok(sum)
    }
}

/// Whether any of these became ready in that time.
fn wait_for(what: &mut [PollFd<'_>], at_most: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(at_most).map_err(io::Error::other)?;
    match poll(what, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    /// What this process did on this port, until the source has been silent for a while: `None` for a close.
    fn of_port(source: &mut Source, port: u16) -> Vec<Option<Outcome>> {
        of(source, |event| event.bind.port == port && event.bind.pid == std::process::id())
    }

    fn of(source: &mut Source, is_it: impl Fn(&BindEvent) -> bool) -> Vec<Option<Outcome>> {
        let mut outcomes = Vec::new();
        let mut cookies = HashSet::new();
        for _ in 0..20 {
            let drained = source.receive().unwrap();
            assert_eq!(drained.lost, 0);
            outcomes.extend(drained.events.into_iter().filter_map(|event| match event {
                Event::Bind(event) if is_it(&event) => {
                    cookies.insert(event.cookie);
                    Some(Some(event.outcome))
                }
                Event::Close(event) if cookies.contains(&event.cookie) => Some(None),
                _ => None,
            }));
        }
        outcomes
    }

    const BOUND: Option<Outcome> = Some(Outcome::Bound { until: None, listened: false });
    const CLOSED: Option<Outcome> = None;

    fn refused(source: &Source, proven: bool) -> Option<Outcome> {
        let exact = source.has(Gain::Errno);
        Some(Outcome::Refused { errno: exact.then_some(98), proven: proven || exact })
    }

    #[test]
    #[ignore = "needs root"]
    fn binds_refusals_and_closes_are_told_in_order() {
        let mut source = Source::load(Reasons::Whole).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
        drop(listener);
        let refused = refused(&source, true);
        assert_eq!(of_port(&mut source, port), [BOUND, refused, CLOSED]);
        let six = UdpSocket::bind("[::1]:0").unwrap();
        // Another test may have its port next.
        let cookie = rustix::net::sockopt::socket_cookie(&six).unwrap();
        drop(six);
        let told = of(&mut source, |event| event.cookie == cookie);
        assert!(
            matches!(told[..], [Some(Outcome::Bound { until: Some(_), listened: false })]),
            "a short life is one event: {told:?}"
        );
    }

    #[test]
    #[ignore = "needs root"]
    fn a_kernel_without_one_of_the_hooks_loses_what_that_gives_and_no_more() {
        let programs = PROGRAMS.map(|(gain, name, hook)| match hook {
            Hook::Tracepoint("sched_process_exec") => (gain, name, Hook::Tracepoint("no_such_tracepoint")),
            hook => (gain, name, hook),
        });
        let mut source = Source::of(OBJECT, &programs, Reasons::Whole).unwrap();
        assert!(source.has(Gain::Binds) && source.has(Gain::Listens) && !source.has(Gain::Processes));
        let (_, why) = source.missing().iter().find(|(gain, _)| *gain == Gain::Processes).unwrap();
        assert!(why.starts_with("execed: ") && why.contains("no_such_tracepoint"), "{why}");
        std::thread::spawn(|| fence(7)).join().unwrap();
        let events: Vec<Event> = (0..5).flat_map(|_| source.receive().unwrap().events).collect();
        let of_process = |event: &Event| matches!(event, Event::Process(_) | Event::Exec(_));
        assert!(!events.iter().any(of_process), "half of what happens to processes is told: {events:?}");
    }

    #[test]
    #[ignore = "needs root"]
    fn a_program_that_the_verifier_refuses_is_a_sentence() {
        let mut object = OBJECT.to_vec();
        let license = b"Dual MIT/GPL";
        let at = object.windows(license.len()).position(|window| window == license).unwrap();
        object[at..at + license.len()].copy_from_slice(b"Proprietary!");
        let error = Source::of(&object, &PROGRAMS, Reasons::Whole).err().unwrap().to_string();
        assert!(error.starts_with("the BPF programs cannot be used: ") && error.contains("GPL"), "{error}");
        assert!(!error.contains('\n'));
        let error = Source::of(b"no object", &PROGRAMS, Reasons::Whole).err().unwrap().to_string();
        assert!(error.starts_with("the BPF programs cannot be used: "), "{error}");
    }

    #[test]
    #[ignore = "needs root"]
    fn a_bind_is_told_before_the_fence_that_comes_after_it() {
        let mut source = Source::load(Reasons::InBrief).unwrap();
        let hurry = source.hurry();
        for round in 0..20 {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = socket.local_addr().unwrap().port();
            std::thread::spawn(move || fence(round)).join().unwrap();
            hurry.now();
            let mut events = Vec::new();
            let fenced = |event: &Event| *event == Event::Process(ProcessEvent::Fence { number: round });
            while !events.iter().any(fenced) {
                events.extend(source.receive().unwrap().events);
            }
            let bound = |event: &Event| matches!(event, Event::Bind(event) if event.bind.port == port);
            let (bind, fence) = (events.iter().position(bound), events.iter().position(fenced));
            assert!(bind.is_some() && bind < fence, "round {round}: {events:?}");
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn what_finds_no_room_is_counted() {
        let mut source = Source::load(Reasons::InBrief).unwrap();
        // One in eight rounds is an event, of 584 bytes with its head, into 2 MiB.
        for _ in 0..40_000 {
            drop(UdpSocket::bind("127.0.0.1:0").unwrap());
        }
        let mut drained = source.receive().unwrap();
        let lost = drained.lost;
        assert!(lost > 0, "{} events found room", drained.events.len());
        while !drained.events.is_empty() {
            drained = source.receive().unwrap();
        }
        drop(UdpSocket::bind("127.0.0.1:0").unwrap());
        let after = source.receive().unwrap();
        assert_eq!((after.lost, after.events.is_empty()), (0, false), "it goes on");
    }

    #[test]
    #[ignore = "needs root"]
    fn a_socket_that_was_refused_and_stays_open_is_told_of_after_a_while_and_once() {
        let mut source = Source::load(Reasons::Whole).unwrap();
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let loser =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
                .unwrap();
        assert!(rustix::net::bind(&loser, &address).is_err());
        let refused = refused(&source, false);
        assert_eq!(of_port(&mut source, address.port()), [BOUND, refused]);
        drop(loser);
        assert_eq!(of_port(&mut source, address.port()), []);
        drop(holder);
    }
}
