//! Binds as the kernel tells them: who bound which address when, and what became of it.

use std::net::IpAddr;
use std::time::Duration;

use super::socket::Protocol;

/// A bind(2), successful or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind {
    /// When, on the monotonic clock.
    pub at: Duration,
    /// Process that called.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address.
    pub address: IpAddr,
    /// Local port; 0 where the kernel was to choose and did not.
    pub port: u16,
    /// The port that was asked for; 0 lets the kernel choose.
    pub asked_port: u16,
}

/// The options of a socket that decide with whom it may share a port (socket(7), ipv6(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindFlags {
    /// `SO_REUSEADDR`.
    pub reuseaddr: bool,
    /// `SO_REUSEPORT`.
    pub reuseport: bool,
    /// `IPV6_V6ONLY`; false for IPv4.
    pub v6only: bool,
}

/// The process of a bind, as it was when that was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Start of the process, since boot.
    pub start: Duration,
    /// Effective user id.
    pub uid: u32,
    /// Name of the thread.
    pub comm: String,
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// Whether it may bind the ports that are reserved for the privileged. Looked up for refused binds of these only.
    pub privileged: bool,
}

/// What became of a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded. One that was closed before it was told comes with that moment, on the monotonic clock.
    Bound {
        /// When it was closed.
        until: Option<Duration>,
        /// Whether it was a TCP listener when it was closed.
        listened: bool,
    },
    /// It was refused; errno where the kernel told it. `proven` says that it has come to its end: else the socket has to be
    /// looked for, since it may be bound a moment later.
    Refused {
        /// errno.
        errno: Option<i32>,
        /// Whether it has ended for sure.
        proven: bool,
    },
    /// It succeeded, but listen(2) was refused.
    ListenRefused,
}

/// A bind, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindEvent {
    /// What became of it.
    pub outcome: Outcome,
    /// Inode of the socket's network namespace.
    pub netns: u64,
    /// The kernel's socket cookie.
    pub cookie: u64,
    /// `SO_BINDTODEVICE`, as an index in the socket's namespace. Not told of successful binds.
    pub ifindex: Option<u32>,
    /// Options. Not told of successful binds.
    pub flags: BindFlags,
    /// Which bind.
    pub bind: Bind,
    /// Who, where that process told it itself. Not told of successful binds.
    pub by: Option<Actor>,
}

/// A socket that was bound is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseEvent {
    /// When, on the monotonic clock.
    pub at: Duration,
    /// The kernel's socket cookie.
    pub cookie: u64,
    /// Process that closed it last.
    pub pid: u32,
    /// Whether it was a TCP listener then.
    pub listened: bool,
}
