//! `sniffer run`: a command with all that it starts, with real process trees and, in `runners`, below the real runners of tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;
#[path = "run/runners.rs"]
mod runners;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, SNIFFER, eventually, holder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn sniffer_run(options: &[&str], command: &[&str]) -> Command {
    let mut run = Command::new(SNIFFER);
    run.arg("run").args(options).arg("--").args(command).stdin(Stdio::null());
    run
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A listener that nobody waits for: a daemon that forked twice and has a session of its own. It ends after a time by itself.
const SERVER: &str = r#"
import os, socket, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
with open(sys.argv[1] + ".new", "w") as out:
    out.write("%d %d" % (os.getpid(), server.getsockname()[1]))
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.close(0), os.close(1), os.close(2)
time.sleep(float(sys.argv[2]))
"#;

/// A command that starts such a server, waits until it listens, and exits with 0.
fn leaves_a_server(directory: &Path, seconds: &str) -> (Vec<String>, std::path::PathBuf) {
    let said = directory.join("server");
    let script = r#"python3 -c "$1" "$2" "$3"; while [ ! -e "$2" ]; do sleep 0.01; done; echo passed"#;
    let arguments = ["sh", "-c", script, "sh", SERVER, said.to_str().unwrap(), seconds];
    (arguments.map(str::to_owned).to_vec(), said)
}

fn pid_and_port(said: &Path) -> (u32, u16) {
    let text = fs::read_to_string(said).unwrap();
    let (pid, port) = text.split_once(' ').unwrap();
    (pid.parse().unwrap(), port.parse().unwrap())
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn end(pid: u32) {
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
}

#[test]
fn it_ends_as_its_command_does() {
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["/no/such/program"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let output = sniffer_run(&["--fail-on-leak"], command).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
    let killed = sniffer_run(&[], &["sh", "-c", "kill -KILL $$"]).status().unwrap();
    assert_eq!(killed.signal(), Some(9));
    let aborted = sniffer_run(&[], &["sh", "-c", "kill -TERM $$"]).status().unwrap();
    assert_eq!(aborted.signal(), Some(15));
    for wrong in
        [&["run"][..], &["run", "--grace", "soon", "--", "true"], &["run", "--no-such", "--", "true"]]
    {
        assert_eq!(Command::new(SNIFFER).args(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn what_the_command_says_and_hears_is_its_own() {
    let mut run = sniffer_run(&[], &["sh", "-c", "cat; echo failed >&2; exit 3"]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"asked\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("asked\n".to_owned(), "failed\n".to_owned()));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn signals_are_handed_on() {
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::USR1, "USR1")] {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready");
        let script = format!("trap 'exit 42' {name}; : > \"$1\"; while :; do sleep 0.02; done");
        // A shell cannot catch what was ignored when it began, as SIGINT is where the tests run in the background of another.
        let shell = ["env", "--default-signal", "sh", "-c", &script, "sh", ready.to_str().unwrap()];
        let mut child = sniffer_run(&[], &shell).spawn().unwrap();
        eventually("it is ready", || ready.exists().then_some(()));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42), "{name}");
    }
}

/// Runs Python, which becomes `sniffer run`.
fn after(preparation: &str, options: &[&str], command: &[&str]) -> Output {
    let run: Vec<String> = [&["sniffer", "run"][..], options, &["--"], command]
        .concat()
        .iter()
        .map(|word| format!("{word:?}"))
        .collect();
    let script =
        format!("import os, signal, subprocess\n{preparation}\nos.execv({SNIFFER:?}, [{}])", run.join(", "));
    Command::new("python3").args(["-c", &script]).output().unwrap()
}

#[test]
fn it_hears_of_its_commands_end_though_nobody_was_to_be_told() {
    let output = after("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", &[], &["sh", "-c", "exit 4"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
}

#[test]
fn what_was_there_before_is_not_the_commands() {
    let start = "earlier = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\nprint(earlier.pid, flush=True)";
    let output = after(start, &["--reap", "--grace", "0s"], &["true"]);
    let earlier: u32 = text(&output.stdout).trim().parse().unwrap();
    assert!(is_alive(earlier), "{}", text(&output.stderr));
    end(earlier);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn a_signal_ends_the_wait_for_what_was_left() {
    let directory = tempfile::tempdir().unwrap();
    let (command, said) = leaves_a_server(directory.path(), "60");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut child = sniffer_run(&["--grace", "50s"], &command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let (pid, _) = eventually("only the server is left", || {
        let (pid, port) = said.exists().then(|| pid_and_port(&said))?;
        (fs::read_to_string(&children).ok()?.trim() == pid.to_string()).then_some((pid, port))
    });
    let began = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    end(pid);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn a_report_that_cannot_be_written_is_said_before_anything_is_run() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let output = sniffer_run(&["--report", "/nonexistent/x.json"], &["touch", mark.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), mark.exists()), (Some(2), false), "{}", text(&output.stderr));
}

#[test]
fn what_starts_while_the_rest_is_ended_is_ended_too() {
    let directory = tempfile::tempdir().unwrap();
    let heir = directory.path().join("heir");
    // Asked to end, it leaves another one.
    let script = format!(
        "(trap 'sleep 60 & echo $! > {0}.new; mv {0}.new {0}; exit' TERM; : > {0}.ready; while :; do sleep 0.02; done) & while [ ! -e {0}.ready ]; do sleep 0.01; done",
        heir.display()
    );
    let output = sniffer_run(&["--reap", "--grace", "0s"], &["sh", "-c", &script]).output().unwrap();
    let pid: u32 = fs::read_to_string(&heir).unwrap().trim().parse().unwrap();
    assert!(!is_alive(pid), "{}", text(&output.stderr));
}

#[test]
fn a_listener_that_was_left_is_told_and_fails_the_command_if_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let options = ["--fail-on-leak", "--grace", "0s", "--name", "api", "--report", report.to_str().unwrap()];
    let (command, said) = leaves_a_server(directory.path(), "60");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let Output { status, stdout, stderr } = sniffer_run(&options, &command).output().unwrap();
    let (pid, port) = pid_and_port(&said);
    assert!(is_alive(pid), "it is told of and let be");
    end(pid);
    assert_eq!((status.code(), text(&stdout)), (Some(3), "passed\n".to_owned()));
    let stderr = text(&stderr);
    assert!(stderr.contains("left 1 process and 1 held port behind"), "{stderr}");
    assert!(
        stderr.contains(&format!("127.0.0.1:{port}")) && stderr.contains(&format!("pid {pid}")),
        "{stderr}"
    );
    let document: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!((&document["name"], &document["code"]), (&"api".into(), &0.into()));
    let left = &document["left"][0];
    assert_eq!((&left["process"]["pid"], &left["ports"][0]["port"]), (&pid.into(), &port.into()));
    assert_eq!(left["ports"][0]["netns"]["name"], "host");
}

#[test]
fn a_leak_of_a_command_that_failed_does_not_hide_its_failure() {
    let directory = tempfile::tempdir().unwrap();
    let (mut command, said) = leaves_a_server(directory.path(), "60");
    command[2] += "; exit 5";
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let status = sniffer_run(&["--fail-on-leak", "--grace", "0s"], &command).output().unwrap().status;
    end(pid_and_port(&said).0);
    assert_eq!(status.code(), Some(5));
}

#[test]
fn a_daemon_that_is_just_being_started_is_not_overlooked() {
    for grace in ["0s", "50ms"].repeat(10) {
        let directory = tempfile::tempdir().unwrap();
        let said = directory.path().join("server");
        let command = ["python3", "-c", SERVER, said.to_str().unwrap(), "0.5"];
        let output = sniffer_run(&["--grace", grace], &command).output().unwrap();
        assert!(text(&output.stderr).contains("left 1 process"), "{grace}: {}", text(&output.stderr));
    }
}

#[test]
fn what_ends_by_itself_within_the_grace_was_not_left() {
    let directory = tempfile::tempdir().unwrap();
    let (command, said) = leaves_a_server(directory.path(), "0.2");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let began = Instant::now();
    let output = sniffer_run(&["--fail-on-leak", "--grace", "30s"], &command).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert!(began.elapsed() < Duration::from_secs(20) && !is_alive(pid_and_port(&said).0));
}

#[test]
fn what_was_left_is_ended_if_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let (command, said) = leaves_a_server(directory.path(), "60");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let output = sniffer_run(&["--reap", "--grace", "0s"], &command).output().unwrap();
    let (pid, _) = pid_and_port(&said);
    assert!(!is_alive(pid), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("[ended]"), "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root"]
fn with_the_daemon_its_listeners_are_of_that_test_and_leak_when_it_ends() {
    let daemon = Daemon::start("");
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let (mut command, said) = leaves_a_server(directory.path(), "60");
    command[2] += &format!("; while [ ! -e {} ]; do sleep 0.01; done", go.display());
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut child = sniffer_run(&["--name", "smoke", "--grace", "0s"], &command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the server listens", || said.exists().then_some(()));
    let (pid, port) = pid_and_port(&said);
    let claim = || daemon.who_holds(port)["claims"][0].clone();
    let running = claim();
    assert_eq!(running["test"], serde_json::json!({"framework": "custom", "name": "smoke"}), "{running:#}");
    assert_eq!((&running["job"]["ci"], &running["job"]["state"]), (&"custom".into(), &"running".into()));
    // Who is refused the port is told with its test, too.
    let place = format!("try:tcp:127.0.0.1:{port}");
    let holder = holder();
    let refused =
        sniffer_run(&["--name", "loser"], &[holder.to_str().unwrap(), "it", &place]).output().unwrap();
    assert!(text(&refused.stdout).contains("refused:98"), "{}", text(&refused.stdout));
    let conflict = eventually("the conflict is told", || {
        let (_, conflicts) = common::json(&mut daemon.ask(&["conflicts"]));
        conflicts["conflicts"].as_array()?.iter().find(|conflict| conflict["port"] == port).cloned()
    });
    assert_eq!(conflict["loser"]["test"]["name"], "loser", "{conflict:#}");
    assert_eq!(conflict["blockers"][0]["test"]["name"], "smoke");
    fs::write(&go, "").unwrap();
    child.wait().unwrap();
    eventually("it has leaked", || (claim()["verdict"] == "leaked").then_some(()));
    end(pid);
}
