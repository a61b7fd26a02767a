//! What somebody meets who does not know the program: an error says what to do next, and a real shell completes what is typed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;
#[path = "learnable/shell.rs"]
mod shell;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{alone, open_directory, run};
use shell::Shell;

/// Each is refused with code 2 (or what env(1) has for programs that do not run), nothing on standard output, and a next step.
#[test]
fn every_error_says_what_to_do_next() {
    let directory = open_directory();
    let foreign = directory.path().join("foreign.db");
    fs::write(&foreign, "no database").unwrap();
    let foreign = foreign.to_str().unwrap();
    let nowhere = "/nonexistent/history.db";
    let long = "x".repeat(600);
    let cases: &[(&[&str], &str)] = &[
        (&["who-hold", "8081"], "a similar subcommand exists: 'who-holds'"),
        (&["who-holds", "8081", "--nets", "x"], "a similar argument exists: '--netns'"),
        (&["who-holds"], "Usage: sniffer who-holds <TARGET>"),
        (&["reap"], "Usage: sniffer reap [OPTIONS] <TARGET|--job <ID>|--leaked>"),
        (&["who-holds", "70000"], "a port lies between 1 and 65535; write 8081,"),
        (&["who-holds", "-1"], "write 8081,"),
        (&["who-holds", "localhost:8081"], "names are not looked up); write 8081,"),
        (&["who-holds", "8081", "--netns", "no-such"], "`sniffer list` names those that hold ports"),
        (&["who-holds", "8081", "--netns", "PID:x"], "write PID:4121"),
        (&["can-bind", "http"], "a port is a number; write 8081,"),
        (&["wait-free", "8081", "--timeout", "soon"], "write a number with ms, s, m, h or d"),
        (&["conflicts", "--since", "yesterday"], "write 90s, 15m, 2h or 7d ago"),
        (&["history", "8081", "--at", "noon"], "write 90s, 15m, 2h or 7d ago"),
        (&["history", "8081", "--at", "2099-01-01T00:00:00Z"], "that lies in the future; write 90s,"),
        (&["conflicts", "--since", "2099-01-01T00:00:00Z"], "that lies in the future; write 90s,"),
        (&["history", "8081", "--limit", "0"], "0 is not in 1.."),
        (&["history", "8081", "--db", nowhere], "name the one that a sniffer daemon writes"),
        (&["history", "8081", "--db", foreign], "a daemon moves it aside when it starts"),
        (&["report", "--job", "7", "--db", nowhere], "name the one that a sniffer daemon writes"),
        (&["leaks"], "start it with `sniffer daemon` or `systemctl start sniffer`"),
        (&["reap", "--leaked"], "start it with `sniffer daemon` or `systemctl start sniffer`"),
        (&["job", "list"], "start it with `sniffer daemon` or `systemctl start sniffer`"),
        (&["job", "start"], "--id <ID>"),
        (&["job", "start", "--id", ""], "give the CI system's own id"),
        (&["job", "start", "--id", &long], "shorten it"),
        (&["job", "start", "--id", "7", "--pid", "4194304"], "name one that runs as long as the job"),
        (&["check-config", "/nonexistent.toml"], "name a file that can be read"),
        (&["daemon", "--config", "/nonexistent.toml"], "name another, or none for the defaults"),
        (&["completions", "tcsh"], "possible values: bash, elvish, fish, powershell, zsh"),
        (&["run", "--grace", "soon", "--", "true"], "write a number with ms, s, m, h or d"),
        (
            &["run", "--report", "/nonexistent/r.json", "--", "true"],
            "name a file in a directory that is there",
        ),
        (&["run", "--", "no-such-program"], "is it installed, and in PATH?"),
        (&["run", "--", "/etc/passwd"], "is it a program, and may you run it?"),
    ];
    for (arguments, next) in cases {
        let (code, stdout, stderr) = run(alone().args(*arguments));
        assert!(stderr.contains(next), "{arguments:?}: {stderr}");
        let expected = match arguments.last() {
            Some(&"no-such-program") => 127,
            Some(&"/etc/passwd") => 126,
            _ => 2,
        };
        assert_eq!((code, stdout.as_str()), (expected, ""), "{arguments:?}: {stderr}");
    }
}

