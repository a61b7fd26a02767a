//! The daemon under measurement, with a configuration, a control socket and a metrics port of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Failure, interrupt};

pub(crate) const SNIFFER: &str = env!("CARGO_BIN_EXE_sniffer");
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_AGAIN: Duration = Duration::from_millis(2);
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A running daemon; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    child: Child,
    started: Instant,
    metrics: SocketAddr,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn start(directory: &Path) -> Result<Daemon, Failure> {
        Daemon::start_with(directory, "")
    }

    /// With more lines of configuration.
    pub(crate) fn start_with(directory: &Path, more: &str) -> Result<Daemon, Failure> {
        let failed = |error: std::io::Error| format!("the daemon cannot be started: {error}");
        // Free a moment ago; where somebody took it meanwhile the daemon never gets ready, and that is said.
        let metrics = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).map_err(failed)?;
        let (socket, log) = (directory.join("sniffer.sock"), directory.join("daemon.log"));
        let configuration = directory.join("config.toml");
        let text = format!(
            "[control]\nsocket = \"{}\"\n\n[metrics]\nlisten = \"{metrics}\"\n\n[history]\npath = \"{}\"\nmax_size = \"64GiB\"\n\n[agent]\nstate = \"\"\n\n{more}",
            socket.display(),
            directory.join("history.db").display()
        );
        std::fs::write(&configuration, text).map_err(failed)?;
        let mut command = Command::new(SNIFFER);
        command.args(["daemon", "--config"]).arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null());
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "SNIFFER_LOG"] {
            command.env_remove(variable);
        }
        command.stderr(File::create(&log).map_err(failed)?);
        let started = Instant::now();
        let child = command.spawn().map_err(failed)?;
        Ok(Daemon { socket, child, started, metrics, log })
    }

    /// Asks `/readyz` until it says yes: the time since the start.
    pub(crate) fn wait_ready(&mut self) -> Result<Duration, Failure> {
        while !self.is_ready() {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || self.started.elapsed() > READY_TIMEOUT {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                return Err(format!("the daemon did not get ready; it said:\n{log}"));
            }
            interrupt::check()?;
            std::thread::sleep(READY_AGAIN);
        }
        Ok(self.started.elapsed())
    }

    fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.metrics)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: sniffer\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Where its metrics and its page are served.
    pub(crate) fn metrics(&self) -> String {
        self.metrics.to_string()
    }

    /// A metric of a source; 0 where it is not there.
    pub(crate) fn metric(&self, name: &str, source: &str) -> Result<f64, Failure> {
        self.series(&format!("{name}{{source=\"{source}\"}}"))
    }

    /// A series of `/metrics`; 0 where it is not there.
    pub(crate) fn series(&self, series: &str) -> Result<f64, Failure> {
        let text =
            self.get("/metrics").map_err(|error| format!("/metrics: {error} (has the daemon ended?)"))?;
        let series = format!("{series} ");
        Ok(text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0))
    }

    /// What it has said so far, and what it says of its state.
    pub(crate) fn said(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        format!("{log}{}", self.get("/readyz").unwrap_or_default())
    }

    /// Watches it while nothing happens.
    pub(crate) fn idle(&self, time: Duration) -> Result<Idle, Failure> {
        let (cpu, started, began) = (self.cpu()?, processes_started()?, Instant::now());
        interrupt::sleep(time)?;
        let took = began.elapsed().as_secs_f64();
        Ok(Idle {
            cpu_percent: 100.0 * self.cpu()?.saturating_sub(cpu).as_secs_f64() / took,
            started_per_second: (processes_started()? - started) / took,
        })
    }

    /// utime and stime of proc_pid_stat(5): all threads, those that ended included. In ticks, which are 10 ms everywhere.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        let stat = self.proc("stat")?;
        // comm is in parentheses and may contain anything; utime and stime are the 12th and 13th field after it.
        let ticks: Option<u64> = stat.rsplit_once(')').and_then(|(_, fields)| {
            let mut fields = fields.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
            Some(fields.next()?? + fields.next()??)
        });
        ticks
            .map(|ticks| Duration::from_millis(10) * u32::try_from(ticks).unwrap_or(u32::MAX))
            .ok_or_else(|| format!("/proc/{}/stat is odd: {stat}", self.child.id()))
    }

    /// `VmRSS` or `VmHWM` of proc_pid_status(5), in MiB.
    pub(crate) fn memory(&self, field: &str) -> Result<f64, Failure> {
        let status = self.proc("status")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse::<f64>().ok())
            .map(|kib| kib / 1024.0)
            .ok_or_else(|| format!("/proc/{}/status has no {field}", self.child.id()))
    }

    fn proc(&self, file: &str) -> Result<String, Failure> {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error} (has the daemon ended?)"))
    }
}

/// What happened while nothing should.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    /// CPU of the daemon, in percent of one core.
    pub(crate) cpu_percent: f64,
    /// Processes and threads started on the host, the daemon's own threads included. Many of them mean that the host was
    /// busy with something else, and the daemon with watching it.
    pub(crate) started_per_second: f64,
}

/// `processes` of proc_stat(5): forks since boot.
fn processes_started() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/stat").map_err(|error| format!("/proc/stat: {error}"))?;
    let forks = stat.lines().find_map(|line| line.strip_prefix("processes ")?.trim().parse().ok());
    forks.ok_or_else(|| "/proc/stat has no line of processes".to_owned())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Until it has been waited for, the pid is the daemon's.
        if let (Ok(None), Some(pid)) =
            (self.child.try_wait(), i32::try_from(self.child.id()).ok().and_then(Pid::from_raw))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + END_TIMEOUT;
        while let (Ok(None), true) = (self.child.try_wait(), Instant::now() < until) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
