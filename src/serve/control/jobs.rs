//! `job start`, `job end` and `job list` over the control socket. Who asks is known from the socket.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::{Desk, ask, json, refuse};
use crate::engine::agent::{self, Declaration};
use crate::engine::{Question, Refused, Topic, Unanswerable};
use crate::kernel::clock;
use crate::model::answer::SCHEMA;
use crate::model::claim::Verdict;
use crate::model::conflict::Conflicts;
use crate::model::declared::{End, Ended, Jobs, Start, Started};
use crate::model::job::Job;
use crate::serve::http::Peer;

pub(super) async fn list(State(desk): State<Desk>) -> Response {
    match desk.agent.jobs().await {
        Ok(jobs) => json(StatusCode::OK, &Jobs { schema: SCHEMA, as_of: clock::now(), jobs }),
        Err(why) => refuse(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
    }
}

pub(super) async fn start(
    State(desk): State<Desk>,
    Extension(peer): Extension<Peer>,
    start: Result<Json<Start>, JsonRejection>,
) -> Response {
    match declare(&desk, peer, start, Declaration::Start).await {
        Ok(job) => json(StatusCode::OK, &Started { schema: SCHEMA, job }),
        Err(response) => response,
    }
}

pub(super) async fn end(
    State(desk): State<Desk>,
    Extension(peer): Extension<Peer>,
    end: Result<Json<End>, JsonRejection>,
) -> Response {
    let job = match declare(&desk, peer, end, Declaration::End).await {
        Ok(job) => job,
        Err(response) => return response,
    };
    // The job has ended, whatever can be seen of what it left.
    let (mut left, mut refused, mut incomplete) = (Vec::new(), Vec::new(), Vec::new());
    match ask(&desk, Question { topic: Topic::All, netns: None }).await {
        Ok(answer) => {
            left = answer.claims;
            incomplete = answer.incomplete;
        }
        Err(_) => incomplete.push("what the job holds: the agent was too busy to look".to_owned()),
    }
    match refusals(&desk).await {
        Ok(conflicts) => {
            refused = conflicts.conflicts;
            incomplete.extend(conflicts.incomplete);
        }
        Err(why) => incomplete.push(format!("binds that failed: {why}")),
    }
    let is_it = |other: Option<&Job>| other.is_some_and(|other| (&other.ci, &other.id) == (&job.ci, &job.id));
    left.retain(|claim| {
        is_it(claim.job.as_ref()) && matches!(claim.verdict, Verdict::Grace | Verdict::Leaked)
    });
    refused.retain(|conflict| is_it(conflict.loser.job.as_ref()));
    let ended = Ended { schema: SCHEMA, as_of: clock::now(), job, incomplete, left, conflicts: refused };
    json(StatusCode::OK, &ended)
}

/// Those that were refused a moment ago are being looked at: waits for them a little, and says where that was not enough.
async fn refusals(desk: &Desk) -> Result<Conflicts, Unanswerable> {
    const ROUNDS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    let mut conflicts = desk.agent.conflicts(None).await?;
    for _ in 0..ROUNDS {
        if conflicts.pending == 0 {
            return Ok(conflicts);
        }
        tokio::time::sleep(PAUSE).await;
        conflicts = desk.agent.conflicts(None).await?;
    }
    conflicts.incomplete.push(format!("{} failed binds that are still being looked at", conflicts.pending));
    Ok(conflicts)
}

/// Errors: the response that says why not.
async fn declare<T>(
    desk: &Desk,
    peer: Peer,
    document: Result<Json<T>, JsonRejection>,
    declaration: impl FnOnce(T) -> Declaration,
) -> Result<Job, Response> {
    let Json(document) = document.map_err(|error| refuse(error.status(), error.body_text()))?;
    let Some(uid) = peer.uid else {
        return Err(refuse(StatusCode::FORBIDDEN, "who asks could not be learned".to_owned()));
    };
    let by = agent::Peer { uid, pid: peer.pid };
    let declared = desk.agent.declare(declaration(document), by).await;
    let declared = declared.map_err(|why| refuse(StatusCode::SERVICE_UNAVAILABLE, why.to_string()))?;
    declared.map_err(|why| {
        let status = match &why {
            Refused::Malformed(_) => StatusCode::BAD_REQUEST,
            Refused::Forbidden(_) => StatusCode::FORBIDDEN,
            Refused::Unknown(_) => StatusCode::NOT_FOUND,
            Refused::OutOfOrder(_) => StatusCode::CONFLICT,
        };
        refuse(status, why.to_string())
    })
}
