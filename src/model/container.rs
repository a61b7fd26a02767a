//! Containers: as their engine lists them, where they live, and which programs hold ports for them.

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

/// A network namespace in which a container lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Inode of the namespace.
    pub netns: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Id of the container.
    pub container: String,
    /// Processes in it, some.
    pub pids: Vec<u32>,
    /// Where it is mounted, as far as known.
    pub mounts: Vec<String>,
}

/// A program that holds a port for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// docker-proxy: its arguments name the container's address.
    Docker,
    /// An engine, or its helper, that binds what it publishes by other means, so that nobody else does.
    Publisher,
    /// conmon(8), which keeps a socket on the ports that Podman publishes by rules: its arguments name the container.
    Monitor,
    /// A network stack for one namespace, which its arguments name: pasta(1), slirp4netns(1).
    UserNetwork,
}

impl Proxy {
    /// The proxy of this name (`comm`).
    pub fn named(comm: &str) -> Option<Proxy> {
        match comm {
            "docker-proxy" => Some(Proxy::Docker),
            // rootlesskit's child runs as /proc/self/exe.
            "dockerd" | "rootlessport" | "rootlessport-child" | "rootlesskit" | "exe" => {
                Some(Proxy::Publisher)
            }
            "conmon" => Some(Proxy::Monitor),
            "pasta" | "pasta.avx2" | "passt" | "slirp4netns" => Some(Proxy::UserNetwork),
            _ => None,
        }
    }
}
