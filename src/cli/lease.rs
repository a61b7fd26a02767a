//! `sniffer run --ports`: ports for one command alone.

use super::Failure;
use super::ask::{Whom, ask};
use crate::engine::{Question, Topic};
use crate::judge::lease;
use crate::kernel::lease::Lease;
use crate::kernel::{netns, surroundings};
use crate::model::netns::NetnsSelector;
use crate::model::target::Target;
use crate::report;

/// The first of them, for whatever the command starts.
pub(super) const PORT: &str = "SNIFFER_PORT";
/// All of them, with spaces between.
pub(super) const PORTS: &str = "SNIFFER_PORTS";

/// Leases so many ports that nobody has, on any address and by any protocol.
pub(super) fn lease(count: u16) -> Result<Vec<Lease>, Failure> {
    let own = netns::own().map_err(|why| format!("your own network namespace cannot be named: {why:?}"))?;
    let target = Target { ports: lease::RANGE, protocol: None, address: None };
    let question = Question { topic: Topic::Target(target), netns: Some(NetnsSelector::Inode(own.inode)) };
    let mut order = lease::order(&surroundings::settings(), std::process::id());
    let mut leases: Vec<Lease> = Vec::new();
    // Leased before it is looked: who had one before may have left a process on it.
    loop {
        while leases.len() < usize::from(count) {
            let port = order.next().ok_or_else(|| none_left(count))?;
            let lease = Lease::take(port).map_err(|error| format!("a port cannot be leased: {error}"))?;
            leases.extend(lease);
        }
        let answer = ask(&question, Whom::DaemonOrMyself)?;
        let taken = lease::taken(&answer.claims);
        leases.retain(|lease| !taken.contains(&lease.port()));
        if leases.len() == usize::from(count) {
            if !answer.incomplete.is_empty() {
                report::complain(&format!(
                    "--ports: not all could be seen: {}",
                    answer.incomplete.join("; ")
                ));
            }
            return Ok(leases);
        }
    }
}

fn none_left(count: u16) -> Failure {
    format!(
        "--ports: {count} ports are not free in {}-{}, outside of what the kernel chooses from (net.ipv4.ip_local_port_range)",
        lease::RANGE.start(),
        lease::RANGE.end()
    )
}
