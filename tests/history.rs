//! What the agent remembers, of real processes: who held a port when, how that ended, and what becomes of the file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

#[path = "history/ends.rs"]
mod ends;
#[path = "history/files.rs"]
mod files;
#[path = "history/report.rs"]
mod report;
#[path = "history/watch.rs"]
mod watch;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{Daemon, NamedNetns, Tree, alone, eventually, holder, ip, json, ports_of_ones_own, run};
use jiff::Timestamp;
use serde_json::Value;
use sniffer::kernel::clock;

fn database(daemon: &Daemon) -> PathBuf {
    daemon.directory.path().join("history.db")
}

/// The holds of a port that are remembered.
#[track_caller]
fn holds(daemon: &Daemon, port: u16) -> Vec<Value> {
    let (_, document) = json(&mut daemon.ask(&["history", &port.to_string()]));
    document["holds"].as_array().unwrap_or_else(|| panic!("{document:#}")).clone()
}

/// The only hold of a port, once it has ended.
#[track_caller]
fn ended(daemon: &Daemon, port: u16) -> Value {
    eventually("the hold has ended", || {
        let mut holds = holds(daemon, port);
        assert!(holds.len() <= 1, "{holds:#?}");
        holds.pop().filter(|hold| !hold["end"].is_null())
    })
}

