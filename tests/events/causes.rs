//! Why a bind was refused, in one word and in sentences.

use std::process::Command;

use serde_json::Value;

use super::{assert_in_use, blockers, github, only_conflict, tells_errno, watcher};
use crate::common::{
    Daemon, Tree, eventually, one_runner_on_this_host, open_directory, ports_of_ones_own, program,
};

#[track_caller]
fn refused(port: u16) -> Tree {
    let loser = Tree::holder(&[&format!("try:tcp:127.0.0.1:{port}")]);
    assert_eq!(loser.it().said("refused"), [98]);
    loser
}

#[track_caller]
fn assert_explained(conflict: &Value, words: &[&str]) {
    let explanation = conflict["explanation"].as_str().unwrap();
    for word in words {
        assert!(explanation.contains(word), "{word} in {conflict:#}");
    }
}

#[test]
#[ignore = "needs root"]
fn another_job_that_runs_is_a_concurrent_job() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    let programs = open_directory();
    let server = program(&programs, "provider.test");
    let mut one = github(&programs, "github_one", &["--", &server, "server", "tcp:127.0.0.1:0"]);
    let one = Tree::start(&mut one, &["worker", "step", "server"]);
    let port = one.get("server").port();
    let attempt = format!("try:tcp:127.0.0.1:{port}");
    let mut two = github(&programs, "github_two", &["--", &server, "server", &attempt]);
    let two = Tree::start(&mut two, &["worker", "step", "server"]);
    assert_eq!(two.get("server").said("refused"), [98]);
    let conflict = only_conflict(&daemon, port);
    assert_eq!(conflict["cause"], "concurrent_job", "{conflict:#}");
    assert_eq!(conflict["loser"]["job"]["id"], "github_two");
    assert_eq!(conflict["blockers"][0]["job"]["id"], "github_one");
    assert_explained(&conflict, &["another job on this host", "bind port 0"]);
}

#[test]
#[ignore = "needs root"]
fn another_process_of_the_job_is_the_same_job() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    let programs = open_directory();
    let server = program(&programs, "provider.test");
    let step = ["tcp:127.0.0.1:0", "--", &server, "server", "try:tcp:127.0.0.1:PORT"];
    let tree = Tree::start(&mut github(&programs, "github_same", &step), &["worker", "step", "server"]);
    assert_eq!(tree.get("server").said("refused"), [98]);
    let conflict = only_conflict(&daemon, tree.get("step").port());
    assert_eq!(conflict["cause"], "same_job", "{conflict:#}");
    assert_explained(&conflict, &["of the same job", "bash (pid "]);
}

#[test]
#[ignore = "needs root"]
fn the_process_itself_is_the_same_process() {
    let daemon = watcher();
    let it = Tree::holder(&["tcp:127.0.0.1:0", "try:tcp:127.0.0.1:PORT"]);
    assert_eq!(it.it().said("refused"), [98]);
    let conflict = only_conflict(&daemon, it.it().port());
    assert_eq!((&conflict["cause"], blockers(&conflict)), (&"same_process".into(), vec![it.it().pid]));
    assert_explained(&conflict, &["the process itself"]);
}

#[test]
#[ignore = "needs root"]
fn what_an_ended_job_left_behind_is_a_leaked_listener() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    let programs = open_directory();
    let server = program(&programs, "provider.test");
    let mut command =
        github(&programs, "github_left", &["--", &server, "server", "setsid", "tcp:127.0.0.1:0"]);
    let tree = Tree::start(&mut command, &["worker", "step", "server"]);
    let port = tree.get("server").port();
    tree.get("worker").kill();
    eventually("the job has ended", || {
        let claim = daemon.who_holds(port)["claims"][0].clone();
        (claim["job"]["state"] == "ended").then_some(())
    });
    let _loser = refused(port);
    let conflict = only_conflict(&daemon, port);
    assert_eq!(conflict["cause"], "leaked_listener", "{conflict:#}");
    let kill = format!("kill {}", tree.get("server").pid);
    assert_explained(&conflict, &["coverage-test of envoyproxy/gateway", "has ended", &kill]);
}

#[test]
#[ignore = "needs root"]
fn a_process_of_no_job_is_a_host_service() {
    let daemon = watcher();
    let directory = open_directory();
    let mut command = Command::new(program(&directory, "redis-server"));
    let service = Tree::start(command.args(["it", "tcp:127.0.0.1:0"]), &["it"]);
    let _loser = refused(service.it().port());
    let conflict = only_conflict(&daemon, service.it().port());
    assert_eq!(conflict["cause"], "host_service");
    assert_explained(&conflict, &["redis-server (pid ", "of no CI job"]);
}

#[test]
#[ignore = "needs root"]
fn a_connections_own_port_is_an_outgoing_connection() {
    let daemon = watcher();
    let client = Tree::holder(&["tcp:127.0.0.1:0", "connect:127.0.0.1:PORT"]);
    let [server, port] = client.it().ports[..] else { panic!("{:?}", client.it()) };
    let _loser = refused(port);
    let conflict = only_conflict(&daemon, port);
    assert_eq!(
        (&conflict["cause"], blockers(&conflict)),
        (&"outgoing_connection".into(), vec![client.it().pid])
    );
    assert_eq!(conflict["blockers"][0]["kind"], "connection");
    assert_explained(&conflict, &[&format!("127.0.0.1:{server}"), "ip_local_port_range"]);
    assert_in_use(&conflict);
}

