//! Many binds at once: what repeats is one entry, nothing is lost, and what is lost all the same is said and made up for.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{LOST, all_alone, allowed, assert_not_told, conflicts, get, of_port, only_conflict, settle};
use crate::common::{Daemon, Tree, eventually, one_runner_on_this_host};

#[test]
#[ignore = "needs root"]
fn ten_thousand_refusals_in_a_loop_are_one_entry_and_bounded_memory() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let retry = format!("retry:10000:tcp:127.0.0.1:{port}");
    let rss = || daemon.metric("process_resident_memory_bytes ").unwrap();
    let before = rss();
    let loser = Tree::holder(&[&retry]);
    assert_eq!(loser.it().said("refused-times"), [10_000]);
    let conflict = only_conflict(&daemon, port);
    assert_eq!((&conflict["attempts"], &conflict["loser"]["pid"]), (&10_000.into(), &loser.it().pid.into()));
    assert!(conflict["last_at"].as_str().unwrap() > conflict["at"].as_str().unwrap());
    let series = "sniffer_bind_conflicts_total{cause=\"host_service\",protocol=\"tcp\"}";
    eventually("all are counted", || (daemon.metric(series) >= Some(10_000.0)).then_some(()));
    assert_eq!(daemon.metric(series), Some(10_000.0), "the markers are of another cause");
    let logged = || daemon.log().lines().filter(|line| line.contains(&format!(" port={port} "))).count();
    eventually("it is logged", || (logged() > 0).then_some(()));
    assert_eq!(logged(), 1);
    // The events' ring takes 4 MiB when it has been filled once.
    let grown = (rss() - before) / 1024.0 / 1024.0;
    // The tables of binds and askers fill up to their bounds meanwhile.
    assert!(grown < 16.0, "{grown} MiB");
    assert_eq!(daemon.metric(LOST), Some(0.0));
}

/// As many as find room together, where the agent was built to be debugged and is slow.
const AT_FULL_SPEED: usize = if cfg!(debug_assertions) { 12_000 } else { 50_000 };

#[test]
#[ignore = "needs root"]
fn of_two_processes_that_bind_at_full_speed_nothing_is_lost() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let churn = format!("churn:{AT_FULL_SPEED}:tcp:127.0.0.1:0");
    let trees: Vec<Tree> = std::thread::scope(|scope| {
        let start = || Tree::holder(&[&churn]);
        let both = [scope.spawn(start), scope.spawn(start)];
        both.into_iter().map(|tree| tree.join().unwrap()).collect()
    });
    for tree in &trees {
        assert_eq!(tree.it().said("bound"), [AT_FULL_SPEED as i128]);
        assert_not_told(&daemon, tree.it());
    }
    assert_eq!(daemon.metric(LOST), Some(0.0));
    assert!(daemon.metric("sniffer_events_total{source=\"ebpf\"}") > Some(2.0 * AT_FULL_SPEED as f64));
}

#[test]
#[ignore = "needs root"]
fn after_more_events_than_find_room_the_loss_is_said_and_the_table_is_the_kernels() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let early = Tree::holder(&["tcp:127.0.0.1:0"]);
    let told = |port: u16| !daemon.who_holds(port)["claims"].as_array().unwrap().is_empty();
    assert!(told(early.it().port()));
    daemon.signal(Signal::STOP);
    // Eight are 584 bytes, of 2 MiB.
    let mut actions = vec!["tcp:127.0.0.1:0"; 10];
    actions.push("retry:40000:udp:127.0.0.1:0");
    actions.extend(vec!["tcp:127.0.0.1:0"; 10]);
    actions.push("udp:127.0.0.1:0");
    let made = Tree::holder(&actions);
    drop(early);
    daemon.signal(Signal::CONT);
    let began = Instant::now();
    eventually("the loss is counted", || (daemon.metric(LOST) > Some(0.0)).then_some(()));
    let mut expected: Vec<u64> = made.it().ports.iter().map(|port| u64::from(*port)).collect();
    expected.sort_unstable();
    let listeners = || -> Vec<Value> {
        let reply = get(&daemon, "/v1/list");
        let document: Value = serde_json::from_str(reply.split_once("\r\n\r\n").unwrap().1).unwrap();
        let mut claims = document["claims"].as_array().unwrap().clone();
        claims.retain(|claim| claim["kind"] == "listener");
        claims
    };
    let listed = eventually("the list is right", || {
        let listed = listeners();
        let ours = listed.iter().filter(|claim| claim["holders"][0]["pid"] == made.it().pid);
        let mut ports: Vec<u64> = ours.map(|claim| claim["port"].as_u64().unwrap()).collect();
        ports.sort_unstable();
        (ports == expected).then_some(listed)
    });
    assert!(began.elapsed() < allowed(Duration::from_secs(3)), "the list: {:?}", began.elapsed());
    // What is counted comes from the table, not from a look of its own.
    for protocol in ["tcp", "udp"] {
        let series = format!("sniffer_held_ports{{kind=\"listener\",protocol=\"{protocol}\"}}");
        let there = listed.iter().filter(|claim| claim["protocol"] == protocol).count() as f64;
        eventually("the table is right", || (daemon.metric(&series) == Some(there)).then_some(()));
    }
    assert!(began.elapsed() < allowed(Duration::from_secs(3)), "the table: {:?}", began.elapsed());
    let ready = daemon.get("/readyz").unwrap();
    assert_eq!(ready.0, 200, "{ready:?}");
}

