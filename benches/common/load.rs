//! The load: network namespaces and processes, each behind a guard that removes it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Failure, interrupt, worker};

/// A worker that has not reported by then never will.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// Workers end at once when their pipe is closed; what does not is killed.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// A job in a namespace of its own is more than one process.
const WORKERS_PER_NETNS: usize = 2;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Processes in all.
    pub(crate) processes: usize,
    /// Open descriptors of each.
    pub(crate) descriptors: usize,
    /// TCP listeners in all, four fifths of them in the namespaces.
    pub(crate) listeners: usize,
    /// Network namespaces.
    pub(crate) namespaces: usize,
}

/// Who holds a port, as its holder reported it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) port: u16,
    pub(crate) pid: u32,
    /// Name of the namespace; `None` is the benchmark's own.
    pub(crate) netns: Option<String>,
}

/// The loaded host. Dropping it ends the processes, then deletes the namespaces.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) held: Vec<Held>,
    descriptors: usize,
    // Fields drop in this order: a namespace lives on while a process is in it.
    workers: Workers,
    namespaces: Vec<Namespace>,
}

impl Load {
    pub(crate) fn make(scale: Scale) -> Result<Load, Failure> {
        let most = shares(scale).into_iter().map(|(_, listeners)| listeners).max().unwrap_or(0);
        raise_descriptor_limit(scale.descriptors.max(most))?;
        let began = Instant::now();
        let namespaces =
            (0..scale.namespaces).map(Namespace::add).collect::<Result<Vec<Namespace>, Failure>>()?;
        let mut workers = Workers::new()?;
        let mut inside = HashMap::new();
        for (netns, listeners) in shares(scale) {
            let netns = netns.and_then(|index| namespaces.get(index)).map(|netns| netns.0.clone());
            inside.insert(workers.spawn(netns.as_deref(), listeners, scale.descriptors)?, netns);
        }
        let mut held = Vec::new();
        for (pid, ports) in workers.reports()? {
            let netns = inside.get(&pid).ok_or("a worker reported another pid than it was started with")?;
            held.extend(ports.into_iter().map(|port| Held { port, pid, netns: netns.clone() }));
        }
        eprintln!("the load was made in {:.1} s", began.elapsed().as_secs_f64());
        Ok(Load { held, descriptors: scale.descriptors, workers, namespaces })
    }

    /// A port of the benchmark's own namespace, or of another one, that is held once on the whole host.
    pub(crate) fn unique(&self, inside: bool) -> Result<&Held, Failure> {
        let mut times: HashMap<u16, usize> = HashMap::new();
        for held in &self.held {
            *times.entry(held.port).or_default() += 1;
        }
        self.held
            .iter()
            .find(|held| held.netns.is_some() == inside && times.get(&held.port) == Some(&1))
            .ok_or_else(|| "no port is held only once: use more listeners".to_owned())
    }

    pub(crate) fn described(&self) -> String {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        format!(
            "{} processes × {} descriptors, {} TCP listeners, {} network namespaces; {cores} cores, Linux {}.",
            self.workers.children.len(),
            self.descriptors,
            self.held.len(),
            self.namespaces.len(),
            kernel.trim()
        )
    }
}

/// For each process: the namespace it lives in, and how many listeners it has.
fn shares(scale: Scale) -> Vec<(Option<usize>, usize)> {
    let inside = (scale.namespaces * WORKERS_PER_NETNS).min(scale.processes / 2);
    let outside = scale.processes - inside;
    let listeners_inside = if inside == 0 { 0 } else { scale.listeners * 4 / 5 };
    let listeners_outside = scale.listeners - listeners_inside;
    let share = |all: usize, among: usize, nth: usize| all / among + usize::from(nth < all % among);
    let insiders =
        (0..inside).map(|nth| (Some(nth % scale.namespaces), share(listeners_inside, inside, nth)));
    let outsiders = (0..outside).map(|nth| (None, share(listeners_outside, outside, nth)));
    insiders.chain(outsiders).collect()
}

