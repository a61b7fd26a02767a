//! What the benchmarks share: the daemon under measurement, a loaded host, Ctrl-C, and tables.

#![allow(dead_code, reason = "each benchmark uses some of it")]

pub(crate) mod daemon;
pub(crate) mod interrupt;
pub(crate) mod load;
pub(crate) mod table;
pub(crate) mod worker;

/// Why there is no table: one line.
pub(crate) type Failure = String;
