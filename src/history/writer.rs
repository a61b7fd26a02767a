//! The thread that writes: takes records off a bounded queue, in batches, and tries again where the file cannot be used.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::guard::{self, Guard};
use super::retention::Limits;
use super::store::{Recorded, Store};
use super::{Left, Unkept};
use crate::engine::Records;
use crate::kernel::clock;

/// Records that may wait: at 20,000 a second those of three seconds.
const QUEUE: usize = 65_536;
/// Records are gathered this long, or until there are so many.
const GATHER: Duration = Duration::from_millis(200);
const ENOUGH: usize = 8192;
/// An agent without records says that it lives this often.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// A file that cannot be used is tried again this often.
const AGAIN: Duration = Duration::from_secs(5);
/// Old records are looked for this often.
const CLEAN_EVERY: Duration = Duration::from_secs(60);
/// The end waits this long for what is left.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Whoever asks waits this long for what was told before.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// How the history is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Why nothing is kept now; `None` while it is.
    pub why: Option<String>,
    /// Holds and refusals in the file.
    pub events: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Records that were written.
    pub written: u64,
    /// Records that were not.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Recorded>,
    /// How many were put in, and how many of them were written or given up.
    put: u64,
    done: u64,
    standing: Standing,
    /// Whether the file has missed something.
    wants_all: bool,
    /// Whether somebody waits for what is in the queue.
    hurry: bool,
    ends: bool,
    ended: bool,
}

/// The way to the thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    queue: Mutex<Queue>,
    filled: Condvar,
    written: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Opens the file and starts the thread; answers what the last agent left. A file that cannot be used is said, and tried again.
    pub fn start(path: PathBuf, age: Duration, bytes: u64, boot: &str) -> (Recorder, Left) {
        let shared = Arc::new(Shared {
            path: path.clone(),
            queue: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
        });
        let recorder = Recorder(Arc::clone(&shared));
        let mut writer = Writer {
            shared,
            limits: Limits { age, bytes },
            boot: boot.to_owned(),
            open: None,
            next_open: Instant::now(),
            next_alive: Instant::now() + ALIVE_EVERY,
            next_clean: Instant::now() + CLEAN_EVERY,
        };
        let left = writer.try_open().unwrap_or_default();
        // What was left is told by the agent itself.
        writer.shared.lock().wants_all = false;
        if let Err(error) = std::thread::Builder::new().name("history".to_owned()).spawn(move || writer.run())
        {
            let mut queue = recorder.0.lock();
            (queue.standing.why, queue.ended) = (Some(format!("no thread could be started: {error}")), true);
        }
        (recorder, left)
    }

    /// Puts records into the queue; those that find no room are lost, and counted.
    pub fn record(&self, records: Records) {
        let mut queue = self.0.lock();
        queue.standing.lost += records.lost;
        queue.wants_all |= records.lost > 0;
        for record in records.records {
            if queue.records.len() >= QUEUE {
                queue.standing.lost += 1;
                queue.wants_all = true;
                continue;
            }
            queue.put += 1;
            queue.records.push_back(record);
        }
        drop(queue);
        self.0.filled.notify_one();
    }

    /// Whether the file has missed something since it was asked last.
    pub fn wants_all(&self) -> bool {
        let mut queue = self.0.lock();
        // Told again while the queue is full it would be lost again.
        let is_time = queue.wants_all && queue.records.len() < QUEUE / 4 && queue.standing.why.is_none();
        queue.wants_all &= !is_time;
        is_time
    }

    /// How it is.
    pub fn standing(&self) -> Standing {
        self.0.lock().standing.clone()
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.0.path.clone()
    }

    /// Waits until everything that was recorded before is in the file, or cannot be written.
    pub fn flush(&self) {
        let mut queue = self.0.lock();
        let wanted = queue.put;
        queue.hurry = true;
        self.0.filled.notify_one();
        let waits = |queue: &mut Queue| queue.done < wanted && queue.standing.why.is_none();
        let _ = self.0.written.wait_timeout_while(queue, FLUSH_TIMEOUT, waits);
    }

    /// Has the thread write what is left and end, and waits for it, but not for ever: a disk may be slow.
    pub fn end(&self) {
        let mut queue = self.0.lock();
        queue.ends = true;
        self.0.filled.notify_one();
        let _ = self.0.written.wait_timeout_while(queue, END_TIMEOUT, |queue| !queue.ended);
    }
}

