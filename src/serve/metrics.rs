//! `/metrics`, `/healthz`, `/readyz`: the agent's status in the text exposition format, made anew for every scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::alert::{Alerts, Counts};
use crate::engine::agent::Agent;
use crate::engine::status::Status;
use crate::engine::{self, Leak};
use crate::history::{Recorder, Standing};
use crate::kernel::process::Usage;
use crate::model::conflict::Cause;
use crate::model::escape::Escaped;
use crate::model::hold::End;
use crate::model::socket::Protocol;

/// What the routes need.
#[derive(Debug, Clone)]
pub struct Exporter {
    /// The agent.
    pub agent: Agent,
    /// Cap of `sniffer_leaked_listener_info`.
    pub max_series: usize,
    alerts: Alerts,
    recorder: Option<Recorder>,
    /// Taken once: reckoned again, it would differ by a hair, which reads like a restart.
    started: Option<f64>,
    dropped: Arc<AtomicU64>,
}

impl Exporter {
    /// An exporter of this agent's status.
    pub fn new(agent: Agent, alerts: Alerts, recorder: Option<Recorder>, max_series: usize) -> Self {
        let started = Usage::read().ok().map(|usage| usage.start_seconds);
        Exporter { agent, max_series, alerts, recorder, started, dropped: Arc::default() }
    }
}

/// Routes of the HTTP listener.
pub fn router(exporter: Exporter) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(exporter)
}

