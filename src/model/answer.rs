//! The documents of `who-holds`, `list` and `leaks`: one shape for all three, printed by `--json` and served by the daemon.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::netns::NetnsSelector;
use super::socket::ClaimKind;
use super::socket::Protocol;
use super::surroundings::Surroundings;
use super::target::Target;

/// Version of the JSON documents.
pub const SCHEMA: u32 = 1;

/// Who looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerSource {
    /// The running agent, which knows the past.
    Daemon,
    /// This command, with one look at the system.
    Oneshot,
}

/// The question, as understood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// First port asked for; null for `list` and `leaks`.
    pub port: Option<u16>,
    /// Last port of a range, else null.
    #[serde(default)]
    pub port_end: Option<u16>,
    /// Protocol asked for; null for both.
    pub protocol: Option<Protocol>,
    /// Address asked for; null for every one.
    pub address: Option<IpAddr>,
    /// Namespace asked for; null for every one.
    pub netns: Option<String>,
}

impl Query {
    /// The question of `who-holds TARGET [--netns N]`, and of `list` without a target.
    pub fn new(target: Option<&Target>, netns: Option<&NetnsSelector>) -> Self {
        Query {
            port: target.map(|target| *target.ports.start()),
            port_end: target.filter(|target| !target.is_single()).map(|target| *target.ports.end()),
            protocol: target.and_then(|target| target.protocol),
            address: target.and_then(|target| target.address),
            netns: netns.map(ToString::to_string),
        }
    }
}

/// What was looked at, so that "nobody" can be believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Network namespaces that were read.
    pub netns: usize,
    /// Processes whose descriptors were read for this answer or are followed by the daemon.
    pub processes: usize,
    /// Whether NAT rules were read.
    #[serde(default)]
    pub nat: bool,
}

/// The answer to `who-holds`, `list` and `leaks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Version of this shape.
    pub schema: u32,
    /// The moment at which the kernel was asked.
    pub as_of: Timestamp,
    /// Who looked.
    pub source: AnswerSource,
    /// The question.
    pub query: Query,
    /// What could not be seen, in sentences; empty when everything was.
    pub incomplete: Vec<String>,
    /// How far the look went.
    #[serde(default)]
    pub looked: Looked,
    /// The claims that match.
    pub claims: Vec<Claim>,
    /// What to do next, in sentences.
    pub advice: Vec<String>,
    /// What else a bind depends on, where that was asked.
    #[serde(skip)]
    pub surroundings: Option<Surroundings>,
}

impl Answer {
    /// Whether anything holds a port. A reservation keeps it from nobody who asks for it.
    pub fn is_held(&self) -> bool {
        self.claims.iter().any(|claim| claim.kind != ClaimKind::Reserved)
    }
}
