//! From the end of a bind and listen to the first answer that has it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Options;
use crate::common::daemon::{Daemon, SNIFFER};
use crate::common::{Failure, interrupt};
use crate::worker::{self, Work, Worker};

/// At the 99th percentile.
pub(crate) const TARGET_MS: f64 = 5.0;
/// What is not visible by then never will be.
const TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PORT: u16 = 21_000;
/// Between two ports, so that each is a bind of its own and no storm.
const PAUSE: Duration = Duration::from_millis(10);
const PROGRAM_REPETITIONS: u16 = 20;

#[derive(Debug, Default)]
pub(crate) struct Times {
    /// From the return of listen(2) to the first answer that has the port and its holder.
    pub(crate) visible: Vec<Duration>,
    /// Asking again, when nothing is new.
    pub(crate) asked: Vec<Duration>,
    /// The program instead of the socket, from its start to its exit.
    pub(crate) program: Vec<Duration>,
}

pub(crate) fn measure(daemon: &Daemon, place: Work, options: &Options) -> Result<Times, Failure> {
    let mut worker = Worker::start(place)?;
    let mut times = Times::default();
    let mut candidates = FIRST_PORT..;
    while times.visible.len() < usize::from(options.ports) {
        interrupt::sleep(PAUSE)?;
        let port = candidates.next().ok_or("not enough ports are free")?;
        let Some(since) = worker.listen(port)? else { continue };
        times.visible.push(until_visible(daemon, port, worker.pid(), since)?);
        let began = Instant::now();
        ask(daemon, port)?;
        times.asked.push(began.elapsed());
        if port % (options.ports / PROGRAM_REPETITIONS).max(1) == 0 {
            times.program.push(program(daemon, port, worker.pid())?);
        }
    }
    Ok(times)
}

/// Asks until the answer has it.
fn until_visible(daemon: &Daemon, port: u16, pid: u32, since: Duration) -> Result<Duration, Failure> {
    loop {
        let answer = ask(daemon, port)?;
        let took = worker::now().saturating_sub(since);
        if holds(&answer, pid) {
            return Ok(took);
        }
        if took > TIMEOUT {
            return Err(format!("port {port} of process {pid} is not visible after {TIMEOUT:?}: {answer}"));
        }
        interrupt::check()?;
    }
}

/// As the command line asks: one connection for one question.
fn ask(daemon: &Daemon, port: u16) -> Result<String, Failure> {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&daemon.socket)?;
        let head =
            format!("GET /v1/who-holds?target={port} HTTP/1.1\r\nHost: sniffer\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().map_err(|error| format!("{}: {error}", daemon.socket.display()))
}

/// Whether the answer has this process as a holder.
fn holds(answer: &str, pid: u32) -> bool {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let document: Value = serde_json::from_str(body).unwrap_or_default();
    let claims = document.pointer("/claims").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    claims
        .iter()
        .filter_map(|claim| claim.pointer("/holders").and_then(Value::as_array))
        .flatten()
        .any(|holder| holder.pointer("/pid") == Some(&pid.into()))
}

fn program(daemon: &Daemon, port: u16, pid: u32) -> Result<Duration, Failure> {
    let began = Instant::now();
    let output = Command::new(SNIFFER)
        .args(["who-holds", &port.to_string()])
        .env("SNIFFER_SOCKET", &daemon.socket)
        .output()
        .map_err(|error| format!("{SNIFFER}: {error}"))?;
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && text.contains(&pid.to_string()) {
        return Ok(took);
    }
    Err(format!("a wrong answer: {output:?}"))
}
