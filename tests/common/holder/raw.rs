//! Calls that have no safe wrapper among this package's dependencies: mounts, an option of sockets, an interface's flag, and a
//! BPF program that keeps others away.

#![allow(unsafe_code, reason = "system calls that no dependency wraps")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::sched::{CloneFlags, unshare};

fn text(text: &str) -> CString {
    CString::new(text).unwrap()
}

#[track_caller]
fn checked(what: &str, result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
    result
}

/// `IP_BIND_ADDRESS_NO_PORT`: a bind of port 0 leaves the port to connect(2).
pub(crate) fn leave_the_port_to_connect(socket: &OwnedFd) {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an int, which lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            ptr::from_ref(&on).cast(),
            size,
        )
    };
    checked("IP_BIND_ADDRESS_NO_PORT", result);
}

/// A network namespace of this process's own, whose loopback is up.
pub(crate) fn new_netns_with_loopback() {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).unwrap();
    // SAFETY: all of it may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (at, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *at = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: this request takes an ifreq, which lives for the call.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request) };
    checked("lo up", result);
}

/// From the first call on, mounts are this process's and its children's own.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare needs root");
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE);
}

fn mount(from: Option<&str>, to: &str, kind: Option<&str>, flags: libc::c_ulong) {
    let (from, at, kind) = (from.map(text), text(to), kind.map(text));
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: the strings are ended by NUL and live for the call; there is no data.
    let result = unsafe { libc::mount(pointer(&from), at.as_ptr(), pointer(&kind), flags, ptr::null()) };
    checked(to, result);
}

/// Covers a directory with an empty one.
pub(crate) fn cover(path: &str) {
    own_mounts();
    mount(Some("none"), path, Some("tmpfs"), 0);
}

pub(crate) fn bind_mount(from: &str, to: &str) {
    own_mounts();
    mount(Some(from), to, None, libc::MS_BIND);
}

pub(crate) fn unmount(path: &str) {
    own_mounts();
    let path = text(path);
    // SAFETY: the string is ended by NUL and lives for the call.
    checked("umount2", unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) });
}

/// `BPF_PROG_LOAD`, `BPF_PROG_ATTACH` of bpf(2).
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, `BPF_CGROUP_INET4_BIND`.
const CGROUP_SOCK_ADDR: u32 = 18;
const INET4_BIND: u32 = 8;
/// `r0 = 1; exit`: every bind may pass.
const ALLOW: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// `union bpf_attr`, as far as these two commands read it: the rest is zero.
#[repr(C)]
#[derive(Default)]
struct Attributes([u64; 16]);

impl Attributes {
    /// Sets 32 bits.
    fn word(mut self, offset: usize, value: u32) -> Self {
        self.0[offset / 8] |= u64::from(value) << (offset % 8 * 8);
        self
    }

    fn pointer<T>(mut self, offset: usize, to: *const T) -> Self {
        self.0[offset / 8] = to as u64;
        self
    }

    #[track_caller]
    fn call(&self, what: &str, command: libc::c_long) -> libc::c_int {
        // SAFETY: what the attributes point to is alive: both callers hold it.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(self), size_of::<Self>()) };
        checked(what, libc::c_int::try_from(result).unwrap())
    }
}

/// Attaches a program to bind4 of a cgroup in the way that allows no other beside it. It stays until the cgroup is removed.
pub(crate) fn lock_cgroup(path: &str) -> [OwnedFd; 2] {
    // Before Linux 5.11 the programs of all of a user's processes count against the limit of each. Not every root may raise it
    // (`CAP_SYS_RESOURCE`): where that matters, loading fails below.
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
    let license = text("GPL");
    let program = Attributes::default()
        .word(0, CGROUP_SOCK_ADDR)
        .word(4, ALLOW.len() as u32)
        .pointer(8, ALLOW.as_ptr())
        .pointer(16, license.as_ptr())
        .word(68, INET4_BIND)
        .call("BPF_PROG_LOAD", PROG_LOAD);
    // SAFETY: the kernel has just given it to us.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let cgroup = File::open(path).unwrap();
    Attributes::default()
        .word(0, cgroup.as_raw_fd() as u32)
        .word(4, program.as_raw_fd() as u32)
        .word(8, INET4_BIND)
        .call("BPF_PROG_ATTACH", PROG_ATTACH);
    [program, cgroup.into()]
}
