//! A process for tests: takes ports, tries to, starts children, and says so. Ends when its standard input does.
//!
//! `holder LABEL ACTION… [-- CHILD ARGUMENTS…]`; actions are done in order. `PORT` in one, or in the child's arguments, is
//! the first port of this process, `LAST` the last one. Prints one line: `LABEL PID PORT… WORD…`, the words as below.
//!
//! Ports that are held: `tcp:ADDR`, `tcp-inherit:ADDR` (children inherit it), `udp:ADDR`, `bound:ADDR` (TCP, does not listen),
//! `dup-inherit` (children inherit the last one held, under another number only), `netns-tcp:ADDR` (in a namespace that nothing but a descriptor of this process keeps), `netns-twins:ADDR` (the same, and a
//! second bind there), `receive:PATH` (a descriptor sent to that Unix socket), `connect:ADDR`. `listen` and `shutdown` do so
//! with the last one held.
//!
//! Ports that are tried, PROTOCOL being `tcp` or `udp`, which says `bound` or `refused:ERRNO`: `try:PROTOCOL:ADDR`,
//! `try-keep:…` (the socket stays open), `fallback:…` (refused, the same socket takes a free port), `uring:ADDR` and
//! `uring-worker:ADDR` (TCP by io_uring, in the calling thread or in one of the kernel's). More often, in each of `threads:N`,
//! which says `bound:COUNT` and `refused-times:COUNT`: `retry:N:PROTOCOL:ADDR` (bind, close), `churn:…` (TCP also listens), `twins:…`
//! (a bind, a second one in the same place, both closed; every port is said).
//!
//! Ports that are left: `free:PROTOCOL:ADDR` (asked of the kernel and closed), `time-wait:ADDR`.
//!
//! Of the sockets that follow: `with:OPTION,…` out of `reuseaddr`, `reuseport`, `v6only`, `noport`, `mptcp`.
//!
//! Surroundings: `netns` (a new one), `uid:N`, `without:CAPABILITY,…` (numbers; for programs run later), `cover:PATH` (with an
//! empty directory, for this process and its children), `unmount:PATH`, `put:FROM=TO` (the same for a directory),
//! `lock-cgroup:PATH` (a program on bind4 that allows no other), `busy:N` (threads that use the processor).
//!
//! `put-into:PATH` joins the control group of that directory; `eat:PATH` does, and takes memory until its limit ends this process.
//!
//! Course: `clock` (says `at:NANOSECONDS`), `say` (prints the line already), `wait:PATH` (until it exists).
//! Child: `env:NAME=VALUE` and `unset:NAME`, `setsid`, `next-pid:N`, `reap` (waits for its end; says `child:PID` and
//! `status:CODE`), `exec` (become it). End: `leave` (exit after starting the child), `exit` (at once and without a word; the
//! code is the last errno).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test's program: its failure is the test's"
)]

#[path = "holder/raw.rs"]
mod raw;
#[path = "holder/sockets.rs"]
mod sockets;
#[path = "holder/uring.rs"]
mod uring;

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::thread::CapabilitySet;
use sockets::{Options, Protocol, Tried};

/// Nobody waits longer for a file to appear.
const PATIENCE: Duration = Duration::from_secs(120);

/// Joins a control group.
fn join(cgroup: &Path) {
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// Takes memory until that is refused, which ends this process.
fn eat() {
    const MIB: usize = 1 << 20;
    let eaten: Vec<Vec<u8>> = (0..512).map(|_| vec![1; MIB]).collect();
    panic!("{} MiB are not too much", eaten.len());
}

/// A descriptor that no process here has by itself.
const OTHER_NUMBER: i32 = 50;

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let mut holder = Holder { label: arguments.next().expect("a label"), ..Holder::default() };
    for action in arguments.by_ref().take_while(|argument| argument != "--") {
        let action = holder.with_port(&action);
        let (verb, value) = action.split_once(':').unwrap_or((&action, ""));
        holder.act(verb, value);
    }
    let child = arguments.next().map(|program| holder.child(&program, arguments));
    holder.end(child);
}

#[derive(Default)]
struct Holder {
    label: String,
    held: Vec<OwnedFd>,
    ports: Vec<u16>,
    words: Vec<String>,
    options: Options,
    threads: usize,
    errno: i32,
    environment: Vec<(String, Option<String>)>,
    next_pid: Option<u32>,
    course: Course,
}

/// What becomes of the child, and of the holder then.
#[derive(Default, PartialEq)]
enum Course {
    /// Both go on until the input ends.
    #[default]
    Stay,
    Leave,
    Exit,
    /// The child's end is waited for, and then the input's.
    Reap,
    ReapAndLeave,
    Exec,
}

