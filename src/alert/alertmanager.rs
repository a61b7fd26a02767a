//! Alertmanager (API v2, `POST /api/v2/alerts`): it is told all that fires again and again, and forgets what it is not told of any more.
//! Two alerts are one to it where their labels are the same.
//! Source: prometheus/alertmanager, api/v2/openapi.yaml.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Alerts, BACK_OFF, DELIVERED, FAILED, LONGEST_BACK_OFF, webhook};
use crate::kernel::clock;
use crate::model::alert::{Alert, AlertKind, AlertSink, Phase, Subject};
use crate::model::escape::Escaped;

/// It is told this often that an alert goes on.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Without a word for so long it takes an alert for ended.
const LIVES: SignedDuration = SignedDuration::from_mins(5);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Posted {
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// Tells it, for ever.
pub(super) fn keep_told(alerts: &Alerts, sink: &AlertSink) {
    let agent = webhook::client(sink);
    let url = format!("{}/api/v2/alerts", sink.target.join(" ").trim_end_matches('/'));
    let mut rest = BACK_OFF;
    let (mut told, mut untold) = (Words::new(), Words::new());
    loop {
        let now = clock::now();
        let (news, current) = alerts.current(now);
        let words: Words =
            current.iter().map(|(alert, phase)| (alert.id.clone(), *phase == Phase::Firing)).collect();
        // What has passed and could not be told in time.
        let lost = untold.iter().filter(|word| !words.contains(*word)).count();
        alerts.counted(AlertKind::Alertmanager, FAILED, lost);
        told.retain(|word| words.contains(word));
        untold = words.difference(&told).cloned().collect();
        match tell(&agent, &url, &current, now) {
            Ok(()) => {
                alerts.counted(AlertKind::Alertmanager, DELIVERED, untold.len());
                told.append(&mut untold);
                rest = BACK_OFF;
                alerts.wait_for_news(news, KEEP_ALIVE);
            }
            Err(why) => {
                if rest == LONGEST_BACK_OFF {
                    tracing::warn!("Alertmanager does not take {} alerts: {why}; trying again", untold.len());
                } else {
                    tracing::debug!("Alertmanager does not take alerts: {why}; trying again");
                }
                std::thread::sleep(rest);
                rest = (rest * 2).min(LONGEST_BACK_OFF);
            }
        }
    }
}

/// Alerts by their ids, and whether they fire.
type Words = BTreeSet<(String, bool)>;

fn tell(agent: &ureq::Agent, url: &str, current: &[(Alert, Phase)], now: Timestamp) -> Result<(), String> {
    if current.is_empty() {
        return Ok(());
    }
    let document = serde_json::to_vec(&posted(current, now)).map_err(|error| error.to_string())?;
    webhook::post(agent, url, &document)
}

/// What is posted: one for each set of labels, which fires as long as any of them does.
fn posted(current: &[(Alert, Phase)], now: Timestamp) -> Vec<Posted> {
    let mut by_labels: BTreeMap<BTreeMap<&'static str, String>, Posted> = BTreeMap::new();
    for (alert, phase) in current {
        // A clock that was set back must not make it begin after its end.
        let starts_at = alert.starts_at.min(now);
        let ends_at = match (phase, alert.ends_at) {
            (Phase::Resolved, Some(end)) => end.max(starts_at),
            _ => now.checked_add(LIVES).unwrap_or(now),
        };
        let labels = labels(alert);
        let one = Posted { labels: labels.clone(), annotations: annotations(alert), starts_at, ends_at };
        let posted = by_labels.entry(labels).or_insert_with(|| one.clone());
        if posted.ends_at < one.ends_at {
            posted.annotations = one.annotations;
        }
        posted.starts_at = posted.starts_at.min(one.starts_at);
        posted.ends_at = posted.ends_at.max(one.ends_at);
    }
    by_labels.into_values().collect()
}

fn labels(alert: &Alert) -> BTreeMap<&'static str, String> {
    let (name, severity) = match alert.subject {
        Subject::Leak => ("SnifferListenerLeaked", "warning"),
        Subject::Conflict => ("SnifferBindRefused", "warning"),
        Subject::Shared => ("SnifferPortShared", "warning"),
    };
    let netns = alert.netns.name.clone().unwrap_or_else(|| alert.netns.inode.to_string());
    let job = alert.jobs.first();
    let conflict = alert.conflict.as_deref();
    let all = [
        ("alertname", Some(name.to_owned())),
        ("severity", Some(severity.to_owned())),
        ("host", Some(alert.host.clone())),
        ("protocol", Some(alert.protocol.clone())),
        ("port", Some(alert.port.to_string())),
        ("netns", Some(netns)),
        ("comm", alert.comm.clone()),
        ("cause", conflict.map(|conflict| conflict.cause.as_str().to_owned())),
        ("ci", job.map(|job| job.ci.clone())),
        ("job_name", job.map(|job| job.name.clone().unwrap_or_else(|| job.id.clone()))),
        ("repository", job.and_then(|job| job.repository.clone())),
    ];
    all.into_iter()
        .filter_map(|(name, value)| Some((name, Escaped(&value?).to_string())))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn annotations(alert: &Alert) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::from([
        ("summary", alert.summary.clone()),
        ("description", format!("On {}: sniffer who-holds {}", Escaped(&alert.host), alert.port)),
    ]);
    let url = alert.jobs.first().and_then(|job| job.url.as_deref());
    all.extend(url.map(|url| ("job_url", Escaped(url).to_string())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::book::fixtures::{alert, at};

    #[test]
    fn what_fires_is_kept_alive_and_what_has_ended_says_when() {
        let firing = alert("a", Subject::Leak, 0);
        let ended = Alert { port: 9, ends_at: Some(at(50)), ..alert("b", Subject::Leak, 0) };
        let posted = posted(&[(firing, Phase::Firing), (ended, Phase::Resolved)], at(100));
        let ends: Vec<(&str, Timestamp)> =
            posted.iter().map(|one| (one.labels["port"].as_str(), one.ends_at)).collect();
        assert_eq!(ends, [("8081", at(400)), ("9", at(50))]);
        let json = serde_json::to_value(&posted).unwrap();
        assert_eq!(json[0]["startsAt"], "2027-01-15T08:00:00Z", "{json:#}");
        assert_eq!(json[0]["labels"]["alertname"], "SnifferListenerLeaked");
    }

    #[test]
    fn of_two_with_the_same_labels_one_that_fires_counts() {
        let (one, other) = (alert("a", Subject::Leak, 5), alert("b", Subject::Leak, 0));
        let ended = Alert { ends_at: Some(at(9)), ..one };
        for both in [
            [(ended.clone(), Phase::Resolved), (other.clone(), Phase::Firing)],
            [(other.clone(), Phase::Firing), (ended.clone(), Phase::Resolved)],
        ] {
            let posted = posted(&both, at(100));
            assert_eq!(posted.len(), 1);
            assert_eq!((posted[0].starts_at, posted[0].ends_at), (at(0), at(400)));
        }
    }

    #[test]
    fn labels_are_harmless_and_never_empty() {
        let hostile = Alert { comm: Some("a\u{1b}[2J\n".to_owned()), ..alert("a", Subject::Leak, 0) };
        let labels = labels(&hostile);
        assert_eq!(labels["comm"], "a\\x1b[2J\\n");
        assert!(!labels.contains_key("repository"));
    }
}
