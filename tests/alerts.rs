//! Alerts to receivers of the test's own: each of them once, also by a dead one that comes back, also by an agent that was killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;
#[path = "alerts/hook.rs"]
mod hook;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Daemon, Tree, eventually, free_port, holder, json, listener, open_directory, run};
use hook::Hook;
use serde_json::Value;

#[test]
#[ignore = "needs root"]
fn a_leak_is_told_after_its_grace_and_its_end_when_somebody_reaps_it() {
    let hook = Hook::start(&[200]);
    let daemon = Daemon::start(&hook.config());
    daemon.job("start", "told");
    let _tree = listener(&["env:SNIFFER_JOB_ID=told"]);
    let port = _tree.get("server").port();
    daemon.who_holds(port);
    hook.is_silent(port, Duration::from_millis(600));
    let ended = Instant::now();
    daemon.job("end", "told");
    let firing = hook.next(port);
    assert!(ended.elapsed() >= Duration::from_millis(250), "not while the job is in grace");
    assert_eq!((&firing["status"], &firing["subject"]), (&"firing".into(), &"leak".into()), "{firing:#}");
    assert_eq!((&firing["schema"], &firing["ends_at"]), (&1.into(), &Value::Null));
    assert_eq!(firing["jobs"][0]["id"], "told");
    assert_eq!(firing["comm"], "holder");
    assert!(
        firing["summary"].as_str().unwrap().contains(&format!("Port {port}/tcp is still held by holder"))
    );
    let (code, _, stderr) = run(&mut daemon.ask(&["reap", "--job", "told", "--yes"]));
    assert_eq!(code, 0, "{stderr}");
    let resolved = hook.next(port);
    assert_eq!((&resolved["status"], &resolved["id"]), (&"resolved".into(), &firing["id"]), "{resolved:#}");
    assert_ne!(resolved["ends_at"], Value::Null);
    hook.is_silent(port, Duration::from_secs(1));
    eventually("both are counted", || {
        let told = daemon.metric("sniffer_alerts_total{result=\"delivered\",sink=\"webhook\"}")?;
        (told >= 2.0).then_some(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_killed_agent_neither_repeats_nor_forgets() {
    let hook = Hook::start(&[200]);
    let mut daemon = Daemon::start(&hook.config());
    let (_stays, stays) = daemon.leftover("stays");
    let (goes, goes_port) = daemon.leftover("goes");
    for port in [stays, goes_port] {
        assert_eq!(hook.next(port)["status"], "firing");
    }
    daemon.job("start", "runs");
    let _runs = listener(&["env:SNIFFER_JOB_ID=runs"]);
    let running = _runs.get("server").port();
    daemon.who_holds(running);
    let told = |state: &Value, port: u16| {
        let entries = state["alerts"]["entries"].as_object().unwrap();
        let mut about = entries.values().filter(|entry| entry["alert"]["port"] == port);
        about.any(|entry| entry["told"].as_object().is_some_and(|told| !told.is_empty()))
    };
    daemon.kept("who was told, and the job that runs", |state| {
        let jobs = state["jobs"].as_array().unwrap();
        told(state, stays)
            && told(state, goes_port)
            && jobs.iter().any(|job| job["facts"]["id"] == "runs" && job["state"] == "running")
    });
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    goes.get("server").kill();
    daemon.crash_and_restart();
    eventually("it leaks still", || {
        (daemon.who_holds(stays)["claims"][0]["verdict"] == "leaked").then_some(())
    });
    let claim = daemon.who_holds(running)["claims"][0].clone();
    assert_eq!(
        (&claim["verdict"], &claim["job"]["state"]),
        (&"healthy".into(), &"running".into()),
        "{claim:#}"
    );
    assert_eq!(hook.next(goes_port)["status"], "resolved", "it ended while nobody watched");
    hook.is_silent(stays, Duration::from_secs(2));
    daemon.job("end", "runs");
    assert_eq!(hook.next(running)["status"], "firing");
}

#[test]
#[ignore = "needs root"]
fn a_dead_receiver_delays_nobody_and_is_told_when_it_comes_back() {
    let port_of_dead = free_port();
    let alive = Hook::start(&[200]);
    let dead = format!("[[alerts.webhook]]\nurl = \"http://127.0.0.1:{port_of_dead}/\"\n");
    let daemon = Daemon::start(&format!("{dead}{}", alive.config()));
    let (_tree, port) = daemon.leftover("dead");
    assert_eq!(alive.next(port)["status"], "firing");
    assert_eq!(daemon.who_holds(port)["claims"][0]["verdict"], "leaked");
    // It refuses at first, and takes it in the end.
    let back = Hook::listen(TcpListener::bind(("127.0.0.1", port_of_dead)).unwrap(), &[500, 200]);
    assert_eq!(back.next(port)["status"], "firing");
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_delivered_is_given_up_and_counted() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hanging.local_addr().unwrap().port();
    let sink = format!(
        "[[alerts.webhook]]\nurl = \"http://127.0.0.1:{port}/\"\ntimeout = \"200ms\"\ngive_up = \"300ms\"\n"
    );
    let daemon = Daemon::start(&sink);
    let (_tree, _) = daemon.leftover("undeliverable");
    eventually("it is counted", || {
        let failed = daemon.metric("sniffer_alerts_total{result=\"failed\",sink=\"webhook\"}")?;
        (failed >= 1.0).then_some(())
    });
    let log = daemon.log();
    assert!(log.contains("given up: it did not answer in time"), "{log}");
    assert!(!log.contains(&format!("127.0.0.1:{port}")), "an address may hold a secret: {log}");
}

#[test]
#[ignore = "needs root"]
fn a_command_is_given_the_alert_and_ended_if_it_takes_too_long() {
    let directory = open_directory();
    let out = directory.path().join("out");
    let script = directory.path().join("on-leak");
    let text = format!(
        "#!/bin/sh\ncat >> {0}\necho >> {0}\n[ -e {0}.slow ] || {{ : > {0}.slow; sleep 1000; }}\n",
        out.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let sink = format!("[[alerts.command]]\nrun = [\"{}\"]\ntimeout = \"700ms\"\n", script.display());
    let daemon = Daemon::start(&sink);
    let (_tree, port) = daemon.leftover("command");
    // The first may be another test's.
    let twice = eventually("one was tried again", || {
        let text = fs::read_to_string(&out).ok()?;
        let alerts: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        alerts.first().filter(|first| alerts.iter().filter(|alert| alert == first).count() == 2).cloned()
    });
    assert_eq!(twice["status"], "firing");
    let told = || fs::read_to_string(&out).unwrap().contains(&format!("\"port\":{port},"));
    eventually("this one is told", || told().then_some(()));
    let script = script.to_str().unwrap();
    let runs = |pid: &Path| {
        let cmdline = fs::read(pid.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains(script)
    };
    // Another alert may be told this moment; the first would sleep for long.
    eventually("nothing of the first is left", || {
        let any = fs::read_dir("/proc").unwrap().any(|entry| runs(&entry.unwrap().path()));
        (!any).then_some(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_bind_that_another_jobs_leftover_made_fail_is_told_with_both_sides() {
    let hook = Hook::start(&[200]);
    let daemon = Daemon::start(&hook.config());
    let (_tree, port) = daemon.leftover("culprit");
    assert_eq!(hook.next(port)["subject"], "leak");
    daemon.job("start", "victim");
    let mut command = Command::new(holder());
    command.args(["shell", "env:SNIFFER_JOB_ID=victim", "--", holder().to_str().unwrap(), "server"]);
    let _victim = Tree::start(command.arg(format!("try:tcp:127.0.0.1:{port}")), &["shell", "server"]);
    let conflict = hook.next(port);
    assert_eq!(
        (&conflict["subject"], &conflict["status"]),
        (&"conflict".into(), &"firing".into()),
        "{conflict:#}"
    );
    assert_eq!(conflict["jobs"][0]["id"], "victim");
    assert_eq!(conflict["conflict"]["cause"], "leaked_listener");
    assert_eq!(conflict["conflict"]["blockers"][0]["job"]["id"], "culprit");
    hook.is_silent(port, Duration::from_secs(1));
}

#[test]
#[ignore = "needs root"]
fn alertmanager_is_told_what_fires_and_when_it_ended() {
    let manager = Hook::start(&[503, 200]);
    let sink = format!("[[alerts.alertmanager]]\nurl = \"http://127.0.0.1:{}/\"\n", manager.port);
    let daemon = Daemon::start(&sink);
    let (tree, port) = daemon.leftover("managed");
    let wanted_port = port.to_string();
    let about = |wanted: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (path, alerts) = manager.requests.recv_timeout(end - Instant::now()).expect(wanted);
            assert_eq!(path, "/api/v2/alerts");
            let all = alerts.as_array().unwrap();
            if let Some(alert) = all.iter().find(|alert| alert["labels"]["port"] == wanted_port.as_str()) {
                return alert.clone();
            }
        }
    };
    let firing = about("it fires");
    assert_eq!(
        (&firing["labels"]["alertname"], &firing["labels"]["ci"]),
        (&"SnifferListenerLeaked".into(), &"custom".into()),
        "{firing:#}"
    );
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(time(&firing["endsAt"]) > sniffer::kernel::clock::now());
    tree.get("server").kill();
    let ended = eventually("it has ended", || {
        let alert = about("its end is told");
        (time(&alert["endsAt"]) <= sniffer::kernel::clock::now()).then_some(alert)
    });
    assert_eq!((&ended["labels"], &ended["startsAt"]), (&firing["labels"], &firing["startsAt"]));
}

#[test]
#[ignore = "needs root"]
fn a_state_that_cannot_be_kept_is_said_and_stops_nothing() {
    let daemon = Daemon::start("");
    let state = daemon.directory.path().join("state.json");
    fs::create_dir(&state).unwrap();
    let (_tree, port) = daemon.leftover("unkept");
    eventually("it leaks", || (daemon.who_holds(port)["claims"][0]["verdict"] == "leaked").then_some(()));
    eventually("it is said", || daemon.log().contains("cannot be written").then_some(()));
    let (code, _) = json(&mut daemon.ask(&["leaks"]));
    assert_eq!(code, 1);
}
