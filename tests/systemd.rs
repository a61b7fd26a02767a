//! The unit, sysusers and tmpfiles files of `systemd/` on a real systemd: a Debian is booted in a container and the agent
//! runs there as an administrator would run it.
//!
//! Every test boots anew from one cached root, with whatever it writes in memory only. A container gets no process events
//! from the kernel, so nothing is claimed about them here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail the test by a panic; clippy's exception for tests covers test functions only"
)]

#[path = "common/booted.rs"]
mod booted;
mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use booted::{Host, SOON, source, text, wait};
use serde_json::Value;
use sniffer::kernel::capability;

/// Bits of capabilities(7) 2, 12, 19 and 21, in the form of `/proc/PID/status`.
const CAPABILITIES: &str = "0000000000281004";

#[test]
fn the_unit_grants_the_capabilities_that_the_program_uses_and_no_others() {
    let unit = fs::read_to_string(source("systemd/sniffer.service")).unwrap();
    let mut used = capability::USED.map(|capability| capability.name);
    used.sort_unstable();
    for key in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let mut granted: Vec<&str> =
            unit.lines().filter_map(|line| line.strip_prefix(key)).flat_map(str::split_whitespace).collect();
        granted.sort_unstable();
        assert_eq!(granted, used, "{key}");
    }
}

/// A host with sniffer installed as an administrator would do it by hand.
fn installed() -> Host {
    let host = Host::boot(&[
        (PathBuf::from(common::SNIFFER), "/usr/bin/sniffer"),
        (source("systemd/sniffer.service"), "/usr/lib/systemd/system/sniffer.service"),
        (source("systemd/sniffer.sysusers"), "/usr/lib/sysusers.d/sniffer.conf"),
        (source("systemd/sniffer.tmpfiles"), "/usr/lib/tmpfiles.d/sniffer.conf"),
    ]);
    host.done("systemd-sysusers sniffer.conf");
    host.done("systemd-tmpfiles --create sniffer.conf");
    host
}

