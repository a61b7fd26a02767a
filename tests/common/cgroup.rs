//! A control group with little memory.

use std::fs;
use std::path::PathBuf;

use super::eventually;

/// One with so little memory that whoever eats is killed. Removed with the test.
pub struct Small {
    pub path: PathBuf,
}
impl Small {
    #[track_caller]
    pub fn new(name: &str) -> Small {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let of = |controller: &str| {
            own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                controllers
                    .split(',')
                    .any(|it| it == controller)
                    .then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let name = format!("sniffer-{name}-{}", std::process::id());
        let (path, limit) = match of("memory") {
            Some(path) => {
                (PathBuf::from("/sys/fs/cgroup/memory").join(path).join(name), "memory.limit_in_bytes")
            }
            // Of cgroup v2 the root alone may have both processes and controllers for its children.
            None => (PathBuf::from("/sys/fs/cgroup").join(name), "memory.max"),
        };
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(path.join(limit), (24 << 20).to_string()).unwrap();
        // Swapping would take the place of being killed.
        let _ = fs::write(path.join("memory.swap.max"), "0");
        Small { path }
    }

    /// The action of a holder that is killed there.
    pub fn eat(&self) -> String {
        format!("eat:{}", self.path.display())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        eventually("the control group is empty", || fs::remove_dir(&self.path).is_ok().then_some(()));
    }
}
