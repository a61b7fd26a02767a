//! What the benchmarks share: the daemon under measurement, Ctrl-C, and tables.

#![allow(dead_code, reason = "each benchmark uses some of it")]

pub(crate) mod daemon;
pub(crate) mod interrupt;
pub(crate) mod table;

/// Why there is no table: one line.
pub(crate) type Failure = String;
