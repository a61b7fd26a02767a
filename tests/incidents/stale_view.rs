//! Antrea: a check that judged from a cache which had not caught up refused what was free. Here a port is bound, closed and asked
//! about, over and over; and each job gets ports of its own.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sniffer::kernel::clock;

use crate::common::{
    self, Daemon, NamedNetns, SNIFFER, Tree, alone, ip, open_directory, ports_of_ones_own, program, run,
};
use crate::inside;
use crate::sample::Sample;

/// Enough that a cache which lags behind is caught, whatever it lags by.
const ROUNDS: usize = 100;

#[track_caller]
fn holders(document: &Value) -> Vec<u32> {
    document["claims"].as_array().unwrap().iter().flat_map(common::holders).collect()
}

/// Asked as the command asks, without a process for each question.
#[track_caller]
fn asked(daemon: &Daemon, port: u16) -> Value {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    write!(stream, "GET /v1/who-holds?target={port} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let document = reply.split_once("\r\n\r\n").map(|(_, document)| document).unwrap_or_default();
    serde_json::from_str(document).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

#[test]
#[ignore = "needs root"]
fn a_port_that_was_let_go_is_free_in_the_very_next_answer_and_one_that_was_bound_is_held() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    let mut agent = Agent::new(port);
    for round in 0..ROUNDS {
        let before = clock::now();
        agent.bind();
        let held = asked(&daemon, port);
        assert_eq!(holders(&held), [agent.child.id()], "round {round}: {held:#}");
        let let_go = clock::now();
        agent.close();
        let free = asked(&daemon, port);
        assert_eq!(free["claims"], Value::Array(vec![]), "round {round}: {free:#}");
        assert!(moment(&held) >= before && moment(&free) >= let_go, "as of when: {held:#} {free:#}");
    }
    // The same where no daemon runs, and in the answer about a bind.
    let target = format!("127.0.0.1:{port}/tcp");
    let code = |command: &mut Command| common::json(command).0;
    for round in 0..ROUNDS / 10 {
        agent.bind();
        assert_eq!(code(alone().args(["who-holds", &target])), 0, "round {round}");
        assert_eq!(code(&mut daemon.ask(&["can-bind", &target])), 1, "round {round}");
        agent.close();
        assert_eq!(code(alone().args(["who-holds", &target])), 1, "round {round}");
        assert_eq!(code(&mut daemon.ask(&["can-bind", &target])), 0, "round {round}");
    }
}

/// Binds the port and closes it again, as it is told, and says when that is done. It is a process of its own: one that starts others,
/// as the test does, shares its sockets with each for the time between fork(2) and execve(2).
struct Agent {
    child: Child,
    said: BufReader<ChildStdout>,
}

const AGENT: &str = r#"
import socket, sys
for line in sys.stdin:
    if line == "bind\n":
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(sys.argv[1])))
        listener.listen()
    else:
        listener.close()
    print(line, end="", flush=True)
"#;

