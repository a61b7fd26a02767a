//! `job start`, `job end` and `job list` over the control socket. Who asks is known from the socket.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::{Desk, ask, json, refuse};
use crate::engine::agent::Declaration;
use crate::engine::{Question, Refused, Topic};
use crate::kernel::clock;
use crate::model::answer::SCHEMA;
use crate::model::claim::Verdict;
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
    let answer = match ask(&desk, Question { topic: Topic::All, netns: None }).await {
        Ok(answer) => answer,
        Err(response) => return response,
    };
    let conflicts = match desk.agent.conflicts(None).await {
        Ok(conflicts) => conflicts,
        Err(why) => return refuse(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
    };
    let is_it = |other: Option<&Job>| other.is_some_and(|other| (&other.ci, &other.id) == (&job.ci, &job.id));
    let (mut left, mut refused) = (answer.claims, conflicts.conflicts);
    left.retain(|claim| {
        is_it(claim.job.as_ref()) && matches!(claim.verdict, Verdict::Grace | Verdict::Leaked)
    });
    refused.retain(|conflict| is_it(conflict.loser.job.as_ref()));
    let mut incomplete = answer.incomplete;
    incomplete.extend(conflicts.incomplete);
    json(
        StatusCode::OK,
        &Ended { schema: SCHEMA, as_of: answer.as_of, job, incomplete, left, conflicts: refused },
    )
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
    let declared = desk.agent.declare(declaration(document), uid).await;
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
