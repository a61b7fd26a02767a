//! How holds end, and how they come back.

use std::fs;

use serde_json::{Value, json};

use super::{ended, holds};
use crate::common::cgroup::Small;
use crate::common::{Daemon, Tree, eventually, json as asked, ports_of_ones_own, program, run};

#[test]
#[ignore = "needs root"]
fn a_socket_that_is_closed_by_a_process_that_goes_on_was_closed() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    // Within a moment, and after some time: one is told with its bind, the other by itself.
    let _brief = Tree::holder(&[&format!("free:tcp:127.0.0.1:{port}")]);
    assert_eq!(
        (&ended(&daemon, port)["end"], &ended(&daemon, port)["exit"]),
        (&"closed".into(), &Value::Null)
    );
    let [port] = ports_of_ones_own();
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let actions =
        [&format!("bound:127.0.0.1:{port}"), "say", &format!("wait:{}", go.display()), "listen", "shutdown"];
    let mut tree = Tree::holder(&actions);
    fs::write(&go, "").unwrap();
    tree.hear();
    let kind = |wanted: &str| {
        eventually("its kind is seen", || holds(&daemon, port).pop().filter(|hold| hold["kind"] == wanted))
    };
    assert_eq!(kind("bound")["end"], Value::Null, "it is bound, and listens no more");
}

