//! What is alerted, and who was told what of it. No I/O: kept in a file by others.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::model::alert::{Alert, Phase, Subject};

/// More at once are not taken.
const MAX: usize = 1_000;
/// A refused bind has no end: so long it counts as going on, and another one like it is the same.
const CONFLICT_LASTS: SignedDuration = SignedDuration::from_mins(5);
/// What has ended is told again for so long to those who are told all of it.
const RESOLVED_LASTS: SignedDuration = SignedDuration::from_mins(5);

/// What a receiver was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// That it fires.
    Firing,
    /// That it has ended.
    Resolved,
}

/// What became of something noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Noticed {
    /// It is to be told.
    Changed,
    /// It was known.
    Known,
    /// Too much is alerted already.
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    alert: Alert,
    told: BTreeMap<String, Told>,
    /// Found since this program started.
    #[serde(skip)]
    confirmed: bool,
}

impl Entry {
    /// What it is at this moment.
    fn phase(&self, now: Timestamp) -> Phase {
        match self.alert.ends_at {
            Some(end) if end <= now => Phase::Resolved,
            _ => Phase::Firing,
        }
    }

    /// A receiver's last word of it: nobody is told of an event's end.
    fn last_word(&self) -> Option<Told> {
        match (self.alert.subject, self.alert.ends_at) {
            (Subject::Conflict, _) => Some(Told::Firing),
            (_, ended) => ended.map(|_| Told::Resolved),
        }
    }
}

/// All that is alerted, by its id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    receivers: BTreeSet<String>,
}

impl Book {
    /// These receivers there are from now on; the others need not be told anything any more.
    pub(super) fn keep_receivers(&mut self, receivers: impl Iterator<Item = String>) {
        self.receivers = receivers.collect();
        for entry in self.entries.values_mut() {
            entry.told.retain(|receiver, _| self.receivers.contains(receiver));
        }
    }

    /// Something was found.
    pub(super) fn fire(&mut self, alert: Alert, now: Timestamp) -> Noticed {
        if let Some(known) = self.entries.get_mut(&alert.id)
            && known.phase(now) == Phase::Firing
        {
            known.confirmed = true;
            return Noticed::Known;
        }
        if self.entries.len() >= MAX && !self.entries.contains_key(&alert.id) && !self.make_room() {
            return Noticed::TooMany;
        }
        let ends_at = (alert.subject == Subject::Conflict).then(|| later(alert.starts_at, CONFLICT_LASTS));
        let alert = Alert { ends_at, ..alert };
        let entry = Entry { alert, told: BTreeMap::new(), confirmed: true };
        self.entries.insert(entry.alert.id.clone(), entry);
        Noticed::Changed
    }

    /// Forgets the oldest that has an end; answers whether there was one. What goes on stays.
    fn make_room(&mut self) -> bool {
        let ended = self.entries.iter().filter_map(|(id, entry)| Some((entry.alert.ends_at?, id)));
        let Some((_, id)) = ended.min() else { return false };
        let id = id.clone();
        self.entries.remove(&id).is_some()
    }

    /// Something has ended.
    pub(super) fn resolve(&mut self, id: &str, now: Timestamp) -> Noticed {
        match self.entries.get_mut(id) {
            Some(entry) if entry.alert.ends_at.is_none() => {
                entry.alert.ends_at = Some(now);
                Noticed::Changed
            }
            _ => Noticed::Known,
        }
    }

    /// Ends what was alerted before this program started and was not found again; answers with it.
    pub(super) fn resolve_unconfirmed(&mut self, now: Timestamp) -> Vec<Alert> {
        let lost =
            self.entries.values_mut().filter(|entry| !entry.confirmed && entry.alert.ends_at.is_none());
        lost.map(|entry| {
            entry.alert.ends_at = Some(now);
            entry.alert.clone()
        })
        .collect()
    }

