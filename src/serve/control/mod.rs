//! The control socket: `GET /v1/who-holds?target=8081`, the same documents as `--json`, over a Unix socket.

mod jobs;
mod past;

pub use past::{Changes, Parameters as PastParameters, asked_of_past};

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::engine::agent::Agent;
use crate::engine::{Question, Topic, Unanswerable};
use crate::judge::can_bind;
use crate::model::answer::{Answer, SCHEMA};
use crate::model::can_bind::Manner;
use crate::model::netns::NetnsSelector;
use crate::model::target::{Target, TargetError};
use crate::serve::http::MAX_REQUEST_BYTES;
use crate::serve::past::Past;

/// Parameters of a question, as the query of its address has them.
#[derive(Debug, Deserialize)]
pub struct Parameters {
    target: Option<String>,
    netns: Option<String>,
    #[serde(flatten)]
    bind: BindParameters,
}

/// Parameters of `can-bind`; numbers and truth values come as text.
#[derive(Debug, Deserialize)]
struct BindParameters {
    reuseaddr: Option<String>,
    reuseport: Option<String>,
    v6only: Option<String>,
    uid: Option<String>,
    interface: Option<String>,
    wait_ms: Option<String>,
}

/// The document of a refusal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Version of this shape.
    pub schema: u32,
    /// Why, in one sentence.
    pub error: String,
}

/// Questions that are answered at the same time: a look takes both cores of a small host, an answer may be large.
const ANSWERS_AT_ONCE: usize = 2;
/// Whoever waits longer for a turn is told so.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

/// The agent, and whose turn it is to ask it.
#[derive(Debug, Clone)]
struct Desk {
    agent: Agent,
    past: Past,
    turns: Arc<Semaphore>,
}

