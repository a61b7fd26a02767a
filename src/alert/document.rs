//! What was noticed, as an alert.

use jiff::Timestamp;

use crate::engine::{Leak, Sharing};
use crate::kernel::host;
use crate::model::alert::{Alert, Phase, Subject};
use crate::model::answer::SCHEMA;
use crate::model::conflict::{Cause, Conflict};
use crate::model::escape::Escaped;
use crate::model::job::Job;
use crate::model::netns::Netns;

/// The same for one socket for as long as the host runs.
pub(super) fn leak_id(leak: &Leak, boot: &str) -> String {
    format!("leak/{boot}/{}/{}", leak.netns.inode, leak.key.cookie)
}

pub(super) fn leak(leak: &Leak, boot: &str, now: Timestamp) -> Alert {
    let holder = leak.holder.as_ref();
    let comm = holder.map(|(_, comm)| comm.clone());
    let by = holder.map_or_else(
        || "no process that was found".to_owned(),
        |(pid, comm)| format!("{} (pid {pid})", Escaped(comm)),
    );
    let of = leak.job.as_ref().map(|job| format!(" of {}", words(job))).unwrap_or_default();
    let summary = format!("Port {}/{} is still held by {by}{of}: {}", leak.port, leak.protocol, leak.reason);
    Alert {
        pid: holder.map(|(pid, _)| *pid),
        comm,
        jobs: leak.job.iter().cloned().collect(),
        ..alert(Subject::Leak, leak_id(leak, boot), now, summary, (leak.protocol, leak.port, &leak.netns))
    }
}

pub(super) fn shared_id(sharing: &Sharing, boot: &str) -> String {
    let Sharing { protocol, address, port, netns, .. } = sharing;
    format!("shared/{boot}/{}/{protocol}/{address}/{port}", netns.inode)
}

pub(super) fn shared(sharing: &Sharing, boot: &str, now: Timestamp) -> Alert {
    let (protocol, port) = (sharing.protocol.as_str(), sharing.port);
    let jobs: Vec<String> = sharing.jobs.iter().map(words).collect();
    let summary = format!(
        "Port {port}/{protocol} is shared by several jobs, each of which gets a part of what is sent there: {}",
        jobs.join(", ")
    );
    Alert {
        jobs: sharing.jobs.clone(),
        ..alert(Subject::Shared, shared_id(sharing, boot), now, summary, (protocol, port, &sharing.netns))
    }
}

/// A refused bind, where another job is its cause: what a job does to itself it is told by its own errors.
pub(super) fn conflict(conflict: &Conflict, boot: &str) -> Option<Alert> {
    if !matches!(conflict.cause, Cause::LeakedListener | Cause::ConcurrentJob) {
        return None;
    }
    let (protocol, port, loser) = (conflict.protocol.as_str(), conflict.port, &conflict.loser);
    let who = loser.job.as_ref().map(|job| job.id.as_str()).or(loser.comm.as_deref()).unwrap_or("?");
    let id = format!(
        "conflict/{boot}/{}/{protocol}/{port}/{}/{who}",
        conflict.netns.inode,
        conflict.cause.as_str()
    );
    let comm = Escaped(loser.comm.as_deref().unwrap_or("a process"));
    let summary = format!(
        "{comm} (pid {}) was refused port {port}/{protocol}: {}",
        loser.pid,
        Escaped(&conflict.explanation)
    );
    Some(Alert {
        pid: Some(loser.pid),
        comm: loser.comm.clone(),
        jobs: loser.job.iter().cloned().collect(),
        conflict: Some(Box::new(conflict.clone())),
        ..alert(Subject::Conflict, id, conflict.at, summary, (protocol, port, &conflict.netns))
    })
}

fn alert(
    subject: Subject,
    id: String,
    starts_at: Timestamp,
    summary: String,
    (protocol, port, netns): (&str, u16, &Netns),
) -> Alert {
    Alert {
        schema: SCHEMA,
        id,
        subject,
        status: Phase::Firing,
        starts_at,
        ends_at: None,
        host: host::name(),
        summary,
        protocol: protocol.to_owned(),
        port,
        netns: netns.clone(),
        pid: None,
        comm: None,
        jobs: Vec::new(),
        conflict: None,
    }
}

fn words(job: &Job) -> String {
    let name = Escaped(job.name.as_deref().unwrap_or(&job.id)).to_string();
    let of = job.repository.as_deref().map(|repository| format!(" of {}", Escaped(repository)));
    format!("{} job {name}{}", Escaped(&job.ci), of.unwrap_or_default())
}
