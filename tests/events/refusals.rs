//! What is told of a refused bind or listen, of every kind of socket, in every namespace, and when.

use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

use super::{
    all_alone, allowed, assert_in_use, assert_not_told, blockers, conflicts, github, of_port, only_conflict,
    settle, tells_errno, told_of, watcher,
};
use crate::common::{
    Daemon, Held, Tree, eventually, free_port, holder, one_runner_on_this_host, open_directory, program, run,
};

#[test]
#[ignore = "needs root"]
fn a_refused_bind_is_told_with_both_sides() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    let programs = open_directory();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let gateway = program(&programs, "gateway.test");
    let attempt = format!("try:tcp:127.0.0.1:{port}");
    let arguments = ["server", "env:NOTE=two words", "uid:65534", &attempt, "clock"];
    let mut command = github(&programs, "github_refused", &["clock", "--", &gateway]);
    let tree = Tree::start(command.args(arguments).current_dir("/tmp"), &["worker", "step", "server"]);
    let loser_is = tree.get("server");
    assert_eq!(loser_is.said("refused"), [98]);

    let conflict = only_conflict(&daemon, port);
    assert_in_use(&conflict);
    assert_eq!((&conflict["call"], &conflict["attempts"]), (&"bind".into(), &1.into()));
    assert_eq!((&conflict["protocol"], &conflict["address"]), (&"tcp".into(), &"127.0.0.1".into()));
    assert_eq!(conflict["netns"]["name"], "host");
    assert_between(&conflict["at"], tree.get("step").said("at")[0], loser_is.said("at")[0]);
    assert_eq!(conflict["last_at"], conflict["at"]);

    let loser = &conflict["loser"];
    assert_eq!((&loser["pid"], &loser["ppid"]), (&loser_is.pid.into(), &tree.get("step").pid.into()));
    assert_between(&loser["start_time"], tree.get("step").said("at")[0] - TICK, loser_is.said("at")[0]);
    assert_eq!((&loser["uid"], &loser["comm"]), (&65534.into(), &"gateway.test".into()));
    let cmdline: Vec<Value> =
        [&[gateway.as_str()], &arguments[..]].concat().into_iter().map(Value::from).collect();
    assert_eq!(loser["cmdline"], Value::Array(cmdline));
    assert!(loser["exe"].as_str().unwrap().starts_with('/'), "{loser:#}");
    assert_eq!(loser["cwd"], "/tmp");
    let ancestry: Vec<_> = loser["ancestry"].as_array().unwrap().iter().map(|kin| &kin["comm"]).collect();
    assert_eq!(ancestry[..2], ["bash", "Runner.Worker"]);
    let job = &loser["job"];
    assert_eq!((&job["ci"], &job["id"]), (&"github".into(), &"github_refused".into()));
    assert_eq!((&job["name"], &job["repository"]), (&"coverage-test".into(), &"envoyproxy/gateway".into()));
    assert_eq!((&job["run"], &job["state"]), (&"991".into(), &"running".into()));
    for key in ["user", "unit", "container", "test"] {
        assert!(loser.get(key).is_some(), "the contract has {key}: {loser:#}");
    }

    assert_eq!(blockers(&conflict), [blocker.it().pid]);
    let claim = &conflict["blockers"][0];
    assert_eq!((&claim["kind"], &claim["state"]), (&"listener".into(), &"LISTEN".into()));
    assert_eq!((&claim["address"], &claim["port"]), (&"127.0.0.1".into(), &port.into()));
    assert_eq!(claim["holders"][0]["cmdline"][1], "it");
    assert_eq!(conflict["cause"], "host_service");
    let explanation = conflict["explanation"].as_str().unwrap();
    assert!(explanation.contains(&format!("holder (pid {})", blocker.it().pid)), "{explanation}");

    let text = run(&mut daemon.ask(&["conflicts"])).1;
    let told = format!("gateway.test (pid {}) was refused tcp 127.0.0.1:{port}", loser_is.pid);
    let story = text.split_once(&told).unwrap_or_else(|| panic!("{text}")).1.split("\n\n").next().unwrap();
    assert_eq!(story.contains("EADDRINUSE, inferred"), !tells_errno(), "{story}");
    for words in [
        format!("had by     holder (pid {})", blocker.it().pid),
        "job        github coverage-test of envoyproxy/gateway".to_owned(),
        "cause      host_service".to_owned(),
        gateway.clone(),
    ] {
        assert!(story.contains(&words), "{words} in {story}");
    }
}

