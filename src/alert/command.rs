//! A command of the operator's: each alert as one JSON document on its standard input. One that exits with 0 has taken it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Receiver;
use crate::model::alert::{Alert, AlertSink};

/// How often it is looked whether it has ended.
const TICK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Command {
    argv: Vec<String>,
    timeout: Duration,
}

impl Command {
    pub(super) fn new(sink: &AlertSink) -> Self {
        Command { argv: sink.target.clone(), timeout: sink.timeout }
    }
}

impl Receiver for Command {
    fn deliver(&mut self, alert: &Alert) -> Result<(), String> {
        let document = serde_json::to_vec(alert).map_err(|error| error.to_string())?;
        let Some((program, arguments)) = self.argv.split_first() else { return Ok(()) };
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What it starts ends with it, where it takes too long.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("it could not be started: {}", error.kind()))?;
        let stdin = child.stdin.take();
        // One that does not read, or what it leaves behind, would keep the writer waiting: nobody waits for that.
        std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&document)));
        let ended = wait(&mut child, self.timeout);
        if ended.is_none() {
            end(&mut child);
        }
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("it ended with {status}")),
            None => Err("it took too long and was ended".to_owned()),
        }
    }
}

fn wait(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + time;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(TICK),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Ends it and whatever it started in its process group. It is not waited for yet, so its number is nobody else's.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}
