//! What kernels do differently and say nowhere: tried out, once, in a network namespace of its own, where it is in nobody's way.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// Whether a TCP socket on `::ffff:0.0.0.0` lets another one have an IPv4-mapped address beside it. Linux 6.1 does, those before it
/// and after it do not. False where it cannot be tried: then nothing is called free that may not be.
pub fn mapped_wildcard_is_narrow() -> bool {
    static NARROW: OnceLock<bool> = OnceLock::new();
    *NARROW.get_or_init(|| std::thread::spawn(|| in_new_netns().unwrap_or(false)).join().unwrap_or(false))
}

fn in_new_netns() -> Result<bool, Errno> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    let (_wildcard, port) = bound(Ipv4Addr::UNSPECIFIED, 0)?;
    match bound(Ipv4Addr::LOCALHOST, port) {
        Ok(_) => Ok(true),
        Err(Errno::ADDRINUSE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The loopback of a new namespace is down: `IPV6_FREEBIND` takes its address all the same (ip(7)).
fn bound(address: Ipv4Addr, port: u16) -> Result<(OwnedFd, u16), Errno> {
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    sockopt::set_ipv6_freebind(&socket, true)?;
    bind(&socket, &SocketAddr::new(address.to_ipv6_mapped().into(), port))?;
    let port = SocketAddr::try_from(getsockname(&socket)?).map_err(|_| Errno::AFNOSUPPORT)?.port();
    Ok((socket, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn it_can_be_tried_here() {
        let tried = std::thread::spawn(in_new_netns).join().unwrap();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        assert_eq!(tried, Ok(release.starts_with("6.1.")), "{release}");
    }
}
