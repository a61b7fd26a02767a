//! An alert, as receivers get it.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::conflict::Conflict;
use super::job::Job;
use super::netns::Netns;

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A listener outlived its job.
    Leak,
    /// A bind was refused because of another job.
    Conflict,
    /// Several jobs share a port without a word.
    Shared,
}

/// Whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It does, or it is an event, which has no end.
    Firing,
    /// It has ended.
    Resolved,
}

/// One alert. Absent facts are null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Version of this shape.
    pub schema: u32,
    /// The same while it is the same thing, across restarts of the agent.
    pub id: String,
    /// What it is about.
    pub subject: Subject,
    /// Whether it goes on.
    pub status: Phase,
    /// When it began.
    pub starts_at: Timestamp,
    /// When it ended.
    pub ends_at: Option<Timestamp>,
    /// Name of the host.
    pub host: String,
    /// In one sentence.
    pub summary: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Port.
    pub port: u16,
    /// Network namespace.
    pub netns: Netns,
    /// The process that holds the port (leak) or was refused (conflict).
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
    /// The jobs: the one that left it, the one that was refused, or those that share.
    pub jobs: Vec<Job>,
    /// The refused bind, with both sides.
    pub conflict: Option<Box<Conflict>>,
}

/// Kinds of receivers of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlertKind {
    /// Alertmanager, API v2.
    Alertmanager,
    /// JSON by POST.
    Webhook,
    /// JSON on standard input.
    Command,
}

impl AlertKind {
    /// All of them.
    pub const ALL: [AlertKind; 3] = [AlertKind::Alertmanager, AlertKind::Webhook, AlertKind::Command];

    /// The word of the configuration and of metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            AlertKind::Alertmanager => "alertmanager",
            AlertKind::Webhook => "webhook",
            AlertKind::Command => "command",
        }
    }
}

/// A receiver of alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertSink {
    /// Which kind.
    pub kind: AlertKind,
    /// Its address, or the program with its arguments.
    pub target: Vec<String>,
    /// One attempt may take so long.
    pub timeout: Duration,
    /// After so long an alert is given up.
    pub give_up: Duration,
}

impl AlertSink {
    /// What tells it from others, across restarts.
    pub fn id(&self) -> String {
        format!("{} {}", self.kind.as_str(), self.target.join(" "))
    }
}
