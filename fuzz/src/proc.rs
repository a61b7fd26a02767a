//! Files of /proc, and what processes chose for themselves: names, arguments, environments, control groups.

use std::path::Path;

use procfs::FromRead;
use procfs::process::{Stat, Status};
use sniffer::judge::{ci, test_runner};
use sniffer::kernel::descriptors::{Link, parse_link};
use sniffer::kernel::process::split_cmdline;
use sniffer::kernel::{mounts, netns, oom, surroundings};
use sniffer::model::cgroup_path;
use sniffer::model::process::{Process, ProcessId, Variables};

/// Fields 3 and following of `/proc/PID/stat` (proc_pid_stat(5)).
const REST_OF_STAT: &[u8] = b"S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 42 1000 100 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

/// Any of the files that are read: stat, status, cmdline, cgroup, mountinfo, `memory.events`, settings, links.
pub fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // Of a stat line the name is foreign, all else is the kernel's.
    let name = bytes.get(..15).unwrap_or(bytes);
    let line = [b"7 (", name, b") ", REST_OF_STAT].concat();
    assert_eq!(Stat::from_read(line.as_slice()).map(|stat| stat.starttime).ok(), Some(42));
    let _ = Status::from_read(bytes);

    let arguments = split_cmdline(bytes);
    let ends = bytes.iter().filter(|byte| **byte == 0).count();
    assert!(arguments.len() <= ends + 1, "an argument has an end");
    assert!(arguments.iter().all(|argument| !argument.contains('\0')));

    let root = Path::new("/proc/7/root");
    let found = mounts::parse(bytes, root);
    assert!(found.len() <= text.lines().count());
    assert!(found.iter().all(|mount| mount.reach.starts_with(root)), "{found:?}");

    match parse_link(bytes) {
        Link::Netns(inode) => assert_eq!(netns::inode_of_link(&text), Some(inode)),
        Link::Socket(_) | Link::Other => {}
    }
    oom::oom_kill(&text);
    surroundings::parse_range(&text);
    surroundings::parse_ranges(&text);
    control_groups(&text);
}

fn control_groups(text: &str) {
    let paths = [cgroup_path::from_proc(text), cgroup_path::memory(text), Some(text.to_owned())];
    for path in paths.into_iter().flatten() {
        let is_id = |id: &String| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(cgroup_path::container(&path).is_none_or(|id| is_id(&id)));
        assert!(cgroup_path::pod(&path).is_none_or(|uid| uid.len() == 36));
        assert!(cgroup_path::unit(&path).is_none_or(|unit| !unit.contains('/') && path.contains(&unit)));
    }
}

/// An environment, a newline, and arguments that each end with NUL: which job and which test it is of.
pub fn environ(bytes: &[u8]) {
    let newline = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (block, rest) = bytes.split_at(newline);
    let systems = ci::built_in();
    let wanted: Vec<&str> = ci::variables(&systems).chain(test_runner::VARIABLES.iter().copied()).collect();
    let variables =
        Variables::from_block(block, |name| wanted.iter().any(|wanted| wanted.as_bytes() == name));
    for name in &wanted {
        assert!(variables.get(name).is_none_or(|value| !value.is_empty() && !value.contains('\0')));
    }
    let process = Process {
        id: ProcessId { pid: 7, start: 7 },
        ppid: 1,
        comm: "program".to_owned(),
        cmdline: split_cmdline(rest.strip_prefix(b"\n").unwrap_or(rest)),
        told: None,
        uid: Some(1000),
        cgroup: None,
        netns: None,
        variables,
        variables_readable: true,
    };
    if let Some((system, facts)) = ci::recognize(&systems, &process) {
        assert_eq!(facts.key.ci, system.name());
        assert!(!facts.key.id.is_empty() && !facts.id.is_empty(), "a job has a name: {facts:?}");
    }
    if let Some(test) = test_runner::recognize(&process, Some("make"), None) {
        assert!(!test.framework.is_empty());
    }
}
