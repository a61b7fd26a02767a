//! getsockopt(2) for options that are not in any library: those of iptables, and the cookie of a network namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SO_NETNS_COOKIE` of asm-generic/socket.h, since Linux 5.14.
const NETNS_COOKIE: i32 = 71;

/// Reads an option into `value`. Errors: those of getsockopt(2).
#[allow(unsafe_code, reason = "options of netfilter have no safe wrapper")]
pub fn get(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is that long and borrowed for the call.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the calling thread's network namespace, which no other gets until the next boot.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut cookie = [0; 8];
    get(socket.as_fd(), libc::SOL_SOCKET, NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}
