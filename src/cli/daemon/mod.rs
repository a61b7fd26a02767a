//! `sniffer daemon`: sets up the agent and what serves it, and ends them on a signal.

mod journal;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use journal::Journal;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{ANSWERED, Failure, environment};
use crate::alert::Alerts;
use crate::config::{self, ConfigError, Settings};
use crate::engine::agent::{Agent, Before, Watch};
use crate::engine::{Question, Topic};
use crate::history::{Left, Recorder};
use crate::judge::ci;
use crate::kernel::containers::Engines;
use crate::kernel::process::Reader;
use crate::kernel::{capability, cgroup, clock, host, memory};
use crate::model::escape::Escaped;
use crate::model::socket::Protocol;
use crate::model::target::Target;
use crate::reaper;
use crate::report;
use crate::serve::control::{self, ControlSocket};
use crate::serve::live::Live;
use crate::serve::metrics::{self, Exporter};
use crate::serve::past::Past;
use crate::serve::{http, page};
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
    // Before there are other threads, which do so too then.
    cgroup::enter_first();
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
    match error {
        ConfigError::Unreadable { .. } => {
            "the agent does not start on a configuration that it cannot read; name another, or none for the defaults"
        }
        ConfigError::Mistaken { .. } => {
            "the agent does not start on a configuration with mistakes; mend it, and test it with `sniffer check-config`"
        }
    }
    .to_owned()
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
    let reader = Reader::new(ci::variables(&systems)).with_engines(engines).with_mask(settings.mask());
    let booted = reader.clock.booted();
    let reader = Arc::new(reader);
    let watch = Watch { events: settings.sources(), interval: settings.interval };
    let boot = host::boot();
    let kept = settings.state.as_deref().map(|path| state::load(path, &boot)).unwrap_or_default();
    let alerts = Alerts::start(&settings.alerts, kept.alerts, &boot);
    let (recorder, left) = start_history(&settings, &boot);
    let live = Live::default();
    let outside = Journal::new(alerts.clone(), recorder.clone(), live.clone());
    let before = Before {
        jobs: kept.jobs,
        booted: kept.booted,
        holds: left.holds,
        alive_until: left.alive_until,
        last_id: left.last_id,
    };
    let (mut agent, task) = Agent::start(settings.policy(), watch, reader, before, outside);
    let past = Past::new(agent.clone(), recorder.clone(), live);
    tokio::spawn(http::serve_unix(listener, control::router(past.clone())));
    if let Some(address) = settings.listen {
        let exporter = Exporter::new(agent.clone(), alerts.clone(), recorder.clone(), settings.max_series);
        let mut router = metrics::router(exporter);
        // Command lines are on it: a Prometheus elsewhere is no reason to show them to its whole network.
        if settings.page.unwrap_or(address.ip().is_loopback()) {
            router = router.merge(page::router(past));
        }
        tokio::spawn(serve_metrics(address, router, agent.clone()));
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
    if let Some(recorder) = recorder {
        recorder.end();
    }
    tracing::info!("stopped");
    Ok(ANSWERED)
}

/// Opens the history, where one is wanted. Where it cannot be used numbers begin at one that no other agent gives: the milliseconds
/// of the clock.
fn start_history(settings: &Settings, boot: &str) -> (Option<Recorder>, Left) {
    let clock_numbers = || clock::now().as_millisecond().try_into().unwrap_or(0);
    let Some(path) = settings.history.clone() else {
        return (None, Left { last_id: clock_numbers(), ..Left::default() });
    };
    let (recorder, mut left) = Recorder::start(path, settings.retention, settings.max_size_bytes, boot);
    if recorder.standing().why.is_some() {
        left.last_id = clock_numbers();
    }
    (Some(recorder), left)
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
                    "[control], [metrics], [history], [containers], [agent], [privacy], [[alerts]], leak.reap, watch.events and [[jobs.custom]] variables take effect at the next start"
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
    let Settings { interval, nat, grace, exempt, .. } = Settings::default();
    Settings { interval, nat, grace, exempt, ..settings.clone() }
}

/// Serves metrics and health. Where the port is taken the agent says by whom, and tries again: it must not fall over its
/// own subject.
async fn serve_metrics(address: SocketAddr, router: Router, agent: Agent) {
    let mut complained = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                return http::serve_tcp(listener, router).await;
            }
            Err(error) if !complained => {
                complained = true;
                tracing::error!(
                    "metrics cannot be served on {address}: {error}; trying again every {}s",
                    LISTEN_AGAIN.as_secs()
                );
                tokio::spawn(say_who_holds(address, agent.clone()));
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
