//! What machines ask: the control socket (HTTP + JSON), metrics and health; and the page for people. Read-only; it prints nothing and judges nothing.

pub mod control;
pub mod http;
pub mod live;
pub mod metrics;
pub mod page;
pub mod past;
