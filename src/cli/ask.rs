//! Asks the daemon over its socket where one runs, and looks for itself where none does.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Failure, environment};
use crate::config::{self, Settings};
use crate::engine::{Question, Topic, oneshot};
use crate::judge::can_bind;
use crate::kernel::process::Reader;
use crate::model::answer::Answer;
use crate::model::can_bind::{CanBind, Manner};
use crate::model::netns::NetnsSelector;
use crate::model::target::Target;
use crate::report;
use crate::serve::control::Refusal;

/// A daemon that takes longer is treated as absent.
const TIMEOUT: Duration = Duration::from_secs(25);
/// A larger answer is none: a host has at most a few hundred thousand sockets.
const MAX_ANSWER_BYTES: usize = 512 * 1024 * 1024;

/// Who may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// The daemon; where none runs, this program looks for itself.
    DaemonOrMyself,
    /// Only the daemon: it knows the past.
    Daemon,
}

/// Asks.
pub(super) fn ask(question: &Question, whom: Whom) -> Result<Answer, Failure> {
    if whom == Whom::Daemon {
        return ask_daemon_only(&path(question), "it alone knows which jobs have ended");
    }
    let settings = settings();
    let socket = socket(&settings);
    match ask_daemon(&socket, &path(question)) {
        Ok(answer) => return Ok(answer),
        Err(NoAnswer::Refused(why)) => return Err(why),
        Err(NoAnswer::Absent(error)) if is_absence(&error) => {}
        Err(NoAnswer::Absent(error)) => complain_of(&socket, &error),
    }
    oneshot::answer(settings.policy(), &reader_for(&settings), question).map_err(|why| why.to_string())
}

/// Whether a daemon is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// It answered.
    No,
    /// It did not, or was not asked yet.
    Yes,
}

/// Asks the same thing again and again.
pub(super) struct Asker {
    settings: Settings,
    reader: Option<Reader>,
    daemon: Absent,
}

impl Asker {
    pub(super) fn new() -> Self {
        Asker { settings: settings(), reader: None, daemon: Absent::Yes }
    }

    /// Whether a daemon gave the last answer.
    pub(super) fn daemon(&self) -> Absent {
        self.daemon
    }

    /// Whether a bind would succeed. With `wait`, a daemon answers when it would, or after that time.
    pub(super) fn can_bind(
        &mut self,
        target: &Target,
        manner: &Manner,
        netns: &NetnsSelector,
        wait: Option<Duration>,
    ) -> Result<CanBind, Failure> {
        let shares = manner.reuseaddr || manner.reuseport;
        let topic = Topic::Bind { target: target.clone(), shares };
        let question = Question { topic, netns: Some(netns.clone()) };
        let mut path = path(&question);
        for (name, set) in
            [("reuseaddr", manner.reuseaddr), ("reuseport", manner.reuseport), ("v6only", manner.v6only)]
        {
            path += &format!("&{name}={set}");
        }
        path += &format!("&uid={}", manner.uid);
        if let Some(interface) = &manner.interface {
            path += &format!("&interface={}", encoded(interface));
        }
        if let Some(wait) = wait {
            path += &format!("&wait_ms={}", wait.as_millis());
        }
        let socket = socket(&self.settings);
        match ask_daemon(&socket, &path) {
            Ok(answer) => {
                self.daemon = Absent::No;
                return Ok(answer);
            }
            Err(NoAnswer::Refused(why)) => return Err(why),
            Err(NoAnswer::Absent(error)) => {
                if !is_absence(&error) && self.reader.is_none() {
                    complain_of(&socket, &error);
                }
                self.daemon = Absent::Yes;
            }
        }
        let reader = self.reader.get_or_insert_with(|| reader_for(&self.settings));
        let answer = oneshot::answer(self.settings.policy(), reader, &question);
        answer.map(|answer| can_bind::judge(target, manner, answer)).map_err(|why| why.to_string())
    }
}

fn reader_for(settings: &Settings) -> Reader {
    let systems = settings.systems();
    Reader::new(systems.iter().flat_map(|system| system.variables()))
}

fn complain_of(socket: &std::path::Path, error: &io::Error) {
    report::complain(&format!(
        "the daemon at {} did not answer ({error}); looking without it",
        socket.display()
    ));
}

/// Asks what only a daemon can answer, and says why.
pub(super) fn ask_daemon_only<T: DeserializeOwned>(path: &str, why_it: &str) -> Result<T, Failure> {
    let socket = socket(&settings());
    ask_daemon(&socket, path).map_err(|error| match error {
        NoAnswer::Refused(why) => why,
        NoAnswer::Absent(why) => format!(
            "no sniffer daemon answers at {} ({why}); {why_it}: start it with `sniffer daemon` or `systemctl start sniffer`",
            socket.display()
        ),
    })
}

fn settings() -> Settings {
    config::load(None).unwrap_or_else(|error| {
        report::complain(&format!("{error}; using the defaults (`sniffer check-config` names each)"));
        Settings::default()
    })
}

fn socket(settings: &Settings) -> PathBuf {
    environment("SNIFFER_SOCKET").map_or_else(|| settings.socket.clone(), PathBuf::from)
}

enum NoAnswer {
    /// It answered that there is no answer.
    Refused(String),
    /// It did not answer.
    Absent(io::Error),
}

/// Nothing serves the socket: the normal case without a daemon, and not worth a word.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn ask_daemon<T: DeserializeOwned>(socket: &std::path::Path, path: &str) -> Result<T, NoAnswer> {
    if !socket.exists() {
        return Err(NoAnswer::Absent(io::ErrorKind::NotFound.into()));
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NoAnswer::Absent)?;
    let (status, body) = runtime.block_on(async {
        tokio::time::timeout(TIMEOUT, fetch(socket, path))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            .map_err(NoAnswer::Absent)
    })?;
    let garbage =
        |error: serde_json::Error| NoAnswer::Absent(io::Error::new(io::ErrorKind::InvalidData, error));
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(garbage);
    }
    let refusal: Refusal = serde_json::from_slice(&body).map_err(garbage)?;
    Err(NoAnswer::Refused(refusal.error))
}

async fn fetch(socket: &std::path::Path, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(hyper::header::HOST, "sniffer")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}

fn path(question: &Question) -> String {
    let mut parameters = Vec::new();
    let verb = match &question.topic {
        Topic::Target(target) => {
            parameters.push(format!("target={}", encoded(&target.to_string())));
            "who-holds"
        }
        Topic::Bind { target, .. } => {
            parameters.push(format!("target={}", encoded(&target.to_string())));
            "can-bind"
        }
        Topic::All => "list",
        Topic::Leaks => "leaks",
    };
    parameters.extend(question.netns.as_ref().map(|netns| format!("netns={}", encoded(&netns.to_string()))));
    format!("/v1/{verb}?{}", parameters.join("&"))
}

/// Percent-encodes everything but letters, digits and `-._~` (RFC 3986).
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_travel_in_the_path() {
        let target = "[::1]:8081/tcp".parse().unwrap();
        let question = Question { topic: Topic::Target(target), netns: Some("PID:7".parse().unwrap()) };
        assert_eq!(path(&question), "/v1/who-holds?target=%5B%3A%3A1%5D%3A8081%2Ftcp&netns=PID%3A7");
    }
}
