//! Forgets what is too old or too much, a little at a time, and gives the room back to the file system.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::schema::{CLASSES, number};
use super::store::{Store, meta};
use super::{guard, micros, moment};

/// Rows that are taken out in one transaction: records wait for it.
const STEP_ROWS: i64 = 2000;
/// Pages that are given back in one.
const STEP_PAGES: i64 = 500;
/// Free pages that are kept: the next records take them.
const SPARE_PAGES: i64 = 50;
/// A round of cleaning takes no longer; the next one goes on.
const ROUND: Duration = Duration::from_millis(200);
/// Rows named by others were marked within this time before (see `MARK_AGAIN` of the store, and its caches).
const MARGIN: SignedDuration = SignedDuration::from_hours(2);

/// How much may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// This long.
    pub(super) age: Duration,
    /// So many bytes, the log of SQLite included.
    pub(super) bytes: u64,
}

impl Store {
    /// Cleans for a while; answers whether there is more to clean.
    pub(super) fn clean(&mut self, path: &Path, limits: Limits, now: Timestamp) -> rusqlite::Result<bool> {
        let end = Instant::now() + ROUND;
        let too_large = guard::bytes(path) > limits.bytes;
        let by_age = now.checked_sub(SignedDuration::try_from(limits.age).unwrap_or(SignedDuration::MAX));
        let mut cutoff = by_age.unwrap_or(Timestamp::MIN).max(self.resumed()?);
        let used = self.used_bytes()?;
        if too_large && used > limits.bytes / 10 * 9 && self.events > 0 {
            cutoff = cutoff.max(self.twentieth()?.unwrap_or(cutoff));
        }
        let mut removed = 0;
        while Instant::now() < end {
            let step = self.forget(cutoff)?;
            removed += step;
            if step == 0 {
                break;
            }
        }
        let unfinished = Instant::now() >= end;
        // A cleaning that was broken off goes on to where it was to end.
        let resume = if unfinished { micros(cutoff) } else { 0 };
        self.connection.execute("REPLACE INTO meta VALUES ('cutoff', ?)", [resume])?;
        if !unfinished && (removed > 0 || too_large) {
            self.forget_unnamed(cutoff)?;
        }
        self.give_back(end, too_large)?;
        Ok(unfinished || (too_large && removed > 0))
    }

    /// Where a cleaning was broken off.
    fn resumed(&self) -> rusqlite::Result<Timestamp> {
        let cutoff: Option<i64> = meta(&self.connection, "cutoff")?;
        Ok(cutoff.filter(|at| *at != 0).map_or(Timestamp::MIN, moment))
    }

    /// Bytes of pages that are in use.
    fn used_bytes(&self) -> rusqlite::Result<u64> {
        let of = |pragma| number(&self.connection, pragma);
        let used = of("page_count")?.saturating_sub(of("freelist_count")?);
        Ok(used.saturating_mul(of("page_size")?).try_into().unwrap_or(0))
    }

    /// The moment before which about a twentieth of all holds began.
    fn twentieth(&self) -> rusqlite::Result<Option<Timestamp>> {
        let of = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        let (Some(first), Some(last)) = (of("SELECT min(id) FROM hold")?, of("SELECT max(id) FROM hold")?)
        else {
            return Ok(of("SELECT max(last) FROM conflict")?.map(moment));
        };
        let at = first + (last - first) / 20 + 1;
        let since: Option<i64> = self.connection.query_row(
            "SELECT since FROM hold WHERE id >= ? ORDER BY id LIMIT 1",
            [at],
            |row| row.get(0),
        )?;
        Ok(since.map(moment))
    }

    /// Takes out some of what ended before; answers how many rows.
    fn forget(&mut self, before: Timestamp) -> rusqlite::Result<usize> {
        let transaction = self.connection.transaction()?;
        let before = micros(before);
        let mut removed = 0;
        for class in 0..CLASSES.len() {
            removed += transaction
                .prepare_cached(
                    "DELETE FROM hold WHERE id IN (SELECT id FROM hold INDEXED BY hold_time
                        WHERE class = ?1 AND since < ?2 AND since + lasted < ?2 LIMIT ?3)",
                )?
                .execute((class as i64, before, STEP_ROWS))?;
        }
        let conflicts =
            "SELECT id FROM conflict INDEXED BY conflict_last WHERE last < ?1 ORDER BY last LIMIT ?2";
        transaction
            .prepare_cached(&format!("DELETE FROM conflict_job WHERE conflict IN ({conflicts})"))?
            .execute((before, STEP_ROWS))?;
        removed += transaction
            .prepare_cached(&format!("DELETE FROM conflict WHERE id IN ({conflicts})"))?
            .execute((before, STEP_ROWS))?;
        let left = self.events.saturating_sub(removed as u64);
        transaction.execute("REPLACE INTO meta VALUES ('events', ?)", [i64::try_from(left).unwrap_or(0)])?;
        transaction.commit()?;
        self.events = left;
        Ok(removed)
    }

    /// Takes out what no hold names any more: it was named last by one that is gone.
    fn forget_unnamed(&mut self, cutoff: Timestamp) -> rusqlite::Result<()> {
        let before = micros(cutoff.checked_sub(MARGIN).unwrap_or(Timestamp::MIN));
        let transaction = self.connection.transaction()?;
        // What goes on names its rows still, however long ago it began.
        let open = "SELECT hold FROM open";
        for (table, names) in [
            ("process", vec![format!("SELECT holder FROM hold WHERE id IN ({open})")]),
            ("job", vec![format!("SELECT job FROM hold WHERE id IN ({open})")]),
            (
                "text",
                ["place", "test", "more"]
                    .map(|column| format!("SELECT {column} FROM hold WHERE id IN ({open})"))
                    .into(),
            ),
        ] {
            for name in names {
                let sql = format!("UPDATE {table} SET used = ?1 WHERE id IN ({name}) AND used < ?1");
                transaction.execute(&sql, [micros(cutoff)])?;
            }
        }
        transaction.execute("DELETE FROM process WHERE used < ?", [before])?;
        // Programs and ancestors are named by processes: their mark is as young as the youngest of these only where it was renewed.
        for column in ["program", "ancestry"] {
            let sql =
                format!("UPDATE text SET used = ?1 WHERE used < ?2 AND id IN (SELECT {column} FROM process)");
            transaction.execute(&sql, [micros(cutoff), before])?;
        }
        transaction.execute("DELETE FROM text WHERE used < ?", [before])?;
        transaction.execute(
            "DELETE FROM job WHERE used < ? AND id NOT IN (SELECT job FROM hold WHERE job IS NOT NULL)",
            [before],
        )?;
        transaction.commit()?;
        self.forget_known();
        Ok(())
    }

    /// Gives free pages back to the file system.
    fn give_back(&self, end: Instant, too_large: bool) -> rusqlite::Result<()> {
        while number(&self.connection, "freelist_count")? > SPARE_PAGES {
            // Each step gives one page back.
            let mut vacuum = self.connection.prepare(&format!("PRAGMA incremental_vacuum({STEP_PAGES})"))?;
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
            if Instant::now() >= end {
                break;
            }
        }
        // The log is moved into the file, which shrinks with that. Readers that are in the way make it wait.
        let how = if too_large { "TRUNCATE" } else { "PASSIVE" };
        self.connection.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()))
    }
}
