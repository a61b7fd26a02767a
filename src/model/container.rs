//! A container as its engine lists it.

use std::net::IpAddr;

use super::socket::Protocol;

/// A container that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Id, 64 hexadecimal digits.
    pub id: String,
    /// Name that people gave it, or the engine.
    pub name: Option<String>,
    /// Image it was made from.
    pub image: Option<String>,
    /// Namespace and name of its Kubernetes pod, `ci/runner-0`.
    pub pod: Option<String>,
    /// Its addresses in the engine's networks.
    pub addresses: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub published: Vec<Published>,
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The address it is published on; `None` for all.
    pub address: Option<IpAddr>,
    /// Port of the host.
    pub port: u16,
}
