//! The tables. Everything that repeats is kept once and named by a number: most of a hold is its process, which holds several ports.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Unkept;

/// `PRAGMA application_id`: "snif".
const APPLICATION: i64 = 0x736e_6966;
/// `PRAGMA user_version`: the format.
pub(super) const FORMAT: i64 = 1;

const SECOND: i64 = 1_000_000;

/// Longest holds of each class, in microseconds, up to those that are longer or go on. Whoever asks who had a port at a moment looks
/// through those only that can have lasted until then: of each class a few times as many as are found.
pub(super) const CLASSES: [i64; 8] = [
    SECOND,
    10 * SECOND,
    60 * SECOND,
    600 * SECOND,
    3600 * SECOND,
    6 * 3600 * SECOND,
    24 * 3600 * SECOND,
    i64::MAX,
];

/// Class of a hold that lasted so long; `None` goes on.
pub(super) fn class(lasted: Option<i64>) -> i64 {
    let lasted = lasted.unwrap_or(i64::MAX);
    CLASSES.iter().position(|longest| lasted <= *longest).unwrap_or(CLASSES.len() - 1) as i64
}

/// Times are microseconds since 1970 (UTC). `used` says when a row was last named by another: it goes when nothing can name it.
const TABLES: &str = "
PRAGMA auto_vacuum = INCREMENTAL;
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE text (id INTEGER PRIMARY KEY, used INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE process (
    id INTEGER PRIMARY KEY, used INTEGER NOT NULL,
    pid INTEGER NOT NULL, start INTEGER, ppid INTEGER,
    program INTEGER NOT NULL REFERENCES text, ancestry INTEGER REFERENCES text
);
CREATE TABLE job (
    id INTEGER PRIMARY KEY, used INTEGER NOT NULL,
    ci TEXT NOT NULL, key TEXT NOT NULL, number TEXT NOT NULL, body TEXT NOT NULL,
    UNIQUE (ci, key)
);
CREATE INDEX job_number ON job (number);
CREATE TABLE hold (
    id INTEGER PRIMARY KEY,
    since INTEGER NOT NULL, lasted INTEGER, class INTEGER NOT NULL,
    port INTEGER NOT NULL, place INTEGER NOT NULL REFERENCES text,
    holder INTEGER REFERENCES process, job INTEGER REFERENCES job, test INTEGER REFERENCES text,
    ending INTEGER, status INTEGER, leaked INTEGER, more INTEGER REFERENCES text
);
CREATE INDEX hold_port ON hold (port, class, since);
CREATE INDEX hold_time ON hold (class, since, port);
CREATE INDEX hold_job ON hold (job) WHERE job IS NOT NULL;
CREATE TABLE open (hold INTEGER PRIMARY KEY REFERENCES hold, key TEXT NOT NULL);
CREATE TABLE conflict (
    id INTEGER PRIMARY KEY, last INTEGER NOT NULL, port INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE INDEX conflict_last ON conflict (last);
CREATE INDEX conflict_port ON conflict (port, last);
CREATE TABLE conflict_job (
    ci TEXT NOT NULL, number TEXT NOT NULL, conflict INTEGER NOT NULL REFERENCES conflict,
    PRIMARY KEY (ci, number, conflict)
) WITHOUT ROWID;
CREATE VIEW holds AS
    SELECT hold.id, datetime(since / 1000000, 'unixepoch') AS since, lasted / 1000000.0 AS seconds, port,
        place.body AS place, process.pid, program.body AS program, job.body AS job, test.body AS test,
        CASE ending WHEN 0 THEN 'closed' WHEN 1 THEN 'exit' WHEN 2 THEN 'oom_killed' WHEN 3 THEN 'netns_gone'
            WHEN 4 THEN 'agent_restart' WHEN 5 THEN 'unknown' END AS ending
    FROM hold LEFT JOIN text place ON place.id = hold.place LEFT JOIN process ON process.id = hold.holder
        LEFT JOIN text program ON program.id = process.program LEFT JOIN job ON job.id = hold.job
        LEFT JOIN text test ON test.id = hold.test;
CREATE VIEW conflicts AS
    SELECT id, datetime(last / 1000000, 'unixepoch') AS last, port, body ->> 'cause' AS cause,
        body ->> 'attempts' AS attempts, body ->> 'explanation' AS explanation
    FROM conflict;
PRAGMA application_id = 0x736e6966;
PRAGMA user_version = 1;
COMMIT;
";

/// Every database that has a table begins with so many bytes. SQLite takes a file of a single 0 for a new one.
const HEADER_BYTES: u64 = 100;

/// Opens the file to write; makes the tables where there are none yet. Errors: it is of another program, another version, or damaged.
pub(super) fn open(path: &Path) -> Result<Connection, Unkept> {
    let of = |error: rusqlite::Error| Unkept::of(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(of)?;
    connection.busy_timeout(std::time::Duration::from_millis(500)).map_err(of)?;
    // References say what a number means. To have each checked costs a look-up for each, and a walk through all holds for each row that
    // goes.
    connection.pragma_update(None, "foreign_keys", false).map_err(of)?;
    let is_new = number(&connection, "schema_version").map_err(of)? == 0;
    if is_new && fs::metadata(path).is_ok_and(|file| (1..HEADER_BYTES).contains(&file.len())) {
        let why = "it is too short for a database".to_owned();
        return Err(Unkept::Damaged { path: path.display().to_string(), why });
    }
    if is_new {
        connection.execute_batch(TABLES).map_err(of)?;
    }
    check(&connection, path)?;
    // A commit is in the log before it is answered, so a kill loses nothing of it; a power loss may lose what was not synced.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(of)?;
    connection.pragma_update(None, "synchronous", "NORMAL").map_err(of)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20).map_err(of)?;
    connection.pragma_update(None, "cache_size", -4096).map_err(of)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Opens the file to read. Errors: there is none, or it is not one of ours.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, Unkept> {
    let of = |error: rusqlite::Error| Unkept::of(path, &error);
    // A directory that is closed to us hides whether there is one.
    if !path.try_exists().map_err(|error| Unkept::failed(path, error))? {
        return Err(Unkept::Missing(path.display().to_string()));
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(path, flags).map_err(of)?;
    connection.busy_timeout(std::time::Duration::from_secs(2)).map_err(of)?;
    check(&connection, path)?;
    // One transaction for all that is asked: a view of one moment, and each statement by itself would take the file's locks anew,
    // which costs more than most of what is read.
    connection.execute_batch("BEGIN").map_err(of)?;
    Ok(connection)
}

fn check(connection: &Connection, path: &Path) -> Result<(), Unkept> {
    let of = |error: rusqlite::Error| Unkept::of(path, &error);
    let shown = || path.display().to_string();
    if number(connection, "application_id").map_err(of)? != APPLICATION {
        return Err(Unkept::Foreign(shown()));
    }
    match number(connection, "user_version").map_err(of)? {
        FORMAT => Ok(()),
        found => Err(Unkept::Newer { path: shown(), found, known: FORMAT }),
    }
}

pub(super) fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, pragma, |row| row.get(0))
}
