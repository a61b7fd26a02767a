//! The unit's capabilities, each left out: something named is lost with each, and the agent says so. That is on the host, where
//! the kernel's programs work; `tests/systemd.rs` does the same with the unit itself in a container, where they do not.
//!
//! And who may do what over the sockets: whoever can ask may read, nobody may change anything by HTTP over TCP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use common::{Daemon, Tree, holder, json, run};
use sniffer::kernel::capability;

/// What there is to be seen of a listener in a network namespace of its own, older than the agent.
const EVERYTHING: [&str; 4] = ["holder", "job", "NAT rule", "refused bind"];

/// What an agent with the unit's capabilities, less one, sees of that, and what it says is incomplete.
#[track_caller]
fn seen_without(without: &str) -> (Vec<&'static str>, String) {
    let mut shell = Command::new(holder());
    shell.args(["shell", "netns", "env:BUILDKITE=true", "env:BUILDKITE_JOB_ID=0191-abc", "--"]);
    shell.args([holder().to_str().unwrap(), "server", "tcp:127.0.0.1:0"]);
    let tree = Tree::start(&mut shell, &["shell", "server"]);
    let port = tree.get("server").port();
    let within = || {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", tree.get("server").pid));
        command
    };
    let rule = "add table ip nat; add chain ip nat pre { type nat hook prerouting priority -100; }; \
        add rule ip nat pre tcp dport 30445 dnat to 10.0.0.5:80";
    let (code, _, complaints) = run(within().args(["nft", rule]));
    assert_eq!(code, 0, "{complaints}");

    let names = capability::USED.map(|used| used.name.strip_prefix("CAP_").unwrap().to_ascii_lowercase());
    let granted: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != without).collect();
    let daemon = Daemon::start_with_capabilities(&granted, "");
    let refused = format!("try:tcp:127.0.0.1:{port}");
    let _loser = Tree::start(within().arg(holder()).args(["loser", &refused]), &["loser"]);

    let held = daemon.who_holds(port);
    let claim = &held["claims"][0];
    let nat = daemon.who_holds(30445);
    // A settled answer comes after what is about it: the refusal was before the question.
    let (code, conflicts, why) = run(daemon.ask(&["conflicts"]).arg("--json"));
    let found = [
        claim["holders"][0]["comm"] == "holder",
        claim["job"]["id"] == "0191-abc",
        nat["claims"][0]["kind"] == "nat_rule",
        code == 0 && conflicts.contains(&format!("\"port\": {port}")),
    ];
    let seen =
        EVERYTHING.into_iter().zip(found).filter_map(|(what, is_seen)| is_seen.then_some(what)).collect();
    (seen, format!("{} {} {why} {}", held["incomplete"], nat["incomplete"], daemon.log()))
}

#[test]
#[ignore = "needs root"]
fn with_the_units_capabilities_everything_is_seen() {
    assert_eq!(seen_without("none of them").0, EVERYTHING);
}

#[test]
#[ignore = "needs root"]
fn without_cap_dac_read_search_jobs_of_others_and_nat_rules_are_not_known_and_it_says_so() {
    let (seen, said) = seen_without("dac_read_search");
    assert_eq!(seen, ["holder", "refused bind"]);
    assert!(said.contains("the environment of") && said.contains("the NAT rules of"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn without_cap_net_admin_nat_rules_are_not_known_and_it_says_so() {
    let (seen, said) = seen_without("net_admin");
    assert_eq!(seen, ["holder", "job", "refused bind"]);
    assert!(said.contains("the NAT rules of"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn without_cap_sys_admin_other_namespaces_and_refused_binds_are_not_seen_and_it_says_so() {
    let (seen, said) = seen_without("sys_admin");
    assert!(seen.is_empty(), "{seen:?}");
    assert!(said.contains("could not be entered") && said.contains("failed binds are not seen"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn without_cap_sys_ptrace_namespaces_of_others_are_not_found_and_it_says_so() {
    let (seen, said) = seen_without("sys_ptrace");
    assert_eq!(seen, ["refused bind"]);
    assert!(said.contains("could not be read"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn nothing_can_be_changed_over_tcp() {
    let daemon = Daemon::start("");
    let asked = |method: &str, path: &str| -> u16 {
        let mut stream = TcpStream::connect(&daemon.metrics).unwrap();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    };
    for path in ["/", "/metrics", "/healthz", "/readyz", "/v1/timeline", "/v1/report", "/page/app.js"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert_eq!(asked(method, path), 405, "{method} {path}");
        }
    }
    // What changes something is served on the control socket alone, to who the kernel says is asking.
    for path in ["/v1/job/start", "/v1/job/end", "/v1/reap"] {
        assert_eq!(asked("POST", path), 404, "{path}");
    }
    assert_eq!(json(&mut daemon.ask(&["list"])).1["source"], "daemon");
}