struct Writer {
    shared: Arc<Shared>,
    limits: Limits,
    boot: String,
    open: Option<(Guard, Store)>,
    next_open: Instant,
    next_alive: Instant,
    next_clean: Instant,
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.gather() {
            let now = Instant::now();
            if self.open.as_ref().is_some_and(|(guard, _)| !guard.is_there()) {
                tracing::warn!("{} was taken away; a new one is begun", self.shared.path.display());
                self.open = None;
                self.next_open = now;
            }
            if self.open.is_none() && now >= self.next_open {
                self.try_open();
            }
            self.write(batch);
            if now >= self.next_clean {
                self.clean();
            }
        }
        // Closed before it is said, so that another may open it.
        self.open = None;
        self.shared.lock().ended = true;
        self.shared.written.notify_all();
    }

    /// Waits for records, or for something else that is due; `None` at the end.
    fn gather(&self) -> Option<Vec<Recorded>> {
        let mut queue = self.shared.lock();
        let idle = |queue: &mut Queue| queue.records.is_empty() && !queue.ends && !queue.hurry;
        let due = self.next_alive.min(self.next_clean);
        let due = if self.open.is_none() { due.min(self.next_open) } else { due };
        let wait = due.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        queue = self
            .shared
            .filled
            .wait_timeout_while(queue, wait, idle)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if !queue.records.is_empty() {
            let few = |queue: &mut Queue| queue.records.len() < ENOUGH && !queue.ends && !queue.hurry;
            queue = self
                .shared
                .filled
                .wait_timeout_while(queue, GATHER, few)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if queue.ends && queue.records.is_empty() {
            return None;
        }
        queue.hurry = false;
        let many = queue.records.len().min(2 * ENOUGH);
        Some(queue.records.drain(..many).collect())
    }

    fn write(&mut self, batch: Vec<Recorded>) {
        let now = Instant::now();
        let count = batch.len() as u64;
        if count == 0 && now < self.next_alive {
            return;
        }
        self.next_alive = now + ALIVE_EVERY;
        let written = match &mut self.open {
            Some((_, store)) => {
                store.apply(batch, clock::now()).map_err(|error| Unkept::of(&self.shared.path, &error))
            }
            None => {
                self.note(count, count);
                return;
            }
        };
        match written {
            Ok(()) => self.note(count, 0),
            Err(why) => {
                self.failed(&why);
                self.note(count, count);
            }
        }
    }

    /// So many were taken off the queue, and of these so many are lost.
    fn note(&self, done: u64, lost: u64) {
        let events = self.open.as_ref().map(|(_, store)| store.events);
        let bytes = guard::bytes(&self.shared.path);
        let mut queue = self.shared.lock();
        queue.done += done;
        queue.standing.lost += lost;
        queue.standing.written += done - lost;
        queue.wants_all |= lost > 0;
        queue.standing.bytes = bytes;
        queue.standing.events = events.unwrap_or(queue.standing.events);
        self.shared.written.notify_all();
    }

    fn failed(&mut self, why: &Unkept) {
        self.open = None;
        self.next_open = Instant::now() + AGAIN;
        if let Unkept::Damaged { .. } = why {
            match guard::move_aside(&self.shared.path) {
                Ok(aside) => {
                    tracing::error!("{why}; it is kept as {}, and a new one is begun", aside.display());
                    self.next_open = Instant::now();
                    return;
                }
                Err(error) => tracing::error!("{why}, and cannot be moved aside: {error}"),
            }
        }
        let mut queue = self.shared.lock();
        let before = queue.standing.why.replace(why.to_string());
        if before.as_deref() != Some(&why.to_string()) {
            tracing::error!("the history is not kept: {why}; trying again every {}s", AGAIN.as_secs());
        }
    }

    /// Opens the file; answers what is in it of the agent before.
    fn try_open(&mut self) -> Option<Left> {
        // A damaged one is moved aside by the first try.
        for _ in 0..2 {
            match self.opened() {
                Ok((guard, store, left)) => {
                    self.open = Some((guard, store));
                    let had = {
                        let mut queue = self.shared.lock();
                        queue.wants_all = true;
                        queue.standing.why.take()
                    };
                    if had.is_some() {
                        tracing::info!("the history is kept again in {}", self.shared.path.display());
                    }
                    self.note(0, 0);
                    return Some(left);
                }
                Err(why) => self.failed(&why),
            }
            if Instant::now() < self.next_open {
                return None;
            }
        }
        None
    }

    fn opened(&self) -> Result<(Guard, Store, Left), Unkept> {
        let path = &self.shared.path;
        let guard = Guard::take(path)?;
        let store = Store::open(path)?;
        let of = |error: rusqlite::Error| Unkept::of(path, &error);
        let left = store.left(&self.boot).map_err(of)?;
        store.note_boot(&self.boot).map_err(of)?;
        Ok((guard, store, left))
    }

    fn clean(&mut self) {
        self.next_clean = Instant::now() + CLEAN_EVERY;
        let Some((_, store)) = &mut self.open else { return };
        match store.clean(&self.shared.path, self.limits, clock::now()) {
            // The queue first: records must not be lost for it.
            Ok(true) => self.next_clean = Instant::now() + GATHER,
            Ok(false) => {}
            Err(error) => {
                let why = Unkept::of(&self.shared.path, &error);
                self.failed(&why);
            }
        }
        self.note(0, 0);
    }
}