impl Holder {
    fn with_port(&self, text: &str) -> String {
        let (Some(first), Some(last)) = (self.ports.first(), self.ports.last()) else {
            return text.to_owned();
        };
        text.replace("PORT", &first.to_string()).replace("LAST", &last.to_string())
    }

    fn act(&mut self, verb: &str, value: &str) {
        match verb {
            "tcp" | "tcp-inherit" | "udp" | "bound" | "netns-tcp" | "netns-twins" | "connect" => {
                self.hold(verb, value);
            }
            "receive" => self.held.push(receive(value)),
            "free" | "time-wait" => self.ports.push(match verb {
                "free" => sockets::free(protocol_and_address(value), self.options),
                _ => sockets::time_wait(value),
            }),
            "listen" => {
                let tried = Tried(sockets::listen(self.held.last().expect("a socket to listen on")));
                self.tried(&tried);
            }
            "dup-inherit" => {
                let held = self.held.last().expect("a socket to give on");
                let other = rustix::io::fcntl_dupfd_cloexec(held, OTHER_NUMBER).unwrap();
                rustix::io::fcntl_setfd(&other, rustix::io::FdFlags::empty()).unwrap();
                self.held.push(other);
            }
            "shutdown" => {
                let socket = self.held.last().expect("a socket to shut down");
                rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap();
            }
            "try" | "try-keep" | "fallback" | "uring" | "uring-worker" => self.attempt(verb, value),
            "retry" | "churn" => {
                let (times, place) = value.split_once(':').expect("N:PROTOCOL:ADDR");
                let (bound, refused) = sockets::repeat(
                    times.parse().unwrap(),
                    self.threads.max(1),
                    protocol_and_address(place),
                    self.options,
                    verb == "churn",
                );
                self.words.push(format!("bound:{bound}"));
                self.words.push(format!("refused-times:{refused}"));
            }
            "twins" => {
                let (times, place) = value.split_once(':').expect("N:PROTOCOL:ADDR");
                for _ in 0..times.parse().unwrap() {
                    let first = sockets::bound(protocol_and_address(place), self.options).unwrap();
                    let mut second = protocol_and_address(place);
                    second.1.set_port(sockets::port(&first));
                    self.ports.push(second.1.port());
                    self.tried(&Tried(sockets::bound(second, self.options).map(drop)));
                }
            }
            "with" => self.options = Options::parse(value),
            "threads" => self.threads = value.parse().unwrap(),
            _ => self.surround(verb, value),
        }
    }

