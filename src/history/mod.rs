//! What the agent remembers: holds, refusals and jobs in one SQLite file, which `sqlite3` can read too (views `holds`, `conflicts`).
//!
//! One thread writes, in batches, off a bounded queue: the agent's loop is never held up, and what finds no room is counted.
//! Where the file cannot be written the agent goes on without, says so, and begins again when it can. Readers open the file for
//! themselves, the command line among them when no daemon runs. Judges nothing.

pub mod document;
mod guard;
mod query;
mod retention;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use query::{Asked, Reader, Shown};
pub use writer::{Recorder, Standing};

use std::path::Path;

use jiff::Timestamp;

use crate::engine::KeptHold;

/// What the last agent left in the file.
#[derive(Debug, Clone, Default)]
pub struct Left {
    /// Holds that went on.
    pub holds: Vec<KeptHold>,
    /// When that agent was last seen to live.
    pub alive_until: Timestamp,
    /// The highest number that was given to a hold or a conflict.
    pub last_id: u64,
}

/// Why there is no history, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unkept {
    /// Another agent writes to it.
    #[error("another agent writes to {0}; give each its own file (history.path)")]
    InUse(String),
    /// A later version of this program made it.
    #[error(
        "{path} was made by a newer sniffer (its format is {found}, this one writes {known}); it is left as it is"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Another program made it.
    #[error("{0} is the database of another program; it is left as it is, set history.path to another file")]
    Foreign(String),
    /// It is damaged.
    #[error("{path} is damaged ({why})")]
    Damaged {
        /// The file.
        path: String,
        /// What SQLite says.
        why: String,
    },
    /// There is none.
    #[error("there is no history at {0}")]
    Missing(String),
    /// Anything else: no room, no permission.
    #[error("{path} cannot be used: {why}")]
    Failed {
        /// The file.
        path: String,
        /// What SQLite or the system says.
        why: String,
    },
}

impl Unkept {
    fn of(path: &Path, error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.display().to_string();
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Unkept::Damaged { path, why: error.to_string() },
            _ => Unkept::Failed { path, why: error.to_string() },
        }
    }

    fn failed(path: &Path, why: impl ToString) -> Self {
        Unkept::Failed { path: path.display().to_string(), why: why.to_string() }
    }
}

/// Microseconds since the epoch: how the file keeps moments.
fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

fn moment(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or_default()
}
