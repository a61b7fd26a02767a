//! Ports that several jobs share without a word, and who bound what when.

use super::refusals::assert_between;
use super::{github, watcher};
use crate::common::{
    Tree, claims, eventually, holder, one_runner_on_this_host, open_directory, program, run,
};
use std::process::Command;
use tempfile::TempDir;

const SHARED: &str = "sniffer_shared_listeners ";

fn server_of(programs: &TempDir, id: &str, listen: &str) -> Tree {
    let server = program(programs, "server");
    let mut command = github(programs, id, &["--", &server, "server", "with:reuseport", listen]);
    Tree::start(&mut command, &["worker", "step", "server"])
}

#[test]
#[ignore = "needs root"]
fn a_port_that_two_jobs_share_by_reuseport_is_counted_logged_and_said() {
    let daemon = watcher();
    let _alone = one_runner_on_this_host();
    let programs = open_directory();
    assert_eq!(daemon.metric(SHARED), Some(0.0));
    // Two of one job share on purpose.
    let twin = server_of(&programs, "github_a", "tcp:127.0.0.1:0");
    let twins_port = twin.get("server").port();
    let bash = program(&programs, "bash");
    let listen = format!("tcp:127.0.0.1:{twins_port}");
    let mut command = Command::new(&bash);
    command.args(["twin", "with:reuseport", &listen]).env("RUNNER_TRACKING_ID", "github_a");
    let other_twin = Tree::start(&mut command, &["twin"]);

    let one = server_of(&programs, "github_a", "tcp:127.0.0.1:0");
    let port = one.get("server").port();
    let two = server_of(&programs, "github_b", &format!("tcp:127.0.0.1:{port}"));
    eventually("it is counted", || (daemon.metric(SHARED) == Some(1.0)).then_some(()));
    let said = |event: &str, port: u16| {
        let (event, port) = (format!("event=\"{event}\""), format!(" port={port} "));
        daemon.log().lines().any(|line| line.contains(&event) && line.contains(&port))
    };
    eventually("it is logged", || said("shared", port).then_some(()));
    let document = daemon.who_holds(twins_port);
    assert_eq!(claims(&document, "kind", "listener").len(), 2, "{document:#}");
    assert!(!said("shared", twins_port) && daemon.metric(SHARED) == Some(1.0), "twins of one job are none");
    for claim in claims(&document, "kind", "listener") {
        assert_eq!(claim["job"]["id"], "github_a", "both are known to be of one job");
    }
    let text = run(&mut daemon.ask(&["who-holds", &port.to_string()])).1;
    let own = run(&mut daemon.ask(&["who-holds", &twins_port.to_string()])).1;
    let says = |text: &str| text.contains("shared by 2 jobs");
    two.get("server").kill();
    eventually("it is over", || (daemon.metric(SHARED) == Some(0.0)).then_some(()));
    eventually("that is logged", || said("shared_resolved", port).then_some(()));
    assert!(says(&text), "who-holds says that two jobs share it: {text}");
    assert!(!says(&own), "{own}");
    drop(other_twin);
}

#[test]
#[ignore = "needs root"]
fn who_bound_a_socket_and_when_is_known_to_the_millisecond() {
    let daemon = watcher();
    for bind in ["tcp:127.0.0.1:0", "udp:[::1]:0"] {
        let it = Tree::holder(&["clock", bind, "clock"]);
        let claim = daemon.who_holds(it.it().port())["claims"][0].clone();
        let binder = &claim["binder"];
        assert_eq!((&binder["pid"], &binder["alive"]), (&it.it().pid.into(), &true.into()), "{claim:#}");
        assert_eq!(binder["comm"], "holder");
        assert_eq!(binder["start_time"], claim["holders"][0]["start_time"]);
        let [before, after] = it.it().said("at")[..] else { panic!("{:?}", it.it()) };
        assert_between(&claim["since"], before, after);
    }
}

#[test]
#[ignore = "needs root"]
fn a_binder_that_has_gone_is_told_beside_its_heir() {
    let daemon = watcher();
    let mut command = Command::new(holder());
    command.args(["parent", "clock", "tcp-inherit:127.0.0.1:0", "clock", "--"]).arg(holder()).arg("child");
    let tree = Tree::start(&mut command, &["parent", "child"]);
    let parent = tree.get("parent").clone();
    parent.kill();
    eventually("the parent is gone", || (!parent.is_alive()).then_some(()));
    let claim = daemon.who_holds(parent.port())["claims"][0].clone();
    assert_eq!(claim["holders"][0]["pid"], tree.get("child").pid);
    let binder = &claim["binder"];
    assert_eq!((&binder["pid"], &binder["alive"]), (&parent.pid.into(), &false.into()), "{claim:#}");
    let [before, after] = parent.said("at")[..] else { panic!("{parent:?}") };
    assert_between(&claim["since"], before, after);
}

#[test]
#[ignore = "needs root"]
fn what_was_bound_before_the_agent_started_has_no_binder() {
    let _turn = super::beside_others();
    let it = Tree::holder(&["tcp:127.0.0.1:0"]);
    let daemon = crate::common::Daemon::start("");
    let claim = daemon.who_holds(it.it().port())["claims"][0].clone();
    assert_eq!((claim["binder"].is_null(), claim["since"].is_null()), (true, true), "{claim:#}");
}
