//! A bind that succeeded is never told as refused, however hard that is to see.

use std::process::Command;

use super::{all_alone, assert_not_told, conflicts, of_port, only_conflict, settle, told_of, watcher};
use crate::common::{Daemon, Held, Tree, eventually, holder, one_runner_on_this_host};

fn at_once(actions: &[&[&str]]) -> Vec<Tree> {
    std::thread::scope(|scope| {
        let started: Vec<_> = actions.iter().map(|actions| scope.spawn(|| Tree::holder(actions))).collect();
        started.into_iter().map(|tree| tree.join().unwrap()).collect()
    })
}

#[test]
#[ignore = "needs root"]
fn loops_that_bind_and_close_on_a_busy_host_are_not_told() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let _busy = Tree::holder(&["busy:4"]);
    // Ports that the kernel never chooses: one that it gave to another loop would be refused here, and rightly.
    let [fixed, wildcard, udp] = crate::common::ports_of_ones_own();
    let reuse = format!("churn:1000:tcp:127.0.0.1:{fixed}");
    let (wildcard, udp) =
        (format!("retry:1000:tcp:0.0.0.0:{wildcard}"), format!("retry:1000:udp:[::1]:{udp}"));
    let trees = at_once(&[
        &["threads:4", "churn:500:tcp:127.0.0.1:0"],
        &["threads:2", "churn:500:tcp:[::]:0"],
        &["with:reuseaddr", &reuse],
        // Of a port that the kernel chooses no refusal is told, so a false one would not show.
        &["with:reuseaddr", &wildcard],
        &["with:reuseaddr", &udp],
    ]);
    let refusals: i128 = trees.iter().flat_map(|tree| tree.it().said("refused-times")).sum();
    assert_eq!(refusals, 0, "the kernel refused none");
    for tree in &trees {
        assert_not_told(&daemon, tree.it());
    }
    assert_eq!(daemon.metric("sniffer_events_lost_total{source=\"ebpf\"}"), Some(0.0));
}

#[test]
#[ignore = "needs root"]
fn of_binds_that_race_for_one_port_exactly_the_refused_ones_are_told() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let _busy = Tree::holder(&["busy:2"]);
    let port = crate::common::free_port();
    let race = format!("retry:500:udp:127.0.0.1:{port}");
    let said = |trees: &[Tree], what| trees.iter().map(|tree| tree.it().said(what)[0]).sum::<i128>();
    let (mut bound, mut all) = (0, 0);
    // On a host that is busy otherwise threads may never meet in one round.
    for _ in 0..20 {
        let trees = at_once(&[&["threads:3", &race], &["threads:3", &race], &["threads:3", &race]]);
        (bound, all) = (bound + said(&trees, "bound"), all + said(&trees, "refused-times"));
        if all > 0 {
            break;
        }
    }
    assert!(bound > 0 && all > 0, "some are bound and some refused: {bound} {all}");
    settle(&daemon);
    let told: u64 = of_port(&daemon, port).iter().map(|told| told["attempts"].as_u64().unwrap()).sum();
    assert_eq!(i128::from(told), all);
}

#[test]
#[ignore = "needs root"]
fn a_bind_that_leaves_the_port_to_connect_is_not_told() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    for actions in [
        // Closed; followed by another bind of the thread; kept open.
        &["with:noport", "try:tcp:127.0.0.1:0"][..],
        &["with:noport", "try-keep:tcp:127.0.0.1:0", "with:", "try:tcp:127.0.0.1:0"],
        &["with:noport", "try-keep:udp:127.0.0.1:0"],
    ] {
        let tree = Tree::holder(actions);
        assert!(tree.it().words.iter().all(|word| word == "bound"), "{:?}", tree.it());
        assert_not_told(&daemon, tree.it());
        let ended = tree.it().clone();
        drop(tree);
        assert_not_told(&daemon, &ended);
    }
}

