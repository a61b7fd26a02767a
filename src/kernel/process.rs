//! Processes from /proc: the list, what attribution needs of each, and what describes a holder (proc(5)).
//!
//! Every file of one process is read below one directory handle, so that a pid reused in the middle cannot mix two
//! processes. Of the environment only the listed variables are kept.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

use procfs::FromRead;
use procfs::process::{Process as ProcDir, Stat};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};

use super::bpf::Exec;
use super::bpf::holders::Loading;
use super::cgroup::{self, CgroupPaths};
use super::clock::BootClock;
use super::containers::Engines;
use super::descriptors::all_cores;
use super::nat::NatTables;
use super::users::Users;
use super::{Unreadable, netns};
use crate::model::cgroup_path;
use crate::model::mask::{Mask, whole_words};
use crate::model::process::{Holder, Process, ProcessId, Variables};

/// An environment block is read up to this size: the kernel allows a quarter of the stack limit, 2 MiB by default (execve(2)).
const ENVIRON_BYTES: u64 = 2 * 1024 * 1024;
/// Another thread pays from this many processes on.
const PROCESSES_PER_THREAD: usize = 64;
/// A command line is kept up to this size for every process, for attribution,
const KEPT_CMDLINE_BYTES: u32 = 2 * 1024;
/// and read up to this size for answers.
const CMDLINE_BYTES: u32 = 16 * 1024;

/// `/proc/PID/status` is shorter.
const STATUS_BYTES: u64 = 16 * 1024;

/// What every look at processes needs: the listed variables, the boot clock, and memories of names.
#[derive(Debug)]
pub struct Reader {
    wanted: HashSet<Vec<u8>>,
    /// Ticks to wall-clock time.
    pub clock: BootClock,
    /// cgroup ids to paths.
    pub cgroups: CgroupPaths,
    /// The kernel's own walk over open files, where it was loaded.
    pub open_files: Loading,
    /// NAT rules, as they were read last.
    pub nat: NatTables,
    /// Who knows the names of containers.
    pub engines: Engines,
    /// What is hidden in command lines.
    mask: Mask,
    users: Users,
}

impl Reader {
    /// A reader that keeps these environment variables and no others.
    pub fn new<'a>(variables: impl IntoIterator<Item = &'a str>) -> Self {
        Reader {
            wanted: variables.into_iter().map(|name| name.as_bytes().to_vec()).collect(),
            clock: BootClock::read(),
            cgroups: CgroupPaths::default(),
            open_files: Loading::default(),
            nat: NatTables::default(),
            engines: Engines::default(),
            mask: Mask::default(),
            users: Users::default(),
        }
    }

    /// The same, which may ask these container engines for names.
    pub fn with_engines(self, engines: Engines) -> Self {
        Reader { engines, ..self }
    }

    /// The same, which masks command lines by these patterns.
    pub fn with_mask(self, mask: Mask) -> Self {
        Reader { mask, ..self }
    }

    /// A command that is to be run, less its secrets.
    pub fn masked(&self, command: &[OsString]) -> Vec<String> {
        let line: Vec<u8> = command.iter().flat_map(|part| [part.as_bytes(), b"\0"].concat()).collect();
        self.arguments(&line, true)
    }

    /// A command line as /proc or an exec tells it, less its secrets.
    fn arguments(&self, line: &[u8], is_whole: bool) -> Vec<String> {
        let line = if is_whole { line } else { whole_words(line) };
        split_cmdline(&self.mask.apply(line))
    }

    fn cmdline(&self, dir: &ProcDir, limit: u32) -> Result<Vec<String>, Unreadable> {
        let line = read_file(dir, "cmdline", limit.into())?;
        Ok(self.arguments(&line, line.len() < limit as usize))
    }

    /// Reads a process as far as attribution needs it. Errors: it vanished, or its stat is odd.
    pub fn read(&self, pid: u32) -> Result<Process, Unreadable> {
        let dir = open(pid)?;
        let stat = dir.stat()?;
        if is_ended(&stat) {
            return Err(Unreadable::Vanished);
        }
        let environ = read_file(&dir, "environ", ENVIRON_BYTES);
        Ok(Process {
            id: ProcessId { pid, start: stat.starttime },
            ppid: u32::try_from(stat.ppid).unwrap_or(0),
            comm: stat.comm,
            cmdline: self.cmdline(&dir, KEPT_CMDLINE_BYTES).unwrap_or_default(),
            told: None,
            uid: dir.uid().ok(),
            cgroup: cgroup_of(&dir),
            netns: netns::of_process(pid).ok(),
            variables_readable: environ != Err(Unreadable::Denied),
            variables: environ
                .map(|block| Variables::from_block(&block, |name| self.wanted.contains(name)))
                .unwrap_or_default(),
        })
    }

    /// A process as its exec told of it, which nothing that it did since can change. Where the kernel could not send the whole
    /// environment it is read, if the process is still there.
    pub fn from_exec(&self, exec: Exec) -> Process {
        let Exec {
            pid,
            by,
            ppid,
            netns,
            program,
            arguments,
            whole_arguments,
            environment,
            whole_environment,
        } = exec;
        let read = if whole_environment { None } else { self.read(pid).ok() };
        let variables = || Variables::from_block(&environment, |name| self.wanted.contains(name));
        Process {
            id: ProcessId { pid, start: self.clock.ticks(by.start) },
            ppid,
            comm: by.comm,
            cmdline: self.arguments(&arguments, whole_arguments),
            told: Some((program, by.uid)),
            uid: Some(by.uid),
            cgroup: self.cgroup(pid, by.cgroup_id),
            netns: Some(netns),
            variables_readable: true,
            variables: read.map_or_else(variables, |process| process.variables),
        }
    }

    /// The path that systemd uses: what /proc says, else the path of a cgroup v2.
    fn cgroup(&self, pid: u32, cgroup_id: u64) -> Option<String> {
        let of_process = || open(pid).ok().and_then(|dir| cgroup_of(&dir));
        let by_id = || self.cgroups.resolve([cgroup_id]).remove(&cgroup_id);
        if cgroup::is_unified() { by_id().or_else(of_process) } else { of_process().or_else(by_id) }
    }

    /// The name of a user.
    pub fn user(&self, uid: u32) -> Option<String> {
        self.users.name(uid)
    }

    /// Describes a holder for people. What cannot be read is `None`; the ancestry is the caller's to add.
    pub fn describe(&self, pid: u32, fd: Option<u32>) -> Holder {
        let mut holder = Holder { fd, ..Holder::unknown(pid) };
        let Ok(dir) = open(pid) else { return holder };
        if let Ok(stat) = dir.stat() {
            holder.start_time = self.clock.at_ticks(stat.starttime);
            holder.ppid = u32::try_from(stat.ppid).ok();
            holder.comm = Some(stat.comm);
        }
        holder.uid = effective_user(&dir);
        holder.user = holder.uid.and_then(|uid| self.users.name(uid));
        holder.exe = dir.exe().ok().map(|path| path.to_string_lossy().into_owned());
        holder.cwd = dir.cwd().ok().map(|path| path.to_string_lossy().into_owned());
        holder.cmdline = self.cmdline(&dir, CMDLINE_BYTES).ok();
        let text = cgroup_text(&dir).unwrap_or_default();
        holder.cgroup = cgroup_path::memory(&text);
        let cgroup = cgroup_path::from_proc(&text);
        holder.unit = cgroup.as_deref().and_then(cgroup_path::unit);
        holder.container = cgroup.as_deref().and_then(cgroup_path::container);
        holder
    }
}

