//! The file in its directory: made for us and our group, locked against a second agent, moved aside where it is damaged, and watched for
//! being taken away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::Unkept;
use crate::kernel::clock;

/// Holds the lock of a history file; dropped, another agent may have it.
#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
    _lock: File,
}

impl Guard {
    /// Makes the file where there is none, readable for its owner and group only: command lines are in it.
    pub(super) fn take(path: &Path) -> Result<Self, Unkept> {
        let failed = |error: io::Error| Unkept::failed(path, error);
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let lock = private().open(path.with_added_extension("lock")).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Unkept::InUse(path.display().to_string())),
            Err(errno) => return Err(failed(errno.into())),
        }
        let file = private().open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Unkept::failed(path, "it is no regular file"));
        }
        Ok(Guard { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()), _lock: lock })
    }

    /// Whether the file is still the one that was opened: somebody may have removed or replaced it.
    pub(super) fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity)
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Nobody is to lead it elsewhere.
    options.read(true).write(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
    options
}

/// The companions of a database in WAL mode.
fn parts(path: &Path) -> [PathBuf; 3] {
    let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
    [path.to_owned(), beside("-wal"), beside("-shm")]
}

/// Renames a damaged file with all that belongs to it; answers what it is called now.
pub(super) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_added_extension(format!("damaged-{}", clock::now().as_second()));
    for (from, to) in parts(path).iter().zip(parts(&aside)) {
        match fs::rename(from, to) {
            Err(error) if from == path || error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

/// Bytes of the file and its log.
pub(super) fn bytes(path: &Path) -> u64 {
    parts(path).iter().take(2).filter_map(|part| fs::metadata(part).ok()).map(|part| part.len()).sum()
}
