//! `sniffer doctor`: tries everything the program uses, and says what is lost where it does not work.

use std::path::Path;

use serde::Serialize;

use super::{ANSWERED, Failure, OTHERWISE, printed};
use crate::config;
use crate::kernel::bpf::holders::{BoundFile, OpenFiles};
use crate::kernel::bpf::{self, Gain};
use crate::kernel::proc_events::ProcEvents;
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::kernel::{capability, cgroup, netns, sock_diag};
use crate::model::answer::SCHEMA;
use crate::model::socket::ClaimKind;
use crate::report::{self, Check};

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    checks: Vec<Check>,
}

/// Tries, and tells.
pub(super) fn run(json: bool) -> Result<u8, Failure> {
    cgroup::enter_first();
    let mut checks = vec![sockets(), bound_sockets(), process_events(), control_groups(), configuration()];
    checks.extend(ebpf());
    checks.push(open_files());
    checks.extend(privileges());
    let all = checks.iter().all(|check| check.ok);
    printed(if json {
        report::print_json(&Document { schema: SCHEMA, checks })
    } else {
        report::print(&report::checks(&checks))
    })?;
    Ok(if all { ANSWERED } else { OTHERWISE })
}

fn check(name: &str, outcome: Result<String, (String, String)>) -> Check {
    match outcome {
        Ok(found) => Check { name: name.to_owned(), ok: true, found, remedy: None },
        Err((found, remedy)) => Check { name: name.to_owned(), ok: false, found, remedy: Some(remedy) },
    }
}

fn dump(depth: Depth, port: Option<u16>) -> std::io::Result<Vec<crate::model::socket::Socket>> {
    let own = netns::own()?;
    sock_diag::dump(own, &DiagQuery { ports: port.map(|port| port..=port), depth })
}

fn sockets() -> Check {
    check(
        "sockets (sock_diag)",
        dump(Depth::Listeners, None)
            .map(|sockets| format!("{} listeners in this network namespace", sockets.len()))
            .map_err(|error| {
                (
                    error.to_string(),
                    "no port can be seen; the kernel needs INET_DIAG, INET_TCP_DIAG, INET_UDP_DIAG"
                        .to_owned(),
                )
            }),
    )
}

/// Binds a port of its own on loopback, without listening, and looks whether the kernel lists it.
fn bound_sockets() -> Check {
    const REMEDY: &str = "TCP sockets that are bound and do not listen stay unseen; Linux 6.8 lists them, before it CAP_BPF and CAP_PERFMON are needed";
    let lost = |why: String| (why, REMEDY.to_owned());
    let seen = |(_socket, port): (rustix::fd::OwnedFd, u16)| {
        let listed = dump(Depth::Everything, Some(port)).map_err(|error| lost(error.to_string()))?;
        if listed.iter().any(|socket| socket.kind() == ClaimKind::Bound) {
            return Ok("listed by this kernel".to_owned());
        }
        let files = OpenFiles::load(bpf::Reasons::InBrief).and_then(|files| files.bound());
        let files = files.map_err(|why| lost(format!("not listed by this kernel, and {why}")))?;
        let own = |file: &BoundFile| file.held.pid == std::process::id();
        files
            .iter()
            .any(own)
            .then(|| "not listed by this kernel, but found as open files".to_owned())
            .ok_or_else(|| lost("neither listed by this kernel nor found as open files".to_owned()))
    };
    check("bound sockets", bound_port().map_err(|error| lost(error.to_string())).and_then(seen))
}

fn bound_port() -> std::io::Result<(rustix::fd::OwnedFd, u16)> {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&fd, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0))?;
    let address = std::net::SocketAddrV4::try_from(getsockname(&fd)?)?;
    Ok((fd, address.port()))
}

fn process_events() -> Check {
    check(
        "process events",
        ProcEvents::subscribe().map(|_| "fork, exec and exit of every process".to_owned()).map_err(|error| {
            (
                error.to_string(),
                "the daemon polls processes instead: a job's short-lived processes may be missed".to_owned(),
            )
        }),
    )
}

fn control_groups() -> Check {
    check(
        "cgroup v2",
        cgroup::mount().map(|path| format!("mounted at {}", path.display())).ok_or_else(|| {
            (
                "not mounted".to_owned(),
                "the cgroup of a socket's creator stays unknown; mount cgroup2".to_owned(),
            )
        }),
    )
}

fn open_files() -> Check {
    check(
        "ebpf: open files",
        OpenFiles::load(bpf::Reasons::Whole)
            .map(|_| "all open files in one walk of the kernel's".to_owned())
            .map_err(|error| {
                (error.to_string(), "holders are found in /proc, which takes longer".to_owned())
            }),
    )
}

/// Loads and attaches the programs as the daemon does, for a moment.
fn ebpf() -> Vec<Check> {
    let lost = "without them a failed bind is not seen, and a listener is noticed at the next look";
    match bpf::Source::load(bpf::Reasons::Whole) {
        Err(error) => vec![check("ebpf: binds", Err((error.to_string(), lost.to_owned())))],
        Ok(source) => Gain::ALL
            .into_iter()
            .map(|gain| {
                let found = match source.missing().iter().find(|(missing, _)| *missing == gain) {
                    // Not on every kernel, and answers mark what is inferred: nothing that an operator could mend.
                    Some((_, why)) if gain == Gain::Errno => Ok(format!("{}: {why}", gain.lost())),
                    Some((_, why)) => Err((why.clone(), gain.lost().to_owned())),
                    None => Ok(gain.what().to_owned()),
                };
                check(gain.name(), found)
            })
            .collect(),
    }
}

fn configuration() -> Check {
    check(
        "configuration",
        match config::load(None) {
            Ok(_) if Path::new(config::DEFAULT_PATH).exists() => {
                Ok(format!("{}: valid", config::DEFAULT_PATH))
            }
            Ok(_) => Ok(format!("no {}: the defaults", config::DEFAULT_PATH)),
            Err(error) => Err((error.to_string(), "`sniffer check-config` names every mistake".to_owned())),
        },
    )
}

fn privileges() -> Vec<Check> {
    match capability::missing() {
        Ok(missing) => capability::USED
            .iter()
            .map(|capability| {
                check(
                    capability.name,
                    if missing.contains(capability) {
                        Err((
                            "missing".to_owned(),
                            format!("{}; run as root, or use the unit file", capability.lost),
                        ))
                    } else {
                        Ok("held".to_owned())
                    },
                )
            })
            .collect(),
        Err(error) => {
            vec![check("capabilities", Err((format!("{error:?}"), "is /proc mounted?".to_owned())))]
        }
    }
}
