//! Network namespaces of the host: which there are, and looking into each (setns(2), namespaces(7)).
//!
//! A namespace is entered by a thread that ends afterwards, so that no thread can be left in a stranger's namespace,
//! and every descriptor into it is closed with the visit, so that no namespace lives on because of us.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CloneFlags, setns};

use super::descriptors::{Descriptor, NetnsDescriptors, all_cores};
use super::mounts::NetnsMount;
use super::{Gap, Unreadable, process};
use crate::model::netns::{Netns, NetnsKey};

/// Ways into one namespace to try: its processes may end meanwhile.
const PROCESSES_KEPT: usize = 3;
/// Another thread pays from this many namespaces on.
const NETNS_PER_THREAD: usize = 8;

/// How this program's own namespace is called.
pub const OWN_NAME: &str = "host";

/// A namespace and the ways into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsEntry {
    /// Identity.
    pub key: NetnsKey,
    /// What documents show of it.
    pub shown: Netns,
    /// Whether it is this program's own, which needs no privilege.
    pub own: bool,
    handles: Vec<PathBuf>,
}

/// The namespace this program runs in.
pub fn own() -> io::Result<NetnsKey> {
    let meta = fs::metadata("/proc/self/ns/net")?;
    Ok(NetnsKey { device: meta.dev(), inode: meta.ino() })
}

/// Inode of the first pid namespace (`PROC_PID_INIT_INO` of linux/proc_ns.h): the kernel's numbers of processes are those of it.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether this program sees the processes of the whole host, under the kernel's own numbers. So it is taken to be where it is not told.
pub fn in_first_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").map_or(true, |meta| meta.ino() == FIRST_PID_NAMESPACE)
}

/// Inode of the namespace that `ip netns` gave this name.
pub fn of_name(name: &str) -> Option<u64> {
    if name == OWN_NAME {
        return own().ok().map(|own| own.inode);
    }
    // A name is no path.
    let file =
        (!name.contains('/')).then(|| std::fs::metadata(Path::new("/run/netns").join(name)).ok())??;
    Some(std::os::unix::fs::MetadataExt::ino(&file))
}

/// Inode of the namespace a process lives in. Where its link is closed to this user, the files below its `net` directory
/// still tell whether it is this program's own: they are one and the same for all processes of a namespace.
pub fn of_process(pid: u32) -> Result<u64, Unreadable> {
    let link = match fs::read_link(format!("/proc/{pid}/ns/net")).map_err(Unreadable::from) {
        Err(Unreadable::Denied) if shares_own(pid)? => return Ok(own()?.inode),
        link => link?,
    };
    link.to_str().and_then(inode_of_link).ok_or_else(|| Unreadable::Malformed(format!("{}", link.display())))
}

fn shares_own(pid: u32) -> Result<bool, Unreadable> {
    let mark = |who: &str| fs::metadata(format!("/proc/{who}/net/tcp")).map(|meta| meta.ino());
    Ok(mark(&pid.to_string())? == mark("self")?)
}

/// The namespace of each of these processes, and how many would not tell. Those that ended are left out.
pub fn of_processes(pids: &[u32]) -> (Vec<(u32, u64)>, usize) {
    let mut found = Vec::with_capacity(pids.len());
    let mut denied = 0;
    for (pid, inode) in process::of_each(pids, |pid| Some((pid, of_process(pid)))) {
        match inode {
            Ok(inode) => found.push((pid, inode)),
            Err(Unreadable::Vanished) => {}
            // A process that is being reaped refuses before it vanishes.
            Err(_) if process::glance(pid) == Err(Unreadable::Vanished) => {}
            Err(Unreadable::Denied | Unreadable::Malformed(_)) => denied += 1,
        }
    }
    (found, denied)
}

/// Reads `net:[4026531833]`.
pub fn inode_of_link(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Which processes live in which namespace, by nsfs inode.
pub type Inhabitants = BTreeMap<u64, Vec<u32>>;

/// Adds a process to a namespace's inhabitants; a few are enough.
pub fn add_inhabitant(inhabitants: &mut Inhabitants, inode: u64, pid: u32) {
    let pids = inhabitants.entry(inode).or_default();
    if pids.len() < PROCESSES_KEPT {
        pids.push(pid);
    }
}

/// Merges what processes, mounts and descriptors say into one list, this program's own first.
pub fn merge(
    own: NetnsKey,
    inhabitants: &Inhabitants,
    mounts: &[NetnsMount],
    descriptors: &NetnsDescriptors,
) -> Vec<NetnsEntry> {
    let mut entries: BTreeMap<u64, NetnsEntry> = BTreeMap::new();
    let mut add = |inode: u64, name: Option<String>, kept_by: String, handle: PathBuf| {
        let entry = entries.entry(inode).or_insert_with(|| NetnsEntry {
            key: NetnsKey { device: own.device, inode },
            shown: Netns { inode, name: None, kept_by: Some(kept_by) },
            own: inode == own.inode,
            handles: Vec::new(),
        });
        entry.shown.name = entry.shown.name.take().or(name);
        entry.handles.push(handle);
    };
    add(own.inode, Some(OWN_NAME.to_owned()), "this host".to_owned(), PathBuf::from("/proc/self/ns/net"));
    for (inode, pids) in inhabitants {
        for pid in pids {
            add(*inode, None, format!("process {pid}"), PathBuf::from(format!("/proc/{pid}/ns/net")));
        }
    }
    for mount in mounts {
        let kept_by = format!("mount {}", mount.mount_point.display());
        add(mount.inode, given_name(&mount.mount_point), kept_by, mount.reach.clone());
    }
    let ways = descriptors.iter().flat_map(|(inode, ways)| ways.iter().map(move |way| (inode, way)));
    for (inode, Descriptor { pid, fd }) in ways {
        let handle = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
        add(*inode, None, format!("fd {fd} of process {pid}"), handle);
    }
    let mut list: Vec<NetnsEntry> = entries.into_values().collect();
    list.sort_by_key(|entry| !entry.own);
    list
}

/// The name of ip-netns(8), for mounts in its directory.
fn given_name(mount_point: &Path) -> Option<String> {
    let directory = mount_point.parent()?;
    let named = directory == Path::new("/run/netns") || directory == Path::new("/var/run/netns");
    named.then(|| mount_point.file_name().map(|name| name.to_string_lossy().into_owned()))?
}

/// Reads something in each namespace, in parallel where it pays. A namespace that has ended meanwhile is left out; one that
/// cannot be entered or read is a gap.
pub fn visit<T: Send>(
    entries: &[NetnsEntry],
    read: impl Fn(&NetnsEntry) -> io::Result<T> + Sync,
) -> (Vec<(NetnsKey, T)>, Vec<Gap>) {
    let threads = all_cores().min(entries.len().div_ceil(NETNS_PER_THREAD)).max(1);
    let next = AtomicUsize::new(0);
    // At home nobody has to enter anything.
    if let [NetnsEntry { own: true, .. }] = entries {
        return visit_some(entries, &next, &read);
    }
    let mut found = Vec::with_capacity(entries.len());
    let mut gaps = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| visit_some(entries, &next, &read))).collect();
        for worker in workers {
            match worker.join() {
                Ok((some, missed)) => {
                    found.extend(some);
                    gaps.extend(missed);
                }
                Err(_) => gaps.push(Gap::Processes("a thread that reads namespaces failed".to_owned())),
            }
        }
    });
    (found, gaps)
}