#[test]
#[ignore = "needs root"]
fn the_status_of_the_process_is_told_with_its_end() {
    let daemon = Daemon::start("");
    let [killed, failed, asked_to] = ports_of_ones_own();
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{killed}")]);
    tree.it().kill();
    let hold = ended(&daemon, killed);
    assert_eq!((&hold["end"], &hold["exit"]), (&"exit".into(), &json!({"code": null, "signal": 9})));
    // The errno of what it was refused is what it exits with: EADDRINUSE.
    let tried = format!("try:tcp:127.0.0.1:{failed}");
    drop(Tree::holder(&[&format!("tcp:127.0.0.1:{failed}"), "say", &tried, "exit"]));
    assert_eq!(ended(&daemon, failed)["exit"], json!({"code": 98, "signal": null}));
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{asked_to}")]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(tree.it().pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(ended(&daemon, asked_to)["exit"], json!({"code": null, "signal": 15}));
    let lost = eventually("the losses are counted", || {
        daemon.metric("sniffer_listeners_lost_total{end=\"exit\"}").filter(|lost| *lost >= 2.0)
    });
    assert!((lost - 2.0).abs() < 0.1, "{lost}: SIGTERM asks, and is no loss");
    let (_, text, _) = run(&mut daemon.ask(&["history", &killed.to_string()]));
    assert!(text.contains("killed by signal 9 (SIGKILL)"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn without_the_kernels_programs_the_ends_are_known_too() {
    let daemon = Daemon::start("watch.events = \"proc\"");
    let [killed, closed] = ports_of_ones_own();
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{killed}")]);
    eventually("it is seen", || holds(&daemon, killed).pop());
    tree.it().kill();
    let hold = ended(&daemon, killed);
    assert_eq!((&hold["end"], &hold["exit"]["signal"]), (&"exit".into(), &9.into()), "{hold:#}");
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let mut tree = Tree::holder(&[
        &format!("tcp:127.0.0.1:{closed}"),
        "say",
        &format!("wait:{}", go.display()),
        "shutdown",
    ]);
    eventually("it is seen", || holds(&daemon, closed).pop());
    fs::write(&go, "").unwrap();
    tree.hear();
    eventually("it is known to listen no more", || {
        holds(&daemon, closed).pop().filter(|hold| hold["kind"] == "bound" || hold["end"] == "closed")
    });
}

#[test]
#[ignore = "needs root"]
fn a_listener_that_the_oom_killer_took_says_so() {
    let daemon = Daemon::start("");
    let cgroup = Small::new("told");
    let [port] = ports_of_ones_own();
    let _tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}"), "say", &cgroup.eat()]);
    let hold = ended(&daemon, port);
    assert_eq!((&hold["end"], &hold["exit"]["signal"]), (&"oom_killed".into(), &9.into()), "{hold:#}");
    eventually("the loss is counted", || {
        daemon.metric("sniffer_listeners_lost_total{end=\"oom_killed\"}").filter(|lost| *lost >= 1.0)
    });
    // Nobody has it now, and whoever asks is told why.
    let (code, text, _) = run(&mut daemon.ask(&["who-holds", &port.to_string()]));
    assert!(code == 1 && text.contains("killed by the OOM killer"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn without_the_kernels_programs_the_control_groups_counters_tell() {
    let daemon = Daemon::start("watch.events = \"proc\"");
    let cgroup = Small::new("counted");
    let [port, other] = ports_of_ones_own();
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let wait = format!("wait:{}", go.display());
    // It is in the group before: whose memory is whose is read of a process that lives.
    let join = format!("put-into:{}", cgroup.path.display());
    let eater = Tree::holder(&[&join, &format!("tcp:127.0.0.1:{port}"), "say", &wait, &cgroup.eat()]);
    let bystander = Tree::holder(&[&format!("tcp:127.0.0.1:{other}")]);
    eventually("both are described", || {
        let described = |port| holds(&daemon, port).pop().filter(|hold| hold["holder"]["cgroup"].is_string());
        described(port).and(described(other))
    });
    // A look in between takes the counters before.
    let looks = || daemon.metric("sniffer_source_duration_seconds{source=\"sock_diag\"}");
    let before = looks();
    eventually("it was looked again", || (looks() != before).then_some(()));
    fs::write(&go, "").unwrap();
    let hold = eventually("it is known what ended it", || {
        holds(&daemon, port).pop().filter(|hold| hold["end"] == "oom_killed")
    });
    let name = cgroup.path.file_name().unwrap().to_str().unwrap();
    assert!(hold["cgroup"].as_str().unwrap().ends_with(name), "{hold:#}");
    bystander.it().kill();
    assert_eq!(ended(&daemon, other)["end"], "exit", "another was killed by somebody else");
    drop(eater);
}

#[test]
#[ignore = "needs root"]
fn a_listener_that_comes_back_is_linked_to_the_one_before_and_counted() {
    let daemon = Daemon::start("");
    let directory = tempfile::tempdir().unwrap();
    let [port] = ports_of_ones_own();
    let listen = format!("tcp:127.0.0.1:{port}");
    for _ in 0..3 {
        let tree = Tree::holder(&["with:reuseaddr", &listen]);
        tree.it().kill();
        drop(tree);
    }
    let _back = Tree::holder(&["with:reuseaddr", &listen]);
    let all =
        eventually("all are remembered", || Some(holds(&daemon, port)).filter(|holds| holds.len() == 4));
    let comeback = |hold: &Value| hold["comeback"].clone();
    assert_eq!(comeback(&all[0]), Value::Null);
    for (number, pair) in all.windows(2).enumerate() {
        let back = comeback(&pair[1]);
        assert_eq!((&back["hold"], &back["times"]), (&pair[0]["id"], &(number + 1).into()), "{back:#}");
        assert_eq!((&back["end"], &back["exit"]["signal"]), (&"exit".into(), &9.into()));
        assert_eq!(back["since"], all[0]["until"]);
    }
    let claim = daemon.who_holds(port)["claims"][0].clone();
    assert_eq!(claim["comeback"]["times"], 3, "{claim:#}");
    let (_, text, _) = run(&mut daemon.ask(&["who-holds", &port.to_string()]));
    assert!(text.contains("that was the 3rd time in"), "{text}");
    // Another program on the port is no comeback of the first.
    drop(_back);
    let other = program_at(&directory, &listen);
    let last = eventually("it is remembered", || {
        let (_, document) = asked(&mut daemon.ask(&["history", &port.to_string()]));
        document["holds"].as_array()?.iter().find(|hold| hold["holder"]["comm"] == "another").cloned()
    });
    assert_eq!(comeback(&last), Value::Null);
    drop(other);
}

fn program_at(directory: &tempfile::TempDir, listen: &str) -> Tree {
    let mut command = std::process::Command::new(program(directory, "another"));
    Tree::start(command.args(["it", "with:reuseaddr", listen]), &["it"])
}
