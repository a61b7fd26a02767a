//! A process for tests: takes ports, starts children, and says so. Ends when its standard input does.
//!
//! `holder LABEL ACTION… [-- CHILD ARGUMENTS…]`; actions, in order: `tcp:ADDR`, `tcp-inherit:ADDR` (children inherit it),
//! `udp:ADDR`, `bound:ADDR`, `netns-tcp:ADDR` (in a namespace that nothing but a descriptor of this process keeps),
//! `receive:PATH` (a descriptor sent to that Unix socket), `env:NAME=VALUE` and `unset:NAME` (for the child), `setsid`,
//! `leave` (exit after starting the child). Prints one line: `LABEL PID PORT…`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test's program: its failure is the test's"
)]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Command;

use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType};

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let label = arguments.next().expect("a label");
    let mut held: Vec<OwnedFd> = Vec::new();
    let mut ports: Vec<u16> = Vec::new();
    let mut environment: Vec<(String, Option<String>)> = Vec::new();
    let mut leave = false;
    for action in arguments.by_ref().take_while(|argument| argument != "--") {
        let (verb, value) = action.split_once(':').unwrap_or((&action, ""));
        match verb {
            "tcp" | "tcp-inherit" => {
                let listener = TcpListener::bind(value).unwrap_or_else(|error| panic!("{value}: {error}"));
                ports.push(listener.local_addr().unwrap().port());
                if verb == "tcp-inherit" {
                    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
                }
                held.push(listener.into());
            }
            "udp" => {
                let socket = UdpSocket::bind(value).unwrap();
                ports.push(socket.local_addr().unwrap().port());
                held.push(socket.into());
            }
            "bound" => {
                let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                rustix::net::bind(&socket, &value.parse::<SocketAddr>().unwrap()).unwrap();
                ports.push(SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap().port());
                held.push(socket);
            }
            "netns-tcp" => {
                let value = value.to_owned();
                let (namespace, listener) = std::thread::spawn(move || in_new_netns(&value)).join().unwrap();
                ports.push(listener.local_addr().unwrap().port());
                held.push(namespace.into());
                held.push(listener.into());
            }
            "receive" => held.push(receive(value)),
            "env" => {
                let (name, value) = value.split_once('=').expect("NAME=VALUE");
                environment.push((name.to_owned(), Some(value.to_owned())));
            }
            "unset" => environment.push((value.to_owned(), None)),
            "setsid" => drop(rustix::process::setsid()),
            "leave" => leave = true,
            other => panic!("unknown action {other}"),
        }
    }
    let mut child = arguments.next().map(|program| {
        let mut command = Command::new(program);
        command.args(arguments);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.spawn().expect("the child starts")
    });
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    println!("{label} {} {}", std::process::id(), ports.join(" "));
    std::io::stdout().flush().unwrap();
    if leave {
        return;
    }
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    if let Some(child) = &mut child {
        let _ = child.wait();
    }
}

/// A new namespace with its loopback down, left by its only thread: what keeps it is the descriptor that is returned.
fn in_new_netns(address: &str) -> (File, TcpListener) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare needs root");
    let namespace = File::open("/proc/thread-self/ns/net").unwrap();
    (namespace, TcpListener::bind(address).unwrap())
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
