//! `sniffer run`: a command with everything that it starts, and what it leaves behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::ask::settings;
use super::{Failure, LEAKED};
use crate::judge::ci::{self, declared};
use crate::judge::test_runner;
use crate::kernel::children::{self, End, Family};
use crate::kernel::look::{self, Describe, Everywhere, Plan, Search, WhenFree};
use crate::kernel::netns::{self, Inhabitants};
use crate::kernel::pidfd::{self, Ended, Handle};
use crate::kernel::process::Reader;
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::model::answer::SCHEMA;
use crate::model::process::ProcessId;
use crate::model::run::{LeftPort, Leftover, Run};
use crate::model::socket::ClaimKind;
use crate::{config, report};

/// What env(1) and shells exit with where there is no such program, and where it cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;
/// Added to the number of a signal, as shells do, where this process could not end by it.
const SIGNALLED: i32 = 128;
/// Those that are reaped have so long for it.
const REAP_PATIENCE: Duration = Duration::from_secs(5);
const GRACE: &str = "1s";

/// Options of `run`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// A name for the command: its processes are of that test
    #[arg(long)]
    name: Option<String>,
    /// What is left has so long to end by itself
    #[arg(long, value_name = "TIME", default_value = GRACE)]
    grace: String,
    /// Exit with 3 if the command passed and left a held port behind
    #[arg(long)]
    fail_on_leak: bool,
    /// End what is left: SIGTERM, and SIGKILL after 5s
    #[arg(long)]
    reap: bool,
    /// Write what is left to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command, and exits as it does.
pub(super) fn run(options: &Options) -> Result<u8, Failure> {
    let grace = config::duration(&options.grace).map_err(|why| format!("--grace: {why}"))?;
    let Some((program, arguments)) = options.command.split_first() else {
        return Err("no command".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(name) = &options.name {
        command.env(test_runner::NAMED, name);
    }
    let systems = settings().systems();
    let reader = Reader::new(ci::variables(&systems));
    let itself = reader.read(std::process::id()).ok();
    let of_job = itself.as_ref().and_then(|own| ci::recognize(&systems, own)).is_some();
    if let (false, Some(own)) = (of_job, &itself) {
        command.env(declared::RUN, format!("{}.{}", own.id.pid, own.id.start));
    }
    let family = match Family::start(command) {
        Ok(family) => family,
        Err(error) => {
            report::complain(&format!("{}: {error}", program.display()));
            return Ok(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN });
        }
    };
    let end = family.wait().map_err(|error| format!("cannot wait for the command: {error}"))?;
    let left = family.left(grace);
    let mut run = told(options, end, &left, &reader);
    if options.reap {
        reap(&mut run, &left);
    }
    report::complain_at_length(&report::run(&run, reader.clock.now(), &super::zone()));
    if let Some(file) = &options.report {
        let written =
            serde_json::to_vec_pretty(&run).map_err(io::Error::from).and_then(|json| fs::write(file, json));
        written.map_err(|error| format!("--report {}: {error}", file.display()))?;
    }
    Ok(exit(end, options.fail_on_leak && run.leaked()))
}

fn exit(end: End, leaked: bool) -> u8 {
    match end {
        End::Code(0) if leaked => LEAKED,
        End::Code(code) => u8::try_from(code).unwrap_or(1),
        End::Signal(signal) => {
            children::end_by(signal);
            u8::try_from(signal.saturating_add(SIGNALLED)).unwrap_or(u8::MAX)
        }
    }
}

/// What is left, with the ports that it holds.
fn told(options: &Options, end: End, left: &[ProcessId], reader: &Reader) -> Run {
    let mut run = Run {
        schema: SCHEMA,
        command: options.command.iter().map(|part| part.to_string_lossy().into_owned()).collect(),
        name: options.name.clone(),
        code: if let End::Code(code) = end { Some(code) } else { None },
        signal: if let End::Signal(signal) = end { Some(signal) } else { None },
        incomplete: Vec::new(),
        left: Vec::new(),
    };
    if left.is_empty() {
        return run;
    }
    let mut ports = match ports(left, reader) {
        Ok(ports) => ports,
        Err(why) => {
            run.incomplete.push(why);
            HashMap::new()
        }
    };
    let leftover = |id: &ProcessId| {
        let process = reader.describe(id.pid, 0);
        // It may have ended by now, and then nothing of it is left.
        process.comm.is_some().then(|| Leftover {
            process,
            ports: ports.remove(&id.pid).unwrap_or_default(),
            ended: None,
        })
    };
    run.left = left.iter().filter_map(leftover).collect();
    run
}

/// The ports that these processes hold.
fn ports(left: &[ProcessId], reader: &Reader) -> Result<HashMap<u32, Vec<LeftPort>>, String> {
    let pids: Vec<u32> = left.iter().map(|id| id.pid).collect();
    let mut inhabitants = Inhabitants::new();
    for (pid, inode) in netns::of_processes(&pids).0 {
        netns::add_inhabitant(&mut inhabitants, inode, pid);
    }
    let plan = Plan {
        query: DiagQuery { ports: None, depth: Depth::Everything },
        target: None,
        only: None,
        inhabitants: Some(inhabitants),
        netns_descriptors: BTreeMap::new(),
        netns_mounts: Vec::new(),
        search: Search {
            first: pids,
            everywhere: Everywhere::Never,
            when_free: WhenFree::Say,
            connections: false,
            threads: 1,
            ..Search::unprepared()
        },
        describe: Describe::Nobody,
        also: Vec::new(),
        nat: false,
        owners: false,
        for_bind: false,
    };
    let findings = look::look(&plan, reader).map_err(|error| format!("which ports are held: {error:?}"))?;
    let mut ports: HashMap<u32, Vec<LeftPort>> = HashMap::new();
    for netns in &findings.namespaces {
        for socket in netns.sockets.iter().flatten() {
            if !matches!(socket.kind(), ClaimKind::Listener | ClaimKind::Bound) {
                continue;
            }
            let holders: HashSet<u32> =
                findings.holders.get(&socket.key).into_iter().flatten().map(|held| held.pid).collect();
            for pid in holders {
                ports.entry(pid).or_default().push(LeftPort {
                    protocol: socket.protocol,
                    address: socket.address,
                    port: socket.port,
                    state: socket.state.to_string(),
                    netns: netns.shown.clone(),
                });
            }
        }
    }
    ports.values_mut().for_each(|held| held.sort_by_key(|port| (port.port, port.protocol, port.address)));
    Ok(ports)
}

/// Ends what is left, with whatever that starts meanwhile: it has no time for more than a few rounds.
fn reap(run: &mut Run, left: &[ProcessId]) {
    let handles: Vec<Handle> = left.iter().filter_map(|id| Handle::open(*id).ok()).collect();
    let outcomes = pidfd::end(&handles, REAP_PATIENCE);
    let by_pid: HashMap<u32, &str> =
        handles.iter().zip(outcomes).map(|(handle, outcome)| (handle.id().pid, words(outcome))).collect();
    for left in &mut run.left {
        left.ended = Some(by_pid.get(&left.process.pid).copied().unwrap_or("has ended"));
    }
}

fn words(outcome: Result<Ended, crate::kernel::Unreadable>) -> &'static str {
    match outcome {
        Ok(Ended::Gracefully) => "ended",
        Ok(Ended::Killed) => "killed",
        Ok(Ended::Stayed) => "did not end",
        Err(_) => "not permitted",
    }
}
