//! What `sniffer run` tells of a command that has ended.

use std::net::IpAddr;

use serde::Serialize;

use super::netns::Netns;
use super::process::Holder;
use super::socket::Protocol;

/// The document of `sniffer run --report`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Version of this shape.
    pub schema: u32,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The name it was given.
    pub name: Option<String>,
    /// Its exit code, where it exited.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// The processes that it left behind.
    pub left: Vec<Leftover>,
}

/// A process that outlived the command that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The process.
    pub process: Holder,
    /// The ports that it holds: TCP listeners and bound sockets, UDP without a peer.
    pub ports: Vec<LeftPort>,
    /// What became of it, where it was to be ended.
    pub ended: Option<&'static str>,
}

/// A port that a leftover holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// State of the socket, in the kernel's words.
    pub state: String,
    /// Namespace.
    pub netns: Netns,
}

impl Run {
    /// Whether a port is still held.
    pub fn leaked(&self) -> bool {
        self.left.iter().any(|left| !left.ports.is_empty())
    }
}
