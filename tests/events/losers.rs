//! Whoever is refused and ends at once is described all the same: what nobody can read any more was told by the kernel.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::{
    Watcher, all_alone, assert_in_use, blockers, conflicts, github, of_port, only_conflict, settle, watcher,
};
use crate::common::{Daemon, Tree, eventually, holder, one_runner_on_this_host, open_directory, program};

const TIMES: usize = 20;

/// In a job's step, a program is run that tries a port and ends at once. Answers what was told of it.
fn instant_loser(daemon: &Watcher, id: &str) -> (Tree, Value) {
    let programs = open_directory();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let server = program(&programs, "flaky.test");
    let attempt = format!("try:tcp:127.0.0.1:{port}");
    let mut command = github(&programs, id, &["reap", "--", &server, "server", "env:A=B", &attempt, "exit"]);
    let tree = Tree::start(&mut command, &["worker", "step"]);
    assert_eq!(tree.get("step").said("status"), [98]);
    let loser = tree.get("step").said("child")[0];
    let conflict = eventually("it is told", || {
        let is_it = |told: &Value| told["loser"]["pid"].as_u64().map(i128::from) == Some(loser);
        of_port(daemon, port).into_iter().find(is_it)
    });
    assert_eq!(blockers(&conflict), [blocker.it().pid]);
    assert_in_use(&conflict);
    (tree, conflict["loser"].clone())
}

#[test]
#[ignore = "needs root"]
fn a_loser_that_ends_at_once_has_its_command_its_parent_its_program_and_its_job() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    for number in 0..TIMES {
        let id = format!("github_instant_{number}");
        let (tree, loser) = instant_loser(&daemon, &id);
        assert_eq!((&loser["comm"], &loser["uid"]), (&"flaky.test".into(), &0.into()));
        let cmdline = loser["cmdline"].as_array().unwrap_or_else(|| panic!("{number}: {loser:#}"));
        assert_eq!(cmdline.len(), 5, "{loser:#}");
        assert_eq!((&cmdline[1], &cmdline[4]), (&"server".into(), &"exit".into()));
        assert_eq!(loser["ppid"], tree.get("step").pid, "{number}");
        assert_eq!(loser["ancestry"][0]["comm"], "bash", "{number}: {loser:#}");
        let exe = loser["exe"].as_str().unwrap_or_else(|| panic!("{number}: {loser:#}"));
        assert!(exe.starts_with('/') && (exe.ends_with("/flaky.test") || exe.ends_with("/holder")), "{exe}");
        assert_eq!((&loser["job"]["id"], &loser["job"]["state"]), (&id.as_str().into(), &"running".into()));
        assert!(loser["start_time"].is_string(), "{number}: {loser:#}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_program_that_was_called_by_a_relative_path_and_has_ended_has_none_but_its_arguments() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let directory = open_directory();
    program(&directory, "flaky.test");
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    // Nothing can look meanwhile.
    daemon.signal(Signal::STOP);
    let mut command = Command::new(holder());
    command.args([
        "it",
        "reap",
        "--",
        "./flaky.test",
        "server",
        &format!("try:tcp:127.0.0.1:{port}"),
        "exit",
    ]);
    let parent = Tree::start(command.current_dir(directory.path()), &["it"]);
    assert_eq!(parent.it().said("status"), [98]);
    daemon.signal(Signal::CONT);
    let loser = only_conflict(&daemon, port)["loser"].clone();
    assert_eq!(loser["cmdline"][0], "./flaky.test", "{loser:#}");
    // Relative to which directory only the living process tells, and nothing is invented.
    assert!(loser["exe"].is_null() && loser["cwd"].is_null(), "{loser:#}");
}

#[test]
#[ignore = "needs root"]
fn long_arguments_are_cut_and_the_job_behind_many_variables_is_found() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    let programs = open_directory();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let attempt = format!("try:tcp:127.0.0.1:{port}");
    let long = format!("env:LONG={}", "x".repeat(30_000));
    let server = program(&programs, "flaky.test");
    // More than the kernel's programs copy, before the variables that name the job.
    let filler = format!("env:A_FILLER={}", "y".repeat(40_000));
    let mut command = github(
        &programs,
        "github_long",
        &[&filler, "reap", "--", &server, "server", &attempt, &long, "exit"],
    );
    let tree = Tree::start(&mut command, &["worker", "step"]);
    assert_eq!(tree.get("step").said("status"), [98]);
    let loser = only_conflict(&daemon, port)["loser"].clone();
    assert_eq!((&loser["cmdline"][1], &loser["comm"]), (&"server".into(), &"flaky.test".into()));
    assert_eq!(loser["job"]["id"], "github_long", "it was born into it: {loser:#}");
}

#[test]
#[ignore = "needs root"]
fn a_thread_that_is_refused_is_told_as_its_process() {
    let daemon = watcher();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let loser = Tree::holder(&["threads:4", &format!("retry:5:tcp:127.0.0.1:{port}")]);
    assert_eq!(loser.it().said("refused-times"), [20]);
    let conflict = only_conflict(&daemon, port);
    assert_eq!((&conflict["loser"]["pid"], &conflict["attempts"]), (&loser.it().pid.into(), &20.into()));
}

#[test]
#[ignore = "needs root"]
fn a_service_that_is_restarted_and_fails_again_is_one_entry() {
    let daemon = watcher();
    let directory = open_directory();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let server = program(&directory, "restarting");
    for _ in 0..5 {
        let mut command = Command::new(&server);
        let status = command.args(["server", &format!("try:tcp:127.0.0.1:{port}"), "exit"]).status().unwrap();
        assert_eq!(status.code(), Some(98));
    }
    let conflict = only_conflict(&daemon, port);
    assert_eq!((&conflict["attempts"], &conflict["loser"]["comm"]), (&5.into(), &"restarting".into()));
    assert_ne!(conflict["at"], conflict["last_at"]);
}

#[test]
#[ignore = "needs root"]
fn two_losers_against_one_blocker_are_two_entries() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let directory = open_directory();
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let attempt = format!("try:tcp:127.0.0.1:{}", blocker.it().port());
    for name in ["one.test", "two.test"] {
        drop(Tree::start(Command::new(program(&directory, name)).args(["it", &attempt]), &["it"]));
    }
    settle(&daemon);
    let told: Vec<Value> = conflicts(&daemon);
    let mut losers: Vec<&str> = told
        .iter()
        .map(|told| told["loser"]["comm"].as_str().unwrap())
        .filter(|comm| *comm != "holder")
        .collect();
    losers.sort_unstable();
    assert_eq!(losers, ["one.test", "two.test"]);
    assert_eq!(holder().file_name().unwrap(), "holder", "the marker's name");
}