/// What this program itself uses, for `process_*` metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// User and system time.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_fds: usize,
    /// Limit of open descriptors.
    pub max_fds: u64,
    /// Threads.
    pub threads: i64,
    /// Start, in seconds since the epoch.
    pub start_seconds: f64,
}

impl Usage {
    /// Reads it.
    pub fn read() -> Result<Self, Unreadable> {
        let myself = ProcDir::myself()?;
        let stat = myself.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        let start = BootClock::read().at_ticks(stat.starttime);
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_err(|errno| Unreadable::Malformed(errno.to_string()))?;
        Ok(Usage {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            open_fds: myself.fd_count()?,
            max_fds: soft,
            threads: stat.num_threads,
            start_seconds: start.map(|start| start.as_millisecond() as f64 / 1000.0).unwrap_or_default(),
        })
    }
}

/// What tells whether a process is still the one that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Start in clock ticks since boot; `None` where it was never read.
    pub start: Option<u64>,
    /// Its name, which an exec changes.
    pub comm: String,
}

/// Looks whether a process is still the one that was read. Errors: it has ended, zombies included.
pub fn glance(pid: u32) -> Result<Glance, Unreadable> {
    let stat = Stat::from_file(format!("/proc/{pid}/stat"))?;
    if is_ended(&stat) {
        return Err(Unreadable::Vanished);
    }
    Ok(Glance { start: Some(stat.starttime), comm: stat.comm })
}

/// A zombie has ended and waits for its parent, which may never ask. One with threads left is only its first thread's end.
fn is_ended(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X') && stat.num_threads <= 1
}

/// The start of a process in clock ticks, which with its pid is its identity.
pub fn start(pid: u32) -> Result<u64, Unreadable> {
    Ok(open(pid)?.stat()?.starttime)
}

/// Who a process is, and its parent, 0 for none. Errors: it has ended.
pub fn parentage(pid: u32) -> Result<(ProcessId, u32), Unreadable> {
    let stat = Stat::from_file(format!("/proc/{pid}/stat"))?;
    if is_ended(&stat) {
        return Err(Unreadable::Vanished);
    }
    Ok((ProcessId { pid, start: stat.starttime }, u32::try_from(stat.ppid).unwrap_or(0)))
}