/// Workers inherit the limit.
fn raise_descriptor_limit(descriptors: usize) -> Result<(), Failure> {
    let failed = |errno| format!("the limit of open files cannot be raised (ulimit -n): {errno}");
    let needed = u64::try_from(descriptors).unwrap_or(u64::MAX).saturating_add(64);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).map_err(failed)?;
    }
    Ok(())
}

/// A namespace of this benchmark's own making.
#[derive(Debug)]
struct Namespace(String);

impl Namespace {
    fn add(index: usize) -> Result<Namespace, Failure> {
        interrupt::check()?;
        // With the pid, so that a second benchmark does not get in the way.
        let name = format!("sniffer-bench-{}-{index}", std::process::id());
        let output = Command::new("ip").args(["netns", "add", &name]).output();
        match output {
            Ok(output) if output.status.success() => Ok(Namespace(name)),
            Ok(output) => {
                Err(format!("ip netns add {name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
            }
            Err(error) => Err(format!("ip netns add {name}: {error}")),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        match Command::new("ip").args(["netns", "del", &self.0]).status() {
            Ok(status) if status.success() => {}
            _ => eprintln!("left behind: ip netns del {}", self.0),
        }
    }
}

/// The processes. All read one pipe until its end, and report through another one.
#[derive(Debug)]
struct Workers {
    children: Vec<Child>,
    alive: Option<PipeWriter>,
    stdin: PipeReader,
    reports: Receiver<io::Result<String>>,
    stdout: Option<PipeWriter>,
}

impl Workers {
    fn new() -> Result<Workers, Failure> {
        let failed = |error: io::Error| format!("no pipe: {error}");
        let (stdin, alive) = io::pipe().map_err(failed)?;
        let (lines, stdout) = io::pipe().map_err(failed)?;
        let (send, reports) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines() {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Workers { children: Vec::new(), alive: Some(alive), stdin, reports, stdout: Some(stdout) })
    }

    /// `ip netns exec` becomes the program it executes, so that the pid is the worker's own.
    fn spawn(&mut self, netns: Option<&str>, listeners: usize, descriptors: usize) -> Result<u32, Failure> {
        interrupt::check()?;
        let failed = |error: io::Error| {
            format!("process {} cannot be started (see ulimit -u, pids.max): {error}", self.children.len())
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let stdout = self.stdout.as_ref().ok_or("workers are started before they report")?;
        let child = command
            .args([worker::ARGUMENT, &listeners.to_string(), &descriptors.to_string()])
            .stdin(self.stdin.try_clone().map_err(failed)?)
            .stdout(stdout.try_clone().map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    /// Pid and ports of every worker, once all have everything open.
    fn reports(&mut self) -> Result<Vec<(u32, Vec<u16>)>, Failure> {
        // With the last writer gone, the death of all workers is an end of file and not a wait.
        self.stdout = None;
        let until = Instant::now() + REPORT_TIMEOUT;
        let mut reports = Vec::with_capacity(self.children.len());
        while reports.len() < self.children.len() {
            interrupt::check()?;
            let line = self
                .reports
                .recv_timeout(until.saturating_duration_since(Instant::now()))
                .map_err(|_| format!("only {} of {} processes came up", reports.len(), self.children.len()))?
                .map_err(|error| format!("reports cannot be read: {error}"))?;
            reports.push(parse_report(&line).ok_or_else(|| format!("a process did not come up: {line}"))?);
        }
        Ok(reports)
    }
}

fn parse_report(line: &str) -> Option<(u32, Vec<u16>)> {
    let mut words = line.split(' ');
    let pid = words.next()?.parse().ok()?;
    let ports = words.map(|word| word.parse().ok()).collect::<Option<Vec<u16>>>()?;
    Some((pid, ports))
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.alive = None;
        let until = Instant::now() + END_TIMEOUT;
        for child in &mut self.children {
            while let (Ok(None), true) = (child.try_wait(), Instant::now() < until) {
                std::thread::sleep(Duration::from_millis(1));
            }
            // A child that has been waited for is not signalled: its pid may be another's by now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
