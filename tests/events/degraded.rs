//! Where the kernel's programs cannot run: the agent starts all the same, says so with a remedy, and answers what it can.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::beside_others;
use crate::common::{Daemon, SNIFFER, Tree, eventually, holders, json, run, within};

/// Starts an agent in surroundings where no program can be loaded, for a reason whose sentence has these words.
#[track_caller]
fn blind(surroundings: &[&str], why: &[&str]) -> Daemon {
    let daemon = Daemon::start_by(surroundings, "");
    let (status, ready) = daemon.get("/readyz").unwrap();
    let line = ready.lines().find(|line| line.starts_with("degraded: ebpf: "));
    let line = line.unwrap_or_else(|| panic!("{ready}"));
    let (conflicts, stdout, stderr) = run(&mut daemon.ask(&["conflicts"]));
    assert_eq!((status, conflicts, stdout.as_str()), (200, 2, ""), "{stderr}");
    let logged = daemon.log();
    let doctor = run(&mut within(surroundings, Command::new(SNIFFER).arg("doctor"))).1;
    for word in why {
        for text in [line, &stderr, &logged, &doctor] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
    assert_eq!(logged.matches("failed binds are not seen").count(), 1, "said once: {logged}");
    assert_eq!(daemon.metric("sniffer_source_up{source=\"ebpf\"}"), Some(0.0));

    let it = Tree::holder(&["tcp:127.0.0.1:0", "try:tcp:127.0.0.1:PORT"]);
    let claims = daemon.who_holds(it.it().port())["claims"].clone();
    assert_eq!(holders(&claims[0]), [it.it().pid], "{claims:#}");
    daemon
}

/// The next best source took over.
#[track_caller]
fn assert_process_events(daemon: &Daemon) {
    assert_eq!(daemon.metric("sniffer_source_up{source=\"proc\"}"), Some(1.0));
}

#[test]
#[ignore = "needs root"]
fn without_the_kernels_types_it_says_so_and_goes_on() {
    let _turn = beside_others();
    let daemon = blind(&["cover:/sys/kernel/btf"], &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
    assert_process_events(&daemon);
}

#[test]
#[ignore = "needs root"]
fn without_cgroup_v2_it_says_how_to_mount_it_and_goes_on() {
    let _turn = beside_others();
    let unmount = format!("unmount:{}", cgroup_root().display());
    let daemon = blind(&[&unmount], &["cgroup v2 is not mounted", "mount -t cgroup2"]);
    assert_process_events(&daemon);
}

/// `CAP_SYS_ADMIN`, `CAP_PERFMON`, `CAP_BPF`.
const FOR_PROGRAMS: &str = "without:21,38,39";

#[test]
#[ignore = "needs root"]
fn without_the_capabilities_for_programs_it_names_them_and_takes_process_events() {
    let _turn = beside_others();
    let daemon = blind(&[FOR_PROGRAMS], &["CAP_BPF", "CAP_PERFMON"]);
    assert_process_events(&daemon);
}

#[test]
#[ignore = "needs root"]
fn without_process_events_too_it_polls() {
    let _turn = beside_others();
    // CAP_NET_ADMIN too, which process events need before Linux 6.6.
    let surroundings = [FOR_PROGRAMS, "without:12"];
    let daemon = blind(&surroundings, &["CAP_BPF", "CAP_NET_ADMIN"]);
    let (_, doctor) = json(&mut within(&surroundings, Command::new(SNIFFER).arg("doctor")));
    let checks = doctor["checks"].as_array().unwrap();
    let works = checks.iter().any(|check| check["name"] == "process events" && check["ok"] == true);
    assert_eq!(daemon.metric("sniffer_source_up{source=\"proc\"}"), Some(f64::from(u8::from(works))));
    let (_, ready) = daemon.get("/readyz").unwrap();
    assert_eq!(ready.contains("degraded: proc: "), !works, "{ready}");
    let it = Tree::holder(&["tcp:127.0.0.1:0"]);
    eventually("a listener is found", || {
        let found = daemon.metric("sniffer_held_ports{kind=\"listener\",protocol=\"tcp\"}") >= Some(1.0);
        found.then_some(())
    });
    assert_eq!(holders(&daemon.who_holds(it.it().port())["claims"][0]), [it.it().pid]);
}

/// A cgroup below the root, removed in the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Cgroup {
        let path = cgroup_root().join(format!("sniffer-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is attached to it goes with it.
        let _ = fs::remove_dir(&self.0);
    }
}

fn cgroup_root() -> PathBuf {
    let root = sniffer::kernel::cgroup::mount().expect("these tests need cgroup v2");
    assert!(Path::new(&root).join("cgroup.procs").exists());
    root
}

#[test]
#[ignore = "needs root"]
fn a_cgroup_that_another_program_has_locked_is_told_as_that() {
    let _turn = beside_others();
    let cgroup = Cgroup::new("locked");
    // The agent takes this one for the root: the real one would be locked for every agent of the host.
    let path = cgroup.0.display().to_string();
    let _locker = Tree::holder(&[&format!("lock-cgroup:{path}")]);
    let put = format!("put:{path}={}", cgroup_root().display());
    let daemon = blind(&[&put], &["another program has locked", "bind4", "BPF_F_ALLOW_MULTI"]);
    assert_process_events(&daemon);
}

#[test]
#[ignore = "needs root"]
fn in_surroundings_that_hide_nothing_all_is_well() {
    let _turn = beside_others();
    // So that the tests above fail for what they hide, and not for how they hide it.
    let cgroup = Cgroup::new("open");
    let daemon = Daemon::start_by(&["cover:/sys/kernel/debug", "without:25"], "");
    assert_eq!(daemon.metric("sniffer_source_up{source=\"ebpf\"}"), Some(1.0), "{}", daemon.log());
    let put = format!("put:{}={}", cgroup.0.display(), cgroup_root().display());
    let daemon = Daemon::start_by(&[&put], "");
    assert_eq!(daemon.metric("sniffer_source_up{source=\"ebpf\"}"), Some(1.0), "{}", daemon.log());
}
