//! What a socket is made with that has no safe wrapper here: its owner, and its interface.

#![allow(unsafe_code, reason = "system calls that no dependency wraps")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Does something as the owner of files and sockets that it makes (setfsuid(2)): of this thread only.
pub(crate) fn as_owner<T>(uid: u32, make: impl FnOnce() -> T) -> T {
    // SAFETY: it takes a number and changes this thread's credentials.
    unsafe { libc::setfsuid(uid) };
    let made = make();
    // SAFETY: as above.
    unsafe { libc::setfsuid(0) };
    made
}

/// `SO_BINDTODEVICE`.
pub(crate) fn bind_to_device(socket: &OwnedFd, device: &str) {
    // SAFETY: the name lives for the call, and its length is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            device.len() as libc::socklen_t,
        )
    };
    assert!(result >= 0, "SO_BINDTODEVICE: {}", io::Error::last_os_error());
}
