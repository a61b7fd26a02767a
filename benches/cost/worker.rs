//! The processes that do the work: this same program, started again, each for one kind of work. They wait for orders on
//! standard input, a line each, and answer with a line; they end when the benchmark does, since that closes the pipe.
//!
//! One process does the same work in all turns, so that those with and without the agent differ in nothing else: where its
//! pages lie makes a difference of several percent between two processes of the same program.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::common::Failure;

/// Tells a worker from the benchmark; followed by the name of its work.
pub(crate) const ARGUMENT: &str = "--worker";

/// Ports that are bound in turn, below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..21_000;
const BACKLOG: i32 = 128;
const PROGRAM: &str = "/bin/true";
/// What a program is started with: 4 KiB of variables, some of what a CI job has. The agent is handed a copy at every exec.
const VARIABLES: usize = 64;
const VARIABLE_BYTES: usize = 64;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// socket, bind, listen, close; TCP on the loopback of a network namespace of its own, on one core.
    Bind,
    /// getppid(2), which the kernel answers from what it has at hand.
    Null,
    /// fork, exec and wait, as programs do that set something up in between.
    Fork,
    /// posix_spawn(3) and wait: the child borrows its parent's memory until the exec.
    Spawn,
    /// socket, bind, close, on any core.
    Storm,
    /// Listens on the ports it is told.
    Listen,
    /// The same in a network namespace of its own.
    ListenInside,
}

impl Work {
    const ALL: [Work; 7] =
        [Work::Bind, Work::Null, Work::Fork, Work::Spawn, Work::Storm, Work::Listen, Work::ListenInside];

    fn name(self) -> &'static str {
        match self {
            Work::Bind => "bind",
            Work::Null => "null",
            Work::Fork => "fork",
            Work::Spawn => "spawn",
            Work::Storm => "storm",
            Work::Listen => "listen",
            Work::ListenInside => "listen-inside",
        }
    }

    /// Whether others' ports must not get in the way, or the place is what matters.
    fn in_own_netns(self) -> bool {
        matches!(self, Work::Bind | Work::Storm | Work::ListenInside)
    }

    fn on_one_core(self) -> bool {
        matches!(self, Work::Bind | Work::Null | Work::Fork | Work::Spawn)
    }
}

/// A worker, seen from the benchmark. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Worker {
    work: Work,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(work: Work) -> Result<Worker, Failure> {
        let failed = |error: io::Error| format!("a process cannot be started: {error}");
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args([ARGUMENT, work.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or("a process has no standard output")?);
        let mut worker = Worker { work, child, orders, answers };
        worker.answer()?;
        Ok(worker)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many nanoseconds each of so many batches took.
    pub(crate) fn batches(&mut self, batches: usize, iterations: usize) -> Result<Vec<f64>, Failure> {
        self.order(&format!("{batches} {iterations}"))?;
        let line = self.answer()?;
        let times: Option<Vec<f64>> = line.split(' ').map(|number| number.parse().ok()).collect();
        times.filter(|times| times.len() == batches).ok_or_else(|| self.odd(&line))
    }

    /// The moment of CLOCK_MONOTONIC at which it had begun to listen on this port; `None` where somebody else has the port.
    pub(crate) fn listen(&mut self, port: u16) -> Result<Option<Duration>, Failure> {
        self.order(&format!("{port} 1"))?;
        let line = self.answer()?;
        if line == TAKEN {
            return Ok(None);
        }
        line.parse().map(|nanoseconds| Some(Duration::from_nanos(nanoseconds))).map_err(|_| self.odd(&line))
    }

    pub(crate) fn order(&mut self, order: &str) -> Result<(), Failure> {
        let orders = self.orders.as_mut().ok_or("a process that was ended was given an order")?;
        orders
            .write_all(format!("{order}\n").as_bytes())
            .map_err(|error| format!("the process for '{}' takes no orders: {error}", self.work.name()))
    }

    pub(crate) fn answer(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(read) if read > 0 && !line.starts_with("error:") => Ok(line.trim_end().to_owned()),
            _ => Err(self.odd(&line)),
        }
    }

    fn odd(&self, line: &str) -> Failure {
        format!("the process for '{}' answered: '{}'", self.work.name(), line.trim_end())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its orders is its end, after a batch at most.
        self.orders = None;
        let _ = self.child.wait();
    }
}

