//! The processes of the jobs: this program, started again by other names, each with a role.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::Instant;

use crate::common::Failure;

/// Tells a role from the benchmark.
const ROLE: &str = "--role";

/// Plays a role, if this process has one.
pub(crate) fn play() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ROLE {
        return None;
    }
    let role = arguments.next()?;
    let rest: Vec<String> = arguments.collect();
    let played = match role.as_str() {
        "worker" => worker(&rest),
        "server" => server(),
        "step" => step(&rest),
        "short" => short(),
        "crowd" => crowd(&rest),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    Some(if played.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts the program of a job of this id, hands on what it has, and ends with it. A worker has not the variable itself: its children have.
fn worker(arguments: &[String]) -> io::Result<()> {
    let [id, command @ ..] = arguments else { return Err(io::ErrorKind::InvalidInput.into()) };
    program(command)?.env("RUNNER_TRACKING_ID", id).status().map(drop)
}

fn program(command: &[String]) -> io::Result<Command> {
    let [name, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut program = Command::new(name);
    program.args(arguments);
    Ok(program)
}

/// Holds a port until standard input ends.
fn server() -> io::Result<()> {
    let _held = TcpListener::bind("127.0.0.1:0")?;
    io::stdout().write_all(b"held\n")?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

/// What runs one command of a job, as a shell does.
fn step(command: &[String]) -> io::Result<()> {
    program(command)?.status().map(drop)
}

/// Holds a port for a moment.
fn short() -> io::Result<()> {
    TcpListener::bind("127.0.0.1:0").map(drop)
}

/// Starts so many processes, says so, and waits for the end of standard input; then they end too.
fn crowd(arguments: &[String]) -> io::Result<()> {
    let count: usize = arguments.first().and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        children.push(Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    }
    io::stdout().write_all(b"started\n")?;
    let ended = io::stdin().read_to_end(&mut Vec::new()).map(drop);
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended
}

/// Where the program lies by its other names.
#[derive(Debug)]
pub(crate) struct Programs {
    worker: PathBuf,
    step: PathBuf,
    server: PathBuf,
}

impl Programs {
    pub(crate) fn new(directory: &Path) -> Result<Self, Failure> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let named = |name: &str| {
            let path = directory.join(name);
            symlink(&own, &path).map(|()| path).map_err(|error| error.to_string())
        };
        Ok(Programs { worker: named("Runner.Worker")?, step: named("bash")?, server: named("server")? })
    }

    fn worker(&self, id: &str) -> Command {
        let mut command = Command::new(&self.worker);
        command.args([ROLE, "worker", id]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// A whole job that takes a port and lets it go.
    pub(crate) fn short_job(&self, id: &str) -> Result<(), Failure> {
        let mut worker = self.worker(id);
        worker.arg(&self.step).args([ROLE, "step"]).arg(&self.server).args([ROLE, "short"]);
        let status = worker.stdin(Stdio::null()).stdout(Stdio::null()).status();
        match status.map_err(|error| format!("a job could not be started: {error}"))?.success() {
            true => Ok(()),
            false => Err("a job failed".to_owned()),
        }
    }

    /// A job with so many processes, which have said that they are there.
    pub(crate) fn crowd(&self, id: &str, count: usize) -> Result<Job, Failure> {
        let mut worker = self.worker(id);
        worker.arg(&self.step).args([ROLE, "crowd"]).arg(count.to_string());
        Job::spawn(worker)
    }
}

/// A running job with a process that stays; all of it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Job {
    worker: Child,
    /// The server, or the crowd, ends when this does.
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Job {
    /// A job with a listener.
    pub(crate) fn start(programs: &Programs, id: &str) -> Result<Job, Failure> {
        let mut worker = programs.worker(id);
        worker.arg(&programs.server).args([ROLE, "server"]);
        Job::spawn(worker)
    }

    fn spawn(mut command: Command) -> Result<Job, Failure> {
        let failed = |error: io::Error| format!("a job could not be started: {error}");
        let mut worker = command.spawn().map_err(failed)?;
        let stdin = worker.stdin.take();
        let Some(stdout) = worker.stdout.take() else { return Err("a job has no output".to_owned()) };
        let mut job = Job { worker, stdin, stdout: BufReader::new(stdout) };
        let mut line = String::new();
        job.stdout.read_line(&mut line).map_err(failed)?;
        if line.is_empty() { Err("a job ended at once".to_owned()) } else { Ok(job) }
    }

    /// Ends the worker as a crash would; answers when it had ended.
    pub(crate) fn end_worker(&mut self) -> Result<Instant, Failure> {
        let ended = self.worker.kill().and_then(|()| self.worker.wait());
        ended.map(|_| Instant::now()).map_err(|error| error.to_string())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // Whoever is left says nothing more when it has ended.
        let _ = self.stdout.read_to_end(&mut Vec::new());
        let _ = self.worker.wait();
    }
}
