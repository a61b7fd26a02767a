//! The evidence of a job.

use std::fs;

use serde_json::Value;

use super::{database, ended};
use crate::common::{Daemon, Tree, alone, eventually, json, listener, ports_of_ones_own, run};

/// A job that held a port, was refused one, lost one, and left one. With the ports, in this order.
fn eventful(daemon: &Daemon, id: &str) -> ([u16; 4], Tree) {
    let [held, refused, lost] = ports_of_ones_own();
    daemon.job("start", id);
    let variable = format!("SNIFFER_JOB_ID={id}");
    let of_job = |actions: &[&str]| {
        let mut command = std::process::Command::new(crate::common::holder());
        Tree::start(command.env("SNIFFER_JOB_ID", id).arg("it").args(actions), &["it"])
    };
    drop(of_job(&[&format!("tcp:127.0.0.1:{held}")]));
    let _other = Tree::holder(&[&format!("tcp:127.0.0.1:{refused}")]);
    drop(of_job(&[&format!("try:tcp:127.0.0.1:{refused}")]));
    let crashed = of_job(&[&format!("tcp:127.0.0.1:{lost}")]);
    crashed.it().kill();
    ended(daemon, lost);
    let left = listener(&[&format!("env:{variable}")]);
    let leaked = left.get("server").port();
    daemon.job("end", id);
    eventually("it has leaked", || (daemon.verdict(leaked).0 == "leaked").then_some(()));
    ([held, refused, lost, leaked], left)
}

#[test]
#[ignore = "needs root"]
fn the_evidence_of_a_job_names_everything_that_happened_to_it() {
    let daemon = Daemon::start("");
    let ([held, refused, lost, leaked], _left) = eventful(&daemon, "eventful");
    let report = eventually("everything is told", || {
        let (code, document) = json(&mut daemon.ask(&["report", "--job", "eventful"]));
        let told = |list: &str| document[list].as_array().is_some_and(|list| !list.is_empty());
        (code == 0 && told("leaks") && told("conflicts")).then_some(document)
    });
    let ports = |list: &str| {
        let mut ports: Vec<u64> =
            report[list].as_array().unwrap().iter().map(|it| it["port"].as_u64().unwrap()).collect();
        ports.sort_unstable();
        ports
    };
    let sorted = |list: &[u16]| {
        let mut ports: Vec<u64> = list.iter().map(|port| u64::from(*port)).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports("holds"), sorted(&[held, lost, leaked]), "{report:#}");
    assert_eq!((ports("leaks"), ports("lost")), (sorted(&[leaked]), sorted(&[lost])));
    assert_eq!(ports("conflicts"), sorted(&[refused]));
    let conflict = &report["conflicts"][0];
    assert_eq!(
        (&conflict["loser"]["job"]["id"], &conflict["cause"]),
        (&"eventful".into(), &"host_service".into())
    );
    assert_eq!((&report["job"]["state"], &report["incomplete"]), (&"ended".into(), &Value::Array(vec![])));

    let (code, text, _) = run(&mut daemon.ask(&["report", "--job", "eventful"]));
    assert_eq!(code, 0);
    for words in [
        &format!("it was refused once ({refused}/tcp)"),
        &format!("It left listeners behind when it ended: {leaked}/tcp; one is still there."),
        &format!("{lost}/tcp."),
        "killed by signal 9 (SIGKILL)",
        "== Port conflicts",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let file = daemon.directory.path().join("ports.html");
    let (code, stdout, _) =
        run(daemon.ask(&["report", "--job", "eventful", "--ci", "custom", "-o"]).arg(&file));
    assert_eq!((code, stdout.as_str()), (0, ""));
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains(&format!("127.0.0.1:{leaked}")), "{page}");
    for never in ["<script", "src=", "href=", "url("] {
        assert!(!page.contains(never), "{never}: it needs nothing else");
    }
}

#[test]
#[ignore = "needs root"]
fn that_nothing_happened_is_said_where_it_is_the_truth() {
    let daemon = Daemon::start("");
    daemon.job("start", "calm");
    let (_, text, _) = run(&mut daemon.ask(&["report", "--job", "calm"]));
    assert!(text.contains("No port conflict was seen in this job so far."), "{text}");
    daemon.job("end", "calm");
    let text = eventually("it has ended", || {
        let (_, text, _) = run(&mut daemon.ask(&["report", "--job", "calm"]));
        text.contains("No port conflict was seen in this job.").then_some(text)
    });
    assert!(text.contains("No port was seen to be held by it."), "{text}");
    // A blind agent does not say it.
    let blind = Daemon::start("watch.events = \"poll\"");
    blind.job("start", "unseen");
    let (_, text, _) = run(&mut blind.ask(&["report", "--job", "unseen"]));
    assert!(text.contains("as far as could be seen") && text.contains("failed binds are not seen"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn without_the_daemon_the_file_gives_the_same_evidence() {
    let mut daemon = Daemon::start("");
    let (_, left) = eventful(&daemon, "gone");
    eventually("everything is told", || {
        let (_, document) = json(&mut daemon.ask(&["report", "--job", "gone"]));
        let told = |list: &str| document[list].as_array().is_some_and(|list| !list.is_empty());
        (told("leaks") && told("conflicts") && told("lost")).then_some(())
    });
    let (_, mut with) = json(&mut daemon.ask(&["report", "--job", "gone"]));
    daemon.signal(rustix::process::Signal::TERM);
    daemon.child.wait().unwrap();
    let (code, mut without) = json(alone().args(["report", "--job", "gone", "--db"]).arg(database(&daemon)));
    assert_eq!(code, 0);
    for document in [&mut with, &mut without] {
        document["as_of"] = Value::Null;
    }
    assert_eq!(with, without);
    drop(left);
    let (code, _, stderr) = run(alone().args(["report", "--job", "gone", "--db", "/nonexistent/history.db"]));
    assert!(code == 2 && stderr.contains("there is no history at"), "{stderr}");
}