#[test]
fn every_mistake_of_a_configuration_says_what_would_be_right() {
    let directory = open_directory();
    let file = directory.path().join("config.toml");
    for (text, right) in [
        ("[watch]\ninterval = 3", "wants a string, got an integer"),
        ("[watch]\nevnts = 'auto'", "did you mean 'events'?"),
        ("[watch]\nevents = 'bpf'", "none of auto, ebpf, proc, poll"),
        ("[metrics]\nlisten = 'localhost'", "write an IP address, as in \"127.0.0.1:9817\""),
        ("[wach]\nnat = true", "did you mean 'watch'?"),
        ("[leak]\ngrace = 'soon'", "write a number with ms, s, m, h or d, as in \"30s\""),
        ("[control]\nmode = '9'", "write three or four octal digits, as in \"0666\""),
        ("[control]\nsocket = 'sniffer.sock'", "write one that begins with /"),
        ("[history]\nmax_size = '3x'", "write a number with KiB, MiB, GiB"),
        ("[[alerts.webhook]]\ntimeout = '1s'", "alerts.webhook.url: is missing"),
    ] {
        fs::write(&file, text).unwrap();
        let (code, _, stderr) = run(alone().arg("check-config").arg(&file));
        assert!(code == 2 && stderr.contains(right), "{text}: {stderr}");
    }
}

#[test]
#[ignore = "needs root"]
fn somebody_without_the_right_is_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let file = directory.path().join("history.db");
    fs::write(&file, "").unwrap();
    let open = open_directory();
    let program = open.path().join("sniffer");
    fs::copy(common::SNIFFER, &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(arguments);
        run(command.env("SNIFFER_SOCKET", "/nonexistent/sniffer.sock"))
    };
    let (code, _, stderr) = as_nobody(&["history", "8081", "--db", file.to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("read it as root or as a member of its group"), "{stderr}");
    let (_, text, _) = as_nobody(&["who-holds", "1"]);
    assert!(text.contains("run as root, with the capabilities that `sniffer doctor` lists"), "{text}");
    let config = open.path().join("config.toml");
    fs::write(&config, "control.socket = '/root/sniffer.sock'\nmetrics.listen = ''").unwrap();
    let (code, _, stderr) = as_nobody(&["daemon", "--config", config.to_str().unwrap()]);
    assert!(
        code == 2 && stderr.contains("run as root, make its directory, or set control.socket"),
        "{stderr}"
    );
}

/// What is typed in each shell, with a tab at its end, and what it becomes.
const TYPED: [(&str, &str); 4] = [
    ("sniffer who-h", "who-holds"),
    ("sniffer who-holds 8081 --netn", "who-holds 8081 --netns"),
    ("sniffer job st", "job start"),
    ("sniffer run --fail", "run --fail-on-leak"),
];

#[test]
fn bash_completes_verbs_and_options() {
    Shell::bash().completes(&TYPED);
}

#[test]
fn zsh_completes_verbs_and_options() {
    Shell::zsh().completes(&TYPED);
}

#[test]
fn fish_completes_verbs_and_options() {
    Shell::fish().completes(&TYPED);
}

/// The operators' documents and the README, by name.
fn documents() -> Vec<(String, String)> {
    let read = |path: std::path::PathBuf| (path.display().to_string(), fs::read_to_string(&path).unwrap());
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents: Vec<_> = fs::read_dir(source.join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([source.join("README.md")])
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .map(read)
        .collect();
    assert!(documents.len() >= 6, "{documents:?}");
    documents
}

/// What stands between backticks, and is a word.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| !word.contains([' ', '\n']))
}

#[test]
fn metrics_that_the_documents_name_are_exported() {
    let exported = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/serve/snapshots/sniffer__serve__metrics__tests__the_whole_exposition_reads_as_the_contract_says.snap"
    ));
    let exported = exported.unwrap();
    for (name, text) in documents() {
        for metric in quoted(&text).filter(|word| word.starts_with("sniffer_") && !word.ends_with(".deb")) {
            let metric = metric.split('{').next().unwrap();
            assert!(exported.contains(&format!("# TYPE {metric} ")), "{name} names {metric}");
        }
    }
}

#[test]
fn configuration_keys_that_the_documents_name_exist() {
    let sample = sniffer::config::SAMPLE;
    let tables = ["control", "metrics", "watch", "containers", "leak", "history", "agent", "privacy"];
    for (name, text) in documents() {
        for word in quoted(&text) {
            let Some((table, key)) = word.split_once('.').filter(|(table, _)| tables.contains(table)) else {
                continue;
            };
            let in_table =
                sample.split_once(&format!("\n[{table}]\n")).unwrap().1.split("\n[").next().unwrap();
            let is_key = |line: &str| line.trim_start_matches("# ").split(' ').next() == Some(key);
            assert!(in_table.lines().any(is_key), "{name} names {word}");
        }
    }
}

/// Lines of code blocks that run sniffer.
#[test]
fn commands_that_the_documents_show_have_a_verb() {
    let (_, help, _) = run(alone().arg("--help"));
    let mut shown = 0;
    for (name, text) in documents() {
        let blocks = text.split("```").skip(1).step_by(2);
        for command in blocks.flat_map(str::lines).filter_map(|line| line.trim().strip_prefix("sniffer ")) {
            let verb = command.split(' ').next().unwrap();
            assert!(help.contains(&format!("\n  {verb} ")), "{name}: sniffer {command}");
            shown += 1;
        }
    }
    assert!(shown > 5, "{shown} commands were found");
}
