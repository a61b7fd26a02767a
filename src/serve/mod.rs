//! What machines ask: the control socket (HTTP + JSON), metrics and health. Read-only; it prints nothing and judges nothing.

pub mod control;
pub mod http;
pub mod metrics;