/// Routes of the control socket.
pub fn router(past: Past) -> Router {
    Router::new()
        .route("/v1/who-holds", get(who_holds))
        .route("/v1/list", get(list))
        .route("/v1/leaks", get(leaks))
        .route("/v1/conflicts", get(past::conflicts))
        .route("/v1/history", get(past::history))
        .route("/v1/report", get(past::report))
        .route("/v1/changes", get(past::changes))
        .route("/v1/can-bind", get(may_bind))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/job/start", post(jobs::start))
        .route("/v1/job/end", post(jobs::end))
        .fallback(|| async {
            refuse(
                StatusCode::NOT_FOUND,
                "no such path; there are /v1/who-holds, /v1/list, /v1/leaks, /v1/conflicts, /v1/history, /v1/report, /v1/changes, /v1/can-bind, /v1/jobs, /v1/job/start, /v1/job/end"
                    .to_owned(),
            )
        })
        .method_not_allowed_fallback(|| async {
            refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "questions are GET; /v1/job/start and /v1/job/end are POST".to_owned(),
            )
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(Desk { agent: past.agent.clone(), past, turns: Arc::new(Semaphore::new(ANSWERS_AT_ONCE)) })
}

type Asked = Result<Query<Parameters>, axum::extract::rejection::QueryRejection>;

async fn who_holds(State(desk): State<Desk>, parameters: Asked) -> Response {
    answer(desk, parameters, |text| target(text).map(Topic::Target)).await
}

async fn list(State(desk): State<Desk>, parameters: Asked) -> Response {
    answer(desk, parameters, |_| Ok(Topic::All)).await
}

async fn leaks(State(desk): State<Desk>, parameters: Asked) -> Response {
    answer(desk, parameters, |_| Ok(Topic::Leaks)).await
}

/// Longer than this nobody waits here in one go.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// While somebody waits for a port it is looked at this often at the least, and at the most.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
const LOOK_AT_MOST: Duration = Duration::from_millis(20);

async fn may_bind(State(desk): State<Desk>, parameters: Asked) -> Response {
    let bind = parameters.map_err(|error| error.body_text()).and_then(|Query(parameters)| bind(parameters));
    let (target, manner, netns, wait) = match bind {
        Ok(bind) => bind,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    let end = Instant::now() + wait.min(LONGEST_WAIT);
    let mut closes = desk.agent.closes();
    loop {
        closes.borrow_and_update();
        let topic = Topic::Bind { target: target.clone(), shares: manner.shares() };
        let answer = match ask(&desk, Question { topic, netns: Some(netns.clone()) }).await {
            Ok(answer) => can_bind::judge(&target, &manner, answer),
            Err(response) => return response,
        };
        let left = end.saturating_duration_since(Instant::now());
        if !answer.may_change() || left.is_zero() {
            return json(StatusCode::OK, &answer);
        }
        tokio::time::sleep(LOOK_AT_MOST.min(left)).await;
        // A TIME_WAIT that ends, or a close that was lost, is told by nobody.
        let _ = tokio::time::timeout(LOOK_AT_LEAST.min(left), closes.changed()).await;
    }
}

/// The parameter `target`. Errors: it is missing, or what is wrong with it, in a sentence.
pub fn target(text: Option<&str>) -> Result<Target, String> {
    let text = text.ok_or("the parameter 'target' is missing")?;
    text.parse().map_err(|error: TargetError| error.to_string())
}

/// What is asked, about what `topic` makes of the target. Errors: what is wrong, in a sentence.
pub fn question(
    parameters: &Parameters,
    topic: impl FnOnce(Option<&str>) -> Result<Topic, String>,
) -> Result<Question, String> {
    let netns = parameters.netns.as_deref().map(str::parse).transpose()?;
    Ok(Question { topic: topic(parameters.target.as_deref())?, netns })
}

/// What is to be bound, how, where, and how long to wait until it can be. Errors: what is wrong, in a sentence.
pub fn bind(parameters: Parameters) -> Result<(Target, Manner, NetnsSelector, Duration), String> {
    let Parameters { target: text, netns, bind, .. } = parameters;
    let target = target(text.as_deref())?;
    let wait = number("wait_ms", bind.wait_ms.as_deref())?;
    let manner = Manner {
        reuseaddr: truth("reuseaddr", bind.reuseaddr.as_deref())?,
        reuseport: truth("reuseport", bind.reuseport.as_deref())?,
        v6only: truth("v6only", bind.v6only.as_deref())?,
        uid: number("uid", bind.uid.as_deref())?,
        interface: bind.interface,
    };
    let netns = netns.as_deref().map(str::parse).transpose()?;
    // A bind is one in one network namespace.
    let netns = netns.unwrap_or_else(|| NetnsSelector::Name("host".to_owned()));
    Ok((target, manner, netns, Duration::from_millis(wait.into())))
}

fn truth(name: &str, text: Option<&str>) -> Result<bool, String> {
    match text {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(_) => Err(format!("the parameter '{name}' is true or false")),
    }
}

fn number(name: &str, text: Option<&str>) -> Result<u32, String> {
    text.map_or(Ok(0), str::parse).map_err(|_| format!("the parameter '{name}' is a number"))
}

async fn answer(
    desk: Desk,
    parameters: Asked,
    topic: impl FnOnce(Option<&str>) -> Result<Topic, String>,
) -> Response {
    let question = parameters
        .map_err(|error| error.body_text())
        .and_then(|Query(parameters)| question(&parameters, topic));
    let question = match question {
        Ok(question) => question,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    match ask(&desk, question).await {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(response) => response,
    }
}

/// Asks the agent when it is this question's turn. Errors: the response that says why not.
async fn ask(desk: &Desk, question: Question) -> Result<Answer, Response> {
    let Ok(Ok(_turn)) = tokio::time::timeout(TURN_TIMEOUT, desk.turns.acquire()).await else {
        return Err(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            Unanswerable::NoAgent("too many ask at once; ask again").to_string(),
        ));
    };
    desk.agent.ask(question).await.map_err(|why| match why {
        Unanswerable::NoSuchNetns(_) => refuse(StatusCode::NOT_FOUND, why.to_string()),
        why => refuse(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
    })
}

pub(super) fn refuse(status: StatusCode, error: String) -> Response {
    json(status, &Refusal { schema: SCHEMA, error })
}

pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent serves it.
    #[error("another sniffer daemon{} serves {socket}; stop that one, or give this one another control.socket", owner.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Taken {
        /// The socket.
        socket: PathBuf,
        /// The other agent.
        owner: Option<u32>,
    },
    /// The file system refuses.
    #[error(
        "the control socket {socket} cannot be made: {error}; run as root, make its directory, or set control.socket"
    )]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The control socket, with the lock that says whose it is. Removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    _lock: File,
}

impl ControlSocket {
    /// Makes the socket with these permission bits. The lock beside it tells a second agent from a stale file.
    pub fn bind(path: &Path, mode: u32) -> Result<(ControlSocket, UnixListener), SocketError> {
        let refused = |error| SocketError::Refused { socket: path.to_owned(), error };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(refused)?;
        }
        let lock_path = path.with_added_extension("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Whoever can open it can hold the lock.
            .mode(0o600)
            .open(&lock_path)
            .map_err(refused)?;
        if let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            return Err(match errno {
                rustix::io::Errno::WOULDBLOCK => {
                    SocketError::Taken { socket: path.to_owned(), owner: read_pid(&mut lock) }
                }
                other => refused(other.into()),
            });
        }
        write_pid(&mut lock).map_err(refused)?;
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path).map_err(refused)?,
            Ok(_) => {
                return Err(refused(io::Error::other(
                    "something else is there already, and it is no socket",
                )));
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(refused)?;
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(refused)?;
        Ok((ControlSocket { path: path.to_owned(), _lock: lock }, listener))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A socket that stays behind is taken over by the next agent.
        let _ = fs::remove_file(&self.path);
    }
}

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}
