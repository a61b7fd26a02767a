//! `sniffer daemon`: sets up the agent and what serves it, and ends them on a signal.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{ANSWERED, Failure, environment};
use crate::alert::Alerts;
use crate::config::{self, ConfigError, Settings};
use crate::engine::agent::{Agent, Outside, Watch};
use crate::engine::{Leak, Notice, Question, Sharing, Topic};
use crate::judge::ci;
use crate::kernel::containers::Engines;
use crate::kernel::process::Reader;
use crate::kernel::{capability, host, memory};
use crate::model::conflict::Conflict;
use crate::model::escape::Escaped;
use crate::model::job::{Job, JobState};
use crate::model::netns::Netns;
use crate::model::socket::Protocol;
use crate::model::target::Target;
use crate::reaper;
use crate::report;
use crate::serve::control::{self, ControlSocket};
use crate::serve::http;
use crate::serve::metrics::{self, Exporter};
use crate::state::{self, Keeper};

/// A taken metrics port is tried again this often.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);
/// So long after it is ready what was alerted before is found again, or has ended.
const FOUND_AGAIN: Duration = Duration::from_secs(15);
/// What still runs at the end is given this long.
const SHUTDOWN: Duration = Duration::from_millis(200);

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(config: Option<&Path>) -> Result<u8, Failure> {
    let settings = config::load(config).map_err(|error| mistakes(&error))?;
    log();
    memory::limit_arenas();
    for note in settings.not_yet() {
        tracing::info!("{note}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|error| format!("the agent cannot start: {error}"))?;
    let outcome = runtime.block_on(serve(settings, config));
    runtime.shutdown_timeout(SHUTDOWN);
    outcome
}

/// All mistakes, a line each but the last, which the caller prints.
fn mistakes(error: &ConfigError) -> Failure {
    for line in error.lines() {
        report::complain(&line);
    }
    "the agent does not start on a configuration with mistakes; mend it, and test it with `sniffer check-config`".to_owned()
}

fn log() {
    let filter = environment("SNIFFER_LOG")
        .and_then(|filter| filter.into_string().ok())
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets JOURNAL_STREAM where standard error is the journal: then fields go there as fields.
    let journal = environment("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let stderr = journal
        .is_none()
        .then(|| tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false));
    // A second subscriber in one process (tests) is refused; the first one goes on.
    let _ = registry.with(journal).with(stderr).try_init();
}

async fn serve(settings: Settings, config: Option<&Path>) -> Result<u8, Failure> {
    let mut signals = Signals::catch().map_err(|error| format!("signals cannot be caught: {error}"))?;
    let (_socket, listener) =
        ControlSocket::bind(&settings.socket, settings.socket_mode).map_err(|error| error.to_string())?;
    let systems = settings.systems();
    let engines = Engines::new(settings.engines.clone());
    let reader = Reader::new(ci::variables(&systems)).with_engines(engines);
    let booted = reader.clock.booted();
    let reader = Arc::new(reader);
    let watch = Watch { events: settings.sources(), interval: settings.interval };
    let boot = host::boot();
    let kept = settings.state.as_deref().map(|path| state::load(path, &boot)).unwrap_or_default();
    let alerts = Alerts::start(&settings.alerts, kept.alerts, &boot);
    let outside = Journal::new(alerts.clone());
    let (mut agent, task) = Agent::start(settings.policy(), watch, reader, (kept.jobs, kept.booted), outside);
    tokio::spawn(http::serve_unix(listener, control::router(agent.clone())));
    if let Some(address) = settings.listen {
        let exporter = Exporter::new(agent.clone(), alerts.clone(), settings.max_series);
        tokio::spawn(serve_metrics(address, exporter));
    }
    if settings.reap {
        if capability::lacks_kill() {
            tracing::warn!(
                "leak.reap: this process lacks CAP_KILL and can end only its own user's processes"
            );
        }
        tokio::spawn(reaper::run(agent.clone(), settings.reap_after));
    }
    let keeper =
        settings.state.clone().map(|path| Keeper::new(path, (boot, booted), agent.kept(), alerts.clone()));
    if let Some(keeper) = keeper.clone() {
        tokio::spawn(keeper.run());
    }
    let announced = tokio::spawn({
        let mut agent = agent.clone();
        async move {
            if agent.ready().await {
                tracing::info!("ready");
                notify(&[NotifyState::Ready, NotifyState::Status("watching")]);
                // What still leaks is found again by now.
                tokio::time::sleep(FOUND_AGAIN).await;
                for alert in alerts.resolve_unconfirmed() {
                    let (port, protocol) = (alert.port, Escaped(&alert.protocol).to_string());
                    tracing::info!(
                        event = "ended_meanwhile",
                        port,
                        protocol,
                        "ended while no agent watched: {}",
                        Escaped(&alert.summary)
                    );
                }
            }
        }
    });
    tracing::info!(socket = %settings.socket.display(), version = env!("CARGO_PKG_VERSION"), "sniffer started");
    let failed = tokio::select! {
        () = signals.handle(&mut agent, &settings, config) => false,
        _ = task => true,
    };
    announced.abort();
    if failed {
        // Without its loop it would serve what it last knew for ever.
        return Err("the agent's loop failed; see the line before".to_owned());
    }
    notify(&[NotifyState::Stopping]);
    if let Some(Err(error)) = keeper.map(|keeper| keeper.write()) {
        tracing::debug!("the state could not be written at the end: {error}");
    }
    tracing::info!("stopped");
    Ok(ANSWERED)
}

/// systemd's notification; a no-op where nobody listens for it.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not notified: {error}");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the agent shall end; reloads the configuration on the way.
    async fn handle(&mut self, agent: &mut Agent, settings: &Settings, config: Option<&Path>) {
        let mut settings = settings.clone();
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => settings = reload(agent, settings, config).await,
            }
        }
    }
}

