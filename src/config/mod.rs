//! config.toml: TOML as written (`document`), then validated [`Settings`]. Every mistake is found at once, with its place.

mod document;
mod value;

pub use value::duration;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

use crate::engine::{Policy, agent};
use crate::judge::ci::{self, Custom, System};
use crate::model::alert::AlertSink;
use crate::model::mask::Mask;

/// Where the configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/sniffer/config.toml";

/// The commented sample, which shows every default.
pub const SAMPLE: &str = include_str!("../../config.toml");

/// Which source of events to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    /// The best that works.
    Auto,
    /// BPF.
    Ebpf,
    /// The proc connector.
    Proc,
    /// None: only looks at intervals.
    Poll,
}

/// The validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Unix socket of the query API.
    pub socket: PathBuf,
    /// Its permission bits.
    pub socket_mode: u32,
    /// Address of metrics and health; `None` switches them off.
    pub listen: Option<SocketAddr>,
    /// Cap of `sniffer_leaked_listener_info`.
    pub max_series: usize,
    /// Whether the page is served beside the metrics; `None` where nobody but this host can ask.
    pub page: Option<bool>,
    /// Source of events.
    pub events: Events,
    /// Time between two looks.
    pub interval: Duration,
    /// Whether to read NAT rules.
    pub nat: bool,
    /// Sockets of container engines that may be asked for names.
    pub engines: Vec<PathBuf>,
    /// Time between the end of a job and the leak of its listeners.
    pub grace: Duration,
    /// Programs that may outlive jobs.
    pub exempt: Vec<String>,
    /// Whether the agent ends what has leaked,
    pub reap: bool,
    /// after it has leaked for so long.
    pub reap_after: Duration,
    /// History database; `None` keeps none.
    pub history: Option<PathBuf>,
    /// How long history is kept.
    pub retention: Duration,
    /// How large history may get, in bytes.
    pub max_size_bytes: u64,
    /// CI systems the operator describes.
    pub custom: Vec<Custom>,
    /// Where alerts go.
    pub alerts: Vec<AlertSink>,
    /// Whether the built-in patterns of secrets are looked for in command lines,
    pub mask_built_in: bool,
    /// and which others.
    pub mask: Vec<String>,
    /// What a restart must not forget: declared jobs, and who was told of which alert; `None` keeps nothing.
    pub state: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: PathBuf::from("/run/sniffer/sniffer.sock"),
            socket_mode: 0o666,
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9817))),
            max_series: 200,
            page: None,
            events: Events::Auto,
            interval: Duration::from_secs(2),
            nat: true,
            engines: vec!["/run/docker.sock".into(), "/run/podman/podman.sock".into()],
            grace: Duration::from_secs(30),
            exempt: [
                "bazel",
                "gradle",
                "buildkitd",
                "dockerd",
                "docker-proxy",
                "ccache",
                "sccache",
                "ssh-agent",
            ]
            .map(str::to_owned)
            .to_vec(),
            reap: false,
            reap_after: Duration::from_secs(60),
            history: Some(PathBuf::from("/var/lib/sniffer/history.db")),
            retention: Duration::from_secs(7 * 86_400),
            max_size_bytes: 256 * 1024 * 1024,
            custom: Vec::new(),
            alerts: Vec::new(),
            mask_built_in: true,
            mask: Vec::new(),
            state: Some(PathBuf::from("/var/lib/sniffer/state.json")),
        }
    }
}

impl Settings {
    /// What judgement depends on.
    pub fn policy(&self) -> Policy {
        Policy {
            grace: SignedDuration::try_from(self.grace).unwrap_or(SignedDuration::MAX),
            exempt: self.exempt.clone(),
            systems: self.systems(),
            nat: self.nat,
        }
    }

    /// What is hidden in command lines. Every pattern was compiled when the document was read.
    pub fn mask(&self) -> Mask {
        Mask::new(self.mask_built_in, &self.mask).unwrap_or_default()
    }

    /// The CI systems, the configured ones first.
    pub fn systems(&self) -> Vec<Arc<dyn System>> {
        let custom = self.custom.iter().cloned().map(|system| Arc::new(system) as Arc<dyn System>);
        custom.chain(ci::built_in()).collect()
    }

    /// The sources of events that may be used, the best first.
    pub fn sources(&self) -> Vec<agent::Events> {
        match self.events {
            Events::Auto | Events::Ebpf => vec![agent::Events::Ebpf, agent::Events::Proc],
            Events::Proc => vec![agent::Events::Proc],
            Events::Poll => Vec::new(),
        }
    }
}

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// The key, as `table.key`; empty for mistakes of syntax.
    pub key: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file has mistakes.
    #[error("{path}: {} mistakes", mistakes.len())]
    Mistaken {
        /// The file.
        path: PathBuf,
        /// All of them, in order.
        mistakes: Vec<Mistake>,
    },
}

impl ConfigError {
    /// One line for each mistake: `file:line:column: key: what`.
    pub fn lines(&self) -> Vec<String> {
        match self {
            ConfigError::Unreadable { .. } => vec![self.to_string()],
            ConfigError::Mistaken { path, mistakes } => mistakes
                .iter()
                .map(|mistake| {
                    let Mistake { line, column, key, what } = mistake;
                    let separator = if key.is_empty() { "" } else { ": " };
                    format!("{}:{line}:{column}: {key}{separator}{what}", path.display())
                })
                .collect(),
        }
    }
}

