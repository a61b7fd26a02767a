//! Questions about the past, over the control socket, and waiting for something to happen.

use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::{Desk, json, number, refuse, target};
use crate::history::Asked;
use crate::kernel::clock;
use crate::model::answer::SCHEMA;
use crate::model::moment;
use crate::serve::page::answered;

/// Parameters of a question about the past, as the query of its address has them.
#[derive(Debug, Default, Deserialize)]
pub struct Parameters {
    target: Option<String>,
    netns: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<String>,
    id: Option<String>,
    ci: Option<String>,
    after: Option<String>,
    wait_ms: Option<String>,
}

type Sent = Result<Query<Parameters>, axum::extract::rejection::QueryRejection>;

/// What is asked, or the refusal of it.
fn read<T>(sent: Sent, read: impl FnOnce(Parameters) -> Result<T, String>) -> Result<T, Box<Response>> {
    sent.map_err(|error| error.body_text())
        .and_then(|Query(parameters)| read(parameters))
        .map_err(|why| Box::new(refuse(StatusCode::BAD_REQUEST, why)))
}

fn moment(text: Option<&str>) -> Result<Option<jiff::Timestamp>, String> {
    text.map(|text| moment::parse(text, clock::now(), &TimeZone::UTC)).transpose()
}

/// Who had a port when: what is asked. Errors: what is wrong, in a sentence.
pub fn asked_of_past(parameters: &Parameters) -> Result<Asked, String> {
    let limit = parameters.limit.as_deref().map(|text| number("limit", Some(text))).transpose()?;
    Ok(Asked {
        target: Some(target(parameters.target.as_deref())?),
        netns: parameters.netns.as_deref().map(str::parse).transpose()?,
        since: moment(parameters.since.as_deref())?,
        until: moment(parameters.until.as_deref())?,
        limit: limit.map(|limit| limit as usize),
        ..Asked::default()
    })
}

pub(super) async fn conflicts(State(desk): State<Desk>, sent: Sent) -> Response {
    match read(sent, |parameters| moment(parameters.since.as_deref())) {
        Ok(since) => answered(desk.past.conflicts(since).await.map(|found| json(StatusCode::OK, &found))),
        Err(refusal) => *refusal,
    }
}

pub(super) async fn history(State(desk): State<Desk>, sent: Sent) -> Response {
    let asked = read(sent, |parameters| asked_of_past(&parameters));
    match asked {
        Ok(asked) => answered(desk.past.history(asked).await.map(|found| json(StatusCode::OK, &found))),
        Err(refusal) => *refusal,
    }
}

pub(super) async fn report(State(desk): State<Desk>, sent: Sent) -> Response {
    let job =
        read(sent, |parameters| Ok((parameters.id.ok_or("the parameter 'id' is missing")?, parameters.ci)));
    match job {
        Ok((id, ci)) => answered(desk.past.report(id, ci).await.map(|found| json(StatusCode::OK, &found))),
        Err(refusal) => *refusal,
    }
}

/// How often something has changed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Changes {
    /// Version of this shape.
    pub schema: u32,
    /// A number that grows with every change.
    pub changes: u64,
}

/// Nobody waits here for longer in one go.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Waits until something has changed since `after`.
pub(super) async fn changes(State(desk): State<Desk>, sent: Sent) -> Response {
    let asked = read(sent, |parameters| {
        let after = parameters.after.as_deref().map(|text| number("after", Some(text))).transpose()?;
        Ok((after, number("wait_ms", parameters.wait_ms.as_deref())?))
    });
    let (after, wait) = match asked {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let mut recorded = desk.agent.recorded();
    if let Some(after) = after {
        let wait = Duration::from_millis(wait.into()).min(LONGEST_WAIT);
        // That nothing happened in time is an answer too.
        let _ = tokio::time::timeout(wait, recorded.wait_for(|changes| *changes != u64::from(after))).await;
    }
    let changes = *recorded.borrow();
    json(StatusCode::OK, &Changes { schema: SCHEMA, changes })
}