/// Loads the configuration again. One with mistakes is refused and the old one stays; so do the parts that need a restart.
async fn reload(agent: &Agent, old: Settings, config: Option<&Path>) -> Settings {
    if let Ok(reloading) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, reloading]);
    }
    let settings = match config::load(config) {
        Ok(new) => {
            let needs_restart = restart_only(&new) != restart_only(&old);
            agent.reload(new.policy(), new.interval).await;
            tracing::info!("configuration reloaded");
            if needs_restart {
                tracing::warn!(
                    "[control], [metrics], [containers], [agent], [[alerts]], leak.reap, watch.events and [[jobs.custom]] variables take effect at the next start"
                );
            }
            new
        }
        Err(error) => {
            for line in error.lines() {
                tracing::error!("{}", Escaped(&line));
            }
            tracing::error!("the new configuration is refused, the old one stays");
            old
        }
    };
    notify(&[NotifyState::Ready, NotifyState::Status("watching")]);
    settings
}

/// What a reload does not change, the rest made equal.
fn restart_only(settings: &Settings) -> Settings {
    let Settings { interval, nat, grace, exempt, history, retention, max_size_bytes, .. } =
        Settings::default();
    Settings { interval, nat, grace, exempt, history, retention, max_size_bytes, ..settings.clone() }
}

