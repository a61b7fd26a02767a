//! Who holds each port of a CI host, in every network namespace, for which CI job, and whether it has leaked.
//!
//! One direction: the [`kernel`] is looked at (snapshots make it right, events make it fast), what was seen enters the
//! [`engine`]'s table, [`judge`] says which job a process belongs to and whether a listener has leaked, and [`serve`] and
//! [`report`] tell machines and people. The daemon and the one-shot verbs are the same program: one takes many
//! looks, the other takes one.

pub mod alert;
pub mod cli;
pub mod config;
pub mod engine;
pub mod history;
pub mod judge;
pub mod kernel;
pub mod model;
pub mod reaper;
pub mod report;
pub mod serve;
pub mod state;
