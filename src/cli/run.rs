//! `sniffer run`: a command with everything that it starts, and what it leaves behind.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::ask::settings;
use super::{Failure, LEAKED, lease};
use crate::judge::ci::{self, declared};
use crate::judge::test_runner;
use crate::kernel::children::{self, End, Family};
use crate::kernel::descriptors;
use crate::kernel::look::{self, Everywhere, Plan, Search, WhenFree};
use crate::kernel::netns::{self, Inhabitants};
use crate::kernel::pidfd::{self, Ended, Handle};
use crate::kernel::process::{self, Reader};
use crate::kernel::sock_diag::{self, Depth, DiagQuery};
use crate::kernel::{Gap, Unreadable};
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
/// So often it is looked again for what those started that ended meanwhile.
const ROUNDS: usize = 4;

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
    /// Give the command so many ports that nobody else has, and no other `sniffer run --ports` gets: SNIFFER_PORT is the first,
    /// SNIFFER_PORTS are all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    ports: Option<u16>,
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
    if !children::proc_is_own() {
        return Err(
            "/proc is of another pid namespace, so the command cannot be followed: mount one of its own"
                .to_owned(),
        );
    }
    // Before anything is run: what cannot be reported is no wish to begin with.
    let create = |file: &PathBuf| {
        let cure = "name a file in a directory that is there, and that you may write to";
        fs::File::create(file).map_err(|error| format!("--report: {}: {error}; {cure}", file.display()))
    };
    let report_to = options.report.as_ref().map(create).transpose()?;
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(name) = &options.name {
        command.env(test_runner::NAMED, name);
    }
    // Until this process ends: whatever the command leaves on them is seen by whoever leases next.
    let leases = options.ports.map(lease::lease).transpose()?.unwrap_or_default();
    let ports: Vec<String> = leases.iter().map(|lease| lease.port().to_string()).collect();
    if let Some(first) = ports.first() {
        command.env(lease::PORT, first).env(lease::PORTS, ports.join(" "));
    }
    let settings = settings();
    let systems = settings.systems();
    let reader = Reader::new(ci::variables(&systems)).with_mask(settings.mask());
    let itself = reader.read(std::process::id()).ok();
    let of_job = itself.as_ref().and_then(|own| ci::recognize(&systems, own)).is_some();
    if let (false, Some(own)) = (of_job, &itself) {
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino());
        command.env(declared::RUN, format!("{}.{}.{namespace}", own.id.pid, own.id.start));
    }
    let family = match Family::start(command) {
        Ok(family) => family,
        Err(error) => {
            let absent = error.kind() == io::ErrorKind::NotFound;
            let cure =
                if absent { "is it installed, and in PATH?" } else { "is it a program, and may you run it?" };
            report::complain(&format!("{}: {error}; {cure}", program.display()));
            return Ok(if absent { NOT_FOUND } else { NOT_RUN });
        }
    };
    let end = family.wait().map_err(|error| format!("cannot wait for the command: {error}"))?;
    let mut left = family.left(grace);
    family.hear();
    let mut run = told(options, end, &left, &reader);
    for _ in 0..ROUNDS {
        if run.left.len() == left.len() {
            break;
        }
        // Who ended meanwhile may have started another.
        left = family.left(Duration::ZERO);
        run = told(options, end, &left, &reader);
    }
    if options.reap {
        reap(&mut run, &left, &family, &reader);
    }
    report::complain_at_length(&report::run(&run, reader.clock.now(), &super::zone()));
    if let Some(mut file) = report_to {
        let written = serde_json::to_vec_pretty(&run).map_err(io::Error::from);
        // The command's end counts for more than ours.
        if let Err(error) = written.and_then(|json| file.write_all(&json)) {
            report::complain(&format!("--report: {error}"));
        }
    }
    if options.fail_on_leak
        && end == End::Code(0)
        && !run.leaked()
        && !run.left.is_empty()
        && !run.incomplete.is_empty()
    {
        return Err("what is left could not be seen whole, so it may hold ports; run as root".to_owned());
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
        command: reader.masked(&options.command),
        name: options.name.clone(),
        code: if let End::Code(code) = end { Some(code) } else { None },
        signal: if let End::Signal(signal) = end { Some(signal) } else { None },
        incomplete: Vec::new(),
        left: Vec::new(),
    };
    if left.is_empty() {
        return run;
    }
    let mut ports = ports(left, reader, &mut run.incomplete);
    let leftover = |id: &ProcessId| {
        let process = reader.describe(id.pid, None);
        // It may have ended by now, and then nothing of it is left.
        process::parentage(id.pid).is_ok_and(|(now, _)| now == *id).then(|| Leftover {
            process,
            ports: ports.remove(&id.pid).unwrap_or_default(),
            ended: None,
        })
    };
    run.left = left.iter().filter_map(leftover).collect();
    run
}

