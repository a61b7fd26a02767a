//! What happens, told to whoever watches a page, as it happens. Whoever reads too slowly is told to ask again.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::engine::Records;
use crate::model::hold::Record;

/// Events that may wait for a reader: beyond it the reader has to ask again.
const WAITING: usize = 4096;
/// Of more at once nobody is told one by one: a storm would cost the agent's loop more than the page is worth.
const MANY: usize = 1000;

/// An event: its name, and its document in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `hold`, `conflict`, `job` or `lagged`.
    pub name: &'static str,
    /// JSON.
    pub data: Arc<str>,
}

impl Event {
    /// Something was missed: ask again.
    pub fn lagged() -> Self {
        Event { name: "lagged", data: "{}".into() }
    }

    fn of(name: &'static str, document: &impl Serialize) -> Option<Self> {
        // serde_json writes no newline, so this is one line of an event stream.
        serde_json::to_string(document).ok().map(|data| Event { name, data: data.into() })
    }
}

/// The way from the agent to its watchers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Live(broadcast::Sender<Event>);

impl Default for Live {
    fn default() -> Self {
        Live(broadcast::Sender::new(WAITING))
    }
}

impl Live {
    /// Tells what was recorded. Costs nothing while nobody watches.
    pub fn tell(&self, records: &Records) {
        if self.0.receiver_count() == 0 {
            return;
        }
        if records.records.len() > MANY || records.lost > 0 {
            // Nobody may be there any more.
            let _ = self.0.send(Event::lagged());
            return;
        }
        for (record, _) in &records.records {
            let event = match record {
                Record::Hold(hold, _) => Event::of("hold", hold),
                Record::Conflict(conflict) => Event::of("conflict", conflict),
                Record::Job(job) => Event::of("job", job),
                Record::Open(_) => None,
            };
            if let Some(event) = event {
                let _ = self.0.send(event);
            }
        }
    }

    /// Begins to watch.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
