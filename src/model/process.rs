//! Processes: identity, what describes them, and the listed variables of their environment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::mask::without_passwords;

/// Identity of a process: a pid is reused, a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Thread group id, as in `/proc/PID`.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, see proc_pid_stat(5).
    pub start: u64,
}

/// The listed environment variables of a process, as they were at its exec. Nothing else is ever kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

/// Of a value so much is kept: ids, names and addresses are shorter, and anybody can set a long one.
const VALUE_BYTES: usize = 512;

impl Variables {
    /// The value of a variable; an empty value counts as absent, since that is how jobs blank it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Picks the wanted variables out of an environment block (`NAME=value`, each ended by NUL; proc_pid_environ(5)).
    /// The first of two equal names counts, as getenv(3) has it. Bytes that are not UTF-8 are replaced visibly, passwords in addresses by
    /// stars.
    pub fn from_block(block: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Self {
        let mut found = BTreeMap::new();
        for entry in block.split(|byte| *byte == 0) {
            let mut parts = entry.splitn(2, |byte| *byte == b'=');
            let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
            if wanted(name) {
                found.entry(String::from_utf8_lossy(name).into_owned()).or_insert_with(|| {
                    without_passwords(&String::from_utf8_lossy(value.get(..VALUE_BYTES).unwrap_or(value)))
                });
            }
        }
        Variables(found)
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Variables {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Variables(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// A process as far as attribution needs it. Read at exec, or when a snapshot meets it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Identity.
    pub id: ProcessId,
    /// Parent at the moment of reading; 0 for pid 1 and kernel threads.
    pub ppid: u32,
    /// `/proc/PID/comm`: at most 15 bytes, chosen by the process.
    pub comm: String,
    /// Arguments, bounded in total (see the reader); empty for kernel threads.
    pub cmdline: Vec<String>,
    /// Path of its program and its effective user, where they were told with its exec.
    pub told: Option<(String, u32)>,
    /// Effective user; of a program that changed its user by itself, root.
    pub uid: Option<u32>,
    /// Path in the cgroup hierarchy that systemd uses (v2, or `name=systemd` on a hybrid host).
    pub cgroup: Option<String>,
    /// Inode of its network namespace; `None` where that could not be read.
    pub netns: Option<u64>,
    /// Listed variables.
    pub variables: Variables,
    /// False when the environment could not be read (another user's process): then "no variable" proves nothing.
    pub variables_readable: bool,
}

/// How a process ended: by itself with a code, or by a signal (wait(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its own exit code.
    pub code: Option<u8>,
    /// The signal that ended it.
    pub signal: Option<u8>,
}

impl Exit {
    /// Signals by which people and services ask a process to end: SIGHUP, SIGINT, SIGTERM of signal(7).
    const REQUESTS: [u8; 3] = [1, 2, 15];
    /// SIGKILL.
    pub const KILL: u8 = 9;

    /// From a status as wait(2) tells it: the signal is in the lowest seven bits, the code in the byte above.
    pub const fn of_status(status: u32) -> Self {
        let [low, code, ..] = status.to_le_bytes();
        match low & 0x7f {
            0 => Exit { code: Some(code), signal: None },
            signal => Exit { code: None, signal: Some(signal) },
        }
    }

    /// Whether it ended well, or as it was asked to. Shells and container engines tell a signal as 128 and its number.
    pub fn is_regular(self) -> bool {
        let asked = |signal: u8| Self::REQUESTS.contains(&signal);
        let by_code = |code: u8| code == 0 || code.checked_sub(128).is_some_and(asked);
        self.code.is_some_and(by_code) || self.signal.is_some_and(asked)
    }
}

/// One step of an ancestry: the parent, its parent, up to pid 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// A process that has a socket open, as documents show it. Facts that could not be read are null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// The descriptor under which it has the socket open (the lowest, if several); `None` where it was not looked for.
    pub fd: Option<u32>,
    /// Start of the process.
    pub start_time: Option<Timestamp>,
    /// Parent now; a process whose parent ended belongs to pid 1 or a subreaper.
    pub ppid: Option<u32>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Name of that user.
    pub user: Option<String>,
    /// Name the process gave itself.
    pub comm: Option<String>,
    /// Executable, as a path in the process's own mount namespace.
    pub exe: Option<String>,
    /// Arguments.
    pub cmdline: Option<Vec<String>>,
    /// Working directory.
    pub cwd: Option<String>,
    /// systemd unit, from the cgroup path.
    pub unit: Option<String>,
    /// Container id, from the cgroup path.
    pub container: Option<String>,
    /// The control group that limits its memory.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Parent, grandparent, up to pid 1.
    pub ancestry: Vec<Ancestor>,
}

impl Holder {
    /// One of which nothing more is known.
    pub fn unknown(pid: u32) -> Self {
        Holder {
            pid,
            fd: None,
            start_time: None,
            ppid: None,
            uid: None,
            user: None,
            comm: None,
            exe: None,
            cmdline: None,
            cwd: None,
            unit: None,
            container: None,
            cgroup: None,
            ancestry: Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A process as a literal.

    use super::*;

    pub(crate) fn literal(pid: u32, ppid: u32, comm: &str) -> Process {
        Process {
            id: ProcessId { pid, start: u64::from(pid) },
            ppid,
            comm: comm.to_owned(),
            cmdline: vec![comm.to_owned()],
            told: None,
            uid: Some(1001),
            cgroup: None,
            netns: None,
            variables: Variables::default(),
            variables_readable: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        let exit = Exit::of_status;
        assert_eq!(exit(0), Exit { code: Some(0), signal: None });
        assert_eq!(exit(3 << 8), Exit { code: Some(3), signal: None });
        assert_eq!(exit(9), Exit { code: None, signal: Some(9) });
        assert_eq!(exit(11 | 0x80), Exit { code: None, signal: Some(11) }, "with a core dump");
        let regular = |status| exit(status).is_regular();
        assert!(regular(0) && regular(15) && regular(143 << 8) && regular(130 << 8));
        assert!(!regular(9) && !regular(1 << 8) && !regular(137 << 8) && !regular(11));
    }

    #[test]
    fn only_wanted_variables_are_kept() {
        let block = b"SECRET=x\0CI_JOB_ID=7\0CI_JOB_ID=8\0NOVALUE\0\0";
        let variables = Variables::from_block(block, |name| name == b"CI_JOB_ID");
        assert_eq!(variables, Variables::from([("CI_JOB_ID", "7")]));
    }

    #[test]
    fn a_blanked_variable_is_absent() {
        assert_eq!(Variables::from([("RUNNER_TRACKING_ID", "")]).get("RUNNER_TRACKING_ID"), None);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_visibly() {
        let variables = Variables::from_block(b"A=\xff\xfe!", |_| true);
        assert_eq!(variables.get("A"), Some("\u{fffd}\u{fffd}!"));
    }
}
