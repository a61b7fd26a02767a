//! What this process may do, by its effective capability set (capabilities(7)).

use super::Unreadable;

/// A capability that a look needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    bit: u32,
    /// Its name.
    pub name: &'static str,
    /// What is lost without it.
    pub lost: &'static str,
}

/// Every capability the program uses, with what is lost without it. The unit file grants these and no others.
pub const USED: [Capability; 4] = [
    Capability {
        bit: 2,
        name: "CAP_DAC_READ_SEARCH",
        lost: "environments and, where BPF cannot be used, open files of other users' processes cannot be read: jobs and holders are missing; of other namespaces NAT rules are not known",
    },
    Capability {
        bit: 12,
        name: "CAP_NET_ADMIN",
        lost: "NAT rules cannot be read: whether one takes a port is not known; where BPF cannot be used, process events cannot be subscribed to",
    },
    Capability {
        bit: 19,
        name: "CAP_SYS_PTRACE",
        lost: "namespaces, environments and descriptors of other users' processes cannot be read: jobs, holders, and the ports of other namespaces are missing",
    },
    Capability {
        bit: 21,
        name: "CAP_SYS_ADMIN",
        lost: "other network namespaces cannot be entered: their ports are unknown; without CAP_BPF and CAP_PERFMON no BPF programs either: failed binds are not seen",
    },
];

/// Those of [`USED`] that this process lacks. Errors: /proc/self/status cannot be read.
pub fn missing() -> Result<Vec<Capability>, Unreadable> {
    let effective = procfs::process::Process::myself()?.status()?.capeff;
    Ok(USED.into_iter().filter(|capability| effective & (1 << capability.bit) == 0).collect())
}

/// `CAP_KILL` of capabilities(7): signals to every process.
const KILL: u32 = 5;

/// Whether this process may not end other users' processes; not known counts as not.
pub fn lacks_kill() -> bool {
    let status = procfs::process::Process::myself().and_then(|own| own.status());
    status.map_or(true, |status| status.capeff & (1 << KILL) == 0)
}