/// The kernel's clock ticks every 10 ms at the most; the start of a process is in hundredths of a second, too.
const TICK: i128 = 12_000_000;

/// A moment of a document is between two of the wall clock, in nanoseconds.
#[track_caller]
pub(super) fn assert_between(at: &Value, from: i128, to: i128) {
    let told: Timestamp = at.as_str().unwrap_or_else(|| panic!("no moment: {at}")).parse().unwrap();
    let told = told.as_nanosecond();
    assert!(
        told >= from - TICK && told <= to + 2_000_000,
        "{at} is {} ms after {from}",
        (told - from) / 1_000_000
    );
}

#[test]
#[ignore = "needs root"]
fn a_refused_bind_is_logged_and_counted() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let blocker = Tree::holder(&["udp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let series = "sniffer_bind_conflicts_total{cause=\"host_service\",protocol=\"udp\"}";
    assert_eq!(daemon.metric(series), Some(0.0), "every series is there from the start");
    let retry = format!("retry:3:udp:127.0.0.1:{port}");
    let loser = Tree::holder(&[&retry]);
    eventually("it is counted", || (daemon.metric(series) == Some(3.0)).then_some(()));
    let line = eventually("it is logged", || {
        let log = daemon.log();
        log.lines().find(|line| line.contains("event=\"conflict\"")).map(str::to_owned)
    });
    for field in [
        &format!("port={port}"),
        "protocol=\"udp\"",
        "call=\"bind\"",
        "cause=\"host_service\"",
        "errno=\"EADDRINUSE\"",
        &format!("errno_known={}", tells_errno()),
        &format!(" pid={}", loser.it().pid),
        "comm=\"holder\"",
        &format!("blocker_pid={}", blocker.it().pid),
    ] {
        assert!(line.contains(field), "{field} in {line}");
    }
    settle(&daemon);
    let logged = daemon.log().lines().filter(|line| line.contains(&format!(" port={port} "))).count();
    assert_eq!(logged, 1, "what repeats it is not logged again");
    assert_eq!(daemon.metric(series), Some(3.0));
}

#[test]
#[ignore = "needs root"]
fn udp_ipv6_wildcards_and_dual_stack_are_refused_and_told() {
    let daemon = watcher();
    for (there, asked, address) in [
        ("udp:127.0.0.1:0", "udp:127.0.0.1:PORT", "127.0.0.1"),
        ("tcp:[::1]:0", "tcp:[::1]:PORT", "::1"),
        ("udp:[::1]:0", "udp:[::1]:PORT", "::1"),
        ("tcp:0.0.0.0:0", "tcp:127.0.0.1:PORT", "127.0.0.1"),
        ("tcp:127.0.0.1:0", "tcp:0.0.0.0:PORT", "0.0.0.0"),
        ("udp:0.0.0.0:0", "udp:127.0.0.1:PORT", "127.0.0.1"),
        ("tcp:[::]:0", "tcp:127.0.0.1:PORT", "127.0.0.1"),
        ("tcp:127.0.0.1:0", "tcp:[::]:PORT", "::"),
        ("tcp:[::]:0", "tcp:0.0.0.0:PORT", "0.0.0.0"),
        ("tcp:[::ffff:127.0.0.1]:0", "tcp:127.0.0.1:PORT", "127.0.0.1"),
        ("tcp:[::]:0", "tcp:[::1]:PORT", "::1"),
    ] {
        let blocker = Tree::holder(&[there]);
        let port = blocker.it().port();
        let loser = Tree::holder(&[&format!("try:{}", asked.replace("PORT", &port.to_string()))]);
        assert_eq!(loser.it().said("refused"), [98], "{there} {asked}");
        // The kernel may give a case the port of one before it.
        let is_its = |conflict: &Value| conflict["loser"]["pid"] == loser.it().pid;
        let conflict = eventually("the conflict is told", || of_port(&daemon, port).into_iter().find(is_its));
        let told = (&conflict["protocol"], &conflict["address"], blockers(&conflict));
        let protocol = Value::from(&asked[..3]);
        assert_eq!(told, (&protocol, &address.into(), vec![blocker.it().pid]), "{there} {asked}");
        assert_eq!(conflict["loser"]["pid"], loser.it().pid);
        assert_in_use(&conflict);
    }
}

#[test]
#[ignore = "needs root"]
fn sockets_that_do_not_stand_in_each_others_way_are_no_conflict() {
    let daemon = watcher();
    let binders: Vec<u32> = [
        (["with:v6only", "tcp:[::]:0"], ["with:", "try:tcp:0.0.0.0:PORT"]),
        (["with:", "tcp:0.0.0.0:0"], ["with:v6only", "try:tcp:[::]:PORT"]),
        (["with:", "tcp:127.0.0.1:0"], ["with:", "try:tcp:127.0.0.2:PORT"]),
        (["with:", "tcp:127.0.0.1:0"], ["with:", "try:udp:127.0.0.1:PORT"]),
        (["with:", "tcp:127.0.0.1:0"], ["with:", "try:tcp:[::1]:PORT"]),
        (["with:reuseport", "tcp:127.0.0.1:0"], ["with:reuseport", "try:tcp:127.0.0.1:PORT"]),
        (["with:reuseaddr", "bound:127.0.0.1:0"], ["with:reuseaddr", "try:tcp:127.0.0.1:PORT"]),
    ]
    .iter()
    .map(|(there, asked)| {
        let first = Tree::holder(there);
        let port = first.it().port();
        let second = Tree::holder(&[asked[0], &asked[1].replace("PORT", &port.to_string())]);
        assert_eq!(second.it().words, ["bound"], "{there:?} {asked:?}");
        second.it().pid
    })
    .collect();
    settle(&daemon);
    let told: Vec<Value> = conflicts(&daemon)
        .into_iter()
        .filter(|told| binders.iter().any(|pid| told["loser"]["pid"] == *pid))
        .collect();
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
#[ignore = "needs root"]
fn a_refusal_in_another_namespace_is_told_with_that_namespace_and_its_blocker() {
    let daemon = watcher();
    let holder = holder();
    let mut command = Command::new(&holder);
    command.args(["blocker", "netns", "tcp:127.0.0.1:0", "--"]).arg(&holder);
    let tree = Tree::start(command.args(["loser", "try:tcp:127.0.0.1:PORT"]), &["blocker", "loser"]);
    assert_eq!(tree.get("loser").said("refused"), [98]);
    let conflict = only_conflict(&daemon, tree.get("blocker").port());
    assert_eq!(conflict["netns"]["inode"], netns_of(tree.get("blocker").pid));
    assert_ne!(conflict["netns"]["name"], "host");
    assert_eq!(conflict["loser"]["pid"], tree.get("loser").pid);
    assert_eq!(blockers(&conflict), [tree.get("blocker").pid]);
    assert_eq!(conflict["blockers"][0]["state"], "LISTEN", "it was looked at where it is");
    assert_eq!(conflict["blockers"][0]["netns"]["inode"], conflict["netns"]["inode"]);
}

fn netns_of(pid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino()
}

#[test]
#[ignore = "needs root"]
fn a_refusal_in_a_namespace_that_only_a_descriptor_keeps_has_its_blocker_too() {
    let daemon = watcher();
    let tree = Tree::holder(&["netns-twins:0.0.0.0:0"]);
    assert_eq!(tree.it().said("refused"), [98]);
    let conflict = only_conflict(&daemon, tree.it().port());
    assert_ne!(conflict["netns"]["inode"], netns_of(tree.it().pid));
    assert_ne!(conflict["netns"]["name"], "host");
    assert_eq!(conflict["loser"]["pid"], tree.it().pid);
    assert_eq!(blockers(&conflict), [tree.it().pid]);
    assert_ne!(conflict["blockers"][0]["state"], "CLOSED", "it is open: {conflict:#}");
}

#[test]
#[ignore = "needs root"]
fn one_port_in_two_namespaces_is_no_conflict() {
    let daemon = watcher();
    let first = Tree::holder(&["tcp:0.0.0.0:0"]);
    let port = first.it().port();
    let second = Tree::holder(&["netns", &format!("try:tcp:0.0.0.0:{port}")]);
    assert_eq!(second.it().words, ["bound"]);
    assert_not_told(&daemon, second.it());
}

/// Before Linux 6.11, and where it is switched off, io_uring binds nothing: then that is what it must say.
fn io_uring_binds() -> bool {
    let said = Tree::holder(&["uring:127.0.0.1:0"]).it().clone();
    match said.said("refused")[..] {
        [] => true,
        // ENOSYS, EPERM; EINVAL of an operation that it does not know.
        [38 | 1 | 22] => false,
        _ => panic!("{said:?}"),
    }
}

#[test]
#[ignore = "needs root"]
fn a_bind_through_io_uring_is_refused_and_told_like_any_other() {
    let daemon = watcher();
    for way in ["uring", "uring-worker"] {
        let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
        let port = blocker.it().port();
        let loser = Tree::holder(&[&format!("{way}:127.0.0.1:{port}")]);
        if !io_uring_binds() {
            assert_ne!(loser.it().said("refused"), [98], "this kernel's io_uring does not bind");
            assert!(of_port(&daemon, port).is_empty());
            continue;
        }
        assert_eq!(loser.it().said("refused"), [98], "{way}");
        let conflict = only_conflict(&daemon, port);
        assert_eq!(conflict["loser"]["pid"], loser.it().pid, "{way}");
        assert_eq!(blockers(&conflict), [blocker.it().pid], "{way}");
        assert_eq!((&conflict["attempts"], &conflict["call"]), (&1.into(), &"bind".into()), "{way}");
        assert_in_use(&conflict);
    }
}

#[test]
#[ignore = "needs root"]
fn a_bind_through_io_uring_that_succeeds_is_not_told() {
    let daemon = watcher();
    for way in ["uring", "uring-worker"] {
        let it = Tree::holder(&["free:tcp:127.0.0.1:0", &format!("{way}:127.0.0.1:PORT")]);
        assert_eq!(it.it().words == ["bound"], io_uring_binds(), "{way}: {:?}", it.it());
        if io_uring_binds() {
            assert_not_told(&daemon, it.it());
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_listen_that_loses_against_a_reuseaddr_twin_is_told_with_the_twin() {
    let daemon = watcher();
    let directory = open_directory();
    let go = directory.path().join("go");
    let wait = format!("wait:{}", go.display());
    let mut winner = Tree::holder(&["with:reuseaddr", "bound:127.0.0.1:0", "say", &wait, "listen"]);
    let port = winner.it().port();
    let wait = wait.replace("/go", "/then");
    let bind = format!("bound:127.0.0.1:{port}");
    let mut loser = Tree::holder(&["with:reuseaddr", &bind, "say", &wait, "listen"]);
    std::fs::write(&go, "").unwrap();
    winner.hear();
    assert_eq!(winner.it().words, ["bound"], "it listens");
    std::fs::write(go.with_file_name("then"), "").unwrap();
    loser.hear();
    assert_eq!(loser.it().said("refused"), [98]);
    let conflict = only_conflict(&daemon, port);
    assert_eq!((&conflict["call"], &conflict["attempts"]), (&"listen".into(), &1.into()));
    assert_eq!(conflict["loser"]["pid"], loser.it().pid);
    assert_eq!(blockers(&conflict), [winner.it().pid]);
    assert_eq!(conflict["blockers"][0]["kind"], "listener");
    assert_eq!((&conflict["errno"], &conflict["address"]), (&"EADDRINUSE".into(), &"127.0.0.1".into()));
    assert_eq!(conflict["cause"], "host_service");
    let text = run(&mut daemon.ask(&["conflicts"])).1;
    assert!(text.contains("listen"), "which call it was is said: {text}");
}

#[test]
#[ignore = "needs root"]
fn a_refused_socket_that_stays_open_is_told_within_three_seconds_and_once() {
    let daemon = watcher();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let began = Instant::now();
    let loser = Tree::holder(&[&format!("try-keep:tcp:127.0.0.1:{port}")]);
    assert_eq!(loser.it().said("refused"), [98]);
    let conflict = eventually("it is told", || of_port(&daemon, port).pop());
    assert!(began.elapsed() < allowed(Duration::from_secs(3)), "{:?}", began.elapsed());
    assert_eq!(conflict["loser"]["pid"], loser.it().pid);
    assert_eq!(conflict["loser"]["uid"], 0);
    assert_eq!(blockers(&conflict), [blocker.it().pid]);
    drop(loser);
    let after = only_conflict(&daemon, port);
    assert_eq!((&after["attempts"], &after["at"]), (&1.into(), &conflict["at"]));
}

#[test]
#[ignore = "needs root"]
fn a_socket_that_is_refused_and_then_bound_elsewhere_is_told_of_once() {
    let daemon = watcher();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let loser = Tree::holder(&[&format!("fallback:tcp:127.0.0.1:{port}")]);
    assert_eq!((loser.it().said("refused"), loser.it().words.len()), (vec![98], 2), "refused, then bound");
    let conflict = only_conflict(&daemon, port);
    assert_eq!(conflict["attempts"], 1);
    assert_eq!(blockers(&conflict), [blocker.it().pid]);
    assert_eq!(told_of(&daemon, loser.it()).len(), 1, "and nothing else of it");
}

#[test]
#[ignore = "needs root"]
fn a_blocker_that_is_gone_before_anybody_can_look_is_still_named() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let directory = open_directory();
    let provider = program(&directory, "provider");
    // Nothing can look meanwhile.
    daemon.signal(Signal::STOP);
    // Several times, since the kernel's clock ticks: the refusal and the blocker's end may be one moment to it.
    let gone: Vec<Held> = (0..10)
        .map(|_| {
            let mut command = Command::new(&provider);
            command.args(["blocker", "tcp:127.0.0.1:0", "reap", "leave", "--"]).arg(holder());
            let mut tree =
                Tree::start(command.args(["loser", "try:tcp:127.0.0.1:PORT", "exit"]), &["blocker"]);
            tree.wait();
            tree.get("blocker").clone()
        })
        .collect();
    daemon.signal(Signal::CONT);
    for blocker in gone {
        assert_eq!(blocker.said("status"), [98]);
        let conflict = only_conflict(&daemon, blocker.port());
        assert_eq!(i128::from(conflict["loser"]["pid"].as_u64().unwrap()), blocker.said("child")[0]);
        assert_eq!(blockers(&conflict), [blocker.pid], "{conflict:#}");
        let claim = &conflict["blockers"][0];
        assert_eq!((&claim["state"], &claim["holders"][0]["comm"]), (&"CLOSED".into(), &"provider".into()));
        assert_eq!(claim["holders"][0]["cmdline"][2], "tcp:127.0.0.1:0");
        assert_in_use(&conflict);
    }
}

#[test]
#[ignore = "needs root"]
fn a_blocker_from_before_the_agent_started_is_named() {
    let _alone = all_alone();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0", "bound:127.0.0.1:0", "udp:127.0.0.1:0"]);
    let daemon = Daemon::start("");
    let ports = blocker.it().ports.clone();
    for (port, protocol) in [(ports[0], "tcp"), (ports[2], "udp")] {
        drop(Tree::holder(&[&format!("try:{protocol}:127.0.0.1:{port}")]));
        let conflict = only_conflict(&daemon, port);
        assert_eq!(blockers(&conflict), [blocker.it().pid]);
        assert_in_use(&conflict);
    }
    // Its close is none that was told of; the port is free again.
    drop(blocker);
    drop(Tree::holder(&[&format!("bound:127.0.0.1:{}", ports[0])]));
    settle(&daemon);
    assert_eq!(only_conflict(&daemon, ports[0])["attempts"], 1);
}

#[test]
#[ignore = "needs root"]
fn a_second_bind_of_one_socket_is_told_as_what_it_is() {
    let daemon = watcher();
    let port = free_port();
    // The second bind is refused because the first one was not.
    let it = Tree::holder(&[&format!("fallback:tcp:127.0.0.1:{port}")]);
    assert_eq!((it.it().words[0].as_str(), it.it().said("refused")), ("bound", vec![22]));
    let told = told_of(&daemon, it.it());
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!((&told[0]["errno"], &told[0]["errno_known"]), (&"EINVAL".into(), &true.into()));
    assert_eq!((&told[0]["cause"], &told[0]["blockers"]), (&"unknown".into(), &Value::Array(vec![])));
    assert!(told[0]["explanation"].as_str().unwrap().contains("bound already"));
}
