//! Who was told of what: a receiver of alerts, and whether it was told anything twice.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::eventually;
use crate::hook::Hook;

/// What was told in the last tenth of a second before a kill may be told again; the state is written later where the disk is slow.
const BEFORE_A_KILL: Duration = Duration::from_millis(500);

/// What was told so far, and when the agent was killed.
pub(super) struct Told {
    config: String,
    alerts: Arc<Mutex<Vec<(Instant, Value)>>>,
    kills: Mutex<Vec<Instant>>,
}

impl Told {
    /// Begins to listen.
    pub(super) fn start() -> Told {
        let hook = Hook::start(&[200]);
        let (config, alerts) = (hook.config(), Arc::new(Mutex::new(Vec::new())));
        let told = Arc::clone(&alerts);
        std::thread::spawn(move || {
            for (_, alert) in hook.requests {
                told.lock().unwrap().push((Instant::now(), alert));
            }
        });
        Told { config, alerts, kills: Mutex::default() }
    }

    pub(super) fn config(&self) -> &str {
        &self.config
    }

    /// The agent is about to be killed.
    pub(super) fn note_kill(&self) {
        self.kills.lock().unwrap().push(Instant::now());
    }

    /// Waits until it is told of a port.
    #[track_caller]
    pub(super) fn fires(&self, port: u16) {
        let is_told = |(_, alert): &(Instant, Value)| alert["port"] == port && alert["status"] == "firing";
        eventually("it is told", || self.alerts.lock().unwrap().iter().any(is_told).then_some(()));
    }

    /// How many alerts there were.
    pub(super) fn count(&self) -> usize {
        self.alerts.lock().unwrap().len()
    }

    /// Nothing was told twice, but for what was told just before a kill.
    #[track_caller]
    pub(super) fn each_once(&self) {
        let (alerts, kills) = (self.alerts.lock().unwrap(), self.kills.lock().unwrap());
        let is_excused =
            |at: Instant| kills.iter().any(|kill| *kill + BEFORE_A_KILL > at && at + BEFORE_A_KILL > *kill);
        for (number, (_, alert)) in alerts.iter().enumerate() {
            let same = |(_, other): &&(Instant, Value)| {
                (&other["id"], &other["status"]) == (&alert["id"], &alert["status"])
            };
            let first = alerts[..number].iter().find(same);
            if let Some((at, _)) = first {
                assert!(is_excused(*at), "told twice, and no kill was near: {alert:#}");
            }
        }
    }
}