/// Serves metrics and health. Where the port is taken the agent says by whom, and tries again: it must not fall over its
/// own subject.
async fn serve_metrics(address: SocketAddr, exporter: Exporter) {
    let mut complained = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                return http::serve_tcp(listener, metrics::router(exporter)).await;
            }
            Err(error) if !complained => {
                complained = true;
                tracing::error!(
                    "metrics cannot be served on {address}: {error}; trying again every {}s",
                    LISTEN_AGAIN.as_secs()
                );
                tokio::spawn(say_who_holds(address, exporter.agent.clone()));
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn say_who_holds(address: SocketAddr, agent: Agent) {
    let port = address.port();
    let target = Target { ports: port..=port, protocol: Some(Protocol::Tcp), address: Some(address.ip()) };
    let question = Question {
        topic: Topic::Target(target),
        netns: Some(crate::model::netns::NetnsSelector::Name("host".to_owned())),
    };
    match agent.ask(question).await {
        Ok(answer) => match answer.claims.iter().find_map(|claim| claim.holders.first()) {
            Some(holder) => {
                let comm = Escaped(holder.comm.as_deref().unwrap_or("?")).to_string();
                tracing::error!(
                    port,
                    pid = holder.pid,
                    comm,
                    "{address} is held by {comm} (pid {})",
                    holder.pid
                );
            }
            None => tracing::error!(port, "no process was found that holds {address}"),
        },
        Err(error) => tracing::error!("who holds {address} is not known: {error}"),
    }
}

/// Log lines with fields, alerts, and the watchdog.
struct Journal {
    watchdog: bool,
    alerts: Alerts,
}

impl Journal {
    fn new(alerts: Alerts) -> Self {
        Journal { watchdog: sd_notify::watchdog_enabled().is_some(), alerts }
    }
}

impl Outside for Journal {
    fn notice(&mut self, notice: &Notice) {
        if !self.alerts.notice(notice) {
            return;
        }
        match notice {
            Notice::Job(state, job) => log_job(*state, job),
            Notice::Leak(leaked, leak) => log_leak(*leaked, leak),
            Notice::Conflict(conflict) => log_conflict(conflict),
            Notice::Shared(shared, sharing) => log_sharing(*shared, sharing),
        }
    }

    fn alive(&mut self) {
        if self.watchdog {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn escaped(text: Option<&str>) -> Option<String> {
    text.map(|text| Escaped(text).to_string())
}

fn log_job(state: JobState, job: &Job) {
    let (ci, id) = (Escaped(&job.ci).to_string(), Escaped(&job.id).to_string());
    let (name, repository) = (escaped(job.name.as_deref()), escaped(job.repository.as_deref()));
    let words = if state == JobState::Ended { "has ended" } else { "is running" };
    tracing::info!(
        event = "job",
        ci,
        job_id = id,
        job = name,
        repository,
        state = state.as_str(),
        "job {ci} {id} {words}"
    );
}

fn log_leak(leaked: bool, leak: &Leak) {
    let job = leak.job.as_ref();
    let (port, protocol, reason) = (leak.port, leak.protocol, &leak.reason);
    let (event, words) =
        if leaked { ("leak", "has leaked") } else { ("leak_resolved", "has not leaked any more") };
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                event,
                port,
                protocol,
                netns = netns_words(&leak.netns),
                pid = leak.holder.as_ref().map(|(pid, _)| *pid),
                comm = escaped(leak.holder.as_ref().map(|(_, comm)| comm.as_str())),
                ci = escaped(job.map(|job| job.ci.as_str())),
                job_id = escaped(job.map(|job| job.id.as_str())),
                job = escaped(job.and_then(|job| job.name.as_deref())),
                repository = escaped(job.and_then(|job| job.repository.as_deref())),
                reason,
                "port {port}/{protocol} {words}"
            )
        };
    }
    if leaked { log!(warn) } else { log!(info) }
}

fn netns_words(netns: &Netns) -> String {
    netns.name.as_deref().map_or_else(|| netns.inode.to_string(), |name| Escaped(name).to_string())
}

/// One line for a refusal and all that repeat it.
fn log_conflict(conflict: &Conflict) {
    let loser = &conflict.loser;
    let blocker = conflict.blockers.first().and_then(|claim| claim.holders.first());
    let (port, protocol) = (conflict.port, conflict.protocol.as_str());
    tracing::warn!(
        event = "conflict",
        port,
        protocol,
        call = conflict.call.as_str(),
        netns = netns_words(&conflict.netns),
        errno = conflict.errno.as_deref(),
        errno_known = conflict.errno_known,
        cause = conflict.cause.as_str(),
        attempts = conflict.attempts,
        pid = loser.pid,
        comm = escaped(loser.comm.as_deref()),
        job_id = escaped(loser.job.as_ref().map(|job| job.id.as_str())),
        blocker_pid = blocker.map(|holder| holder.pid),
        blocker_comm = escaped(blocker.and_then(|holder| holder.comm.as_deref())),
        "a {} of port {port}/{protocol} failed: {}",
        conflict.call.as_str(),
        Escaped(&conflict.explanation)
    );
}

fn log_sharing(shared: bool, sharing: &Sharing) {
    let (port, protocol) = (sharing.port, sharing.protocol.as_str());
    let jobs: Vec<String> =
        sharing.jobs.iter().map(|job| Escaped(job.name.as_deref().unwrap_or(&job.id)).to_string()).collect();
    let (jobs, netns) = (jobs.join(", "), netns_words(&sharing.netns));
    if shared {
        tracing::warn!(
            event = "shared",
            port,
            protocol,
            netns,
            jobs,
            "port {port}/{protocol} is shared silently by several jobs"
        );
    } else {
        tracing::info!(
            event = "shared_resolved",
            port,
            protocol,
            netns,
            jobs,
            "port {port}/{protocol} is shared no more"
        );
    }
}