/// What is answered, once there is an answer.
fn answered(command: &mut Command) -> Option<Value> {
    let (code, text, _) = run(command.arg("--json"));
    (code != 2).then(|| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn moment(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("{value} is no moment")).parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_hold_is_remembered_with_who_when_and_how_it_ended() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    let before = clock::now();
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    let (pid, address) = (tree.it().pid, format!("127.0.0.1:{port}"));
    let open = holds(&daemon, port).pop().expect("it is remembered at once");
    assert_eq!(
        (&open["until"], &open["end"], &open["holder"]["pid"]),
        (&Value::Null, &Value::Null, &pid.into())
    );
    drop(tree);
    let after = clock::now();
    let hold = ended(&daemon, port);
    // It closes what it has before it ends.
    assert_eq!(
        (&hold["id"], &hold["end"], &hold["exit"]),
        (&open["id"], &"closed".into(), &Value::Null),
        "{hold:#}"
    );
    assert_eq!(
        (&hold["kind"], &hold["protocol"], &hold["port"]),
        (&"listener".into(), &"tcp".into(), &port.into())
    );
    assert_eq!(
        (&hold["netns"]["name"], &hold["job"], &hold["nat"]),
        (&"host".into(), &Value::Null, &Value::Null)
    );
    assert_eq!(hold["holder"]["comm"], "holder");
    // The kernel stamps binds to the tick of its clock.
    let tick = Duration::from_millis(20);
    let (from, until) = (moment(&hold["from"]), moment(&hold["until"]));
    assert!(before - tick <= from && from <= until && until <= after + tick, "{before} {hold:#} {after}");

    let (code, text, _) = run(&mut daemon.ask(&["history", &address]));
    assert_eq!(code, 0);
    for words in [&format!("tcp {address}  listening"), &format!("holder (pid {pid})"), "it was closed"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let middle =
        (from + Duration::from_micros(until.duration_since(from).as_micros() as u64 / 2)).to_string();
    let asked = |arguments: &[&str]| {
        let (code, document) = json(daemon.ask(&["history"]).args(arguments));
        (code, document["holds"].as_array().unwrap().len())
    };
    let this = port.to_string();
    assert_eq!(asked(&[&this, "--at", &middle]), (0, 1));
    assert_eq!(asked(&[&this, "--at", &(from - Duration::from_secs(1)).to_string()]), (1, 0));
    assert_eq!(asked(&[&this, "--at", &(until + Duration::from_secs(1)).to_string()]), (1, 0));
    assert_eq!(asked(&[&this, "--since", "1m"]), (0, 1));
    assert_eq!(asked(&[&this, "--since", &(until + Duration::from_secs(1)).to_string()]), (1, 0));
    assert_eq!(asked(&[&format!("{}-{}", port - 1, port + 1), "--at", &middle]), (0, 1));
    assert_eq!(asked(&["1-65535", "--at", &middle, "--netns", "host"]).0, 0);
    assert_eq!(asked(&[&format!("{this}/udp")]), (1, 0));
    assert_eq!(asked(&[&this, "--netns", "no-such"]), (1, 0));
    assert_eq!(asked(&[&format!("127.0.0.2:{port}")]), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn a_question_that_means_nothing_is_refused_in_one_line() {
    let daemon = Daemon::start("");
    for arguments in [
        &["history", "99999"][..],
        &["history", "8081", "--at", "yesterday"],
        &["history", "8081", "--since=-3"],
        &["history", "8081", "--netns", "../x"],
        &["history", "8081", "--netns", "PID:4194304"],
        &["report", "--job", "no-such-job"],
    ] {
        let (code, stdout, stderr) = run(&mut daemon.ask(arguments));
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{arguments:?}: {stderr}");
    }
    for path in ["/v1/timeline?since=x", "/page/no-such.js", "/v1/report?id=none"] {
        let (status, body) = daemon.get(path).unwrap();
        assert!(matches!(status, 400 | 404) && body.contains("\"error\""), "{path}: {status} {body}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_hold_is_of_its_job_and_test() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    daemon.job("start", "of-history");
    let mut command = daemon.ask(&["run", "--name", "TestGateway", "--"]);
    command.arg(holder()).args(["it", &format!("tcp:127.0.0.1:{port}"), "leave"]);
    command.env("SNIFFER_JOB_ID", "of-history");
    let (code, ..) = run(&mut command);
    assert_eq!(code, 0);
    let hold = ended(&daemon, port);
    assert_eq!(
        (&hold["job"]["ci"], &hold["job"]["id"]),
        (&"custom".into(), &"of-history".into()),
        "{hold:#}"
    );
    assert_eq!(hold["test"]["name"], "TestGateway");
}

#[test]
#[ignore = "needs root"]
fn a_port_of_another_namespace_is_remembered_as_there() {
    let daemon = Daemon::start("");
    let netns = NamedNetns::new("history");
    ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
    let mut command = netns.command(holder().to_str().unwrap());
    let tree = Tree::start(command.args(["it", "udp:127.0.0.1:0"]), &["it"]);
    let port = tree.it().port();
    drop(tree);
    let hold = eventually("it is remembered", || {
        let (_, document) = json(&mut daemon.ask(&["history", &format!("{port}/udp"), "--netns", &netns.0]));
        document["holds"].as_array()?.first().filter(|hold| !hold["end"].is_null()).cloned()
    });
    // It was over before anybody looked there: then the name is not known, but which one it was.
    let told = (&hold["netns"]["inode"], &hold["kind"]);
    assert_eq!(told, (&netns.inode().into(), &"listener".into()), "{hold:#}");
}

#[test]
#[ignore = "needs root, nft"]
fn a_rule_holds_a_port_from_when_it_was_made_to_when_it_was_removed() {
    let daemon = Daemon::start("");
    let netns = NamedNetns::new("history-nat");
    let nft = |words: &[&str]| assert!(netns.command("nft").args(words).status().unwrap().success());
    nft(&["add", "table", "ip", "t"]);
    nft(&["add", "chain", "ip", "t", "c", "{ type nat hook prerouting priority -100 ; }"]);
    let to = |address: &str| format!("dnat to {address}");
    nft(&["add", "rule", "ip", "t", "c", "tcp", "dport", "30445", &to("10.1.0.1:80"), "comment", "gateway"]);
    let rules = |count: usize| {
        eventually("the rules are remembered", || {
            let (_, document) = json(&mut daemon.ask(&["history", "30445", "--netns", &netns.0]));
            document["holds"].as_array().filter(|holds| holds.len() == count).cloned()
        })
    };
    rules(1);
    nft(&["flush", "chain", "ip", "t", "c"]);
    nft(&["add", "rule", "ip", "t", "c", "tcp", "dport", "30445", &to("10.1.0.2:80"), "comment", "other"]);
    let both = rules(2);
    let told = |hold: &Value| (hold["nat"]["to_address"].clone(), hold["nat"]["comment"].clone());
    assert_eq!(told(&both[0]), ("10.1.0.1".into(), "gateway".into()), "{both:#?}");
    assert_eq!(told(&both[1]), ("10.1.0.2".into(), "other".into()));
    assert_eq!((&both[0]["end"], &both[1]["end"]), (&"closed".into(), &Value::Null));
    assert_eq!((&both[0]["kind"], &both[0]["holder"]), (&"nat_rule".into(), &Value::Null));
    let (_, text, _) = run(&mut daemon.ask(&["history", "30445"]));
    assert!(text.contains("nftables chain c") && text.contains("10.1.0.1:80"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn refusals_are_remembered_across_a_restart_with_their_count() {
    let mut daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    let _blocker = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    let _loser = Tree::holder(&[&format!("retry:7:tcp:127.0.0.1:{port}")]);
    let of_port = |daemon: &Daemon| {
        let (_, document) = json(&mut daemon.ask(&["conflicts"]));
        let all = document["conflicts"].as_array().unwrap().clone();
        all.into_iter().filter(|conflict| conflict["port"] == port).collect::<Vec<_>>()
    };
    let all_told = |daemon: &Daemon| {
        eventually("every attempt is told", || {
            of_port(daemon).pop().filter(|conflict| conflict["attempts"] == 7)
        })
    };
    let before = all_told(&daemon);
    daemon.crash_and_restart();
    let after = all_told(&daemon);
    assert_eq!(before, after);
    assert_eq!(of_port(&daemon).len(), 1);
    // Without the daemon the file tells the same.
    let file = database(&daemon);
    let (code, document) = json(alone().args(["conflicts", "--db"]).arg(&file));
    let told = document["conflicts"].as_array().unwrap().iter().find(|conflict| conflict["port"] == port);
    assert_eq!((code, told), (0, Some(&before)));
}

#[test]
#[ignore = "needs root"]
fn a_loop_that_binds_and_closes_does_not_fill_the_history() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    drop(Tree::holder(&["with:reuseaddr", &format!("churn:5000:tcp:127.0.0.1:{port}")]));
    let left_out = eventually("the rest is counted", || {
        daemon.metric("sniffer_history_left_out_total").filter(|left_out| *left_out > 3000.0)
    });
    let (_, document) = json(&mut daemon.ask(&["history", &port.to_string(), "--limit", "9999"]));
    let remembered = document["holds"].as_array().unwrap().len();
    assert!((100..2000).contains(&remembered), "{remembered} are remembered, {left_out} are not");
}

#[test]
#[ignore = "needs root"]
fn on_an_address_that_others_reach_the_page_is_served_only_where_that_is_wanted() {
    let status = |more: &str| {
        let mut daemon = Daemon::start("");
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let config = daemon.directory.path().join("config.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let port = daemon.metrics.rsplit_once(':').unwrap().1;
        let open = format!("metrics.listen = \"0.0.0.0:{port}\"\n{more}");
        let closed = format!("metrics.listen = \"{}\"", daemon.metrics);
        std::fs::write(&config, text.replace(&closed, &open)).unwrap();
        daemon.crash_and_restart();
        let of = |path: &str| daemon.get(path).unwrap().0;
        (of("/metrics"), of("/"), of("/v1/timeline"))
    };
    assert_eq!(status(""), (200, 404, 404));
    assert_eq!(status("metrics.page = true"), (200, 200, 200));
}

/// Everything that a `sqlite3` without us would read.
#[test]
#[ignore = "needs root"]
fn the_file_can_be_read_by_others() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    drop(Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]));
    ended(&daemon, port);
    let script = format!(
        "import sqlite3; print(sqlite3.connect('file:{}?mode=ro', uri=True).execute('SELECT port, ending, program FROM holds WHERE port = {port}').fetchone())",
        database(&daemon).display()
    );
    let (code, text, stderr) = run(Command::new("python3").args(["-c", &script]));
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("'closed'") && text.contains("holder"), "{text}");
}
