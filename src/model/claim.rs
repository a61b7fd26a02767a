//! A claim: anything that takes a port, with its holders, job and verdict, as documents show it.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hold::Comeback;
use super::job::{Job, Test};
use super::netns::Netns;
use super::process::Holder;
use super::socket::{ClaimKind, Protocol, SocketKey};

/// What the agent thinks of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its job goes on.
    Healthy,
    /// Its job has ended, its grace has not (or when it ended is not known).
    Grace,
    /// It outlived its job and the grace.
    Leaked,
    /// It outlives jobs on purpose: an allow-listed daemon.
    Exempt,
    /// No job is known for it.
    Unattributed,
}

impl Verdict {
    /// The word of JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Grace => "grace",
            Verdict::Leaked => "leaked",
            Verdict::Exempt => "exempt",
            Verdict::Unattributed => "unattributed",
        }
    }
}

/// What kind of thing a person would name as the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerType {
    /// A process.
    Process,
    /// A container.
    Container,
    /// A systemd unit that holds by socket activation.
    Unit,
    /// A Kubernetes pod.
    Pod,
    /// A Kubernetes service (NodePort).
    Service,
    /// The kernel itself.
    Kernel,
    /// Nobody that could be found.
    Unknown,
}

impl OwnerType {
    /// The word of JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            OwnerType::Process => "process",
            OwnerType::Container => "container",
            OwnerType::Unit => "unit",
            OwnerType::Pod => "pod",
            OwnerType::Service => "service",
            OwnerType::Kernel => "kernel",
            OwnerType::Unknown => "unknown",
        }
    }
}

/// Whom a person would name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Kind of owner.
    #[serde(rename = "type")]
    pub kind: OwnerType,
    /// Name; null when unknown.
    pub name: Option<String>,
    /// Id of the container.
    #[serde(default)]
    pub container: Option<String>,
    /// Image of the container, where its engine told.
    #[serde(default)]
    pub image: Option<String>,
}

impl Owner {
    /// One that is no container.
    pub fn new(kind: OwnerType, name: Option<String>) -> Self {
        Owner { kind, name, container: None, image: None }
    }
}

/// The process that bound a socket, perhaps dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binder {
    /// Process id.
    pub pid: u32,
    /// Start of the process.
    pub start_time: Option<Timestamp>,
    /// Name.
    pub comm: String,
    /// Whether it still runs.
    pub alive: bool,
}

/// The socket behind a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketRef {
    /// Inode in sockfs; 0 means that no file refers to it.
    pub inode: u32,
    /// Socket cookie; null where nobody has asked the kernel for it.
    #[serde(serialize_with = "known_cookie", deserialize_with = "any_cookie")]
    pub cookie: u64,
    /// Owner.
    pub uid: u32,
    /// cgroup of the creator, which outlives the process.
    pub cgroup: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn known_cookie<S: Serializer>(cookie: &u64, to: S) -> Result<S::Ok, S::Error> {
    Some(cookie).filter(|cookie| **cookie < SocketKey::NO_COOKIE).serialize(to)
}

fn any_cookie<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(SocketKey::NO_COOKIE))
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Remote address.
    pub address: IpAddr,
    /// Remote port.
    pub port: u16,
}

/// A NAT rule behind a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// `nftables`, `iptables` or `ipvs`.
    pub backend: String,
    /// Chain the rule stands in.
    pub chain: String,
    /// Where the traffic goes.
    pub to_address: Option<IpAddr>,
    /// Port there.
    pub to_port: Option<u16>,
    /// Comment of the rule.
    pub comment: Option<String>,
    /// Table the chain stands in.
    #[serde(default)]
    pub table: String,
    /// The last port it takes, where it takes several.
    #[serde(default)]
    pub last_port: Option<u16>,
    /// Whether it takes only some of the traffic: by source, interface, mark or chance, or by what could not be understood.
    #[serde(default)]
    pub conditional: bool,
    /// Whether it takes only what processes of this host send.
    #[serde(default)]
    pub local_only: bool,
    /// Where else the traffic goes, of a service with several servers.
    #[serde(default)]
    pub others: Vec<NatTarget>,
}

/// Where traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatTarget {
    /// Address; null for this host.
    pub address: Option<IpAddr>,
    /// Port; null for the one it came to.
    pub port: Option<u16>,
}

