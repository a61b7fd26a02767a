//! The command line as users and scripts meet it: exit codes, one-line errors, documents, manual page.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::{SNIFFER, Tree, alone, json, open_directory, run};

fn one_line(text: &str) -> bool {
    text.ends_with('\n') && text.matches('\n').count() == 1 && text.starts_with("sniffer: ")
}

#[test]
fn a_malformed_target_exits_2_with_one_line() {
    for target in ["99999", "abc", "8081/xyz", "8100-8000", "", "[::1]8081", "a\nb\u{1b}[31m"] {
        let (code, stdout, stderr) = run(alone().args(["who-holds", "--", target]));
        assert_eq!((code, stdout.as_str()), (2, ""), "{target:?}");
        assert!(one_line(&stderr) && !stderr.contains('\u{1b}'), "{stderr:?}");
    }
}

#[test]
fn a_namespace_that_does_not_exist_is_an_error_and_not_a_free_port() {
    for netns in ["no-such-namespace", "PID:4194304", "12345", "PID:x", "a/b"] {
        let (code, stdout, stderr) = run(alone().args(["who-holds", "8081", "--netns", netns]));
        assert_eq!((code, stdout.as_str()), (2, ""), "{netns}");
        assert!(one_line(&stderr), "{stderr:?}");
    }
}

#[test]
fn held_is_0_and_free_is_1() {
    let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = tree.it().port().to_string();
    let (code, text, _) = run(alone().args(["who-holds", &port]));
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with(&format!("{port} is held by holder (pid {})", tree.it().pid)), "{text}");
    drop(tree);
    let (code, text, _) = run(alone().args(["who-holds", &port]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("holds it") && text.contains("Looked at"), "{text}");
}

#[test]
fn a_document_has_every_key_of_the_contract() {
    let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
    let (_, document) = json(alone().args(["who-holds", &format!("{}/tcp", tree.it().port())]));
    for key in ["schema", "as_of", "source", "query", "incomplete", "claims", "advice"] {
        assert!(document.get(key).is_some(), "{key}");
    }
    assert_eq!(document["query"]["protocol"], "tcp");
    let claim = &document["claims"][0];
    for key in [
        "kind",
        "protocol",
        "address",
        "port",
        "v6only",
        "interface",
        "reuseaddr",
        "reuseport",
        "state",
        "netns",
        "socket",
        "since",
        "binder",
        "holders",
        "owner",
        "job",
        "test",
        "verdict",
        "reason",
        "nat",
    ] {
        assert!(claim.get(key).is_some(), "{key}");
    }
    let holder = &claim["holders"][0];
    for key in [
        "pid",
        "fd",
        "start_time",
        "ppid",
        "uid",
        "user",
        "comm",
        "exe",
        "cmdline",
        "cwd",
        "unit",
        "container",
        "ancestry",
    ] {
        assert!(holder.get(key).is_some(), "{key}");
    }
}

#[test]
fn leaks_without_a_daemon_says_how_to_start_one() {
    let (code, stdout, stderr) = run(alone().arg("leaks"));
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(one_line(&stderr) && stderr.contains("sniffer daemon"), "{stderr}");
}

#[test]
fn a_configuration_is_checked_with_file_line_column_and_key() {
    let directory = open_directory();
    let file = directory.path().join("c.toml");
    fs::write(&file, "[watch]\ninterval = 3\nfoo = 1\n").unwrap();
    let (code, _, stderr) = run(alone().arg("check-config").arg(&file));
    assert_eq!(code, 2);
    let expected =
        [format!("{}:2:12: watch.interval", file.display()), format!("{}:3:1: watch.foo", file.display())];
    for (line, expected) in stderr.lines().zip(expected) {
        assert!(line.contains(&expected), "{line}");
    }
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    fs::write(&file, fs::read("config.toml").unwrap()).unwrap();
    assert_eq!(run(alone().arg("check-config").arg(&file)).0, 0);
    assert_eq!(run(alone().args(["check-config", "/nonexistent.toml"])).0, 2);
}

#[test]
fn the_daemon_does_not_start_on_a_mistake() {
    let directory = open_directory();
    let file = directory.path().join("c.toml");
    fs::write(&file, "[watch]\ninterval = 3\n").unwrap();
    let (code, _, stderr) = run(alone().args(["daemon", "--config"]).arg(&file));
    assert_eq!(code, 2);
    assert!(stderr.contains(":2:12: watch.interval"), "{stderr}");
}

#[test]
fn a_configured_mistake_does_not_keep_a_question_from_its_answer() {
    let (code, document) = json(alone().args(["list"]));
    assert!(code == 0 || code == 1);
    assert_eq!(document["source"], "oneshot");
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, text, _) = run(Command::new(SNIFFER).args(["completions", shell]));
        assert_eq!(code, 0);
        assert!(text.contains("who-holds") && text.contains("netns"), "{shell}");
    }
    let bash = Command::new("bash")
        .args(["-n", "-c", &run(Command::new(SNIFFER).args(["completions", "bash"])).1])
        .status();
    assert!(bash.unwrap().success(), "bash reads its completions");
}

#[test]
fn the_manual_page_has_every_verb() {
    let (code, text, _) = run(Command::new(SNIFFER).arg("man"));
    assert_eq!(code, 0);
    for verb in VERBS.map(|verb| verb.replace('-', "\\-")) {
        assert!(text.contains(&format!("\n.SS \"sniffer {verb}")), "{verb}: {text}");
    }
    for heading in ["NAME", "SYNOPSIS", "COMMANDS", "\"EXIT STATUS\"", "FILES", "ENVIRONMENT", "EXAMPLES"] {
        assert_eq!(text.matches(&format!("\n.SH {heading}\n")).count(), 1, "{heading}");
    }
}

const VERBS: [&str; 19] = [
    "who-holds",
    "list",
    "leaks",
    "can-bind",
    "wait-free",
    "conflicts",
    "history",
    "report",
    "run",
    "reap",
    "job",
    "job start",
    "job end",
    "job list",
    "daemon",
    "check-config",
    "doctor",
    "completions",
    "man",
];

#[test]
fn every_verb_explains_itself_with_an_example() {
    for verb in VERBS {
        let (code, text, _) = run(Command::new(SNIFFER).args(verb.split(' ')).arg("--help"));
        assert_eq!(code, 0);
        assert!(text.contains("Example"), "{verb}: {text}");
    }
}

#[test]
fn a_configuration_is_checked_in_a_document_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "[leak]\ngrace = 'soon'\n[wach]\n").unwrap();
    let (code, document) = json(Command::new(SNIFFER).arg("check-config").arg(&file));
    assert_eq!((code, &document["valid"], &document["schema"]), (2, &false.into(), &1.into()));
    let mistakes = document["mistakes"].as_array().unwrap();
    let found: Vec<_> = mistakes.iter().map(|mistake| (&mistake["line"], &mistake["key"])).collect();
    assert_eq!(found, [(&2.into(), &"leak.grace".into()), (&3.into(), &"wach".into())], "{document:#}");
    std::fs::write(&file, "").unwrap();
    let (code, document) = json(Command::new(SNIFFER).arg("check-config").arg(&file));
    assert_eq!((code, &document["valid"], &document["mistakes"]), (0, &true.into(), &serde_json::json!([])));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = alone().arg("list").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.code().is_some(), "no signal ended it");
}

#[test]
fn doctor_says_what_is_lost() {
    let (_, document) = json(alone().arg("doctor"));
    let checks = document["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["name"] == "process events"));
    for check in checks {
        assert_eq!(check["ok"] == true, check["remedy"].is_null(), "{check}");
    }
}
