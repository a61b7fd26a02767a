//! `sniffer reap`: real leaks, ended for real.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Daemon, SNIFFER, Tree, alone, eventually, json, one_runner_on_this_host, open_directory, program, run,
    within,
};
use serde_json::Value;

fn outcomes(document: &Value) -> Vec<(u64, &str)> {
    let processes = document["processes"].as_array().unwrap().iter();
    processes.map(|one| (one["pid"].as_u64().unwrap(), one["outcome"].as_str().unwrap_or("-"))).collect()
}

#[test]
#[ignore = "needs root"]
fn what_has_leaked_is_ended_and_nothing_else() {
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let directory = open_directory();
    let server = program(&directory, "server");
    let job = |id: &str| {
        let mut worker = Command::new(program(&directory, "Runner.Worker"));
        worker.args([
            "worker",
            &format!("env:RUNNER_TRACKING_ID={id}"),
            "--",
            &server,
            "server",
            "tcp:127.0.0.1:0",
        ]);
        Tree::start(&mut worker, &["worker", "server"])
    };
    let (over, running) = (job("github_over"), job("github_running"));
    over.get("worker").kill();
    let leaked = over.get("server").clone();
    eventually("it leaks", || (run(&mut daemon.ask(&["leaks"])).0 == 1).then_some(()));

    let (code, plan) = json(&mut daemon.ask(&["reap", "--leaked"]));
    assert_eq!((code, outcomes(&plan)), (0, vec![(u64::from(leaked.pid), "-")]), "{plan:#}");
    let (code, text, _) = run(&mut daemon.ask(&["reap", "--leaked"]));
    assert!(code == 0 && text.contains("would be ended") && text.contains("Nothing was done"), "{text}");
    assert!(leaked.is_alive(), "a plan does nothing");
    for other in ["github_running", "github_none"] {
        let (code, plan) = json(&mut daemon.ask(&["reap", "--job", other, "--yes"]));
        assert_eq!((code, outcomes(&plan)), (0, vec![]), "{other}");
    }
    let (code, done) = json(&mut daemon.ask(&["reap", "--job", "github_over", "--yes"]));
    assert_eq!((code, outcomes(&done)), (0, vec![(u64::from(leaked.pid), "ended")]), "{done:#}");
    assert!(!leaked.is_alive() && running.get("server").is_alive());
    eventually("the leak is resolved", || (run(&mut daemon.ask(&["leaks"])).0 == 0).then_some(()));
}

#[test]
#[ignore = "needs root"]
fn a_port_that_is_named_is_freed_also_from_those_that_do_not_hear() {
    let deaf = Tree::start(
        Command::new("python3").args(["-c", "import signal, socket, sys, os, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\nprint('it', os.getpid(), s.getsockname()[1], flush=True)\nsys.stdin.read()"]),
        &["it"],
    );
    let target = format!("127.0.0.1:{}/tcp", deaf.it().port());
    let client = Tree::holder(&[&format!("connect:127.0.0.1:{}", deaf.it().port())]);
    let (code, done) = json(alone().args(["reap", &target, "--yes"]));
    assert_eq!((code, outcomes(&done)), (0, vec![(u64::from(deaf.it().pid), "killed")]), "{done:#}");
    assert!(client.it().is_alive(), "whoever is connected is a client");
    let (code, text, _) = run(alone().args(["reap", &target, "--yes"]));
    assert_eq!((code, text.as_str()), (0, "There is nothing to end.\n"));
}

#[test]
#[ignore = "needs root"]
fn another_users_process_is_not_ended_and_nothing_else_is_either() {
    let held = Tree::holder(&["tcp:127.0.0.1:0"]);
    let mut reap = Command::new(SNIFFER);
    reap.env("SNIFFER_SOCKET", "/nonexistent").args(["reap", &format!("{}/tcp", held.it().port()), "--yes"]);
    let (code, out, err) = run(&mut within(&["uid:65534"], &reap));
    assert_eq!(code, 2, "{out} {err}");
    assert!(err.contains("could not be seen; run as root"), "{err}");
    assert!(held.it().is_alive());
    // With the daemon's eyes it sees whose it is.
    let daemon = Daemon::start("");
    let mut reap = daemon.ask(&["reap", &format!("{}/tcp", held.it().port()), "--yes"]);
    reap.env_remove("SNIFFER_LOG");
    let (code, _, err) = run(&mut within(&["uid:65534"], &reap));
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("belongs to root") && err.contains("nothing was done"), "{err}");
    assert!(held.it().is_alive());
}

#[test]
#[ignore = "needs root"]
fn the_agent_ends_what_has_leaked_after_an_extra_grace_if_it_is_told_to() {
    // It would end another test's.
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("leak.reap = true\nleak.reap_after = \"2s\"\n");
    let running = Tree::holder(&["tcp:127.0.0.1:0"]);
    let began = Instant::now();
    let (leftover, port) = daemon.leftover("swept");
    let server = leftover.get("server");
    eventually("it has leaked", || (daemon.verdict(port).0 == "leaked").then_some(()));
    eventually("it was ended", || (!server.is_alive()).then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(2), "not before its time");
    assert!(leftover.get("shell").is_alive() && running.it().is_alive(), "nobody else was");
    eventually("it is said", || daemon.log().contains("event=\"reaped\"").then_some(()));
    assert!(!Daemon::start("").log().contains("reaped"), "off by default");
}

#[test]
fn a_wish_that_makes_no_sense_is_refused() {
    for wrong in
        [&["reap"][..], &["reap", "99999"], &["reap", "--job", "a", "--leaked"], &["reap", "80", "--leaked"]]
    {
        assert_eq!(run(alone().args(wrong)).0, 2, "{wrong:?}");
    }
    let (code, _, err) = run(alone().args(["reap", "--leaked"]));
    assert!(code == 2 && err.contains("no sniffer daemon answers"), "{err}");
}
