//! Judgement: which job and which test a process belongs to, when a job is over, whether a listener has leaked.
//!
//! Pure functions of values, `now` among them: no clock, no files, no sockets. Tested with literals.

pub mod advice;
pub mod can_bind;
pub mod ci;
pub mod conflict;
pub mod container_client;
pub mod ending;
pub mod evidence;
pub mod exempt;
pub mod hold;
pub mod leak;
pub mod lease;
pub mod nat;
pub mod overlap;
pub mod owner;
pub mod reap;
pub mod setting;
pub mod sharing;
pub mod test_runner;
