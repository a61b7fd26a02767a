//! Network namespaces that a mount keeps alive (`ip netns add`, container runtimes), from mountinfo (proc_pid_mountinfo(5)).
//!
//! Parsed by hand: it is read at every interval, and one odd line must not hide the others.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Gap, Unreadable, process};

/// A mounted network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsMount {
    /// Inode in nsfs.
    pub inode: u64,
    /// The mount point, as its mount namespace sees it.
    pub mount_point: PathBuf,
    /// The same place as this process can open it.
    pub reach: PathBuf,
}

/// Namespaces mounted in this process's own mount namespace.
pub fn own() -> Result<Vec<NetnsMount>, Gap> {
    let text = read("self").map_err(|error| Gap::Mounts(error.to_string()))?;
    Ok(parse(&text, Path::new("")))
}

/// Ways into one namespace to keep: `ip netns exec` copies every mount for every program it runs.
const WAYS_KEPT: usize = 2;

/// Namespaces that are mounted in a mount namespace of one of these processes, and not in this program's own. What vanishes
/// or is closed to this user is left out: its processes are counted as gaps elsewhere.
pub fn elsewhere(pids: &[u32]) -> Result<Vec<NetnsMount>, Gap> {
    let mut ways: HashMap<u64, usize> = own()?.into_iter().map(|mount| (mount.inode, WAYS_KEPT)).collect();
    let mut seen: HashSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let namespaces =
        process::of_each(pids, |pid| Some((pid, fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?)));
    let first = namespaces.into_iter().filter(|(_, namespace)| seen.insert(namespace.clone()));
    let first: Vec<u32> = first.map(|(pid, _)| pid).collect();
    let mut mounts = process::of_each(&first, |pid| of_process(pid).ok()).concat();
    mounts.retain(|mount| {
        let kept = ways.entry(mount.inode).or_insert(0);
        *kept += 1;
        *kept <= WAYS_KEPT
    });
    Ok(mounts)
}

fn read(who: &str) -> std::io::Result<Vec<u8>> {
    // A file of /proc does not say how long it is, and would be read from 32 bytes up.
    let mut text = Vec::with_capacity(16 * 1024);
    File::open(format!("/proc/{who}/mountinfo"))?.read_to_end(&mut text)?;
    Ok(text)
}

fn of_process(pid: u32) -> Result<Vec<NetnsMount>, Unreadable> {
    let text = read(&pid.to_string())?;
    Ok(parse(&text, Path::new(&format!("/proc/{pid}/root"))))
}

/// The network namespaces of a mountinfo; `root` is how its files are reached. Odd lines are left out.
pub fn parse(text: &[u8], root: &Path) -> Vec<NetnsMount> {
    String::from_utf8_lossy(text).lines().filter_map(|line| parse_line(line, root)).collect()
}

/// `36 35 0:4 net:[4026532281] /run/netns/blue rw shared:1 - nsfs nsfs rw`
fn parse_line(line: &str, root: &Path) -> Option<NetnsMount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if !filesystem.starts_with("nsfs ") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let inode = super::netns::inode_of_link(fields.next()?)?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let reach = if root.as_os_str().is_empty() {
        mount_point.clone()
    } else {
        root.join(mount_point.strip_prefix("/").unwrap_or(&mount_point))
    };
    Some(NetnsMount { inode, mount_point, reach })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_namespaces_are_taken_and_odd_lines_hide_none() {
        let text = b"junk\n36 35 0:4 mnt:[12] /run/x rw - nsfs nsfs rw\n\
            37 35 0:4 net:[4026532281] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw\n\
            38 35 0:5 / /proc rw - proc proc rw\n";
        let found = parse(text, Path::new("/proc/7/root"));
        assert_eq!(
            found,
            [NetnsMount {
                inode: 4_026_532_281,
                mount_point: "/run/netns/a b".into(),
                reach: "/proc/7/root/run/netns/a b".into()
            }]
        );
    }
}
