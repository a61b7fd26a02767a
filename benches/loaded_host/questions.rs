//! The questions, asked as a user asks them: one program start each, timed from spawn to exit. Every answer is checked.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Options;
use crate::common::daemon::{Daemon, SNIFFER};
use crate::common::load::{Held, Load};
use crate::common::{Failure, interrupt};

/// lsof takes seconds, and is there for information.
const LSOF_REPETITIONS: usize = 3;

/// How long each question took, each time.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) ss: Vec<Duration>,
    pub(crate) daemon: Vec<Duration>,
    pub(crate) alone: Vec<Duration>,
    pub(crate) free: Vec<Duration>,
    pub(crate) inside: Vec<Duration>,
    pub(crate) list: Vec<Duration>,
    pub(crate) lsof: Option<Vec<Duration>>,
}

pub(crate) fn ask(load: &Load, daemon: &Daemon, options: &Options) -> Result<Times, Failure> {
    let (outside, inside) = (load.unique(false)?, load.unique(true)?);
    let free = free_port(load)?;
    let nowhere = daemon.socket.with_file_name("nobody-serves-this.sock");
    check_documents(load, daemon, &nowhere, [outside, inside])?;
    let who_holds = |port: u16, socket: &Path| sniffer(socket, &["who-holds", &port.to_string()]);
    let mut times = Times::default();
    // In turns, so that whatever else the host does meets all of them.
    for _ in 0..options.repetitions {
        times.ss.push(timed(&mut ss(outside.port), 0, |text| names_pid(text, outside.pid))?);
        let named = |held: &Held| {
            let pid = held.pid;
            move |text: &str| names_pid(text, pid)
        };
        // Before the daemon is asked anything: it works on for a moment after an answer, and whoever asks without one has none.
        times.alone.push(timed(&mut who_holds(outside.port, &nowhere), 0, named(outside))?);
        times.daemon.push(timed(&mut who_holds(outside.port, &daemon.socket), 0, named(outside))?);
        times.inside.push(timed(&mut who_holds(inside.port, &daemon.socket), 0, named(inside))?);
        times.free.push(timed(&mut who_holds(free, &daemon.socket), 1, |_| true)?);
        times.list.push(timed(&mut sniffer(&daemon.socket, &["list"]), 0, named(outside))?);
    }
    if Command::new("lsof").arg("-v").output().is_ok() {
        let lsof = |port: u16| {
            let mut command = Command::new("lsof");
            command.args(["-nP", &format!("-iTCP:{port}")]);
            command
        };
        let repeated = (0..LSOF_REPETITIONS.min(options.repetitions))
            .map(|_| timed(&mut lsof(outside.port), 0, |text| names_pid(text, outside.pid)));
        times.lsof = Some(repeated.collect::<Result<_, Failure>>()?);
    }
    Ok(times)
}

fn sniffer(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(SNIFFER);
    command.args(arguments).env("SNIFFER_SOCKET", socket);
    command
}

fn ss(port: u16) -> Command {
    let mut command = Command::new("ss");
    command.args(["-Hltnp", &format!("sport = :{port}")]);
    command
}

/// From spawn to exit. An unexpected exit code or text is an error: a fast wrong answer is worth nothing.
fn timed(command: &mut Command, code: i32, right: impl Fn(&str) -> bool) -> Result<Duration, Failure> {
    interrupt::check()?;
    let began = Instant::now();
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() != Some(code) || !right(&text) {
        return Err(wrong(command, &output));
    }
    Ok(took)
}

fn wrong(command: &Command, output: &Output) -> Failure {
    format!(
        "a wrong answer: {command:?} ({}) said:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Whether the number stands in the text as a number of its own.
fn names_pid(text: &str, pid: u32) -> bool {
    text.split(|char: char| !char.is_ascii_digit()).any(|number| number == pid.to_string())
}

/// Once, and not timed: the daemon answers where it is asked, the holder is the only one, and the list has every listener.
fn check_documents(load: &Load, daemon: &Daemon, nowhere: &Path, held: [&Held; 2]) -> Result<(), Failure> {
    for (socket, from_daemon) in [(daemon.socket.as_path(), true), (nowhere, false)] {
        for held in held {
            let mut command = sniffer(socket, &["who-holds", &held.port.to_string(), "--json"]);
            let (answer, output) = document(&mut command)?;
            let netns = held.netns.as_deref().unwrap_or("host");
            let one =
                |list: &str| answer.pointer(list).and_then(Value::as_array).is_some_and(|all| all.len() == 1);
            let right = (answer.pointer("/source") == Some(&"daemon".into())) == from_daemon
                && answer.pointer("/incomplete") == Some(&Value::Array(Vec::new()))
                && one("/claims")
                && answer.pointer("/claims/0/netns/name") == Some(&netns.into())
                && one("/claims/0/holders")
                && answer.pointer("/claims/0/holders/0/pid") == Some(&held.pid.into());
            if !right {
                return Err(wrong(&command, &output));
            }
        }
    }
    let mut command = sniffer(&daemon.socket, &["list", "--json"]);
    let (answer, _) = document(&mut command)?;
    let claims = answer.pointer("/claims").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let listed: HashSet<(Option<&Value>, Option<&Value>)> =
        claims.iter().map(|claim| (claim.pointer("/port"), claim.pointer("/holders/0/pid"))).collect();
    let missing =
        load.held.iter().find(|held| !listed.contains(&(Some(&held.port.into()), Some(&held.pid.into()))));
    missing.map_or(Ok(()), |missing| Err(format!("sniffer list does not have {missing:?}")))
}

fn document(command: &mut Command) -> Result<(Value, Output), Failure> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match serde_json::from_slice(&output.stdout) {
        Ok(answer) => Ok((answer, output)),
        Err(_) => Err(wrong(command, &output)),
    }
}

/// A port that nobody holds in any namespace, as far as the load goes.
fn free_port(load: &Load) -> Result<u16, Failure> {
    (20_000..30_000)
        .find(|port| {
            load.held.iter().all(|held| held.port != *port) && TcpListener::bind(("0.0.0.0", *port)).is_ok()
        })
        .ok_or_else(|| "no port is free".to_owned())
}
