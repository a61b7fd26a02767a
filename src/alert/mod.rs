//! Alerts: what the agent noticed, told to receivers outside. Each receiver has a thread of its own, so that a dead one delays nobody; what
//! each was told is kept in the [`book::Book`], so that a restart neither repeats nor forgets.
//!
//! To add a receiver: one file with a type that implements `Receiver`, and a kind in `config`. Never judges.

mod alertmanager;
pub mod book;
mod command;
mod document;
mod webhook;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::engine::Notice;
use crate::kernel::clock;
use crate::model::alert::{Alert, AlertKind, AlertSink, Phase};
use book::{Book, Noticed};

/// Times between two attempts: the first, and the longest.
const BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// Whoever waits for something to tell looks this often, for what time alone changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Somebody who is told of alerts, one after the other.
trait Receiver: Send {
    /// Tells of an alert. Errors: why it was not taken, in a few words that name no address.
    fn deliver(&mut self, alert: &Alert) -> Result<(), String>;
}

/// How often each kind of receiver was told with which result: `delivered`, `failed` (given up), `dropped` (too many at once).
pub type Counts = BTreeMap<(AlertKind, &'static str), u64>;

#[derive(Debug)]
struct Shared {
    book: Book,
    counts: Counts,
    /// Grows when something has begun or ended.
    news: u64,
}

/// The way to tell of alerts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Alerts {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    sinks: Arc<[AlertSink]>,
    /// Sent with every change of the book.
    changes: watch::Sender<()>,
    /// Since when this host runs, which tells its sockets from those before a reboot.
    boot: Arc<str>,
}

impl Alerts {
    /// Starts a thread for each receiver, which goes on where the book says that it stopped.
    pub fn start(sinks: &[AlertSink], book: Book, boot: &str) -> Alerts {
        let counts =
            AlertKind::ALL.iter().flat_map(|kind| RESULTS.map(|result| ((*kind, result), 0))).collect();
        let mut shared = Shared { book, counts, news: 0 };
        // Alertmanager is told all of it again and again.
        let one_by_one = sinks.iter().filter(|sink| sink.kind != AlertKind::Alertmanager);
        shared.book.keep_receivers(one_by_one.map(AlertSink::id));
        let alerts = Alerts {
            shared: Arc::new((Mutex::new(shared), Condvar::new())),
            sinks: sinks.into(),
            changes: watch::Sender::new(()),
            boot: boot.into(),
        };
        for sink in sinks {
            let (alerts, sink) = (alerts.clone(), sink.clone());
            std::thread::spawn(move || match sink.kind {
                AlertKind::Alertmanager => alertmanager::keep_told(&alerts, &sink),
                AlertKind::Webhook => alerts.tell(&sink, &mut webhook::Webhook::new(&sink)),
                AlertKind::Command => alerts.tell(&sink, &mut command::Command::new(&sink)),
            });
        }
        alerts
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A receiver that panicked leaves the book whole: each change of it is one call.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self, shared: &mut Shared) {
        shared.news += 1;
        self.shared.1.notify_all();
        self.changes.send_replace(());
    }

    /// What the agent noticed; answers whether it is news: that an agent before it knew it is none.
    pub fn notice(&self, notice: &Notice) -> bool {
        let now = clock::now();
        let mut shared = self.lock();
        let noticed = match notice {
            Notice::Leak(true, leak) => shared.book.fire(document::leak(leak, &self.boot, now), now),
            Notice::Leak(false, leak) => shared.book.resolve(&document::leak_id(leak, &self.boot), now),
            Notice::Shared(true, sharing) => {
                shared.book.fire(document::shared(sharing, &self.boot, now), now)
            }
            Notice::Shared(false, sharing) => {
                shared.book.resolve(&document::shared_id(sharing, &self.boot), now)
            }
            // Each of them is an event, and news to the log.
            Notice::Conflict(conflict) => {
                let noticed = document::conflict(conflict, &self.boot)
                    .map_or(Noticed::Known, |alert| shared.book.fire(alert, now));
                self.noticed(&mut shared, noticed);
                return true;
            }
            Notice::Job(..) => return true,
        };
        self.noticed(&mut shared, noticed);
        noticed != Noticed::Known
    }

