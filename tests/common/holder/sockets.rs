//! Sockets that a holder takes, tries and leaves, with the options that decide about sharing.

use std::fmt;
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::raw;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// What to bind, and where.
pub(crate) type Place = (Protocol, SocketAddr);

#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Options {
    reuseaddr: bool,
    reuseport: bool,
    v6only: bool,
    noport: bool,
    mptcp: bool,
}

impl Options {
    pub(crate) fn parse(words: &str) -> Options {
        let mut options = Options::default();
        for word in words.split(',').filter(|word| !word.is_empty()) {
            match word {
                "reuseaddr" => options.reuseaddr = true,
                "reuseport" => options.reuseport = true,
                "v6only" => options.v6only = true,
                "noport" => options.noport = true,
                "mptcp" => options.mptcp = true,
                other => panic!("unknown option {other}"),
            }
        }
        options
    }
}

/// What became of a call that may be refused.
pub(crate) struct Tried(pub(crate) Result<(), Errno>);

impl Tried {
    pub(crate) fn errno(&self) -> i32 {
        self.0.err().map_or(0, Errno::raw_os_error)
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(()) => f.write_str("bound"),
            Err(errno) => write!(f, "refused:{}", errno.raw_os_error()),
        }
    }
}

pub(crate) fn socket((protocol, address): Place, options: Options) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp if options.mptcp => (SocketType::STREAM, ipproto::MPTCP),
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(number)).unwrap();
    if options.reuseaddr {
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    }
    if options.reuseport {
        sockopt::set_socket_reuseport(&socket, true).unwrap();
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, options.v6only).unwrap();
    }
    if options.noport {
        raw::leave_the_port_to_connect(&socket);
    }
    socket
}

pub(crate) fn bound(place: Place, options: Options) -> Result<OwnedFd, Errno> {
    let socket = socket(place, options);
    rustix::net::bind(&socket, &place.1)?;
    Ok(socket)
}

pub(crate) fn listen(socket: &OwnedFd) -> Result<(), Errno> {
    rustix::net::listen(socket, 16)
}

pub(crate) fn port(socket: &OwnedFd) -> u16 {
    SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap().port()
}

/// Asks the kernel for a free port and gives it back.
pub(crate) fn free(place: Place, options: Options) -> u16 {
    port(&bound(place, options).unwrap())
}

/// Leaves a port in TIME_WAIT: a connection that its listener's side closes first.
pub(crate) fn time_wait(address: &str) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    server.read_to_end(&mut Vec::new()).unwrap();
    listener.local_addr().unwrap().port()
}

/// Binds and closes as often in each thread; answers how many were bound and how many refused.
pub(crate) fn repeat(
    times: usize,
    threads: usize,
    place: Place,
    options: Options,
    listens: bool,
) -> (usize, usize) {
    let one = || (0..times).filter(|_| once(place, options, listens)).count();
    let bound: usize = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
        one() + others.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    (bound, times * threads - bound)
}

fn once(place: Place, options: Options, listens: bool) -> bool {
    match bound(place, options) {
        Ok(socket) => {
            if listens && place.0 == Protocol::Tcp {
                listen(&socket).unwrap();
            }
            true
        }
        Err(Errno::ADDRINUSE) => false,
        Err(errno) => panic!("{errno}"),
    }
}
