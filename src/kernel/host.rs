//! What this host is called, and which of its lives this is.

/// Its name (`nodename` of uname(2)).
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Another at every boot (`/proc/sys/kernel/random/boot_id`, random(4)); empty where it cannot be read.
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}
