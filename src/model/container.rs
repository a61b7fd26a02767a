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
    /// Its name, where its monitor tells it.
    pub name: Option<String>,
    /// The first process of the container, where its monitor told who that is.
    pub first: Option<u32>,
    /// Processes in the namespace, some.
    pub pids: Vec<u32>,
    /// Programs elsewhere that forward into it, and into no other.
    pub forwarders: Vec<u32>,
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
    /// Podman's rootlessport: a child of it is in the network namespace of the one container that it forwards to, and it listens in another.
    Inside,
    /// A network stack for one namespace, which its arguments or its descriptors tell: pasta(1), slirp4netns(1).
    UserNetwork,
}

impl Proxy {
    /// The proxy of this name (`comm`).
    pub fn named(comm: &str) -> Option<Proxy> {
        match comm {
            "docker-proxy" => Some(Proxy::Docker),
            // rootlesskit's child runs as /proc/self/exe.
            "dockerd" | "rootlesskit" | "exe" => Some(Proxy::Publisher),
            "rootlessport" | "rootlessport-child" => Some(Proxy::Inside),
            "conmon" => Some(Proxy::Monitor),
            // pasta is a link to passt, and the faster one of two programs replaces it: it has that one's name then.
            "pasta" | "pasta.avx2" | "passt" | "passt.avx2" | "slirp4netns" => Some(Proxy::UserNetwork),
            _ => None,
        }
    }
}

/// Characters of a container's whole id.
const ID_CHARS: usize = 64;
/// Characters of it that runtimes show and take.
pub const SHORT_ID_CHARS: usize = 12;

/// Whether this is a container's id, or the beginning of one.
pub fn is_id(text: &str) -> bool {
    (SHORT_ID_CHARS..=ID_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The argument after this one.
pub fn value_of<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let mut arguments = arguments.iter();
    arguments.find(|argument| *argument == name)?;
    arguments.next().map(String::as_str)
}

/// The container that a monitor with these arguments watches, and its name (conmon(8)).
pub fn monitored(arguments: &[String]) -> Option<(&str, Option<&str>)> {
    let value = |names: [&str; 2]| names.iter().find_map(|name| value_of(arguments, name));
    let id = value(["-c", "--cid"]).filter(|id| is_id(id))?;
    Some((id, value(["-n", "--name"])))
}