    /// What a receiver is to be told next, the oldest first.
    pub(super) fn next(&self, receiver: &str) -> Option<(Told, Alert)> {
        let due = |entry: &&Entry| match entry.told.get(receiver) {
            None => true,
            Some(told) => entry.last_word().is_some_and(|last| *told < last),
        };
        let entry = self.entries.values().filter(due).min_by_key(|entry| entry.alert.starts_at)?;
        let alert = entry.alert.clone();
        Some(match entry.told.get(receiver) {
            None => (Told::Firing, Alert { status: Phase::Firing, ends_at: None, ..alert }),
            Some(_) => {
                let summary = format!("Resolved: {}", alert.summary);
                (Told::Resolved, Alert { status: Phase::Resolved, summary, ..alert })
            }
        })
    }

    /// A receiver was told of an alert, which may have ended and begun anew meanwhile.
    pub(super) fn told(&mut self, alert: &Alert, receiver: &str, told: Told) {
        let same = |entry: &&mut Entry| entry.alert.starts_at == alert.starts_at;
        if let Some(entry) = self.entries.get_mut(&alert.id).filter(same) {
            entry.told.insert(receiver.to_owned(), told);
        }
    }

    /// Forgets what has ended and was told to all.
    pub(super) fn forget(&mut self, now: Timestamp) {
        let receivers = &self.receivers;
        self.entries.retain(|_, entry| {
            let over = entry.alert.ends_at.is_some_and(|end| later(end, RESOLVED_LASTS) < now);
            let told = |receiver| entry.told.get(receiver).copied() >= entry.last_word();
            !(over && receivers.iter().all(told))
        });
    }

    /// What fires, and what has ended a short time ago.
    pub(super) fn current(&self, now: Timestamp) -> Vec<(Alert, Phase)> {
        let lately = |entry: &&Entry| entry.alert.ends_at.is_none_or(|end| later(end, RESOLVED_LASTS) >= now);
        self.entries.values().filter(lately).map(|entry| (entry.alert.clone(), entry.phase(now))).collect()
    }
}

