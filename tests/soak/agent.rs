//! The agent under the soak: killed and started on the same files, asked, and measured by what the kernel says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::common::{Daemon, eventually, run};
use crate::kernel;

/// Figures are the least of what is read in a while, so that no look that goes on is counted; in a longer one memory that was freed is
/// given back, which the agent does once a minute.
pub(super) const A_WHILE: Duration = Duration::from_secs(3);
pub(super) const A_LONGER_WHILE: Duration = Duration::from_secs(70);
const BETWEEN: Duration = Duration::from_millis(100);

/// What the agent has, and may not have more and more of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    pub(super) descriptors: usize,
    pub(super) threads: usize,
    pub(super) resident_mib: f64,
    /// Network namespaces but its own that it has open, or a thread of it is in.
    pub(super) namespaces: usize,
}

/// Starts it again after a kill; answers after what time it was ready.
#[track_caller]
pub(super) fn kill_and_restart(daemon: &mut Daemon) -> Duration {
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let started = Instant::now();
    let mut command = Daemon::command(&daemon.directory);
    // Half an hour of storms would fill the disk with the words for developers.
    command.env("SNIFFER_LOG", "sniffer=info").stdin(Stdio::null());
    daemon.child = command.spawn().unwrap();
    eventually("the agent is ready again", || {
        let ended = daemon.child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}");
        daemon.get("/readyz").filter(|(status, _)| *status == 200)
    });
    started.elapsed()
}

/// What it answers, again while it is too busy to; a storm leaves it few turns on a small host.
#[track_caller]
pub(super) fn answer(daemon: &Daemon, question: &[&str]) -> Value {
    eventually("the agent answers", || {
        let (_, text, _) = run(daemon.ask(question).arg("--json"));
        serde_json::from_str(&text).ok()
    })
}

/// What it has while nothing happens.
#[track_caller]
pub(super) fn figures(daemon: &Daemon, over: Duration) -> Figures {
    let least = |one: Figures, other: Figures| Figures {
        descriptors: one.descriptors.min(other.descriptors),
        threads: one.threads.min(other.threads),
        resident_mib: one.resident_mib.min(other.resident_mib),
        namespaces: one.namespaces.min(other.namespaces),
    };
    let readings = std::iter::repeat_with(|| {
        std::thread::sleep(BETWEEN);
        read(daemon.child.id())
    });
    let end = Instant::now() + over;
    readings.take_while(|_| Instant::now() < end).reduce(least).unwrap()
}

fn read(pid: u32) -> Figures {
    let own = kernel::namespace_of(format!("/proc/{pid}/ns/net").as_ref());
    let entries = |directory: &str| {
        let entries = fs::read_dir(format!("/proc/{pid}/{directory}")).unwrap();
        entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let (descriptors, threads) = (entries("fd"), entries("task"));
    let ways = descriptors.iter().cloned().chain(threads.iter().map(|thread| thread.join("ns/net")));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Figures {
        descriptors: descriptors.len(),
        threads: threads.len(),
        resident_mib: resident.unwrap().parse::<f64>().unwrap() / 1024.0,
        namespaces: ways.filter_map(|way| kernel::namespace_of(&way)).filter(|way| Some(*way) != own).count(),
    }
}

/// The differences between what it lists and what the kernel has: none, once what others on this host do leaves a moment for that.
#[track_caller]
pub(super) fn table_is_the_kernels(daemon: &Daemon) -> usize {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let before = kernel::sockets();
        let document = answer(daemon, &["list"]);
        assert_eq!(document["source"], "daemon");
        let listed = kernel::listed(&document);
        let differences = kernel::differences(&before, &listed, &kernel::sockets());
        if differences.is_empty() {
            return listed.len();
        }
        assert!(Instant::now() < end, "the table is not the kernel's: {differences:#?}");
    }
}

/// The file of the history, read by SQLite itself.
pub(super) struct Remembered {
    pub(super) bytes: u64,
    pub(super) holds: i64,
    pub(super) refusals: i64,
}

fn history(daemon: &Daemon) -> (PathBuf, Connection) {
    let path = daemon.directory.path().join("history.db");
    let file = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    (path, file)
}

/// Reads the file, whole and undamaged.
#[track_caller]
pub(super) fn remembered(daemon: &Daemon) -> Remembered {
    let (path, file) = history(daemon);
    let verdict: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let count = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    Remembered {
        bytes: fs::metadata(&path).unwrap().size(),
        holds: count("SELECT count(*) FROM hold"),
        refusals: count("SELECT count(*) FROM conflict"),
    }
}

/// The sockets whose holds go on, by the file: cookies, each with what is said of it.
fn open_holds(daemon: &Daemon) -> BTreeMap<u64, String> {
    let (_, file) = history(daemon);
    let sql = "SELECT key, concat_ws(' ', since, port, place, pid, program) FROM open LEFT JOIN holds ON holds.id = hold";
    let mut rows = file.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).unwrap();
    // Those of rules have none.
    let cookie = |key: &str| serde_json::from_str::<Value>(key).unwrap()["socket"].as_u64();
    rows.map(Result::unwrap).filter_map(|(key, said)| Some((cookie(&key)?, said))).collect()
}

/// Every hold that goes on in the file is of a socket that is there, and each listener has one. What another test opens and closes while
/// this is read is in doubt once, and not again.
#[track_caller]
pub(super) fn open_holds_are_the_kernels(daemon: &Daemon) -> usize {
    let end = Instant::now() + Duration::from_secs(60);
    let mut doubted: Option<BTreeSet<u64>> = None;
    loop {
        let before = kernel::sockets();
        // Answered when everything that was seen is written.
        let document = answer(daemon, &["history", "1"]);
        assert_eq!(document["schema"], 1, "{document:#}");
        let open = open_holds(daemon);
        let after = kernel::sockets();
        let has =
            |sockets: &kernel::Sockets, wanted: u64| sockets.keys().any(|(_, cookie)| *cookie == wanted);
        let over = open.keys().filter(|key| !has(&before, **key) && !has(&after, **key)).copied();
        let stay = before.iter().filter(|(key, held)| held.waits && after.contains_key(key));
        let missing = stay.map(|((_, cookie), _)| *cookie).filter(|cookie| !open.contains_key(cookie));
        let doubtful: BTreeSet<u64> = over.chain(missing).collect();
        if doubted.as_ref().is_some_and(|doubted| doubted.is_disjoint(&doubtful)) {
            return open.len();
        }
        let shown = |cookie: &u64| (*cookie, open.get(cookie), has(&after, *cookie));
        let shown: Vec<_> = doubtful.iter().map(shown).collect();
        assert!(Instant::now() < end, "cookie, goes on in the file, is in the kernel: {shown:?}");
        doubted = Some(doubtful);
    }
}

/// The sum of a family of metrics.
#[track_caller]
pub(super) fn sum(daemon: &Daemon, family: &str) -> f64 {
    let (_, body) = daemon.get("/metrics").unwrap();
    let values = body
        .lines()
        .filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
