//! The document of `sniffer reap`: which processes would be ended, which not and why, and what became of them.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::netns::Netns;
use super::socket::Protocol;

/// A plan, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reap {
    /// Version of this shape.
    pub schema: u32,
    /// Whether it was acted upon (`--yes`).
    pub acted: bool,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// The processes.
    pub processes: Vec<Doomed>,
}

/// A process that holds what is to be let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doomed {
    /// Process id.
    pub pid: u32,
    /// Start of the process.
    pub start_time: Option<Timestamp>,
    /// Name.
    pub comm: Option<String>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Name of that user.
    pub user: Option<String>,
    /// Arguments.
    pub cmdline: Option<Vec<String>>,
    /// What it holds.
    pub holds: Vec<Held>,
    /// Why it is left alone.
    pub spared: Option<String>,
    /// `ended`, `killed`, `stayed`, `gone` before anything was done, `let go` of the port since, or `not permitted`.
    pub outcome: Option<&'static str>,
}

/// A port that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// The descriptor under which the process has the socket open.
    pub fd: u32,
    /// Inode of the socket in sockfs.
    pub inode: u32,
    /// Why it is held: the verdict, with its reason.
    pub reason: String,
}