#[test]
#[ignore = "needs root"]
fn a_port_that_a_closed_connection_keeps_is_in_time_wait() {
    let daemon = watcher();
    let before = Tree::holder(&["time-wait:127.0.0.1:0"]);
    let _loser = refused(before.it().port());
    let conflict = only_conflict(&daemon, before.it().port());
    assert_eq!(conflict["cause"], "time_wait", "{conflict:#}");
    assert_eq!(conflict["blockers"][0]["kind"], "time_wait");
    assert_explained(&conflict, &["TIME_WAIT", "SO_REUSEADDR"]);
    assert_in_use(&conflict);
}

#[test]
#[ignore = "needs root"]
fn an_address_that_is_not_ours_is_of_unknown_cause_and_no_conflict_is_invented() {
    let daemon = watcher();
    // Somebody has the port, on another address: that is no blocker.
    let bystander = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = bystander.it().port();
    let loser = Tree::holder(&[&format!("try:tcp:192.0.2.1:{port}")]);
    assert_eq!(loser.it().said("refused"), [99], "EADDRNOTAVAIL");
    let conflict = only_conflict(&daemon, port);
    assert_eq!((&conflict["cause"], &conflict["blockers"]), (&"unknown".into(), &Value::Array(vec![])));
    let errno = if tells_errno() { Value::from("EADDRNOTAVAIL") } else { Value::Null };
    assert_eq!((&conflict["errno"], &conflict["errno_known"]), (&errno, &tells_errno().into()));
    assert_explained(&conflict, &["address", "none of this network namespace's own"]);
}

#[test]
#[ignore = "needs root"]
fn a_port_that_needs_a_privilege_is_told_with_it() {
    let daemon = watcher();
    // A namespace of its own has the kernel's defaults.
    let loser = Tree::holder(&["netns", "uid:65534", "try:tcp:127.0.0.1:79"]);
    assert_eq!(loser.it().said("refused"), [13], "EACCES");
    let conflict = only_conflict(&daemon, 79);
    assert_eq!((&conflict["cause"], &conflict["loser"]["uid"]), (&"unknown".into(), &65534.into()));
    let errno = if tells_errno() { Value::from("EACCES") } else { Value::Null };
    assert_eq!((&conflict["errno"], &conflict["errno_known"]), (&errno, &tells_errno().into()));
    assert_explained(&conflict, &["CAP_NET_BIND_SERVICE"]);
}

/// Somebody asks for a free port, a thief takes it, and `last` is refused it.
#[track_caller]
fn assert_given_away(daemon: &Daemon, rest: &[&str], last: &str) {
    let directory = open_directory();
    let go = directory.path().join("go");
    let mut command = Command::new(program(&directory, "asker"));
    command.args(["it", "free:tcp:127.0.0.1:0", "say", &format!("wait:{}", go.display())]);
    let mut asker = Tree::start(command.args(rest), &["it"]);
    let port = asker.it().port();
    let thief = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    std::fs::write(&go, "").unwrap();
    while asker.hear() != last {}
    assert_eq!(asker.get(last).said("refused"), [98]);
    let conflict = only_conflict(daemon, port);
    assert_eq!(blockers(&conflict), [thief.it().pid], "{conflict:#}");
    let words = format!("It had asked the kernel for a free port, got {port}, closed it, and bound it again");
    assert_explained(&conflict, &[&words, "somebody else got it"]);
}

#[test]
#[ignore = "needs root"]
fn a_free_port_that_was_closed_and_taken_by_another_before_it_was_used_is_explained_so() {
    let daemon = watcher();
    // Several times, since the kernel's clock ticks: all of it may be one moment to it.
    for _ in 0..10 {
        assert_given_away(&daemon, &["try:tcp:127.0.0.1:PORT"], "it");
    }
}

#[test]
#[ignore = "needs root"]
fn a_free_port_that_a_harness_asked_for_and_gave_to_its_test_is_explained_so() {
    let daemon = watcher();
    let directory = open_directory();
    let test = program(&directory, "late.test");
    assert_given_away(&daemon, &["--", &test, "late", "try:tcp:127.0.0.1:PORT"], "late");
}

#[test]
#[ignore = "needs root"]
fn a_port_that_several_tests_ask_for_is_called_a_fixed_port() {
    let daemon = watcher();
    let directory = open_directory();
    // Nobody asked the kernel for it, as `free_port` does: that would be another story.
    let [port] = ports_of_ones_own();
    let run = |name: &str, action: &str| {
        let mut command = Command::new(program(&directory, name));
        Tree::start(command.args(["it", &format!("{action}:127.0.0.1:{port}")]), &["it"])
    };
    drop(run("alpha.test", "try:tcp"));
    let _beta = run("beta.test", "tcp");
    let gamma = run("gamma.test", "try:tcp");
    assert_eq!(gamma.it().said("refused"), [98]);
    let conflict = only_conflict(&daemon, port);
    assert_explained(&conflict, &["fixed (hard-coded) port", "alpha.test, beta.test, gamma.test", "3 times"]);
}

#[test]
#[ignore = "needs root"]
fn one_program_that_tries_again_is_not_called_several_tests() {
    let daemon: &Daemon = &watcher();
    // One that the kernel gives away may have been given to another test just before.
    let [port] = ports_of_ones_own();
    let _blocker = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    drop(refused(port));
    let _again = refused(port);
    let conflict = only_conflict(daemon, port);
    let explanation = conflict["explanation"].as_str().unwrap();
    assert!(!explanation.contains("fixed") && !explanation.contains("asked the kernel"), "{explanation}");
}
