//! Ports that one command has for itself, among all who lease. A lease is an abstract Unix socket with the port's name: such names
//! are of one network namespace, as ports are, the kernel gives each to one at a time and takes it back with the process (unix(7)).
//!
//! Nothing is bound: a lease holds no port, and stands in nobody's way who does not lease.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

/// A port that is leased for as long as this lives.
#[derive(Debug)]
pub struct Lease {
    port: u16,
    _name: OwnedFd,
}

impl Lease {
    /// Leases a port in the calling thread's network namespace; `None` where somebody has. Errors: those of socket(2) and bind(2).
    pub fn take(port: u16) -> io::Result<Option<Self>> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        match bind(&socket, &SocketAddrUnix::new_abstract_name(format!("sniffer/port/{port}").as_bytes())?) {
            Ok(()) => Ok(Some(Lease { port, _name: socket })),
            Err(Errno::ADDRINUSE) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_leased_to_one_at_a_time() {
        // Nobody leases a port below 1024.
        let first = Lease::take(7).unwrap().expect("nobody has it");
        assert!(Lease::take(7).unwrap().is_none());
        assert_eq!(first.port(), 7);
        drop(first);
        assert!(Lease::take(7).unwrap().is_some(), "it ends with its lease");
    }
}
