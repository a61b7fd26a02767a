//! What a restart must not forget, in one small file: declared jobs, ended jobs that left something, and who was told of which alert.
//! Written anew at every change, at once and whole. Without it the agent does the same, but for what it then forgets.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::alert::Alerts;
use crate::alert::book::Book;
use crate::engine::KeptJob;
use crate::model::answer::SCHEMA;

/// A larger file is none of ours.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// What could not be written is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two writings rest so many times what the first took.
const REST: u32 = 20;
/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(100);

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    schema: u32,
    /// Which life of the host it is of: jobs do not outlive it.
    boot: String,
    /// Where the clock of the agent began that kept it: the wall clock may have been set since.
    pub booted: Timestamp,
    /// Jobs.
    pub jobs: Vec<KeptJob>,
    /// Alerts.
    pub alerts: Book,
}

/// Reads what the agent before this one kept. A file that cannot be understood is moved aside and said; none is no error.
pub fn load(path: &Path, boot: &str) -> State {
    let read = fs::metadata(path).and_then(|meta| {
        if meta.len() > MAX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { fs::read(path) }
    });
    let state = match read {
        Ok(bytes) => serde_json::from_slice::<State>(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return State::default(),
        Err(error) => Err(error.to_string()),
    };
    match state {
        Ok(state) if state.schema == SCHEMA && state.boot == boot => state,
        // Sockets and processes of a host that was started anew are gone; what was alerted of them has ended.
        Ok(state) if state.schema == SCHEMA => State { jobs: Vec::new(), ..state },
        Ok(_) => aside(path, "it is of another version"),
        Err(why) => aside(path, &why),
    }
}

fn aside(path: &Path, why: &str) -> State {
    let beside = path.with_added_extension("unreadable");
    let moved = fs::rename(path, &beside).is_ok();
    let whereto = if moved { format!("; moved to {}", beside.display()) } else { String::new() };
    tracing::warn!(
        "{} is not understood ({why}){whereto}: declared jobs and alerts are forgotten",
        path.display()
    );
    State::default()
}

/// Writes the file whenever something changes.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: PathBuf,
    boot: String,
    booted: Timestamp,
    jobs: watch::Receiver<Vec<KeptJob>>,
    alerts: Alerts,
    /// Held while it is written.
    pen: Arc<Mutex<()>>,
}

impl Keeper {
    /// One for this file.
    pub fn new(
        path: PathBuf,
        (boot, booted): (String, Timestamp),
        jobs: watch::Receiver<Vec<KeptJob>>,
        alerts: Alerts,
    ) -> Self {
        Keeper { path, boot, booted, jobs, alerts, pen: Arc::default() }
    }

    /// Writes at every change, until the agent ends.
    pub async fn run(mut self) {
        let mut changes = self.alerts.changes();
        let mut complained = false;
        loop {
            let changed = tokio::select! {
                changed = self.jobs.changed() => changed,
                changed = changes.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            tokio::time::sleep(GATHER).await;
            while let Err(error) = self.write_aside(&mut changes).await {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        "{} cannot be written: {error}; a restart will forget declared jobs and repeat alerts (agent.state sets another file)",
                        self.path.display()
                    );
                }
                tokio::time::sleep(AGAIN).await;
            }
            complained = false;
        }
    }

    /// Writes it on a thread of its own, and then rests: a large one is not written all the time.
    async fn write_aside(&mut self, changes: &mut watch::Receiver<()>) -> io::Result<()> {
        self.jobs.mark_unchanged();
        changes.mark_unchanged();
        let (keeper, began) = (self.clone(), Instant::now());
        tokio::task::spawn_blocking(move || keeper.write()).await.map_err(io::Error::other)??;
        tokio::time::sleep(began.elapsed() * REST).await;
        Ok(())
    }

    /// Writes it now: beside the old one, which it then replaces.
    pub fn write(&self) -> io::Result<()> {
        let _pen = self.pen.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs = self.jobs.borrow().clone();
        let alerts = self.alerts.book();
        let state = State { schema: SCHEMA, boot: self.boot.clone(), booted: self.booted, jobs, alerts };
        let bytes = serde_json::to_vec(&state)?;
        let beside = self.path.with_added_extension("new");
        // Addresses of receivers are in it, and they may hold secrets.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            // Nobody else is to lead it elsewhere.
            .custom_flags(libc::O_NOFOLLOW)
            .open(&beside)?;
        file.write_all(&bytes)?;
        fs::rename(&beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn what_is_not_understood_is_moved_aside() {
        for text in ["", "{", "[]", "{\"schema\":7,\"boot\":\"b\",\"jobs\":[],\"alerts\":{}}", "\u{0}\u{0}"] {
            let (directory, path) = file(text);
            assert_eq!(load(&path, "b"), State::default(), "{text}");
            assert!(!path.exists());
            assert_eq!(fs::read_to_string(directory.path().join("state.json.unreadable")).unwrap(), text);
        }
    }

    #[test]
    fn none_is_no_mistake_and_one_of_ours_is_read() {
        let (_directory, path) = file(
            "{\"schema\":1,\"boot\":\"b\",\"booted\":\"2026-11-21T00:00:00Z\",\"jobs\":[],\"alerts\":{\"entries\":{},\"receivers\":[\"webhook x\"]}}",
        );
        let state = load(&path, "b");
        assert_eq!(state.boot, "b");
        assert_eq!(load(&path, "another boot").alerts, state.alerts);
        fs::remove_file(&path).unwrap();
        assert_eq!(load(&path, "b"), State::default());
    }
}