impl Nat {
    /// Where the traffic goes, in words.
    pub fn destination(&self) -> String {
        let first = match (self.to_address, self.to_port) {
            (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
            (Some(address), None) => address.to_string(),
            (None, Some(port)) => format!("port {port} of this host"),
            (None, None) => "where could not be read".to_owned(),
        };
        match self.others.len() {
            0 => first,
            more => format!("{first} and {more} more"),
        }
    }

    /// The rule, in words: `iptables chain CNI-DN-1 ("dnat name")`.
    pub fn rule(&self) -> String {
        let comment = self.comment.as_ref().map(|comment| format!(" (\"{comment}\")"));
        format!("{} chain {}{}", self.backend, self.chain, comment.unwrap_or_default())
    }
}

/// One thing that takes a port. One claim per socket, with all its holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// How it takes the port.
    pub kind: ClaimKind,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Local address; `::` for a dual-stack wildcard.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// `IPV6_V6ONLY`, null for IPv4.
    pub v6only: Option<bool>,
    /// Interface the socket is bound to.
    pub interface: Option<String>,
    /// Index of that interface in its namespace.
    #[serde(skip)]
    pub ifindex: Option<u32>,
    /// `SO_REUSEADDR`, null where the kernel does not tell.
    pub reuseaddr: Option<bool>,
    /// `SO_REUSEPORT`, null where the kernel does not tell.
    pub reuseport: Option<bool>,
    /// State of the socket, in the kernel's words.
    pub state: String,
    /// The other end, for connections.
    #[serde(default)]
    pub peer: Option<Peer>,
    /// Milliseconds until the kernel lets go of it, for TIME_WAIT.
    #[serde(default)]
    pub expires_ms: Option<u32>,
    /// Namespace.
    pub netns: Netns,
    /// Socket; null for claims without one.
    pub socket: Option<SocketRef>,
    /// When the daemon first saw it; null where it was there before the daemon, and without a daemon.
    pub since: Option<Timestamp>,
    /// The process that bound it; null where that is not known.
    pub binder: Option<Binder>,
    /// Every process that has the socket open.
    pub holders: Vec<Holder>,
    /// Whom a person would name.
    pub owner: Owner,
    /// The job it belongs to.
    pub job: Option<Job>,
    /// The jobs that share this port by `SO_REUSEPORT`, where there is more than one: requests reach any of them.
    #[serde(default)]
    pub shared_with: Vec<Job>,
    /// The test it belongs to.
    pub test: Option<Test>,
    /// Where it is a listener that had been lost.
    #[serde(default)]
    pub comeback: Option<Comeback>,
    /// Verdict.
    pub verdict: Verdict,
    /// Why that verdict.
    pub reason: String,
    /// NAT rule, for claims of that kind.
    pub nat: Option<Nat>,
}

impl Claim {
    /// A claim that no socket makes, and so no process. `place` is its address, and whether it leaves out IPv4.
    pub fn without_socket(
        kind: ClaimKind,
        protocol: Protocol,
        (address, v6only): (IpAddr, Option<bool>),
        port: u16,
        netns: Netns,
        reason: String,
    ) -> Self {
        Claim {
            kind,
            protocol,
            address,
            port,
            v6only,
            interface: None,
            ifindex: None,
            reuseaddr: None,
            reuseport: None,
            state: if kind == ClaimKind::NatRule { "NAT" } else { "RESERVED" }.to_owned(),
            peer: None,
            expires_ms: None,
            netns,
            socket: None,
            since: None,
            binder: None,
            holders: Vec::new(),
            owner: Owner::new(OwnerType::Unknown, None),
            job: None,
            shared_with: Vec::new(),
            test: None,
            comeback: None,
            verdict: Verdict::Unattributed,
            reason,
            nat: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A claim as a literal.

    use super::*;
    use crate::model::job::JobState;
    use crate::model::process::Ancestor;

    pub(crate) fn claim() -> Claim {
        Claim {
            kind: ClaimKind::Listener,
            protocol: Protocol::Tcp,
            address: std::net::Ipv6Addr::UNSPECIFIED.into(),
            port: 8081,
            v6only: Some(false),
            interface: None,
            ifindex: None,
            reuseaddr: None,
            reuseport: None,
            state: "LISTEN".to_owned(),
            peer: None,
            expires_ms: None,
            netns: Netns { inode: 4_026_531_833, name: Some("host".to_owned()), kept_by: None },
            socket: Some(SocketRef { inode: 191_563, cookie: 4711, uid: 1001, cgroup: None }),
            since: Some("2026-11-21T13:50:00Z".parse().unwrap()),
            binder: None,
            holders: vec![Holder {
                pid: 4121,
                fd: Some(7),
                start_time: Some("2026-11-21T13:49:59Z".parse().unwrap()),
                ppid: Some(1),
                uid: Some(1001),
                user: Some("runner".to_owned()),
                comm: Some("provider\u{1b}[2J".to_owned()),
                exe: None,
                cmdline: Some(vec!["/tmp/provider.test".to_owned(), "-test.run=a b".to_owned()]),
                cwd: Some("/home/runner/gateway".to_owned()),
                unit: Some("actions.runner.service".to_owned()),
                container: None,
                cgroup: None,
                ancestry: vec![
                    Ancestor { pid: 4100, comm: "go\nfake line".to_owned() },
                    Ancestor { pid: 1, comm: "systemd".to_owned() },
                ],
            }],
            owner: Owner::new(OwnerType::Process, Some("provider\u{1b}[2J".to_owned())),
            job: Some(Job {
                ci: "github".to_owned(),
                id: "github_1f0c".to_owned(),
                name: Some("coverage-test".to_owned()),
                repository: Some("envoyproxy/gateway".to_owned()),
                run: Some("991".to_owned()),
                url: None,
                state: JobState::Ended,
                started: None,
                ended: Some("2026-11-21T13:54:36Z".parse().unwrap()),
            }),
            shared_with: Vec::new(),
            test: None,
            comeback: None,
            verdict: Verdict::Leaked,
            reason: "job ended 8m31s ago (grace 30s)".to_owned(),
            nat: None,
        }
    }

    pub(crate) fn holder(pid: u32, comm: &str) -> Holder {
        Holder { pid, comm: Some(comm.to_owned()), fd: Some(3), ..Holder::unknown(pid) }
    }

    pub(crate) fn github(state: JobState, id: &str) -> Job {
        Job {
            ci: "github".to_owned(),
            id: id.to_owned(),
            name: Some("test".to_owned()),
            repository: Some("o/r".to_owned()),
            run: None,
            url: None,
            state,
            started: None,
            ended: None,
        }
    }
}
