//! Binds, listens, closes and processes, told by the kernel as they happen (bpf(2), the programs in `events.bpf.c`).
//!
//! Which hooks there are is found by trying: each that does not load or attach is named with its reason, and the rest goes on.
//! Everything ends with this program: links and maps are held by descriptors only.

mod event;
pub mod holders;
mod load;
mod source;

pub use event::{Event, Exec, Slot, Told, decode};
pub use source::{Drained, Hurry, Source};

/// What is gained by a group of programs; a group works as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gain {
    /// Binds, refused ones included, and closes.
    Binds,
    /// Listens.
    Listens,
    /// Fork, exec, exit and names of processes.
    Processes,
    /// The errno of what is refused.
    Errno,
    /// Whom the OOM killer chose.
    Oom,
}

impl Gain {
    /// All of them.
    pub const ALL: [Gain; 5] = [Gain::Binds, Gain::Listens, Gain::Processes, Gain::Errno, Gain::Oom];

    /// How `doctor` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Gain::Binds => "ebpf: binds",
            Gain::Listens => "ebpf: listens",
            Gain::Processes => "ebpf: processes",
            Gain::Errno => "ebpf: errno",
            Gain::Oom => "ebpf: oom",
        }
    }

    /// What it gives.
    pub fn what(self) -> &'static str {
        match self {
            Gain::Binds => "every bind in every network namespace, failed ones included",
            Gain::Listens => "refused listens",
            Gain::Processes => "fork, exec with arguments and environment, and exit of every process",
            Gain::Errno => "the errno of every failed bind",
            Gain::Oom => "which processes the OOM killer ended",
        }
    }

    /// What is missing without it.
    pub fn lost(self) -> &'static str {
        match self {
            Gain::Binds => "failed binds are not seen",
            Gain::Listens => "refused listens are not seen",
            Gain::Processes => "process events come from the proc connector",
            Gain::Errno => "the errno of a failed bind is inferred from who holds the port",
            Gain::Oom => "an end by the OOM killer is inferred from the counters of cgroups",
        }
    }
}

/// How much the kernel is asked to say about a program that it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasons {
    /// errno.
    InBrief,
    /// The verifier's words, which take time to write.
    Whole,
}

/// Why there is no BPF source, as a sentence with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel does not describe its types.
    #[error(
        "the kernel does not describe its types (/sys/kernel/btf/vmlinux: {0}); BPF programs need a kernel with CONFIG_DEBUG_INFO_BTF"
    )]
    NoBtf(String),
    /// No cgroup v2.
    #[error(
        "cgroup v2 is not mounted, and binds are seen at its root; mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NoCgroup,
    /// Lockdown.
    #[error(
        "the kernel is locked down for confidentiality, which forbids BPF programs to read its memory; boot with lockdown=integrity or none"
    )]
    LockedDown,
    /// Privileges.
    #[error(
        "loading BPF programs was refused ({0}); run as root, or grant CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (before Linux 5.8: CAP_SYS_ADMIN)"
    )]
    Denied(String),
    /// Somebody else has locked the hooks.
    #[error(
        "another program has locked the bind hooks at the root of cgroup v2 ({0}); `bpftool cgroup tree` names it, and it must attach with BPF_F_ALLOW_MULTI"
    )]
    CgroupLocked(String),
    /// The numbers of processes mean others.
    #[error(
        "the kernel tells of processes by their numbers in its first pid namespace, and this program is in another; run it outside of containers or with hostPID"
    )]
    ForeignPids,
    /// The root that is seen is only a branch.
    #[error(
        "this program sees only a part of the cgroup tree, and binds outside of it would go unseen; run it on the host, or in a container with the host's cgroup namespace"
    )]
    ForeignCgroup,
    /// Anything else.
    #[error("the BPF programs cannot be used: {0}")]
    Failed(String),
}
