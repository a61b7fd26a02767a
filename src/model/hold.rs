//! Holds: a port that somebody had from one moment to another. What the history keeps, and what becomes of it.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::claim::Nat;
use super::conflict::Conflict;
use super::job::{Job, Test};
use super::netns::Netns;
use super::process::{Exit, Holder};
use super::socket::{ClaimKind, Protocol};

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Somebody closed the socket, or took the rule away.
    Closed,
    /// The last process that had it ended.
    Exit,
    /// The OOM killer ended that process.
    OomKilled,
    /// Its network namespace went, and no process had it.
    NetnsGone,
    /// It ended while no agent watched.
    AgentRestart,
    /// Nobody knows.
    Unknown,
}

impl End {
    /// Every end, in the order of the numbers that the history keeps.
    pub const ALL: [End; 6] =
        [End::Closed, End::Exit, End::OomKilled, End::NetnsGone, End::AgentRestart, End::Unknown];

    /// The word of JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            End::Closed => "closed",
            End::Exit => "exit",
            End::OomKilled => "oom_killed",
            End::NetnsGone => "netns_gone",
            End::AgentRestart => "agent_restart",
            End::Unknown => "unknown",
        }
    }
}

/// A hold that came back: the same program listens again where it had lost the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comeback {
    /// The hold before this one.
    pub hold: u64,
    /// How that one was lost.
    pub end: End,
    /// Status of its process, where it ended with one.
    pub exit: Option<Exit>,
    /// When it was lost.
    pub lost_at: Timestamp,
    /// Milliseconds until it was back.
    pub gap_ms: i64,
    /// How often it was lost since `since`.
    pub times: u64,
    /// The first of these losses: ten minutes before this hold, at the most.
    pub since: Timestamp,
    /// Control group of the process that was lost, where the OOM killer ended it.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// That process.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// A port that somebody had from one moment to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Number of it, in the order of their beginnings. No two holds of one history have the same.
    pub id: u64,
    /// When it was bound; else when the agent saw it first.
    pub from: Timestamp,
    /// Whether `from` is when it began. What was there before the agent is older than that.
    pub from_known: bool,
    /// When it ended; null while it goes on.
    pub until: Option<Timestamp>,
    /// How it took the port, at its end.
    pub kind: ClaimKind,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Namespace.
    pub netns: Netns,
    /// The process that bound it, else the first that was found to have it; null for rules, and where nobody was found.
    pub holder: Option<Arc<Holder>>,
    /// The job it belonged to.
    pub job: Option<Arc<Job>>,
    /// The test it belonged to.
    pub test: Option<Arc<Test>>,
    /// The rule, for claims of NAT.
    pub nat: Option<Box<Nat>>,
    /// When it was found to have leaked.
    pub leaked_at: Option<Timestamp>,
    /// How it ended; null while it goes on.
    pub end: Option<End>,
    /// Status of its last process, where it ended with that and the status was told.
    pub exit: Option<Exit>,
    /// Control group of that process, where the OOM killer ended it.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Where it is a listener that had been lost.
    pub comeback: Option<Box<Comeback>>,
}

impl Hold {
    /// Whether a listener was lost: its process ended otherwise than well or as it was asked to, or its namespace went.
    pub fn is_lost(&self) -> bool {
        let by_exit = match (self.end, self.exit) {
            (Some(End::OomKilled | End::NetnsGone), _) => true,
            (Some(End::Exit), Some(exit)) => !exit.is_regular(),
            _ => false,
        };
        self.kind == ClaimKind::Listener && by_exit
    }

    /// Whether it was one at that moment.
    pub fn was_at(&self, at: Timestamp) -> bool {
        self.from <= at && self.until.is_none_or(|until| until > at)
    }
}

/// What tells an open hold from all others, across a restart of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldKey {
    /// The cookie of its socket, which the kernel gives once.
    Socket(u64),
    /// What its rule takes, and where.
    Rule(String),
}

/// Something to remember. Each is whole: what came before it may have been lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A hold as it is now; one that goes on comes with its key.
    Hold(Box<Hold>, HoldKey),
    /// A refusal as it is known now.
    Conflict(Arc<Conflict>),
    /// A job as it is now.
    Job(Box<Job>),
    /// These holds go on, and no others do.
    Open(Vec<u64>),
}

/// The document of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Version of this shape.
    pub schema: u32,
    /// When it was asked.
    pub as_of: Timestamp,
    /// The oldest moment that is remembered; null where nothing is.
    pub kept_since: Option<Timestamp>,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// Whether there were more than are shown.
    #[serde(default)]
    pub truncated: bool,
    /// The oldest first.
    pub holds: Vec<Hold>,
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A hold as a literal.

    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// A listener on 8081 that goes on.
    pub(crate) fn hold(id: u64, pid: u32) -> Hold {
        let holder = Holder { comm: Some("gateway".to_owned()), ..Holder::unknown(pid) };
        Hold {
            id,
            from: at(0),
            from_known: true,
            until: None,
            kind: ClaimKind::Listener,
            protocol: Protocol::Tcp,
            address: IpAddr::from([127, 0, 0, 1]),
            port: 8081,
            netns: Netns { inode: 7, name: Some("host".to_owned()), kept_by: None },
            holder: Some(Arc::new(holder)),
            job: None,
            test: None,
            nat: None,
            leaked_at: None,
            end: None,
            exit: None,
            cgroup: None,
            comeback: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::hold;
    use super::*;

    #[test]
    fn a_listener_is_lost_when_its_process_ends_badly() {
        let ended = |end, exit| Hold { end: Some(end), exit, ..hold(1, 7) };
        let status = |status| Some(Exit::of_status(status));
        assert!(ended(End::OomKilled, None).is_lost() && ended(End::NetnsGone, None).is_lost());
        assert!(ended(End::Exit, status(9)).is_lost() && ended(End::Exit, status(2 << 8)).is_lost());
        assert!(!ended(End::Exit, status(0)).is_lost() && !ended(End::Exit, status(15)).is_lost());
        assert!(!ended(End::Exit, None).is_lost(), "how it ended is not known");
        assert!(!ended(End::Closed, None).is_lost() && !hold(1, 7).is_lost());
        assert!(!Hold { kind: ClaimKind::Bound, ..ended(End::OomKilled, None) }.is_lost());
    }
}