impl Agent {
    fn new(port: u16) -> Agent {
        let mut command = Command::new("python3");
        command.args(["-c", AGENT, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Agent { child, said }
    }

    #[track_caller]
    fn bind(&mut self) {
        self.told("bind\n");
    }

    #[track_caller]
    fn close(&mut self) {
        self.told("close\n");
    }

    #[track_caller]
    fn told(&mut self, what: &str) {
        self.child.stdin.as_mut().unwrap().write_all(what.as_bytes()).unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, what);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[track_caller]
fn moment(document: &Value) -> jiff::Timestamp {
    document["as_of"].as_str().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn whoever_waits_for_a_port_is_told_who_has_it_and_waits_no_longer_than_allowed() {
    let daemon = Daemon::start("");
    let directory = open_directory();
    let [port] = ports_of_ones_own();
    let target = format!("127.0.0.1:{port}/tcp");
    for with_daemon in [true, false] {
        let ask = |arguments: &[&str]| {
            let mut command = if with_daemon { daemon.ask(arguments) } else { alone() };
            if !with_daemon {
                command.args(arguments);
            }
            command
        };
        let mut holder = Command::new(program(&directory, "antrea-agent"));
        let tree = Tree::start(holder.args(["it", &format!("tcp:127.0.0.1:{port}")]), &["it"]);
        let pid = tree.it().pid;
        let began = Instant::now();
        let (code, stdout, stderr) = run(&mut ask(&["wait-free", &target, "--timeout", "300ms"]));
        assert!(code == 1 && began.elapsed() >= Duration::from_millis(300), "{stdout}{stderr}");
        assert!(stdout.starts_with(&format!("{target}: a bind would fail: EADDRINUSE")), "{stdout}");

        let mut waits = ask(&["wait-free", &target, "--timeout", "60s"]);
        let mut waits = waits.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut byte = [0];
        let mut diagnostics = waits.stderr.take().unwrap();
        while !said.ends_with('\n') && diagnostics.read(&mut byte).unwrap() == 1 {
            said.push(char::from(byte[0]));
        }
        assert!(said.contains(&format!("antrea-agent (pid {pid}) has it")), "{said}");
        assert!(waits.try_wait().unwrap().is_none(), "it waits");
        drop(tree);
        let output = waits.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stdout}");
        let sample = Sample { ports: &[(port, "10349")], pids: &["4121"], ..Sample::default() };
        insta::assert_snapshot!("wait_free", sample.of(&(said + &stdout)));
    }
}

/// Says its ports when all of them are bound, and goes on until it is told.
const SERVER: &str = r#"
import os, socket, sys
sockets = []
for port in os.environ["SNIFFER_PORTS"].split():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        one = socket.socket(socket.AF_INET, kind)
        one.bind(("127.0.0.1", int(port)))
        sockets.append(one)
assert os.environ["SNIFFER_PORT"] == os.environ["SNIFFER_PORTS"].split()[0]
print(os.environ["SNIFFER_PORTS"], flush=True)
sys.stdin.read()
"#;

/// Where ports are leased: no other test binds here.
struct Place {
    netns: NamedNetns,
    daemon: Daemon,
}

impl Place {
    fn new() -> Place {
        let netns = NamedNetns::new("lease");
        ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
        Place { netns, daemon: Daemon::start("") }
    }

    /// A program there, asking the daemon or nobody. What it prints is heard.
    fn command(&self, program: &str, with_daemon: bool) -> Command {
        let nobody = PathBuf::from("/nonexistent/sniffer.sock");
        let mut command = self.netns.command(program);
        command.env("SNIFFER_SOCKET", if with_daemon { self.daemon.socket() } else { nobody });
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

#[test]
#[ignore = "needs root and ip"]
fn each_job_that_asks_gets_ports_of_its_own() {
    const JOBS: usize = 6;
    let place = Place::new();
    for with_daemon in [true, false] {
        let job = |_| {
            let mut command = place.command(SNIFFER, with_daemon);
            command.args(["run", "--ports", "3", "--", "python3", "-c", SERVER]).spawn().unwrap()
        };
        // All at once, and all of them bind what they were given before the first one ends.
        let mut jobs: Vec<_> = (0..JOBS).map(job).collect();
        let mut given = Vec::new();
        for job in &mut jobs {
            let mut line = String::new();
            BufReader::new(job.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            let ports: Vec<u16> = line.split_whitespace().map(|port| port.parse().unwrap()).collect();
            assert_eq!(ports.len(), 3, "{line:?}");
            given.extend(ports);
        }
        let different: HashSet<u16> = given.iter().copied().collect();
        assert_eq!(different.len(), JOBS * 3, "{given:?}");
        assert!(given.iter().all(|port| (20_000..30_000).contains(port)), "{given:?}");
        for job in jobs {
            let output = job.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let mut told = place.command(SNIFFER, false);
    told.args(["run", "--ports", "2", "--", "sh", "-c"]);
    told.arg("echo \"the first: $SNIFFER_PORT, all: $SNIFFER_PORTS\"");
    let (code, stdout, stderr) = run(&mut told);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let ports: Vec<u16> = stdout.split([' ', ',', '\n']).filter_map(|word| word.parse().ok()).collect();
    let [first, again, second] = ports[..] else { panic!("{stdout}") };
    assert!(first == again && first != second, "{stdout}");
    let sample = Sample { ports: &[(first, "24310"), (second, "24311")], ..Sample::default() };
    insta::assert_snapshot!("own_ports", sample.of(&stdout));
}

#[test]
#[ignore = "needs root and ip"]
fn a_port_that_somebody_has_is_given_to_nobody_though_nobody_leased_it() {
    let place = Place::new();
    for with_daemon in [true, false] {
        // Which port is tried first follows from the number of the process.
        let mut job = place.command("sh", with_daemon);
        job.args(["-c", "read go; exec \"$1\" run --ports 1 -- sh -c 'echo $SNIFFER_PORT'", "sh", SNIFFER]);
        let mut job = job.spawn().unwrap();
        let first = u16::try_from(20_000 + job.id() % 10_000).unwrap();
        let _taken = inside(&place.netns, move || TcpListener::bind(("127.0.0.1", first)).unwrap());
        job.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let output = job.wait_with_output().unwrap();
        let given: u16 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(given, 20_000 + (first - 20_000 + 1) % 10_000, "the next one is free");
    }
}