/// A configuration file is read up to this size; a larger one is none.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads settings: from this file, or from the default one where it exists, or the defaults.
pub fn load(path: Option<&Path>) -> Result<Settings, ConfigError> {
    match path {
        Some(path) => read(path),
        None if Path::new(DEFAULT_PATH).exists() => read(Path::new(DEFAULT_PATH)),
        None => Ok(Settings::default()),
    }
}

/// Reads settings from a file.
pub fn read(path: &Path) -> Result<Settings, ConfigError> {
    use std::io::Read;
    let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unreadable(std::io::Error::other("larger than 1 MiB: this is no configuration file")));
    }
    parse(&bytes).map_err(|mistakes| ConfigError::Mistaken { path: path.to_owned(), mistakes })
}

/// Parses and validates; either settings or every mistake.
pub fn parse(bytes: &[u8]) -> Result<Settings, Vec<Mistake>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => document::settings(text),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let (line, column) = value::place(&String::from_utf8_lossy(before), before.len());
            Err(vec![Mistake { line, column, key: String::new(), what: "this is not UTF-8".to_owned() }])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let error =
            ConfigError::Mistaken { path: "c.toml".into(), mistakes: parse(text.as_bytes()).unwrap_err() };
        error.lines()
    }

    #[test]
    fn the_sample_is_the_defaults_plus_its_examples() {
        let sample = parse(SAMPLE.as_bytes()).unwrap();
        let expected =
            Settings { custom: sample.custom.clone(), alerts: sample.alerts.clone(), ..Settings::default() };
        assert_eq!(sample, expected);
        let uncommented: String = SAMPLE
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = [") || rest.starts_with("[[") || rest.contains("= \""))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let all = parse(uncommented.as_bytes()).unwrap();
        assert_eq!((all.custom.len(), all.alerts.len()), (1, 3), "the examples in the sample are valid");
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse(b""), Ok(Settings::default()));
    }

    #[test]
    fn every_mistake_is_named_at_once_with_its_place() {
        let text = "[control]\nsocket = 7\nmode = \"0999\"\n[watch]\ninterval = \"soon\"\nevnts = \"auto\"\n\
            [leak]\ngrace = \"30\"\nexempt = [\"a\", 2]\n[nonsense]\nx = 1\n[metrics]\nlisten = \"localhost:1\"\nmax_series = -1\n";
        insta::assert_snapshot!(mistakes(text).join("\n"), @r#"
        c.toml:2:10: control.socket: wants a string, got an integer
        c.toml:3:8: control.mode: '0999' is no permission mode; write three or four octal digits, as in "0666"
        c.toml:5:12: watch.interval: 'soon' is no duration; write a number with ms, s, m, h or d, as in "30s"
        c.toml:6:1: watch.evnts: unknown key; did you mean 'events'?
        c.toml:8:9: leak.grace: '30' is no duration; write a number with ms, s, m, h or d, as in "30s"
        c.toml:9:16: leak.exempt: wants a list of strings, got an integer in it
        c.toml:10:2: nonsense: unknown key; known ones are control, metrics, watch, containers, leak, history, jobs, alerts, agent, privacy
        c.toml:13:10: metrics.listen: 'localhost:1' is no address with a port; write an IP address, as in "127.0.0.1:9817", or "" for none (names are not looked up)
        c.toml:14:14: metrics.max_series: -1 lies outside of 1 to 100000
        "#);
    }

    #[test]
    fn mistakes_of_syntax_are_named_with_their_place() {
        let lines = mistakes("[watch\ninterval = \"2s\"\n");
        assert!(lines[0].starts_with("c.toml:1:"), "{lines:?}");
        let lines = mistakes("[watch]\nnat = true\nnat = false\n");
        assert!(lines[0].starts_with("c.toml:3:"), "{lines:?}");
        assert_eq!(parse(b"[watch]\nx = \"\xff\"").unwrap_err()[0].line, 2);
    }

    #[test]
    fn custom_systems_and_alerts_are_checked() {
        let text = "[[jobs.custom]]\nname = \"my ci\"\nid_env = []\n[[jobs.custom]]\nname = \"github\"\nid_env = [\"A=B\"]\n\
            [[alerts.webhook]]\nurl = \"ftp://x\"\n[[alerts.command]]\nrun = []\n[[alerts.alertmanager]]\n";
        insta::assert_snapshot!(mistakes(text).join("\n"), @r#"
        c.toml:2:8: jobs.custom.name: 'my ci' is no name; use letters, digits, '-' and '_'
        c.toml:3:10: jobs.custom.id_env: wants at least one entry
        c.toml:5:8: jobs.custom.name: 'github' is a built-in CI system
        c.toml:6:11: jobs.custom.id_env: 'A=B' is no name of an environment variable
        c.toml:8:7: alerts.webhook.url: 'ftp://x' is no http:// or https:// address
        c.toml:10:7: alerts.command.run: wants at least one entry
        c.toml:11:1: alerts.alertmanager.url: is missing
        "#);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_odd_document_panics(text in "(\\[{1,2}(watch|leak|jobs.custom|alerts)\\]{1,2}\n|[a-z_]{1,9} = (\"[^\"]{0,6}\"|-?[0-9]{1,20}|\\[.{0,5}\\]|true)\n){0,8}") {
            let _ = parse(text.as_bytes());
        }
    }
}
