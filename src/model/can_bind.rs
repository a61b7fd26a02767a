//! The document of `can-bind`: a bind that somebody wants to do, and whether the kernel would allow it.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::answer::{AnswerSource, Query};
use super::claim::Claim;
use super::socket::Protocol;

/// The errno of a bind whose address somebody has.
pub const IN_USE: &str = "EADDRINUSE";

/// How somebody wants to bind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// With `SO_REUSEADDR`.
    #[serde(default)]
    pub reuseaddr: bool,
    /// With `SO_REUSEPORT`.
    #[serde(default)]
    pub reuseport: bool,
    /// With `IPV6_V6ONLY`.
    #[serde(default)]
    pub v6only: bool,
    /// As this user; root may bind the ports below `ip_unprivileged_port_start`.
    #[serde(default)]
    pub uid: u32,
    /// To this interface (`SO_BINDTODEVICE`).
    #[serde(default)]
    pub interface: Option<String>,
}

impl Manner {
    /// Whether it asks to share its port with others that let it.
    pub fn shares(&self) -> bool {
        self.reuseaddr || self.reuseport
    }
}

/// Whether one bind would succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneBind {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether it would succeed; null where that depends on what could not be seen.
    pub would_succeed: Option<bool>,
    /// The error it would get, as a name of errno(3).
    pub errno: Option<String>,
}

/// The answer to `can-bind`. A target of several ports or protocols is allowed if each of its binds is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanBind {
    /// Version of this shape.
    pub schema: u32,
    /// The moment at which the kernel was asked.
    pub as_of: Timestamp,
    /// Who looked.
    pub source: AnswerSource,
    /// The question.
    pub target: Query,
    /// How it was to be bound.
    pub manner: Manner,
    /// What could not be seen, in sentences.
    pub incomplete: Vec<String>,
    /// Whether it would succeed; null where that depends on what could not be seen.
    pub would_succeed: Option<bool>,
    /// The first error, as a name of errno(3).
    pub errno: Option<String>,
    /// What stands in the way, or may.
    pub blockers: Vec<Claim>,
    /// What to mind all the same, in sentences.
    pub warnings: Vec<String>,
    /// Each bind that was judged; of a range those that would not succeed.
    pub binds: Vec<OneBind>,
}

impl CanBind {
    /// Whether waiting may help: somebody has the port, or may have it.
    pub fn may_change(&self) -> bool {
        match &self.errno {
            Some(errno) => errno == IN_USE,
            None => self.would_succeed.is_none(),
        }
    }
}