fn visit_some<T>(
    entries: &[NetnsEntry],
    next: &AtomicUsize,
    read: &(impl Fn(&NetnsEntry) -> io::Result<T> + Sync),
) -> (Vec<(NetnsKey, T)>, Vec<Gap>) {
    let mut found = Vec::new();
    let mut gaps = Vec::new();
    let mut at_home = true;
    while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
        if !(entry.own && at_home) {
            match enter(entry) {
                Ok(()) => at_home = false,
                Err(Unreadable::Vanished) => continue,
                Err(Unreadable::Denied) => {
                    gaps.push(Gap::EnterNetns(entry.key.inode, "no permission".to_owned()));
                    continue;
                }
                Err(Unreadable::Malformed(why)) => {
                    gaps.push(Gap::EnterNetns(entry.key.inode, why));
                    continue;
                }
            }
        }
        match read(entry) {
            Ok(value) => found.push((entry.key, value)),
            Err(error) => gaps.push(Gap::ReadNetns(entry.key.inode, error.to_string())),
        }
    }
    (found, gaps)
}

/// Moves the calling thread into a namespace by the first way that still leads to it.
fn enter(entry: &NetnsEntry) -> Result<(), Unreadable> {
    let mut outcome = Unreadable::Vanished;
    for handle in &entry.handles {
        match open_same(handle, entry.key) {
            Ok(Some(file)) => {
                return setns(&file, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| rustix::io::Errno::from_raw_os_error(errno as i32).into());
            }
            Ok(None) | Err(Unreadable::Vanished) => {}
            Err(other) => outcome = other,
        }
    }
    Err(outcome)
}

/// Opens a handle; `None` where it leads to another namespace by now (pids and mount points are reused).
fn open_same(handle: &Path, key: NetnsKey) -> Result<Option<File>, Unreadable> {
    let file = File::open(handle)?;
    let meta = file.metadata()?;
    Ok((meta.dev() == key.device && meta.ino() == key.inode).then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NetnsKey = NetnsKey { device: 4, inode: 10 };

    #[test]
    fn every_way_into_a_namespace_is_kept_and_the_own_comes_first() {
        let inhabitants = Inhabitants::from([(5, vec![1]), (10, vec![2])]);
        let mounts =
            [NetnsMount { inode: 5, mount_point: "/run/netns/blue".into(), reach: "/run/netns/blue".into() }];
        let descriptors = BTreeMap::from([(6, vec![Descriptor { pid: 9, fd: 3 }])]);
        let merged = merge(OWN, &inhabitants, &mounts, &descriptors);
        let names: Vec<_> =
            merged.iter().map(|entry| (entry.key.inode, entry.shown.name.as_deref())).collect();
        assert_eq!(names, [(10, Some("host")), (5, Some("blue")), (6, None)]);
        assert_eq!(merged[1].handles.len(), 2);
        assert_eq!(merged[2].shown.kept_by.as_deref(), Some("fd 3 of process 9"));
    }

    #[test]
    fn a_handle_that_leads_elsewhere_by_now_is_not_taken() {
        let own = own().unwrap();
        let other = NetnsKey { inode: own.inode + 1, ..own };
        assert!(open_same(Path::new("/proc/self/ns/net"), other).unwrap().is_none());
        assert!(open_same(Path::new("/proc/self/ns/net"), own).unwrap().is_some());
    }

    #[test]
    fn a_namespace_that_vanished_is_neither_found_nor_a_gap() {
        let entry = NetnsEntry {
            key: NetnsKey { device: 4, inode: 1 },
            shown: Netns { inode: 1, name: None, kept_by: None },
            own: false,
            handles: vec!["/proc/4194304/ns/net".into()],
        };
        let (found, gaps) = visit(&[entry], |_| Ok(()));
        assert_eq!((found.len(), gaps.len()), (0, 0));
    }
}
