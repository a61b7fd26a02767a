//! cgroup v2 ids to paths: the id is the inode of the directory (cgroups(7), kernfs).
//!
//! A walk of the tree needs no privilege, where open_by_handle_at(2) would. An id that has no directory now never gets
//! one, so it is remembered as gone.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::sched::{CloneFlags, setns};

/// Where cgroup v2 is mounted: alone, or beside v1.
const UNIFIED: &str = "/sys/fs/cgroup";
const MOUNTS: [&str; 2] = [UNIFIED, "/sys/fs/cgroup/unified"];
/// A file that only v2 has in its root.
const MARK: &str = "cgroup.controllers";
/// Deeper trees are not walked; a bound, not an expectation.
const MAX_DEPTH: usize = 32;
/// Ids remembered; past it the memory starts anew.
const MAX_REMEMBERED: usize = 100_000;

/// The mount point of cgroup v2, where there is one.
pub fn mount() -> Option<PathBuf> {
    MOUNTS.iter().map(PathBuf::from).find(|path| path.join(MARK).exists())
}

/// Inode of the first cgroup namespace (`PROC_CGROUP_INIT_INO` of linux/proc_ns.h).
const FIRST_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

/// A file that every group of v2 has but the first (cgroup-v2.rst).
const NOT_ROOT: &str = "cgroup.type";

/// Whether this program began in another cgroup namespace than the host's, where its tree may have been mounted, too.
static HAS_ENTERED: AtomicBool = AtomicBool::new(false);

/// Whether the root of the mounted tree is the host's: in another cgroup namespace, and where that was mounted, it is a branch.
pub fn sees_root() -> bool {
    let is_of_host =
        || !HAS_ENTERED.load(Ordering::Relaxed) || mount().is_some_and(|root| !root.join(NOT_ROOT).exists());
    is_first("/proc/self/ns/cgroup") && is_of_host()
}

fn is_first(namespace: &str) -> bool {
    fs::metadata(namespace).is_ok_and(|meta| meta.ino() == FIRST_CGROUP_NAMESPACE)
}

/// Enters the host's cgroup namespace, where this program has one of its own and sees the host's processes: in a container with
/// the host's pid namespace, which runtimes give no say in this. Paths of groups are then the host's. For this thread and those
/// that it starts later. Whether it worked shows in [`sees_root`].
pub fn enter_first() {
    // init, and kthreadd, which is in the first namespace of each kind.
    let hosts = ["/proc/1/ns/cgroup", "/proc/2/ns/cgroup"];
    if !is_first("/proc/self/ns/cgroup")
        && let Some(first) = hosts.into_iter().find(|path| is_first(path))
        && let Ok(namespace) = fs::File::open(first)
    {
        // Without CAP_SYS_ADMIN it stays where it is, and that is said where it matters.
        let has_entered = setns(namespace, CloneFlags::CLONE_NEWCGROUP).is_ok();
        HAS_ENTERED.store(has_entered, Ordering::Relaxed);
    }
}

/// Whether v2 is all there is: then every process is in the cgroup that its id names.
pub fn is_unified() -> bool {
    static ALONE: OnceLock<bool> = OnceLock::new();
    *ALONE.get_or_init(|| mount().is_some_and(|path| path == Path::new(UNIFIED)))
}

/// Paths by cgroup id.
#[derive(Debug, Default)]
pub struct CgroupPaths(Mutex<HashMap<u64, Option<String>>>);

impl CgroupPaths {
    /// Resolves ids, walking the tree once if one of them is new. Ids of removed cgroups are absent.
    pub fn resolve(&self, ids: impl IntoIterator<Item = u64>) -> HashMap<u64, String> {
        let Ok(mut known) = self.0.lock() else { return HashMap::new() };
        let ids: Vec<u64> = ids.into_iter().collect();
        if ids.iter().any(|id| !known.contains_key(id)) {
            if known.len() > MAX_REMEMBERED {
                known.clear();
            }
            if let Some(mount) = mount() {
                walk(&mount, "/", 0, &mut known);
            }
            for id in &ids {
                known.entry(*id).or_insert(None);
            }
        }
        ids.iter().filter_map(|id| Some((*id, known.get(id)?.clone()?))).collect()
    }
}

fn walk(directory: &Path, path: &str, depth: usize, known: &mut HashMap<u64, Option<String>>) {
    if depth == 0
        && let Ok(meta) = fs::metadata(directory)
    {
        known.insert(meta.ino(), Some(path.to_owned()));
    }
    if depth >= MAX_DEPTH {
        return;
    }
    // A cgroup removed in the middle of the walk is simply gone.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name();
            let child = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
            known.insert(entry.ino(), Some(child.clone()));
            walk(&entry.path(), &child, depth + 1, known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_id_is_absent_and_asked_once() {
        let paths = CgroupPaths::default();
        assert_eq!(paths.resolve([u64::MAX]), HashMap::new());
        assert_eq!(paths.0.lock().unwrap().get(&u64::MAX), Some(&None));
    }
}