fn later(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
pub(super) mod fixtures {
    //! Alerts as literals.

    use super::*;
    use crate::model::netns::Netns;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    pub(crate) fn alert(id: &str, subject: Subject, second: i64) -> Alert {
        Alert {
            schema: 1,
            id: id.to_owned(),
            subject,
            status: Phase::Firing,
            starts_at: at(second),
            ends_at: None,
            host: "ci-1".to_owned(),
            summary: String::new(),
            protocol: "tcp".to_owned(),
            port: 8081,
            netns: Netns { inode: 1, name: None, kept_by: None },
            pid: None,
            comm: None,
            jobs: Vec::new(),
            conflict: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{alert, at};
    use super::*;

    fn book(receivers: &[&str]) -> Book {
        let mut book = Book::default();
        book.keep_receivers(receivers.iter().map(|name| (*name).to_owned()));
        book
    }

    /// Tells a receiver everything; answers what.
    fn tell(book: &mut Book, receiver: &str) -> Vec<(String, Phase)> {
        let mut words = Vec::new();
        while let Some((told, alert)) = book.next(receiver) {
            book.told(&alert, receiver, told);
            words.push((alert.id, alert.status));
        }
        words
    }

    #[test]
    fn each_receiver_is_told_once_of_begin_and_end() {
        let mut book = book(&["a", "b"]);
        assert_eq!(book.fire(alert("x", Subject::Leak, 0), at(0)), Noticed::Changed);
        assert_eq!(book.fire(alert("x", Subject::Leak, 1), at(1)), Noticed::Known, "no duplicates");
        assert_eq!(tell(&mut book, "a"), [("x".to_owned(), Phase::Firing)]);
        assert_eq!(book.resolve("x", at(9)), Noticed::Changed);
        assert_eq!(book.resolve("x", at(10)), Noticed::Known);
        assert_eq!(tell(&mut book, "a"), [("x".to_owned(), Phase::Resolved)]);
        let both = [("x".to_owned(), Phase::Firing), ("x".to_owned(), Phase::Resolved)];
        assert_eq!(tell(&mut book, "b"), both, "one that was dead meanwhile is told both, in order");
        book.forget(at(10_000));
        assert!(book.entries.is_empty());
    }

    #[test]
    fn a_restart_neither_repeats_nor_forgets() {
        let mut before = book(&["a"]);
        for id in ["goes-on", "has-ended"] {
            let _ = before.fire(alert(id, Subject::Leak, 0), at(0));
        }
        tell(&mut before, "a");
        let _ = before.fire(alert("not-told", Subject::Leak, 1), at(1));
        let kept = serde_json::to_vec(&before).unwrap();
        let mut after: Book = serde_json::from_slice(&kept).unwrap();
        after.keep_receivers(["a".to_owned()].into_iter());
        assert_eq!(after.fire(alert("goes-on", Subject::Leak, 5), at(5)), Noticed::Known);
        assert_eq!(after.fire(alert("not-told", Subject::Leak, 5), at(5)), Noticed::Known);
        assert_eq!(after.resolve_unconfirmed(at(20)).len(), 1);
        let words = [("has-ended".to_owned(), Phase::Resolved), ("not-told".to_owned(), Phase::Firing)];
        assert_eq!(tell(&mut after, "a"), words);
        assert_eq!(after.resolve_unconfirmed(at(30)), []);
    }

    #[test]
    fn a_refused_bind_is_told_once_and_again_after_a_while() {
        let mut book = book(&["a"]);
        let _ = book.fire(alert("x", Subject::Conflict, 0), at(0));
        assert_eq!(tell(&mut book, "a"), [("x".to_owned(), Phase::Firing)]);
        assert_eq!(book.fire(alert("x", Subject::Conflict, 200), at(200)), Noticed::Known);
        assert_eq!(tell(&mut book, "a"), []);
        assert_eq!(book.current(at(299)).first().map(|(_, phase)| *phase), Some(Phase::Firing));
        assert_eq!(book.current(at(300)).first().map(|(_, phase)| *phase), Some(Phase::Resolved));
        assert_eq!(book.fire(alert("x", Subject::Conflict, 301), at(301)), Noticed::Changed);
        assert_eq!(tell(&mut book, "a"), [("x".to_owned(), Phase::Firing)]);
    }

    #[test]
    fn what_is_alerted_is_bounded() {
        let mut book = book(&["dead"]);
        for number in 0..MAX {
            assert_eq!(book.fire(alert(&number.to_string(), Subject::Leak, 0), at(0)), Noticed::Changed);
        }
        assert_eq!(book.fire(alert("one more", Subject::Leak, 0), at(0)), Noticed::TooMany);
        book.forget(at(100_000));
        assert_eq!(book.entries.len(), MAX, "what goes on is not forgotten");
        let _ = book.resolve("7", at(1));
        assert_eq!(book.fire(alert("one more", Subject::Leak, 2), at(2)), Noticed::Changed);
        assert!(
            !book.entries.contains_key("7"),
            "what has ended makes room, though a dead receiver was not told"
        );
    }

    #[test]
    fn what_began_anew_while_somebody_was_told_of_the_first_is_told_too() {
        let mut book = book(&["a"]);
        let _ = book.fire(alert("x", Subject::Conflict, 0), at(0));
        let (told, slow) = book.next("a").unwrap();
        assert_eq!(book.fire(alert("x", Subject::Conflict, 400), at(400)), Noticed::Changed);
        book.told(&slow, "a", told);
        assert_eq!(tell(&mut book, "a"), [("x".to_owned(), Phase::Firing)]);
    }

    #[test]
    fn a_receiver_that_is_no_more_keeps_nothing() {
        let mut book = book(&["a", "gone"]);
        let _ = book.fire(alert("x", Subject::Leak, 0), at(0));
        let _ = book.resolve("x", at(1));
        tell(&mut book, "a");
        book.forget(at(10_000));
        assert_eq!(book.entries.len(), 1);
        book.keep_receivers(["a".to_owned()].into_iter());
        book.forget(at(10_000));
        assert_eq!(book.entries.len(), 0);
    }
}
