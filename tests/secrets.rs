//! What is nobody's business is nowhere: not in an answer, not in a file, not in the log, not in an alert.

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
use std::process::Command;

use common::{Daemon, Tree, alone, eventually, holder, json, run};
use hook::Hook;

const IN_ENVIRONMENT: &str = "hidden-in-the-environment";
const IN_ARGUMENTS: &str = "hidden-in-the-arguments";
const BY_OWN_PATTERN: &str = "hidden-by-an-own-pattern";
const IN_ADDRESSES: &str = "hidden-in-an-address";

/// A listener of a job that ends without it, and somebody who was refused its port; both with secrets.
fn leftover(daemon: &Daemon) -> (Tree, u16) {
    let address = format!("https://me:{IN_ADDRESSES}@host/repository");
    let declared = ["job", "start", "--id", "secretive", "--repository", &address, "--url", &address];
    let (code, _, complaints) = run(&mut daemon.ask(&declared));
    assert_eq!(code, 0, "{complaints}");
    let mut command = Command::new(holder());
    command.args(["shell", "env:SNIFFER_JOB_ID=secretive", &format!("env:UNLISTED={IN_ENVIRONMENT}")]);
    command.args(["--", holder().to_str().unwrap(), "server", &format!("env:DB_PASSWORD={IN_ARGUMENTS}")]);
    command.args([&format!("env:PIN={BY_OWN_PATTERN}"), "tcp:127.0.0.1:0"]);
    let mut tree = Tree::start(&mut command, &["shell", "server"]);
    let port = tree.get("server").port();
    let refused = format!("try:tcp:127.0.0.1:{port}");
    let _loser =
        Tree::holder(&["env:SNIFFER_JOB_ID=secretive", &format!("env:API_TOKEN={IN_ARGUMENTS}"), &refused]);
    // As Jenkins has it, with a password where somebody configured one.
    let mut other = Command::new(holder());
    other.env("JENKINS_NODE_COOKIE", "a-cookie").env("GIT_URL", &address).env("BUILD_URL", &address);
    let _other = Tree::start(other.args(["other", &refused]), &["other"]);
    let held = daemon.who_holds(port);
    let line = held["claims"][0]["holders"][0]["cmdline"].as_array().unwrap();
    for masked in ["env:DB_PASSWORD=***", "env:PIN=***"] {
        assert!(line.iter().any(|argument| argument == masked), "{line:?}");
    }
    daemon.job("end", "secretive");
    tree.members.retain(|label, _| label == "server");
    (tree, port)
}

#[test]
#[ignore = "needs root"]
fn secrets_of_command_lines_and_environments_are_nowhere() {
    let hook = Hook::start(&[200]);
    let daemon = Daemon::start(&format!("privacy.mask = ['PIN=([^\\x00]+)']\n{}", hook.config()));
    let (_tree, port) = leftover(&daemon);
    let port = port.to_string();
    let alert = eventually("the leak is told", || hook.requests.try_recv().ok());
    eventually("the refusal is in the file", || {
        let (_, document) = json(&mut daemon.ask(&["conflicts"]));
        let conflicts = document["conflicts"].as_array()?;
        let of_jenkins = conflicts.iter().find(|conflict| conflict["loser"]["job"]["ci"] == "jenkins")?;
        let shown = "https://me:***@host/repository";
        assert_eq!(of_jenkins["loser"]["job"]["repository"], shown, "{of_jenkins:#}");
        (conflicts.len() > 1).then_some(())
    });
    let mut seen = vec![("alert".to_owned(), format!("{alert:?}"))];
    let verbs: [&[&str]; 9] = [
        &["who-holds", &port],
        &["list"],
        &["leaks"],
        &["conflicts"],
        &["history", &port],
        &["report", "--job", "secretive"],
        &["reap", "--job", "secretive"],
        &["can-bind", &port],
        &["report", "--job", "secretive", "--format", "html"],
    ];
    for verb in verbs {
        let (_, text, complaints) = run(&mut daemon.ask(verb));
        seen.push((verb.join(" "), text + &complaints));
        if verb.len() < 5 {
            seen.push((format!("{} --json", verb.join(" ")), json(&mut daemon.ask(verb)).1.to_string()));
        }
    }
    seen.push((
        "who-holds alone".to_owned(),
        run(alone().args(["who-holds", &port])).1.replace(BY_OWN_PATTERN, ""),
    ));
    for path in ["/metrics", "/v1/timeline", "/v1/report?id=secretive", "/readyz"] {
        let (status, text) = daemon.get(path).unwrap();
        assert!(status == 200 && !text.is_empty(), "{path}: {status}");
        seen.push((path.to_owned(), text));
    }
    let file = daemon.directory.path().join("run.json");
    let leaves = format!("{} it env:DB_PASSWORD={IN_ARGUMENTS} say & sleep 0.2", holder().display());
    let (_, text, complaints) =
        run(alone().args(["run", "--reap", "--report"]).arg(&file).args(["--", "sh", "-c", &leaves]));
    seen.push(("run".to_owned(), text + &complaints));
    for entry in fs::read_dir(daemon.directory.path()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if let Ok(bytes) = fs::read(entry.path())
            && name != "config.toml"
        {
            seen.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    for expected in ["log", "history.db", "state.json", "run.json"] {
        assert!(seen.iter().any(|(name, text)| name == expected && !text.is_empty()), "{expected} was read");
    }
    for (place, text) in &seen {
        for secret in [IN_ENVIRONMENT, IN_ARGUMENTS, BY_OWN_PATTERN, IN_ADDRESSES] {
            assert!(!text.contains(secret), "{secret} in {place}:\n{text}");
        }
    }
    let shown = |place: &str| &seen.iter().find(|(name, _)| name == place).unwrap().1;
    assert!(shown(&format!("who-holds {port}")).contains("env:DB_PASSWORD=***"), "it is there, masked");
}
