//! Network namespaces: identity, name, and what keeps them alive (namespaces(7), ip-netns(8)).

use serde::{Deserialize, Serialize};

/// Identity of a network namespace: device and inode of its nsfs file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsKey {
    /// Device of nsfs.
    pub device: u64,
    /// Inode in nsfs. Reused by the kernel after the namespace ended.
    pub inode: u64,
}

/// A network namespace as documents show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// Inode in nsfs, as in `readlink /proc/PID/ns/net`.
    pub inode: u64,
    /// `host` for the program's own, the name given with `ip netns`, else null.
    pub name: Option<String>,
    /// What keeps it alive: `process PID`, `mount PATH` or `fd N of process PID`.
    #[serde(default)]
    pub kept_by: Option<String>,
}

/// The namespace a question is about: `--netns NAME|INODE|PID:n`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsSelector {
    /// The namespace with this nsfs inode.
    Inode(u64),
    /// The namespace of this process.
    Pid(u32),
    /// The namespace with this name.
    Name(String),
}

impl std::str::FromStr for NetnsSelector {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Some(pid) = word.strip_prefix("PID:").or_else(|| word.strip_prefix("pid:")) {
            return pid
                .parse()
                .map(NetnsSelector::Pid)
                .map_err(|_| format!("'{pid}' is no process id; write PID:4121"));
        }
        if word.is_empty() || word.contains('/') || word.chars().any(char::is_control) {
            return Err("a namespace is a name, an inode number, or PID:n".to_owned());
        }
        Ok(word.parse().map_or_else(|_| NetnsSelector::Name(word.to_owned()), NetnsSelector::Inode))
    }
}

impl std::fmt::Display for NetnsSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NetnsSelector::Inode(inode) => write!(f, "{inode}"),
            NetnsSelector::Pid(pid) => write!(f, "PID:{pid}"),
            NetnsSelector::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_told_apart() {
        assert_eq!("4026531833".parse(), Ok(NetnsSelector::Inode(4_026_531_833)));
        assert_eq!("PID:12".parse(), Ok(NetnsSelector::Pid(12)));
        assert_eq!("blue".parse(), Ok(NetnsSelector::Name("blue".into())));
        for bad in ["PID:x", "", "../etc", "a\nb"] {
            assert!(bad.parse::<NetnsSelector>().is_err(), "{bad:?}");
        }
    }
}