#[test]
#[ignore = "needs root"]
fn refusals_are_told_again_after_a_storm_that_was_too_much() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    daemon.signal(Signal::STOP);
    let _storm = Tree::holder(&["retry:40000:udp:127.0.0.1:0"]);
    daemon.signal(Signal::CONT);
    eventually("the loss is counted", || (daemon.metric(LOST) > Some(0.0)).then_some(()));
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    drop(Tree::holder(&[&format!("try:tcp:127.0.0.1:{}", blocker.it().port())]));
    let conflict = only_conflict(&daemon, blocker.it().port());
    assert_eq!(super::blockers(&conflict), [blocker.it().pid]);
    settle(&daemon);
    let lost = daemon.metric(LOST);
    settle(&daemon);
    assert_eq!(daemon.metric(LOST), lost, "no more is lost");
}

#[test]
#[ignore = "needs root"]
fn a_refused_socket_that_stays_open_is_told_after_a_storm_too() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    {
        // More threads than processors: one is interrupted in the middle of a bind by another that binds.
        let _busy = Tree::holder(&["busy:2"]);
        let churn = || Tree::holder(&["threads:4", "churn:10000:tcp:127.0.0.1:0"]);
        std::thread::scope(|scope| {
            for thread in [scope.spawn(churn), scope.spawn(churn)] {
                thread.join().unwrap();
            }
        });
    }
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    for number in 0..5 {
        // Nothing else is bound meanwhile: questions are asked on a Unix socket.
        let loser = Tree::holder(&[&format!("try-keep:tcp:127.0.0.1:{port}")]);
        let began = Instant::now();
        eventually("it is told", || {
            let told = of_port(&daemon, port);
            let attempts: u64 = told.iter().map(|told| told["attempts"].as_u64().unwrap()).sum();
            (attempts == number + 1).then_some(())
        });
        assert!(began.elapsed() < allowed(Duration::from_secs(3)), "{number}: {:?}", began.elapsed());
        drop(loser);
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_remembered_of_many_conflicts_is_bounded() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    // Each port is a conflict of its own.
    let many = || {
        let it = Tree::holder(&["twins:2500:udp:127.0.0.1:0"]);
        assert_eq!(it.it().said("refused").len(), 2500);
        let last = *it.it().ports.last().unwrap();
        eventually("the last is told", || {
            conflicts(&daemon).iter().any(|told| told["port"] == last).then_some(())
        });
        settle(&daemon);
        let told = conflicts(&daemon);
        assert!((1500..=2000).contains(&told.len()), "{}", told.len());
        daemon.metric("process_resident_memory_bytes ").unwrap() / 1024.0 / 1024.0
    };
    let counted = || -> Vec<String> {
        let (_, text) = daemon.get("/metrics").unwrap();
        let of = text.lines().filter_map(|line| line.strip_prefix("sniffer_bind_conflicts_total"));
        of.filter(|line| line.contains("udp") && !line.ends_with(" 0")).map(str::to_owned).collect()
    };
    many();
    assert_eq!(counted(), ["{cause=\"same_process\",protocol=\"udp\"} 2500"]);
    // The tables of binds and askers fill up to their bounds too, and the allocator comes to keep what the largest answers need: after
    // five rounds nothing grows any more (sixteen were measured).
    let full = (0..4).map(|_| many()).fold(0.0, f64::max);
    let grown = many().min(many()) - full;
    assert_eq!(counted(), ["{cause=\"same_process\",protocol=\"udp\"} 17500"]);
    assert!(grown < 8.0, "{grown} MiB");
}