/// A container has a cgroup and a pid namespace of its own, where the kernel's programs are of no use: this is tried outside.
#[test]
#[ignore = "needs root"]
fn the_capabilities_of_the_unit_are_enough_for_the_kernels_programs() {
    let capabilities =
        capability::USED.map(|capability| capability.name.strip_prefix("CAP_").unwrap().to_ascii_lowercase());
    let set = format!("-all,+{}", capabilities.join(",+"));
    let directory = common::open_directory();
    let program = directory.path().join("sniffer");
    fs::copy(common::SNIFFER, &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    command.args([
        format!("--inh-caps={set}"),
        format!("--ambient-caps={set}"),
        format!("--bounding-set={set}"),
    ]);
    let (_, text, complaints) = common::run(command.arg(&program).arg("doctor"));
    for name in ["ebpf: binds", "ebpf: listens", "ebpf: processes", "ebpf: open files"] {
        let works = text.lines().any(|line| line.starts_with("ok") && line.contains(name));
        assert!(works, "{name}\n{text}\n{complaints}");
    }
    let unit = fs::read_to_string(source("systemd/sniffer.service")).unwrap();
    let filters: Vec<&str> = unit.lines().filter(|line| line.starts_with("SystemCallFilter=")).collect();
    assert_eq!(filters.last(), Some(&"SystemCallFilter=bpf"), "what is granted last counts");
}

#[test]
fn every_directive_of_the_unit_says_why_it_is_there() {
    let unit = fs::read_to_string(source("systemd/sniffer.service")).unwrap();
    let mut before = "";
    for line in unit.lines() {
        if line.contains('=') && !line.starts_with('#') {
            assert!(before.starts_with('#'), "no comment before: {line}");
        }
        before = line;
    }
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn systemd_finds_no_fault_with_the_unit_and_little_exposed() {
    let host = installed();
    let verified = host.run("systemd-analyze verify sniffer.service");
    assert!(verified.status.success(), "{verified:?}");
    assert_eq!((text(&verified.stdout), text(&verified.stderr)), (String::new(), String::new()));
    // In tenths; everything up to 4.9 counts as "OK" with systemd.
    host.done(
        "systemd-analyze security --offline=true --threshold=30 /usr/lib/systemd/system/sniffer.service",
    );
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn the_agent_runs_as_its_own_user_with_its_capabilities_only() {
    let host = installed();
    // Type=notify: the start is done when the agent said READY=1.
    host.done("systemctl start sniffer");
    assert_eq!(host.show("ActiveState"), "active");
    assert_eq!(host.show("StatusText"), "watching");
    let status = host.done(&format!("cat /proc/{}/status", host.show("MainPID")));
    let of = |key: &str| -> Vec<String> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let user = host.done("id --user sniffer").trim().to_owned();
    assert_ne!(user, "0");
    assert_eq!(of("Uid:"), vec![user; 4]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(of(set), [CAPABILITIES], "{set}");
    }
    assert_eq!(of("NoNewPrivs:"), ["1"]);
    let stat = |path: &str| host.done(&format!("stat --format '%U:%G %a' {path}")).trim().to_owned();
    assert_eq!(stat("/run/sniffer"), "sniffer:sniffer 755");
    assert_eq!(stat("/run/sniffer/sniffer.sock"), "sniffer:sniffer 666");
    assert_eq!(stat("/var/lib/sniffer"), "sniffer:sniffer 750");
    assert_eq!(stat("/etc/sniffer"), "root:root 755");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_holder_of_another_user_is_named_with_its_job_to_anybody_who_asks() {
    let host = installed();
    host.done("systemctl start sniffer");
    host.listen("listener", "WorkingDirectory=/root", "", 8081);
    let answer = host.ask_as_nobody(8081);
    assert_eq!((&answer["source"], &answer["incomplete"]), (&"daemon".into(), &Value::Array(vec![])));
    let claim = &answer["claims"][0];
    let holder = &claim["holders"][0];
    assert_eq!(holder["pid"].to_string(), host.show_of("listener", "MainPID"));
    assert_eq!((&holder["user"], &holder["unit"]), (&"root".into(), &"listener.service".into()));
    // Read as links, below a directory that is closed to the agent itself.
    assert_eq!((&holder["exe"], &holder["cwd"]), (&"/usr/bin/perl".into(), &"/root".into()));
    assert_eq!((&claim["job"]["ci"], &claim["job"]["id"]), (&"github".into(), &"github_1f0c".into()));
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn other_network_namespaces_are_seen_whether_older_or_younger_than_the_agent() {
    let host = installed();
    host.done("ip netns add older");
    host.done("systemctl start sniffer");
    host.done("ip netns add younger");
    for (netns, port) in [("older", 8082), ("younger", 8083)] {
        host.listen(netns, "User=root", &format!("ip netns exec {netns}"), port);
        let answer = host.ask_as_nobody(port);
        assert_eq!((&answer["source"], &answer["incomplete"]), (&"daemon".into(), &Value::Array(vec![])));
        // The name comes from the mount, which has to reach the mount namespace of the service.
        assert_eq!(answer["claims"][0]["netns"]["name"], netns, "{answer}");
        assert_eq!(answer["claims"][0]["holders"][0]["comm"], "perl", "{answer}");
    }
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_socket_that_pid_1_holds_for_a_unit_is_the_units() {
    let host = installed();
    host.write("/run/systemd/system/activated.socket", "[Socket]\nListenStream=127.0.0.1:8084");
    host.write("/run/systemd/system/activated.service", "[Service]\nExecStart=/usr/bin/sleep 600");
    host.done("systemctl daemon-reload && systemctl start activated.socket");
    let alone = || serde_json::from_str::<Value>(&host.done("sniffer who-holds 8084 --json")).unwrap();
    let before = alone()["claims"][0].clone();
    assert_eq!((&before["holders"][0]["pid"], &before["holders"][1]), (&1.into(), &Value::Null), "{before}");
    host.done("systemctl start activated.service");
    let there = alone();
    host.done("systemctl start sniffer");
    for answer in [there, host.ask_as_nobody(8084)] {
        let claim = &answer["claims"][0];
        let owner = (&claim["owner"]["type"], &claim["owner"]["name"]);
        assert_eq!(owner, (&"unit".into(), &"activated.service".into()), "{answer}");
        assert_eq!(claim["holders"].as_array().unwrap().len(), 2, "{claim}");
    }
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn without_one_of_the_capabilities_something_stays_unseen_and_the_answer_says_so() {
    let host = installed();
    host.done("ip netns add blue");
    host.listen("listener", "User=root", "ip netns exec blue", 8081);
    host.done("systemctl start sniffer");
    let answer = host.ask_as_nobody(8081);
    assert_eq!(
        (&answer["incomplete"], &answer["claims"][0]["holders"][0]["comm"]),
        (&Value::Array(vec![]), &"perl".into())
    );
    // CAP_NET_ADMIN is for process events, which a container has not in any case.
    for name in ["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"] {
        host.drop_in(&format!("AmbientCapabilities=~{name}\nCapabilityBoundingSet=~{name}"));
        host.done("systemctl restart sniffer");
        let answer = host.ask_as_nobody(8081);
        assert_eq!(answer["source"], "daemon", "{name}");
        assert_ne!(answer["incomplete"], Value::Array(vec![]), "{name} is not needed: {answer}");
        let holders = answer["claims"][0]["holders"].as_array();
        assert!(holders.is_none_or(Vec::is_empty), "{name} is not needed: {answer}");
    }
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_killed_agent_comes_back_and_answers() {
    let host = installed();
    host.done("systemctl start sniffer");
    host.listen("listener", "User=root", "", 8081);
    let killed = host.show("MainPID");
    host.done("systemctl kill --signal=KILL sniffer");
    wait("the restarted agent", SOON, || {
        // Between its end and what systemd notices of it the unit counts as active.
        let back = host.show("NRestarts") == "1" && host.show("ActiveState") == "active";
        back.then_some(()).ok_or_else(|| host.journal())
    });
    assert_ne!(host.show("MainPID"), killed);
    let answer = host.ask_as_nobody(8081);
    assert_eq!((&answer["source"], &answer["claims"][0]["port"]), (&"daemon".into(), &8081.into()));
    // What it remembered before it was killed is one with what goes on; the file is the service's, and for its group.
    let history =
        host.run("setpriv --reuid=nobody --regid=nogroup --clear-groups sniffer history 8081 --json");
    let history: Value = serde_json::from_slice(&history.stdout).unwrap();
    let holds = history["holds"].as_array().unwrap();
    assert!(holds.len() == 1 && holds[0]["until"].is_null(), "{history:#}");
    let file = text(&host.run("stat -c '%U:%G %a' /var/lib/sniffer/history.db").stdout);
    assert_eq!(file.trim(), "sniffer:sniffer 640");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn the_watchdog_hears_of_a_living_agent_and_restarts_a_hanging_one() {
    let host = installed();
    host.drop_in("WatchdogSec=2s");
    host.done("systemctl start sniffer");
    let heard = host.show("WatchdogTimestampMonotonic");
    wait("a sign of life", SOON, || {
        let now = host.show("WatchdogTimestampMonotonic");
        (now != heard).then_some(()).ok_or(now)
    });
    assert_eq!(host.show("NRestarts"), "0");
    host.done(&format!("kill -STOP {}", host.show("MainPID")));
    wait("the restarted agent", SOON, || {
        let back = host.show("NRestarts") == "1" && host.show("ActiveState") == "active";
        back.then_some(()).ok_or_else(|| host.journal())
    });
    assert!(host.journal().contains("Watchdog timeout"), "{}", host.journal());
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_reload_keeps_it_running_with_the_new_configuration_or_the_old_one() {
    let host = installed();
    host.done("systemctl start sniffer");
    let before = host.show("MainPID");
    for (setting, said) in [
        ("[leak]\ngrace = '1s'", "configuration reloaded"),
        ("[leak]\ngrace = 'soon'", "the new configuration is refused"),
    ] {
        host.write("/etc/sniffer/config.toml", setting);
        host.done("systemctl reload sniffer");
        wait(said, SOON, || host.journal().contains(said).then_some(()).ok_or_else(|| host.journal()));
        wait("the end of the reload", SOON, || {
            (host.show("ActiveState") == "active").then_some(()).ok_or_else(|| host.journal())
        });
        assert_eq!((host.show("MainPID"), host.show("NRestarts")), (before.clone(), "0".to_owned()));
        assert_eq!(host.ask_as_nobody(8081)["source"], "daemon");
    }
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_configuration_with_mistakes_fails_the_start_once() {
    let host = installed();
    host.write("/etc/sniffer/config.toml", "nonsense = 1");
    assert!(!host.run("systemctl start sniffer").status.success());
    let end = [host.show("ActiveState"), host.show("ExecMainStatus"), host.show("NRestarts")];
    assert_eq!(end, ["failed", "2", "0"], "{}", host.journal());
    assert!(host.journal().contains("nonsense"), "{}", host.journal());
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_stop_is_clean_and_quick_and_leaves_no_socket() {
    let host = installed();
    host.done("systemctl start sniffer");
    host.done("test -S /run/sniffer/sniffer.sock");
    let began = Instant::now();
    host.done("systemctl stop sniffer");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!([host.show("ActiveState"), host.show("Result")], ["inactive", "success"]);
    assert!(!host.run("test -e /run/sniffer").status.success());
    host.done("systemctl start sniffer");
    assert_eq!(host.ask_as_nobody(8081)["source"], "daemon");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn no_system_call_of_the_agent_is_refused() {
    let host = installed();
    // As shipped a refused call fails with EPERM; here it ends the agent, so that it cannot go unnoticed.
    host.drop_in("SystemCallErrorNumber=kill");
    host.done("systemctl start sniffer");
    host.done("ip netns add blue");
    host.listen("listener", "User=root", "ip netns exec blue", 8081);
    assert_eq!(host.ask_as_nobody(8081)["claims"][0]["netns"]["name"], "blue");
    host.done("sniffer list");
    host.done("sniffer leaks");
    let scraped = host.done(
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(\"127.0.0.1:9817\") or die; \
         print $s \"GET /metrics HTTP/1.0\\r\\n\\r\\n\"; print <$s>'",
    );
    assert!(scraped.contains("sniffer_build_info"), "{scraped}");
    host.done("systemctl reload sniffer");
    wait("the reload", SOON, || {
        host.journal().contains("configuration reloaded").then_some(()).ok_or_else(|| host.journal())
    });
    host.done("systemctl stop sniffer");
    assert_eq!([host.show("Result"), host.show("NRestarts")], ["success", "0"], "{}", host.journal());
    let errors = host.done("journalctl --quiet --unit sniffer --priority err --output cat");
    assert_eq!(errors, "");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_hook_ends_a_job_across_a_restart_and_its_leftover_is_alerted_and_ended() {
    let host = installed();
    host.write("/usr/local/bin/on-leak", "#!/bin/sh\ncat > /run/sniffer/alert");
    host.done("chmod 755 /usr/local/bin/on-leak");
    let config = "[leak]\ngrace = '1s'\nreap = true\nreap_after = '1s'\n[[alerts.command]]\nrun = ['/usr/local/bin/on-leak']";
    host.write("/etc/sniffer/config.toml", config);
    // What the README says for leak.reap; and a refused system call ends the agent, so that it cannot go unnoticed.
    host.drop_in("AmbientCapabilities=CAP_KILL\nCapabilityBoundingSet=CAP_KILL\nSystemCallErrorNumber=kill");
    host.done("systemctl start sniffer");
    host.listen("listener", "Type=exec", "", 8081);
    let pid = host.show_of("listener", "MainPID");
    host.done(&format!("sniffer job start --id nightly-7 --name nightly --pid {pid}"));
    host.done("systemctl restart sniffer");
    let jobs = host.done("sniffer job list");
    assert!(jobs.contains("nightly-7") && jobs.contains("running since"), "{jobs}");
    let told = host.done("sniffer job end --id nightly-7");
    assert!(told.contains("tcp 0.0.0.0:8081 by perl"), "{told}");
    wait("its end", SOON, || {
        (host.show_of("listener", "ActiveState") != "active").then_some(()).ok_or_else(|| host.journal())
    });
    wait("the alert", SOON, || {
        host.run("test -s /run/sniffer/alert").status.success().then_some(()).ok_or_else(|| host.journal())
    });
    let alert = host.done("cat /run/sniffer/alert");
    assert!(alert.contains("\"subject\":\"leak\"") && alert.contains("nightly-7"), "{alert}");
    wait("that is said", SOON, || {
        let said = host.journal().contains("has leaked 8081/tcp: ended");
        said.then_some(()).ok_or_else(|| host.journal())
    });
    let fields = host.done("journalctl --unit sniffer F_EVENT=leak --output json");
    assert!(
        fields.contains("\"F_PORT\":\"8081\"") && fields.contains("\"F_JOB_ID\":\"nightly-7\""),
        "{fields}"
    );
    assert_eq!([host.show("ActiveState"), host.show("NRestarts")], ["active", "0"], "{}", host.journal());
}
