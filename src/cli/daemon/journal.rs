//! What the agent's loop tells the world outside: log lines with fields, alerts, records, and that it lives.

use super::notify;
use crate::alert::Alerts;
use crate::engine::agent::Outside;
use crate::engine::{Leak, Notice, Records, Sharing};
use crate::history::Recorder;
use crate::model::conflict::Conflict;
use crate::model::escape::Escaped;
use crate::model::job::{Job, JobState};
use crate::model::netns::Netns;
use crate::serve::live::Live;
use sd_notify::NotifyState;

/// Log lines with fields, alerts, and the watchdog.
pub(super) struct Journal {
    watchdog: bool,
    alerts: Alerts,
    recorder: Option<Recorder>,
    live: Live,
}

impl Journal {
    pub(super) fn new(alerts: Alerts, recorder: Option<Recorder>, live: Live) -> Self {
        Journal { watchdog: sd_notify::watchdog_enabled().is_some(), alerts, recorder, live }
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

    fn record(&mut self, records: Records) {
        self.live.tell(&records);
        if let Some(recorder) = &self.recorder {
            recorder.record(records);
        }
    }

    fn wants_all(&mut self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::wants_all)
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