    fn noticed(&self, shared: &mut Shared, noticed: Noticed) {
        match noticed {
            Noticed::Changed => self.news(shared),
            Noticed::Known => {}
            Noticed::TooMany => {
                for sink in self.sinks.iter() {
                    *shared.counts.entry((sink.kind, DROPPED)).or_insert(0) += 1;
                }
            }
        }
        shared.book.forget(clock::now());
    }

    /// What was alerted before a restart and was not found again has ended meanwhile; answers with it.
    pub fn resolve_unconfirmed(&self) -> Vec<Alert> {
        let mut shared = self.lock();
        let lost = shared.book.resolve_unconfirmed(clock::now());
        if !lost.is_empty() {
            self.news(&mut shared);
        }
        lost
    }

    /// How often who was told.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// What is alerted, and who was told.
    pub fn book(&self) -> Book {
        self.lock().book.clone()
    }

    /// Changes with the book.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Waits for other news than these, so long at most.
    fn wait_for_news(&self, news: u64, time: Duration) {
        let same = |shared: &mut Shared| shared.news == news;
        // Whoever waited looks for itself.
        drop(self.shared.1.wait_timeout_while(self.lock(), time, same));
    }

    /// Tells a receiver of one alert after the other, for ever.
    fn tell(&self, sink: &AlertSink, receiver: &mut dyn Receiver) {
        let id = sink.id();
        loop {
            let (news, next) = {
                let mut shared = self.lock();
                shared.book.forget(clock::now());
                (shared.news, shared.book.next(&id))
            };
            let Some((told, alert)) = next else {
                self.wait_for_news(news, LOOK_EVERY);
                continue;
            };
            let result = self.try_to_tell(sink, receiver, &alert);
            let mut shared = self.lock();
            *shared.counts.entry((sink.kind, result)).or_insert(0) += 1;
            shared.book.told(&alert, &id, told);
            self.changes.send_replace(());
        }
    }

    /// Tries until it is taken, or for too long.
    fn try_to_tell(&self, sink: &AlertSink, receiver: &mut dyn Receiver, alert: &Alert) -> &'static str {
        // By its age: of those that waited behind others for a dead receiver each is tried once more.
        let began = alert.ends_at.unwrap_or(alert.starts_at);
        let age = Duration::try_from(clock::now().duration_since(began)).unwrap_or_default();
        let until = Instant::now() + sink.give_up.saturating_sub(age);
        let mut rest = BACK_OFF;
        loop {
            let why = match receiver.deliver(alert) {
                Ok(()) => return DELIVERED,
                Err(why) => why,
            };
            if Instant::now() + rest >= until {
                tracing::warn!("an alert was not taken by a {} and is given up: {why}", sink.kind.as_str());
                return FAILED;
            }
            tracing::debug!("an alert was not taken by a {}: {why}; trying again", sink.kind.as_str());
            std::thread::sleep(rest);
            rest = (rest * 2).min(LONGEST_BACK_OFF);
        }
    }

    /// What fires or has ended a short time ago, for a receiver that is told all of it again and again.
    fn current(&self, now: Timestamp) -> (u64, Vec<(Alert, Phase)>) {
        let mut shared = self.lock();
        shared.book.forget(now);
        (shared.news, shared.book.current(now))
    }

    fn counted(&self, kind: AlertKind, result: &'static str, number: usize) {
        *self.lock().counts.entry((kind, result)).or_insert(0) += u64::try_from(number).unwrap_or(u64::MAX);
    }
}

const DELIVERED: &str = "delivered";
const FAILED: &str = "failed";
const DROPPED: &str = "dropped";
const RESULTS: [&str; 3] = [DELIVERED, FAILED, DROPPED];