/// The ports that these processes hold.
fn ports(left: &[ProcessId], reader: &Reader, incomplete: &mut Vec<String>) -> HashMap<u32, Vec<LeftPort>> {
    let pids: Vec<u32> = left.iter().map(|id| id.pid).collect();
    let mut inhabitants = Inhabitants::new();
    for (pid, inode) in netns::of_processes(&pids).0 {
        netns::add_inhabitant(&mut inhabitants, inode, pid);
    }
    let search = Search {
        first: pids.clone(),
        everywhere: Everywhere::Never,
        when_free: WhenFree::Say,
        connections: false,
        threads: 1,
        ..Search::unprepared()
    };
    let query = DiagQuery { ports: None, depth: Depth::Everything };
    let plan = Plan { inhabitants: Some(inhabitants.clone()), ..Plan::new(query, search) };
    reader.open_files.begin(|| !sock_diag::lists_bound_sockets());
    let findings = match look::look(&plan, reader) {
        Ok(findings) => findings,
        Err(error) => {
            incomplete.push(format!("which ports are held: {error:?}"));
            return HashMap::new();
        }
    };
    let matters = |gap: &&Gap| match gap {
        Gap::EnterNetns(inode, _) | Gap::ReadNetns(inode, _) => inhabitants.contains_key(inode),
        gap => matches!(gap, Gap::BoundSockets),
    };
    incomplete.extend(findings.gaps.iter().filter(matters).map(ToString::to_string));
    let closed = descriptors::scan(&pids, Some(&HashSet::new()), 1).denied;
    incomplete
        .extend((closed > 0).then(|| format!("the open files of {closed} of the processes that are left")));
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
    ports
}

/// Ends what is left, and whatever that starts meanwhile, in a few rounds.
fn reap(run: &mut Run, left: &[ProcessId], family: &Family, reader: &Reader) {
    let mut doomed = left.to_vec();
    for _ in 0..ROUNDS {
        let mut handles = Vec::new();
        for id in &doomed {
            match Handle::open(*id) {
                Ok(handle) => handles.push(handle),
                Err(Unreadable::Vanished) => note(run, *id, "has ended", reader),
                Err(_) => note(run, *id, words(Err(Unreadable::Denied)), reader),
            }
        }
        let outcomes = pidfd::end(&handles, REAP_PATIENCE);
        for (handle, outcome) in handles.iter().zip(outcomes) {
            note(run, handle.id(), words(outcome), reader);
        }
        doomed = family.left(Duration::ZERO);
        if doomed.is_empty() {
            return;
        }
    }
    doomed.iter().for_each(|id| note(run, *id, words(Ok(Ended::Stayed)), reader));
}

/// Notes what became of a leftover, which may have appeared since.
fn note(run: &mut Run, id: ProcessId, ended: &'static str, reader: &Reader) {
    match run.left.iter_mut().find(|left| left.process.pid == id.pid) {
        Some(left) => left.ended = Some(ended),
        None => {
            let process = reader.describe(id.pid, None);
            run.left.push(Leftover { process, ports: Vec::new(), ended: Some(ended) });
        }
    }
}

fn words(outcome: Result<Ended, Unreadable>) -> &'static str {
    match outcome {
        Ok(Ended::Gracefully) => "ended",
        Ok(Ended::Killed) => "killed",
        Ok(Ended::Stayed) => "did not end",
        Err(_) => "not permitted",
    }
}