    fn surround(&mut self, verb: &str, value: &str) {
        match verb {
            "netns" => raw::new_netns_with_loopback(),
            "uid" => {
                let id = value.parse().unwrap();
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(id)).unwrap();
            }
            "without" => value.split(',').for_each(drop_capability),
            "cover" => raw::cover(value),
            "unmount" => raw::unmount(value),
            "put" => {
                let (from, to) = value.split_once('=').expect("FROM=TO");
                raw::bind_mount(from, to);
            }
            "lock-cgroup" => self.held.extend(raw::lock_cgroup(value)),
            "busy" => (0..value.parse().unwrap()).for_each(|_| {
                std::thread::spawn(|| {
                    loop {
                        std::hint::spin_loop();
                    }
                });
            }),
            "clock" => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                self.words
                    .push(format!("at:{}", i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)));
            }
            "say" => self.say(),
            "put-into" => join(Path::new(value)),
            "eat" => {
                join(Path::new(value));
                eat();
            }
            "wait" => wait_for(Path::new(value)),
            "env" => {
                let (name, value) = value.split_once('=').expect("NAME=VALUE");
                self.environment.push((name.to_owned(), Some(value.to_owned())));
            }
            "unset" => self.environment.push((value.to_owned(), None)),
            "setsid" => drop(rustix::process::setsid()),
            "next-pid" => self.next_pid = Some(value.parse().unwrap()),
            "leave" if self.course == Course::Reap => self.course = Course::ReapAndLeave,
            "leave" => self.course = Course::Leave,
            "exit" => self.course = Course::Exit,
            "reap" => self.course = Course::Reap,
            "exec" => self.course = Course::Exec,
            other => panic!("unknown action {other}"),
        }
    }

    fn hold(&mut self, verb: &str, value: &str) {
        let sockets: Vec<OwnedFd> = match verb {
            // Without options as most programs do: std sets SO_REUSEADDR.
            "tcp" | "tcp-inherit" if self.options == Options::default() => {
                vec![TcpListener::bind(value).unwrap_or_else(|error| panic!("{value}: {error}")).into()]
            }
            "tcp" | "tcp-inherit" | "bound" => {
                let socket = sockets::bound((Protocol::Tcp, value.parse().unwrap()), self.options).unwrap();
                if verb != "bound" {
                    sockets::listen(&socket).unwrap();
                }
                vec![socket]
            }
            "udp" if self.options == Options::default() => vec![UdpSocket::bind(value).unwrap().into()],
            "udp" => vec![sockets::bound((Protocol::Udp, value.parse().unwrap()), self.options).unwrap()],
            "connect" => vec![TcpStream::connect(value).unwrap().into()],
            _ => {
                let (value, twins) = (value.to_owned(), verb == "netns-twins");
                let (namespace, listener, tried) =
                    std::thread::spawn(move || in_new_netns(&value, twins)).join().unwrap();
                if let Some(tried) = tried {
                    self.tried(&tried);
                }
                self.held.push(namespace.into());
                vec![listener.into()]
            }
        };
        for socket in sockets {
            if verb == "tcp-inherit" {
                rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
            }
            self.ports.push(sockets::port(&socket));
            self.held.push(socket);
        }
    }

    fn attempt(&mut self, verb: &str, value: &str) {
        if let "uring" | "uring-worker" = verb {
            let socket = sockets::socket((Protocol::Tcp, value.parse().unwrap()), self.options);
            let tried = Tried(uring::bind(&socket, value.parse().unwrap(), verb == "uring-worker"));
            return self.tried(&tried);
        }
        let place = protocol_and_address(value);
        let socket = sockets::socket(place, self.options);
        let tried = Tried(rustix::net::bind(&socket, &place.1));
        self.tried(&tried);
        if verb == "fallback" {
            let mut free = place.1;
            free.set_port(0);
            self.tried(&Tried(rustix::net::bind(&socket, &free)));
            self.ports.push(sockets::port(&socket));
        }
        if verb != "try" {
            self.held.push(socket);
        }
    }

    fn tried(&mut self, tried: &Tried) {
        self.errno = tried.errno();
        self.words.push(tried.to_string());
    }

    fn say(&self) {
        let ports = self.ports.iter().map(u16::to_string);
        let words: Vec<String> = ports.chain(self.words.iter().cloned()).collect();
        println!("{} {} {}", self.label, std::process::id(), words.join(" "));
        std::io::stdout().flush().unwrap();
    }

    fn child(&mut self, program: &str, arguments: impl Iterator<Item = String>) -> Child {
        let mut command = Command::new(program);
        command.args(arguments.map(|argument| self.with_port(&argument)));
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if self.course == Course::Exec {
            panic!("{program}: {}", command.exec());
        }
        if let Some(pid) = self.next_pid {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        self.words.push(format!("child:{}", child.id()));
        if let Course::Reap | Course::ReapAndLeave = self.course {
            let status = child.wait().unwrap();
            self.words.push(format!("status:{}", status.code().unwrap_or(-1)));
        }
        child
    }

    fn end(self, child: Option<Child>) {
        if self.course == Course::Exit {
            std::process::exit(self.errno);
        }
        self.say();
        if let Course::Leave | Course::ReapAndLeave = self.course {
            // The threads that `busy` started end with the process.
            return;
        }
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        if let Some(mut child) = child {
            let _ = child.wait();
        }
    }
}

fn protocol_and_address(text: &str) -> sockets::Place {
    let (protocol, address) = text.split_once(':').expect("PROTOCOL:ADDR");
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => panic!("unknown protocol {other}"),
    };
    (protocol, address.parse().unwrap_or_else(|error| panic!("{address}: {error}")))
}

/// Taken from what programs may get, so that not even root's have it.
fn drop_capability(number: &str) {
    let bit: u32 = number.parse().unwrap();
    let capability = CapabilitySet::from_bits_retain(1 << bit);
    rustix::thread::remove_capability_from_bounding_set(capability).unwrap();
}

fn wait_for(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < end, "{} never appeared", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A new namespace with its loopback down, left by its only thread: what keeps it is the descriptor that is returned.
fn in_new_netns(address: &str, twins: bool) -> (File, TcpListener, Option<Tried>) {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
    let namespace = File::open("/proc/thread-self/ns/net").unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let tried = twins.then(|| {
        let place = (Protocol::Tcp, listener.local_addr().unwrap());
        Tried(sockets::bound(place, Options::default()).map(drop))
    });
    (namespace, listener, tried)
}

fn receive(path: &str) -> OwnedFd {
    let (stream, _) = UnixListener::bind(path).unwrap().accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    rustix::net::recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty())
        .unwrap();
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .expect("a descriptor")
}
