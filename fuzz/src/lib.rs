//! Every parser of foreign bytes, one function a kind of bytes: whatever they are, nothing may panic, and what is said here must hold.
//!
//! The fuzzer calls them by the files in `fuzz_targets/`, `tests/corpus.rs` with what lies in `corpus/`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what must hold fails by a panic")]
#![allow(unreachable_pub, reason = "a test takes it in as a module")]

mod control;
mod documents;
mod nat;
mod netlink;
mod proc;
mod text;

pub use control::control;
pub use documents::documents;
pub use nat::{iptables, ipvs, nftables};
pub use netlink::{bpf_events, netlink, proc_events, sock_diag};
pub use proc::{environ, proc};
pub use text::{config, targets};

/// What is done with bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their files.
pub const TARGETS: [(&str, Target); 13] = [
    ("bpf_events", bpf_events),
    ("config", config),
    ("control", control),
    ("documents", documents),
    ("environ", environ),
    ("iptables", iptables),
    ("ipvs", ipvs),
    ("netlink", netlink),
    ("nftables", nftables),
    ("proc", proc),
    ("proc_events", proc_events),
    ("sock_diag", sock_diag),
    ("targets", targets),
];
