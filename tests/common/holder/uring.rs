//! One bind(2) through io_uring (io_uring_enter(2), IORING_OP_BIND of Linux 6.11): a ring is set up, used once, and closed.

#![allow(unsafe_code, reason = "the ring is memory that is shared with the kernel")]

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

const IORING_OP_BIND: u8 = 56;
/// Not in the calling thread, but in one that the kernel makes for the process.
const IOSQE_ASYNC: u8 = 1 << 4;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OFF_SQ_RING: libc::off_t = 0;
const IORING_OFF_CQ_RING: libc::off_t = 0x800_0000;
const IORING_OFF_SQES: libc::off_t = 0x1000_0000;

#[repr(C)]
#[derive(Default)]
struct Parameters {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread: [u32; 2],
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: Offsets,
    cq: Offsets,
}

/// Of the submission queue the seventh is `array`, of the completion queue the sixth is `cqes`.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    fifth: u32,
    sixth: u32,
    seventh: u32,
    reserved: u32,
    user: u64,
}

#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    /// Of a bind: the length of the address.
    addr2: u64,
    addr: u64,
    rest: [u64; 5],
}

#[repr(C)]
struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// Binds a socket; errors are the kernel's, also of a kernel that has no io_uring (ENOSYS, EPERM) or no such bind (EINVAL).
pub(crate) fn bind(socket: &OwnedFd, address: SocketAddr, in_a_worker: bool) -> Result<(), Errno> {
    let SocketAddr::V4(address) = address else { panic!("IPv4 only") };
    let address = raw(address);
    let mut parameters = Parameters::default();
    // SAFETY: the kernel writes into the parameters, which live for the call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
    if ring < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just given it to us.
    let ring = unsafe { OwnedFd::from_raw_fd(ring as i32) };
    let submission = Submission {
        opcode: IORING_OP_BIND,
        flags: if in_a_worker { IOSQE_ASYNC } else { 0 },
        fd: socket.as_raw_fd(),
        addr2: size_of_val(&address) as u64,
        addr: ptr::from_ref(&address) as u64,
        ..Submission::default()
    };
    match submit(&ring, &parameters, submission)? {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(-error)),
    }
}

fn raw(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn last() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap())
}

fn submit(ring: &OwnedFd, parameters: &Parameters, submission: Submission) -> Result<i32, Errno> {
    let submissions = Mapping::new(ring, IORING_OFF_SQ_RING, parameters.sq.seventh as usize + 4)?;
    let entries = Mapping::new(ring, IORING_OFF_SQES, size_of::<Submission>())?;
    let completion_bytes = parameters.cq.sixth as usize + 2 * size_of::<Completion>();
    let completions = Mapping::new(ring, IORING_OFF_CQ_RING, completion_bytes)?;
    // SAFETY: there is one entry, which the kernel reads after the tail has moved.
    unsafe { entries.at::<Submission>(0).write(submission) };
    submissions.number(parameters.sq.seventh).store(0, Ordering::Relaxed);
    submissions.number(parameters.sq.tail).store(1, Ordering::Release);
    // SAFETY: no signal mask is given; the address that is bound lives in the caller.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            IORING_ENTER_GETEVENTS,
            ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    if entered < 0 {
        return Err(last());
    }
    assert_eq!(completions.number(parameters.cq.tail).load(Ordering::Acquire), 1, "one completion");
    // SAFETY: the tail says that the first completion is written.
    Ok(unsafe { completions.at::<Completion>(parameters.cq.sixth as usize).read() }.result)
}

/// A part of the ring.
struct Mapping {
    start: *mut u8,
    bytes: usize,
}

impl Mapping {
    fn new(ring: &OwnedFd, offset: libc::off_t, bytes: usize) -> Result<Mapping, Errno> {
        let (may, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping of what the kernel made for this purpose.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, may, how, ring.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED { Err(last()) } else { Ok(Mapping { start: start.cast(), bytes }) }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.bytes);
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.start.add(offset) }.cast()
    }

    fn number(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel's offsets are aligned, and it treats these numbers as atomic too.
        unsafe { &*self.at::<AtomicU32>(offset as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing points into it any more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}
