//! Binds and listens that are refused, told with both sides; sharing that nobody notices; and what becomes of it all where the
//! kernel's programs cannot run. With real sockets, namespaces, jobs and storms.
//!
//! Needs nothing but the `sniffer` and the `holder`, since it also runs on other kernels, in machines that have nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

#[path = "events/asking.rs"]
mod asking;
#[path = "events/causes.rs"]
mod causes;
#[path = "events/degraded.rs"]
mod degraded;
#[path = "events/losers.rs"]
mod losers;
#[path = "events/refusals.rs"]
mod refusals;
#[path = "events/sharing.rs"]
mod sharing;
#[path = "events/storms.rs"]
mod storms;
#[path = "events/successes.rs"]
mod successes;

use std::io::{Read, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use common::{Daemon, Held, Tree, alone, eventually, json, program};
use serde_json::Value;
use tempfile::TempDir;

/// Held to read by tests that may run beside each other, to write by those that count everything or make storms.
static TURNS: RwLock<()> = RwLock::new(());
/// Tests that look at ports of their own share a daemon: its start costs more than most of them.
static SHARED: Mutex<Weak<Daemon>> = Mutex::new(Weak::new());

thread_local! {
    /// Each test has a thread of its own. What was told before it began is another's, which had the same port.
    static BEGAN: std::cell::Cell<jiff::Timestamp> = const { std::cell::Cell::new(jiff::Timestamp::UNIX_EPOCH) };
}

/// A daemon that others use too. It ends with the last of them.
struct Watcher {
    daemon: Arc<Daemon>,
    _turn: RwLockReadGuard<'static, ()>,
}

#[track_caller]
fn watcher() -> Watcher {
    let turn = beside_others();
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = shared.upgrade().unwrap_or_else(|| {
        let daemon = Arc::new(Daemon::start(""));
        *shared = Arc::downgrade(&daemon);
        daemon
    });
    BEGAN.set(sniffer::kernel::clock::now());
    Watcher { daemon, _turn: turn }
}

fn beside_others() -> RwLockReadGuard<'static, ()> {
    TURNS.read().unwrap_or_else(PoisonError::into_inner)
}

/// No other test of this file runs meanwhile. Taken before `one_runner_on_this_host`, as everywhere.
fn all_alone() -> RwLockWriteGuard<'static, ()> {
    TURNS.write().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Watcher {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lost = self.daemon.metric(LOST);
            common::eprint_log(&format!("{}events lost so far: {lost:?}\n", self.daemon.log()));
        }
    }
}

/// More than 0 on a host where others bind faster than the agent reads: then it cannot have seen everything.
const LOST: &str = "sniffer_events_lost_total{source=\"ebpf\"}";

/// Whether this kernel tells the errno of a refused bind: else it is inferred.
fn tells_errno() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let (_, document) = json(alone().arg("doctor"));
        let checks = document["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == "ebpf: errno").map(|check| &check["found"]);
        let found = found.and_then(Value::as_str).unwrap_or_else(|| panic!("{document:#}"));
        found.starts_with("the errno of every failed bind")
    })
}

/// Asked over the socket, as the command does: a process for each question would take most of a test's time.
#[track_caller]
fn conflicts(daemon: &Daemon) -> Vec<Value> {
    let reply = get(daemon, "/v1/conflicts");
    let (head, document) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{reply}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
    let document: Value = serde_json::from_str(document).unwrap();
    assert!(document["watched_since"].is_string(), "refusals are seen: {document:#}");
    document["conflicts"].as_array().unwrap().clone()
}

/// What the control socket answers.
fn get(daemon: &Daemon, path: &str) -> String {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[track_caller]
fn of_port(daemon: &Daemon, port: u16) -> Vec<Value> {
    let mut all = conflicts(daemon);
    // The kernel may give a marker a port that another test has let go of.
    let is_marker = |conflict: &Value| {
        let arguments = conflict["loser"]["cmdline"].as_array();
        arguments.is_some_and(|arguments| arguments.ends_with(&MARKER.map(Value::from)))
    };
    let began = BEGAN.get() - Duration::from_millis(100);
    let is_ours =
        |conflict: &Value| conflict["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap() >= began;
    all.retain(|conflict| conflict["port"] == port && !is_marker(conflict) && is_ours(conflict));
    all
}

/// What a marker does: two refusals of its own making.
const MARKER: [&str; 4] =
    ["tcp:127.0.0.1:0", "try-keep:tcp:127.0.0.1:LAST", "tcp:127.0.0.1:0", "try-keep:tcp:127.0.0.1:LAST"];

/// Waits until what has happened so far has been told: more refusals are made, as many as are looked at at the same time, and
/// they are there. Their sockets stay open, so those that were open already and waited for an end have been looked at, too.
#[track_caller]
fn settle(daemon: &Daemon) {
    let marker = Tree::holder(&MARKER);
    assert_eq!(marker.it().said("refused"), [98, 98]);
    eventually("the markers are told", || {
        let told = conflicts(daemon);
        let ports = &marker.it().ports;
        ports.iter().all(|port| told.iter().any(|told| told["port"] == *port)).then_some(())
    });
}

/// The only conflict of a port, when everything has been told.
#[track_caller]
fn only_conflict(daemon: &Daemon, port: u16) -> Value {
    eventually("the conflict is told", || (!of_port(daemon, port).is_empty()).then_some(()));
    settle(daemon);
    let mut all = of_port(daemon, port);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

/// What was told of a process, whatever the port, when everything has been told.
#[track_caller]
fn told_of(daemon: &Daemon, who: &Held) -> Vec<Value> {
    settle(daemon);
    let mut all = conflicts(daemon);
    all.retain(|conflict| conflict["loser"]["pid"] == who.pid);
    all
}

#[track_caller]
fn assert_not_told(daemon: &Daemon, who: &Held) {
    let all = told_of(daemon, who);
    assert!(all.is_empty(), "{} were told, such as {:#}", all.len(), all[0]);
}

/// What takes this long on a host may take as much longer in an emulated machine as everything else there.
fn allowed(on_a_host: Duration) -> Duration {
    let emulated = std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("QEMU TCG");
    if emulated { on_a_host * 15 } else { on_a_host }
}

#[track_caller]
fn assert_in_use(conflict: &Value) {
    let expected = (Value::from("EADDRINUSE"), Value::from(tells_errno()));
    assert_eq!((&conflict["errno"], &conflict["errno_known"]), (&expected.0, &expected.1), "{conflict:#}");
}

/// First holders of the blockers.
#[track_caller]
fn blockers(conflict: &Value) -> Vec<u32> {
    let blockers = conflict["blockers"].as_array().unwrap();
    let pid = |blocker: &Value| blocker["holders"][0]["pid"].as_u64();
    blockers.iter().map(|blocker| pid(blocker).unwrap_or_default() as u32).collect()
}

/// A GitHub job: `Runner.Worker` → `bash` (a step, with these actions) → whatever it starts.
fn github(directory: &TempDir, id: &str, step: &[&str]) -> Command {
    let mut command = Command::new(program(directory, "Runner.Worker"));
    command.arg("worker").arg(format!("env:RUNNER_TRACKING_ID={id}"));
    command.args([
        "env:GITHUB_JOB=coverage-test",
        "env:GITHUB_REPOSITORY=envoyproxy/gateway",
        "env:GITHUB_RUN_ID=991",
        "--",
        &program(directory, "bash"),
        "step",
    ]);
    command.args(step);
    command
}