#[test]
#[ignore = "needs root"]
fn two_threads_whose_numbers_end_alike_do_not_make_each_others_binds_refused() {
    let _alone = all_alone();
    let _runner = one_runner_on_this_host();
    let daemon = Daemon::start("");
    // The kernel's programs keep 1024 threads apart, fewer than this.
    let pair = eventually("two processes got such numbers", || {
        let first = holder_with_next_pid(None, &["leave"]);
        let number = first.said("child")[0] as u32 + 16_384;
        let maximum: u32 =
            std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
        let number = if number + 1000 < maximum { number } else { number - 16_384 + 100 };
        let (one, two) = (number % 8192 + 8192, number % 8192 + 16_384);
        let races = [one, two].map(|pid| {
            std::thread::spawn(move || {
                holder_with_next_pid(
                    Some(pid),
                    &["with:reuseaddr", "free:tcp:127.0.0.1:0", "retry:20000:tcp:127.0.0.1:PORT", "exit"],
                )
            })
        });
        let [first, second] = races.map(|race| race.join().unwrap().said("child")[0] as u32);
        (first % 8192 == second % 8192 && first != second).then_some([first, second])
    });
    settle(&daemon);
    let mut told = conflicts(&daemon);
    told.retain(|told| pair.iter().any(|pid| told["loser"]["pid"] == *pid));
    let attempts: u64 = told.iter().map(|told| told["attempts"].as_u64().unwrap()).sum();
    assert_eq!(attempts, 0, "of 40,000 binds that succeeded, told as {:#?}", told.first());
}

/// Runs a holder with these actions as the child of another, with this number if it can be had; answers what the parent said.
fn holder_with_next_pid(pid: Option<u32>, actions: &[&str]) -> Held {
    let mut command = Command::new(holder());
    command.arg("it");
    if let Some(pid) = pid {
        command.arg(format!("next-pid:{pid}"));
    }
    command.args(["reap", "--"]).arg(holder()).arg("child").args(actions);
    Tree::start(&mut command, &["it"]).it().clone()
}

#[test]
#[ignore = "needs root"]
fn a_socket_that_is_tried_again_until_it_is_bound_is_told_for_its_refusals_only() {
    let daemon = watcher();
    let blocker = Tree::holder(&["udp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let loser = Tree::holder(&[&format!("fallback:udp:127.0.0.1:{port}")]);
    drop(blocker);
    let again = Tree::holder(&[&format!("try-keep:udp:127.0.0.1:{port}")]);
    assert_eq!(again.it().words, ["bound"]);
    assert_eq!(only_conflict(&daemon, port)["attempts"], 1);
    assert_eq!(told_of(&daemon, loser.it()).len(), 1);
    assert_not_told(&daemon, again.it());
}

#[test]
#[ignore = "needs root"]
fn a_listener_that_is_shut_down_at_once_is_not_told() {
    let daemon = watcher();
    for bind in ["bound:127.0.0.1:0", "bound:[::1]:0"] {
        let it = Tree::holder(&[bind, "listen", "shutdown"]);
        assert_eq!(it.it().words, ["bound"], "it listened");
        assert_not_told(&daemon, it.it());
    }
}

#[test]
#[ignore = "needs root"]
fn one_of_several_listeners_that_is_shut_down_at_once_is_not_told() {
    let daemon = watcher();
    let first = Tree::holder(&["with:reuseport", "tcp:127.0.0.1:0"]);
    let bind = format!("bound:127.0.0.1:{}", first.it().port());
    let second = Tree::holder(&["with:reuseport", &bind, "listen", "shutdown"]);
    assert_eq!(second.it().words, ["bound"], "it listened");
    assert_not_told(&daemon, second.it());
}

#[test]
#[ignore = "needs root"]
fn a_listener_that_is_closed_at_once_is_not_told() {
    let daemon = watcher();
    let it = Tree::holder(&["free:tcp:127.0.0.1:0", "with:reuseaddr", "churn:200:tcp:127.0.0.1:PORT"]);
    assert_eq!(it.it().said("refused-times"), [0]);
    assert_not_told(&daemon, it.it());
}

#[test]
#[ignore = "needs root"]
fn a_socket_of_multipath_tcp_is_told_as_the_tcp_socket_behind_it() {
    // Debian's kernel 5.10 is built without it.
    if !std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|text| text.trim() == "1") {
        return;
    }
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let it = Tree::holder(&[
        "with:mptcp",
        "free:tcp:127.0.0.1:0",
        "churn:50:tcp:127.0.0.1:PORT",
        "tcp:127.0.0.1:PORT",
    ]);
    assert_eq!(it.it().said("refused-times"), [0]);
    assert_not_told(&daemon, it.it());
    let port = it.it().port();
    let loser = Tree::holder(&["with:mptcp", &format!("try:tcp:127.0.0.1:{port}")]);
    let conflict = only_conflict(&daemon, port);
    assert_eq!(
        (conflict["loser"]["pid"].as_u64(), &conflict["attempts"]),
        (Some(loser.it().pid.into()), &1.into())
    );
    assert_eq!(super::blockers(&conflict), [it.it().pid]);
    assert_eq!(daemon.metric("sniffer_events_lost_total{source=\"ebpf\"}"), Some(0.0));
}