async fn metrics(State(exporter): State<Exporter>) -> Response {
    let status = exporter.agent.status();
    let started = exporter.started;
    let usage = Usage::read().ok();
    let usage = usage.map(|usage| Usage { start_seconds: started.unwrap_or(usage.start_seconds), ..usage });
    let over = status.leaks.len().saturating_sub(exporter.max_series) as u64;
    let dropped = exporter.dropped.fetch_add(over, Ordering::Relaxed) + over;
    let history = exporter.recorder.as_ref().map(Recorder::standing);
    let counts = exporter.alerts.counts();
    match exposition(&status, &counts, history.as_ref(), usage.as_ref(), (exporter.max_series, dropped)) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready means that the first look is done. What is degraded is named, and does not make the agent unready.
async fn ready(State(exporter): State<Exporter>) -> Response {
    let status = exporter.agent.status();
    let mut text =
        String::from(if status.ready { "ready\n" } else { "not ready: the first look is not done\n" });
    for (name, source) in &status.sources {
        if !source.up {
            text += &format!("degraded: {name}: {}\n", source.why.as_deref().unwrap_or("not tried yet"));
        }
    }
    if let Some(why) = exporter.recorder.as_ref().and_then(|recorder| recorder.standing().why) {
        text += &format!("degraded: history: {why}\n");
    }
    for gap in &status.incomplete {
        text += &format!("incomplete: {gap}\n");
    }
    (if status.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text).into_response()
}

/// The exposition of a status; so many series at the most are of leaked listeners, and so many were left out since the start, this
/// time included.
pub fn exposition(
    status: &Status,
    alerts: &Counts,
    history: Option<&Standing>,
    usage: Option<&Usage>,
    (max_series, dropped): (usize, u64),
) -> prometheus::Result<String> {
    let page = Page(Registry::new());
    page.about()?;
    page.ports(status)?;
    page.leaks(status, max_series, dropped)?;
    page.conflicts(status)?;
    page.jobs(status)?;
    page.alerts(alerts)?;
    page.sources(status)?;
    if let Some(history) = history {
        page.history(history, status)?;
    }
    if let Some(usage) = usage {
        page.process(usage)?;
    }
    TextEncoder::new().encode_to_string(&page.0.gather())
}

struct Page(Registry);

impl Page {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn about(&self) -> prometheus::Result<()> {
        let info = self.gauges("sniffer_build_info", "Version of the agent.", &["version", "revision"])?;
        let revision = option_env!("SNIFFER_REVISION").unwrap_or("unknown");
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        Ok(())
    }

    fn ports(&self, status: &Status) -> prometheus::Result<()> {
        let held = self.gauges("sniffer_held_ports", "Sockets that take a port.", &["protocol", "kind"])?;
        for ((protocol, kind), count) in &status.held {
            held.with_label_values(&[protocol.as_str(), kind.as_str()]).set(number(*count));
        }
        let netns = self.gauges("sniffer_netns", "Network namespaces that are watched.", &[])?;
        netns.with_label_values::<&str>(&[]).set(number(status.netns));
        Ok(())
    }

    fn leaks(&self, status: &Status, max_series: usize, dropped: u64) -> prometheus::Result<()> {
        let now = self.gauges(
            "sniffer_leaked_listeners",
            "Listeners that outlived their job and its grace.",
            &["ci"],
        )?;
        let ever = self.counters("sniffer_leaks_total", "Listeners that were judged leaked.", &["ci"])?;
        for (ci, count) in &status.counters.leaks {
            let leaked = status.leaks.iter().filter(|leak| ci_of(leak) == ci).count();
            now.with_label_values(&[ci]).set(number(leaked));
            ever.with_label_values(&[ci]).inc_by(*count);
        }
        let info = self.gauges(
            "sniffer_leaked_listener_info",
            "One for each leaked listener, up to a cap.",
            &["port", "protocol", "netns", "comm", "ci", "job", "repository"],
        )?;
        for leak in status.leaks.iter().take(max_series) {
            let labels = leak_labels(leak);
            info.with_label_values(&labels).set(1);
        }
        let over = self.counters(
            "sniffer_series_dropped_total",
            "Series left out of scrapes by the cap.",
            &["metric"],
        )?;
        over.with_label_values(&["sniffer_leaked_listener_info"]).inc_by(dropped);
        Ok(())
    }

    fn conflicts(&self, status: &Status) -> prometheus::Result<()> {
        let name = "sniffer_bind_conflicts_total";
        let conflicts =
            self.counters(name, "Attempts to bind or listen that were refused.", &["protocol", "cause"])?;
        for protocol in Protocol::ALL {
            for cause in Cause::ALL {
                let count = status.counters.conflicts.get(&(protocol, cause)).copied().unwrap_or(0);
                conflicts.with_label_values(&[protocol.as_str(), cause.as_str()]).inc_by(count);
            }
        }
        let name = "sniffer_listeners_lost_total";
        let help = "Listeners whose process crashed or was killed, or whose namespace went.";
        let lost = self.counters(name, help, &["end"])?;
        for end in [End::Exit, End::OomKilled, End::NetnsGone].map(End::as_str) {
            let count = status.counters.lost_listeners.get(end).copied().unwrap_or(0);
            lost.with_label_values(&[end]).inc_by(count);
        }
        let shared =
            self.gauges("sniffer_shared_listeners", "Ports that several jobs share by SO_REUSEPORT.", &[])?;
        shared.with_label_values::<&str>(&[]).set(number(status.shared));
        Ok(())
    }

    fn jobs(&self, status: &Status) -> prometheus::Result<()> {
        let jobs = self.gauges("sniffer_jobs", "CI jobs that were seen.", &["ci", "state"])?;
        for ((ci, state), count) in &status.jobs {
            jobs.with_label_values(&[ci.as_str(), state]).set(number(*count));
        }
        let name = "sniffer_attribution_failures_total";
        let failures = self.counters(name, "Times a job or holder could not be found.", &["reason"])?;
        for reason in ["declared_by_another", "environment_denied", "job_had_ended", "no_holder"] {
            let count = status.counters.attribution_failures.get(reason).copied().unwrap_or(0);
            failures.with_label_values(&[reason]).inc_by(count);
        }
        Ok(())
    }

    fn alerts(&self, counts: &Counts) -> prometheus::Result<()> {
        let help = "Alerts told to receivers; failed ones were given up, dropped ones were too many at once.";
        let alerts = self.counters("sniffer_alerts_total", help, &["sink", "result"])?;
        for ((kind, result), count) in counts {
            alerts.with_label_values(&[kind.as_str(), result]).inc_by(*count);
        }
        Ok(())
    }

    fn sources(&self, status: &Status) -> prometheus::Result<()> {
        let up = self.gauges("sniffer_source_up", "Whether a source of observations works.", &["source"])?;
        let took = self.add(GaugeVec::new(
            Opts::new("sniffer_source_duration_seconds", "How long its last look took."),
            &["source"],
        )?)?;
        let events = self.counters("sniffer_events_total", "Events a source delivered.", &["source"])?;
        let lost = self.counters(
            "sniffer_events_lost_total",
            "Events that a source lost, or times it lost some.",
            &["source"],
        )?;
        for (name, source) in &status.sources {
            up.with_label_values(&[name]).set(source.up.into());
            if let Some(duration) = source.took {
                took.with_label_values(&[name]).set(duration.as_secs_f64());
            }
            if [engine::agent::source::EBPF, engine::agent::source::PROC].contains(name) {
                events.with_label_values(&[name]).inc_by(source.events);
                lost.with_label_values(&[name]).inc_by(source.lost);
            }
        }
        Ok(())
    }

    fn history(&self, history: &Standing, status: &Status) -> prometheus::Result<()> {
        let of = |name: &str, help: &str| self.gauges(name, help, &[]);
        for (name, help, value) in [
            ("sniffer_history_events", "Holds and refused binds that are remembered.", history.events),
            ("sniffer_history_bytes", "Size of the history's file and its log.", history.bytes),
            ("sniffer_history_up", "Whether the history is kept now.", history.why.is_none().into()),
        ] {
            of(name, help)?.with_label_values::<&str>(&[]).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let help = "Records that the history could not take: no room, or a file that cannot be written.";
        let lost = self.counters("sniffer_history_lost_total", help, &[])?;
        lost.with_label_values::<&str>(&[]).inc_by(history.lost);
        let help =
            "Holds of milliseconds that were not remembered: one process made more than 100 in a second.";
        let brief = self.counters("sniffer_history_left_out_total", help, &[])?;
        brief.with_label_values::<&str>(&[]).inc_by(status.counters.left_out);
        Ok(())
    }

    fn process(&self, usage: &Usage) -> prometheus::Result<()> {
        let cpu =
            self.add(prometheus::Counter::new("process_cpu_seconds_total", "CPU time of the agent.")?)?;
        cpu.inc_by(usage.cpu_seconds);
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory of the agent.", usage.resident_bytes as f64),
            ("process_virtual_memory_bytes", "Virtual memory of the agent.", usage.virtual_bytes as f64),
            ("process_open_fds", "Open descriptors of the agent.", usage.open_fds as f64),
            ("process_max_fds", "Limit of open descriptors.", usage.max_fds as f64),
            ("process_threads", "Threads of the agent.", usage.threads as f64),
            ("process_start_time_seconds", "Start of the agent, since the epoch.", usage.start_seconds),
        ];
        for (name, help, value) in gauges {
            self.add(prometheus::Gauge::new(name, help)?)?.set(value);
        }
        Ok(())
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn ci_of(leak: &Leak) -> &str {
    leak.job.as_ref().map_or("", |job| &job.ci)
}

/// Label values: foreign text is escaped, since the exposition format itself passes control characters on.
fn leak_labels(leak: &Leak) -> [String; 7] {
    let escaped = |text: &str| Escaped(text).to_string();
    let job = |field: fn(&crate::model::job::Job) -> Option<&String>| {
        leak.job.as_ref().and_then(field).map(|text| escaped(text)).unwrap_or_default()
    };
    [
        leak.port.to_string(),
        leak.protocol.to_owned(),
        // An inode is no label: each container would make a series of its own.
        leak.netns.name.as_deref().map_or_else(|| "unnamed".to_owned(), escaped),
        leak.holder.as_ref().map(|(_, comm)| escaped(comm)).unwrap_or_default(),
        escaped(ci_of(leak)),
        job(|job| job.name.as_ref()),
        job(|job| job.repository.as_ref()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::{Job, JobState};
    use crate::model::netns::{Netns, NetnsKey};
    use crate::model::socket::SocketKey;

    fn leak(port: u16, comm: &str) -> Leak {
        Leak {
            key: SocketKey { netns: NetnsKey { device: 4, inode: 1 }, cookie: u64::from(port) },
            protocol: "tcp",
            port,
            netns: Netns { inode: 1, name: Some("host".to_owned()), kept_by: None },
            holder: Some((7, comm.to_owned())),
            job: Some(Job {
                ci: "github".to_owned(),
                id: "github_1".to_owned(),
                name: Some("test".to_owned()),
                repository: Some("o/r".to_owned()),
                run: None,
                url: None,
                state: JobState::Ended,
                started: None,
                ended: None,
            }),
            reason: String::new(),
        }
    }

    #[test]
    fn the_whole_exposition_reads_as_the_contract_says() {
        let mut status = Status {
            ready: true,
            netns: 2,
            leaks: vec![leak(8081, "evil\"\n\u{1b}[31m")],
            ..Status::default()
        };
        status.counters.leaks.insert("github".to_owned(), 3);
        status
            .held
            .insert((crate::model::socket::Protocol::Tcp, crate::model::socket::ClaimKind::Listener), 4);
        status.jobs.insert(("github".to_owned(), "ended"), 1);
        let alerts = Counts::from([((crate::model::alert::AlertKind::Webhook, "delivered"), 2)]);
        status.sources.insert(
            engine::agent::source::PROC,
            crate::engine::status::SourceStatus {
                up: true,
                why: None,
                took: Some(std::time::Duration::from_micros(4500)),
                events: 12,
                lost: 1,
            },
        );
        let history = Standing { why: None, events: 12, bytes: 4096, written: 20, lost: 3 };
        let text = exposition(&status, &alerts, Some(&history), None, (200, 0)).unwrap();
        assert!(!text.contains('\u{1b}'));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_family_with_port_labels_is_capped_and_says_so() {
        let status = Status { leaks: (1..=5).map(|port| leak(port, "x")).collect(), ..Status::default() };
        let text = exposition(&status, &Counts::new(), None, None, (2, 3)).unwrap();
        assert_eq!(text.matches("sniffer_leaked_listener_info{").count(), 2);
        assert!(text.contains("sniffer_series_dropped_total{metric=\"sniffer_leaked_listener_info\"} 3"));
    }
}
