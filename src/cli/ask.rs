//! Asks the daemon over its socket where one runs, and looks for itself where none does.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Failure, environment};
use crate::config::{self, Settings};
use crate::engine::{Question, Topic, oneshot};
use crate::judge::{can_bind, ci};
use crate::kernel::containers::Engines;
use crate::kernel::process::Reader;
use crate::kernel::unix_http;
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
    if let Some(answer) = ask_if_there(&settings, &path(question), true)? {
        return Ok(answer);
    }
    oneshot::answer(settings.policy(), &reader_for(&settings), question).map_err(|why| why.to_string())
}

/// Asks whether a bind would succeed, again and again.
pub(super) struct Asker {
    settings: Settings,
    /// Made when no daemon was there for the first time.
    reader: Option<Reader>,
}

impl Asker {
    pub(super) fn new() -> Self {
        Asker { settings: settings(), reader: None }
    }

    /// Whether a bind would succeed. With `wait`, a daemon answers when it would, or after that time.
    pub(super) fn can_bind(
        &mut self,
        target: &Target,
        manner: &Manner,
        netns: &NetnsSelector,
        wait: Duration,
    ) -> Result<CanBind, Failure> {
        let topic = Topic::Bind { target: target.clone(), shares: manner.shares() };
        let question = Question { topic, netns: Some(netns.clone()) };
        let mut path = path(&question);
        for (name, value) in [
            ("reuseaddr", manner.reuseaddr.to_string()),
            ("reuseport", manner.reuseport.to_string()),
            ("v6only", manner.v6only.to_string()),
            ("uid", manner.uid.to_string()),
            ("wait_ms", wait.as_millis().to_string()),
        ] {
            path += &format!("&{name}={value}");
        }
        if let Some(interface) = &manner.interface {
            path += &format!("&interface={}", encoded(interface));
        }
        if let Some(answer) = ask_if_there(&self.settings, &path, self.reader.is_none())? {
            return Ok(answer);
        }
        let reader = self.reader.get_or_insert_with(|| reader_for(&self.settings));
        let answer = oneshot::answer(self.settings.policy(), reader, &question);
        answer.map(|answer| can_bind::judge(target, manner, answer)).map_err(|why| why.to_string())
    }
}

/// The daemon's answer; `None` where none answers, which is worth a word only where one should have.
fn ask_if_there<T: DeserializeOwned>(
    settings: &Settings,
    path: &str,
    complains: bool,
) -> Result<Option<T>, Failure> {
    let socket = socket(settings);
    match ask_daemon(&socket, path) {
        Ok(answer) => Ok(Some(answer)),
        Err(NoAnswer::Refused(why)) => Err(why),
        Err(NoAnswer::Absent(error)) => {
            if complains && !is_absence(&error) {
                report::complain(&format!(
                    "the daemon at {} did not answer ({error}); looking without it",
                    socket.display()
                ));
            }
            Ok(None)
        }
    }
}

/// A daemon's answer, or that none is there.
pub(super) enum Asked<T> {
    Answered(T),
    Absent,
}

/// Asks for a path, of a daemon that need not be there. Errors: it refused.
pub(super) fn ask_path<T: DeserializeOwned>(settings: &Settings, path: &str) -> Result<Asked<T>, Failure> {
    Ok(ask_if_there(settings, path, true)?.map_or(Asked::Absent, Asked::Answered))
}

fn reader_for(settings: &Settings) -> Reader {
    let systems = settings.systems();
    // As every client of Docker's has it.
    let host = environment("DOCKER_HOST");
    let named = host.as_deref().and_then(|host| host.to_str()?.strip_prefix("unix://")).map(PathBuf::from);
    let engines = named.map_or_else(|| settings.engines.clone(), |named| vec![named]);
    Reader::new(ci::variables(&systems)).with_engines(Engines::new(engines)).with_mask(settings.mask())
}

/// Asks what only a daemon can answer, and says why.
pub(super) fn ask_daemon_only<T: DeserializeOwned>(path: &str, why_it: &str) -> Result<T, Failure> {
    only_daemon(|socket| ask_daemon(socket, path), why_it)
}

/// Tells the daemon something, and says why it must be there.
pub(super) fn tell_daemon<T: DeserializeOwned>(
    path: &str,
    document: &impl Serialize,
    why_it: &str,
) -> Result<T, Failure> {
    let document = serde_json::to_vec(document).map_err(|error| error.to_string())?;
    let tell = |socket: &Path| {
        let answer = unix_http::post(socket, path, document, TIMEOUT, MAX_ANSWER_BYTES);
        understood(answer.map_err(NoAnswer::Absent)?)
    };
    only_daemon(tell, why_it)
}

fn only_daemon<T>(ask: impl FnOnce(&Path) -> Result<T, NoAnswer>, why_it: &str) -> Result<T, Failure> {
    let socket = socket(&settings());
    ask(&socket).map_err(|error| match error {
        NoAnswer::Refused(why) => why,
        NoAnswer::Absent(why) => format!(
            "no sniffer daemon answers at {} ({why}); {why_it}: start it with `sniffer daemon` or `systemctl start sniffer`",
            socket.display()
        ),
    })
}

pub(super) fn settings() -> Settings {
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

fn ask_daemon<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, NoAnswer> {
    understood(unix_http::get(socket, path, TIMEOUT, MAX_ANSWER_BYTES).map_err(NoAnswer::Absent)?)
}

fn understood<T: DeserializeOwned>((status, body): (StatusCode, Bytes)) -> Result<T, NoAnswer> {
    let garbage =
        |error: serde_json::Error| NoAnswer::Absent(io::Error::new(io::ErrorKind::InvalidData, error));
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(garbage);
    }
    let refusal: Refusal = serde_json::from_slice(&body).map_err(garbage)?;
    Err(NoAnswer::Refused(refusal.error))
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
pub(super) fn encoded(text: &str) -> String {
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
