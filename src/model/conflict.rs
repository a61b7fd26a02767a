//! A conflict: a bind or listen that was refused, with both sides, as documents show it.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::job::{Job, Test};
use super::netns::Netns;
use super::process::Ancestor;
use super::socket::Protocol;

/// Which call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// bind(2).
    Bind,
    /// listen(2), on a port that was bound beside another socket with `SO_REUSEADDR`.
    Listen,
}

impl Call {
    /// The word of JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Call::Bind => "bind",
            Call::Listen => "listen",
        }
    }
}

/// Why it was refused, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Something that an ended job left behind has it.
    LeakedListener,
    /// Another job has it.
    ConcurrentJob,
    /// Another process of the same job has it.
    SameJob,
    /// The process itself has it.
    SameProcess,
    /// An outgoing connection has it as its local port.
    OutgoingConnection,
    /// A closed connection still has it.
    TimeWait,
    /// A process of no job has it.
    HostService,
    /// A published port of a container.
    ContainerPublish,
    /// Nothing was found that has it.
    Unknown,
}

impl Cause {
    /// Every cause, in the order in which metrics list them.
    pub const ALL: [Cause; 9] = [
        Cause::LeakedListener,
        Cause::ConcurrentJob,
        Cause::SameJob,
        Cause::SameProcess,
        Cause::OutgoingConnection,
        Cause::TimeWait,
        Cause::HostService,
        Cause::ContainerPublish,
        Cause::Unknown,
    ];

    /// The word of JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::LeakedListener => "leaked_listener",
            Cause::ConcurrentJob => "concurrent_job",
            Cause::SameJob => "same_job",
            Cause::SameProcess => "same_process",
            Cause::OutgoingConnection => "outgoing_connection",
            Cause::TimeWait => "time_wait",
            Cause::HostService => "host_service",
            Cause::ContainerPublish => "container_publish",
            Cause::Unknown => "unknown",
        }
    }
}

/// The process that was refused, as it was then. What could not be learned before it ended is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loser {
    /// Process id.
    pub pid: u32,
    /// Start of the process.
    pub start_time: Option<Timestamp>,
    /// Its parent.
    pub ppid: Option<u32>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Name of that user.
    pub user: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// Executable.
    pub exe: Option<String>,
    /// Arguments.
    pub cmdline: Option<Vec<String>>,
    /// Working directory.
    pub cwd: Option<String>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Container id.
    pub container: Option<String>,
    /// Parent, grandparent, up to pid 1.
    pub ancestry: Vec<Ancestor>,
    /// The job it belonged to.
    pub job: Option<Job>,
    /// The test it belonged to.
    pub test: Option<Test>,
}

/// A refused bind. Repeated ones by the same loser against the same blockers are one, with a count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Number of it. No two conflicts of one history have the same.
    #[serde(default)]
    pub id: u64,
    /// When it was refused first.
    pub at: Timestamp,
    /// And last.
    pub last_at: Timestamp,
    /// Which call.
    pub call: Call,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address that was asked for.
    pub address: IpAddr,
    /// Port that was asked for; 0 lets the kernel choose.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// `EADDRINUSE` and its like; null where the kernel did not tell and nothing shows it.
    pub errno: Option<String>,
    /// Whether the kernel told it. Else it is inferred from who holds the port.
    pub errno_known: bool,
    /// How many times.
    pub attempts: u64,
    /// Who was refused.
    pub loser: Loser,
    /// Who had it.
    pub blockers: Vec<Claim>,
    /// Why, in one word.
    pub cause: Cause,
    /// Why, and what to do, in sentences.
    pub explanation: String,
}

/// The document of `conflicts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflicts {
    /// Version of this shape.
    pub schema: u32,
    /// When it was asked.
    pub as_of: Timestamp,
    /// Since when failed binds have been seen: the start of the agent.
    pub watched_since: Option<Timestamp>,
    /// The oldest moment that the history remembers; null where none is kept.
    #[serde(default)]
    pub remembered_since: Option<Timestamp>,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// How many more are being looked at.
    #[serde(default)]
    pub pending: usize,
    /// The newest last.
    pub conflicts: Vec<Conflict>,
}
