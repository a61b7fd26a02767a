//! How often the OOM killer struck in a control group: `memory.events` of cgroup v2, `memory.oom_control` of v1
//! (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst). For kernels whose programs do not tell whom it chose.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup;

/// Where v1 has its memory controller, where it is mounted beside others.
const V1: &str = "/sys/fs/cgroup/memory";

/// Processes that the OOM killer ended in this control group, since that was made; `None` where it is no more, or nobody counts.
pub fn kills(path: &str) -> Option<u64> {
    let below = |mount: &Path| mount.join(path.trim_start_matches('/'));
    // A path that leads upwards is none of the kernel's.
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    kills_in(cgroup::mount().as_deref().map(below), Path::new(V1).exists().then(|| below(Path::new(V1))))
}

fn kills_in(unified: Option<PathBuf>, v1: Option<PathBuf>) -> Option<u64> {
    let files =
        [unified.map(|path| path.join("memory.events")), v1.map(|path| path.join("memory.oom_control"))];
    files.into_iter().flatten().find_map(|file| oom_kill(&fs::read_to_string(file).ok()?))
}

/// Kills as `memory.events` or `memory.oom_control` tells them: both have lines of a name and a number.
pub fn oom_kill(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_kills() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(directory.path().join(name));
        for (name, file, text) in [
            ("v2", "memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ("v1", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"),
            ("old", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n"),
        ] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join(file), text).unwrap();
        }
        assert_eq!(kills_in(at("v2"), at("v1")), Some(2));
        assert_eq!(kills_in(at("none"), at("v1")), Some(7), "a hybrid host has memory in v1");
        assert_eq!(kills_in(None, at("old")), None);
        assert_eq!(kills("/../etc"), None);
    }
}