/// What is answered where somebody else has the port.
const TAKEN: &str = "taken";

/// The worker's side.
pub(crate) fn serve(name: Option<String>) -> ExitCode {
    let work = Work::ALL.into_iter().find(|work| Some(work.name()) == name.as_deref());
    let Some(work) = work else { return ExitCode::FAILURE };
    match obey(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The benchmark reads this line where it waits for an answer.
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn obey(work: Work) -> io::Result<()> {
    if work.in_own_netns() {
        unshare(CloneFlags::CLONE_NEWNET)?;
        if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
            return Err(io::Error::other("ip link set lo up failed"));
        }
    }
    if work.on_one_core() {
        pin()?;
    }
    say("ready")?;
    let mut ports = PORTS.cycle();
    let mut next = move || SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.next().unwrap_or(PORTS.start));
    let mut held: Vec<TcpListener> = Vec::new();
    let (mut forked, mut spawned) = (program(), program());
    // With a group to set, the library forks: its way by posix_spawn(3) cannot set one.
    forked.gid(nix::unistd::getegid().as_raw());
    for line in io::stdin().lines() {
        let line = line?;
        let mut numbers = line.split(' ').map(|word| word.parse::<usize>().unwrap_or(0));
        let (first, second) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let times = match work {
            Work::Bind => timed(first, second, || bind_and_listen(next()))?,
            Work::Null => timed(first, second, || {
                std::hint::black_box(rustix::process::getppid());
                Ok(())
            })?,
            Work::Fork => timed(first, second, || succeeds(&mut forked))?,
            Work::Spawn => timed(first, second, || succeeds(&mut spawned))?,
            Work::Storm => timed(first, second, || bind(next()).map(drop))?,
            Work::Listen | Work::ListenInside => {
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, u16::try_from(first).unwrap_or(0)));
                let at = now();
                match bound {
                    Ok(listener) => held.push(listener),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        say(TAKEN)?;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                vec![at.as_nanos()]
            }
        };
        say(&times.iter().map(u128::to_string).collect::<Vec<_>>().join(" "))?;
    }
    Ok(())
}

/// To the last core that is allowed: the first one mostly serves the interrupts.
fn pin() -> io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|core| allowed.is_set(*core));
    let mut one = CpuSet::new();
    one.set(last.ok_or_else(|| io::Error::other("no core is allowed"))?);
    Ok(sched_setaffinity(None, &one)?)
}

fn say(line: &str) -> io::Result<()> {
    io::stdout().write_all(format!("{line}\n").as_bytes())
}

/// CLOCK_MONOTONIC, which all processes share.
pub(crate) fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// Nanoseconds of each batch.
fn timed(
    batches: usize,
    iterations: usize,
    mut once: impl FnMut() -> io::Result<()>,
) -> io::Result<Vec<u128>> {
    let mut times = Vec::with_capacity(batches);
    for _ in 0..batches {
        let began = Instant::now();
        for _ in 0..iterations {
            once()?;
        }
        times.push(began.elapsed().as_nanos());
    }
    Ok(times)
}

fn bind(address: SocketAddrV4) -> io::Result<std::os::fd::OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

fn bind_and_listen(address: SocketAddrV4) -> io::Result<()> {
    Ok(rustix::net::listen(bind(address)?, BACKLOG)?)
}

/// A program that ends at once, with an environment that does not depend on who runs the benchmark.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear();
    for number in 0..VARIABLES {
        let name = format!("VARIABLE_{number:02}");
        let value = "x".repeat(VARIABLE_BYTES - name.len() - "=\0".len());
        command.env(name, value);
    }
    command
}

fn succeeds(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{PROGRAM}: {status}"))) }
}
