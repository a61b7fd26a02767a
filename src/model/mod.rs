//! The words of the field as types: socket, netns, process, job, claim, verdict, target.
//!
//! No I/O and no judgement here: only shapes, parsing and display. Everything that crosses a
//! border (JSON, control socket) is one of these types, so the daemon and the one-shot verbs
//! print the same documents.

pub mod alert;
pub mod answer;
pub mod bind;
pub mod can_bind;
pub mod cgroup_path;
pub mod claim;
pub mod conflict;
pub mod container;
pub mod declared;
pub mod escape;
pub mod hold;
pub mod job;
pub mod mask;
pub mod moment;
pub mod nat;
pub mod netns;
pub mod process;
pub mod ranges;
pub mod reap;
pub mod report;
pub mod run;
pub mod socket;
pub mod surroundings;
pub mod target;