/// The calls in which a bind may go on: bind(2), and io_uring_enter(2), which may run one.
#[cfg(target_arch = "x86_64")]
pub const BINDING_CALLS: [u64; 2] = [49, 426];
/// The same for the architectures that use the generic table.
#[cfg(not(target_arch = "x86_64"))]
pub const BINDING_CALLS: [u64; 2] = [200, 426];

/// Whether a thread is known to be in none of these system calls: it waits in another, or has ended. One that runs tells
/// nothing (proc_pid_syscall(5)).
pub fn is_outside_calls(pid: u32, tid: u32, calls: &[u64]) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) {
        Ok(text) => text
            .split(' ')
            .next()
            .and_then(|number| number.parse::<u64>().ok())
            .is_some_and(|number| !calls.contains(&number)),
        Err(error) => Unreadable::from(error) == Unreadable::Vanished,
    }
}

/// Every process of this program's pid namespace. Errors: /proc cannot be read.
pub fn pids() -> Result<Vec<u32>, Unreadable> {
    let directory =
        openat(CWD, "/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut pids = Vec::new();
    while let Some(entry) = entries.next() {
        pids.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

/// What is found for each process, on all cores.
pub fn of_each<T: Send>(pids: &[u32], find: impl Fn(u32) -> Option<T> + Sync) -> Vec<T> {
    let share = pids.len().div_ceil(all_cores()).max(PROCESSES_PER_THREAD);
    std::thread::scope(|scope| {
        let find = &find;
        let workers: Vec<_> = pids
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().filter_map(|pid| find(*pid)).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    })
}

fn open(pid: u32) -> Result<ProcDir, Unreadable> {
    Ok(ProcDir::new(i32::try_from(pid).map_err(|_| Unreadable::Vanished)?)?)
}

fn read_file(dir: &ProcDir, name: &str, limit: u64) -> Result<Vec<u8>, Unreadable> {
    // The kernel makes the text anew for each read: mostly one is enough.
    let mut bytes = Vec::with_capacity(4096);
    dir.open_relative(name)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The second number of `Uid:` in `/proc/PID/status` (proc_pid_status(5)). By itself: the name in that file may be no UTF-8, and then a
/// reader of the whole has nothing.
fn effective_user(dir: &ProcDir) -> Option<u32> {
    let text = read_file(dir, "status", STATUS_BYTES).ok()?;
    let users = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(users).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The container that a process runs in.
pub fn container(pid: u32) -> Option<String> {
    cgroup_path::container(&cgroup_of(&open(pid).ok()?)?)
}

/// The arguments of a process, unmasked: for what is looked up in them, and never shown.
pub fn arguments(pid: u32) -> Option<Vec<String>> {
    Some(split_cmdline(&read_file(&open(pid).ok()?, "cmdline", CMDLINE_BYTES.into()).ok()?))
}

/// The children of a process, where the kernel lists them (proc_pid_task_children, `CONFIG_PROC_CHILDREN`): each thread has its own.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn cgroup_of(dir: &ProcDir) -> Option<String> {
    cgroup_path::from_proc(&cgroup_text(dir)?)
}

fn cgroup_text(dir: &ProcDir) -> Option<String> {
    let text = read_file(dir, "cgroup", 64 * 1024).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Splits `/proc/PID/cmdline`: arguments are ended by NUL; empty ones count, and bytes that are not UTF-8 are replaced visibly.
pub fn split_cmdline(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_arguments_count() {
        assert_eq!(split_cmdline(b"a\0\0b\xff\0"), ["a", "", "b\u{fffd}"]);
        assert_eq!(split_cmdline(b""), Vec::<String>::new());
    }

    #[test]
    fn a_command_that_is_to_be_run_keeps_its_arguments_but_not_its_secrets() {
        let command = ["app", "--token", "x", ""].map(OsString::from);
        assert_eq!(Reader::new([]).masked(&command), ["app", "--token", "***", ""]);
    }

    #[test]
    fn this_process_describes_itself() {
        let reader = Reader::new(["PATH"]);
        let pid = std::process::id();
        let process = reader.read(pid).unwrap();
        assert_eq!(process.id.start, start(pid).unwrap());
        assert!(process.variables.get("PATH").is_some(), "a listed variable is kept");
        assert!(process.variables.get("HOME").is_none(), "no other is");
        let holder = reader.describe(pid, None);
        assert_eq!(holder.cwd, std::env::current_dir().ok().map(|path| path.display().to_string()));
        assert!(pids().unwrap().contains(&pid));
    }

    #[test]
    fn a_process_that_does_not_exist_has_vanished() {
        assert_eq!(Reader::new([]).read(4_194_304), Err(Unreadable::Vanished));
        assert_eq!(Reader::new([]).describe(4_194_304, None).comm, None);
    }
}
