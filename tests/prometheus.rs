//! The files of `integrations/prometheus` with the real Prometheus and Alertmanager, which `scripts/test` unpacks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;
#[path = "alerts/hook.rs"]
mod hook;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, eventually, free_port, open_directory, run};
use hook::Hook;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of Debian's packages.
fn unpacked(name: &str) -> PathBuf {
    root().join("target/prometheus/usr/bin").join(name)
}

fn integration(file: &str) -> PathBuf {
    root().join("integrations").join(file)
}

#[test]
#[ignore = "needs Prometheus, which scripts/test unpacks"]
fn the_rules_are_valid_and_do_what_their_tests_say() {
    for arguments in [
        &["check", "rules", "--lint=all", "--lint-fatal", "prometheus/sniffer.rules.yml"][..],
        &["test", "rules", "prometheus/sniffer.rules.test.yml"],
        &["check", "config", "prometheus/scrape.yml"],
    ] {
        let mut command = Command::new(unpacked("promtool"));
        let (code, stdout, stderr) = run(command.args(arguments).current_dir(root().join("integrations")));
        assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}");
    }
}

/// The names of metrics in an expression: whatever begins as ours do.
fn metrics_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    let ours = words.filter(|word| word.starts_with("sniffer_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root"]
fn the_dashboard_asks_only_for_what_is_exported() {
    let daemon = Daemon::start("");
    let (_, mut page) = daemon.get("/metrics").unwrap();
    // There is none where nothing has leaked.
    page += "# TYPE sniffer_leaked_listener_info gauge";
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(integration("grafana/sniffer.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let nested = panels.iter().flat_map(|panel| panel["panels"].as_array().into_iter().flatten());
    let mut asked = 0;
    for panel in panels.iter().chain(nested) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            for metric in metrics_in(target["expr"].as_str().unwrap()) {
                asked += 1;
                assert!(page.contains(&format!("# TYPE {metric} ")), "{metric} of {}", panel["title"]);
            }
        }
    }
    assert!(asked > 20, "{asked} metrics");
}

/// A program of the test's own, ended with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn start(directory: &Path, program: &str, port: u16, arguments: &[String]) -> Running {
    let log = File::create(directory.join(format!("{program}.log"))).unwrap();
    // It looks for templates where its package would have put them: beside the host's own, for this process.
    let share = root().join("target/prometheus/usr/share");
    let script = format!(
        "mount -t overlay overlay -o lowerdir={}:/usr/share /usr/share && exec \"$0\" \"$@\"",
        share.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).arg(unpacked(program));
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut running = Running(command.spawn().expect("scripts/test has unpacked it"));
    eventually("it answers", || {
        let ended = running.0.try_wait().unwrap();
        assert!(ended.is_none(), "{}", fs::read_to_string(directory.join(format!("{program}.log"))).unwrap());
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    running
}

#[test]
#[ignore = "needs root, and Prometheus, which scripts/test unpacks"]
fn a_leak_fires_and_resolves_in_a_real_prometheus_and_alertmanager() {
    let directory = open_directory();
    let at = |name: &str| directory.path().join(name);
    let (manager, prometheus) = (free_port(), free_port());
    let hook = Hook::start(&[200]);
    let url = format!("http://127.0.0.1:{}/", hook.port);
    let route =
        "route: {receiver: hook, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}";
    let receivers =
        format!("receivers: [{{name: hook, webhook_configs: [{{url: '{url}', send_resolved: true}}]}}]");
    fs::write(at("alertmanager.yml"), format!("{route}\n{receivers}\n")).unwrap();
    let _manager = start(
        directory.path(),
        "prometheus-alertmanager",
        manager,
        &[
            "--config.file=alertmanager.yml".to_owned(),
            "--storage.path=alertmanager".to_owned(),
            "--cluster.listen-address=".to_owned(),
            format!("--web.listen-address=127.0.0.1:{manager}"),
        ],
    );
    let daemon = Daemon::start(&format!("[[alerts.alertmanager]]\nurl = \"http://127.0.0.1:{manager}\"\n"));

    // The shipped files, but without waits, and with the addresses of the test.
    let rules = fs::read_to_string(integration("prometheus/sniffer.rules.yml")).unwrap();
    let is_wait = |line: &&str| line.starts_with("        for: ");
    let hasty: Vec<&str> = rules.lines().filter(|line| !is_wait(line)).collect();
    fs::write(at("sniffer.rules.yml"), hasty.join("\n")).unwrap();
    let config = fs::read_to_string(integration("prometheus/scrape.yml")).unwrap();
    let config = config
        .replace("interval: 15s", "interval: 1s")
        .replace("scrape_timeout: 5s", "scrape_timeout: 1s")
        .replace("localhost:9093", &format!("127.0.0.1:{manager}"))
        .replace("localhost:9817", &daemon.metrics);
    fs::write(at("prometheus.yml"), config).unwrap();
    let _prometheus = start(
        directory.path(),
        "prometheus",
        prometheus,
        &[
            "--config.file=prometheus.yml".to_owned(),
            "--storage.tsdb.path=prometheus".to_owned(),
            format!("--web.listen-address=127.0.0.1:{prometheus}"),
        ],
    );

    let (_tree, port) = daemon.leftover("scraped");
    // They may come in any order.
    let mut heard: Vec<Value> = Vec::new();
    let mut hear = |name: &str, status: &str| {
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let is_it = |alert: &&Value| alert["labels"]["alertname"] == name && alert["status"] == status;
            if let Some(alert) = heard.iter().find(is_it) {
                return alert.clone();
            }
            let (_, message) = hook.requests.recv_timeout(end - Instant::now()).unwrap_or_else(|_| {
                let logs = ["prometheus.log", "prometheus-alertmanager.log"]
                    .map(|log| fs::read_to_string(at(log)).unwrap_or_default());
                panic!("{name} is never {status}:\n{}", logs.join("\n"))
            });
            heard.extend(message["alerts"].as_array().unwrap().iter().cloned());
        }
    };
    // The agent's own alert comes at once, Prometheus' after its scrapes.
    let own = hear("SnifferListenerLeaked", "firing");
    assert_eq!(
        (&own["labels"]["port"], &own["labels"]["job_name"]),
        (&port.to_string().into(), &"scraped".into()),
        "{own:#}"
    );
    let scraped = hear("SnifferLeakedListeners", "firing");
    assert_eq!(scraped["labels"]["ci"], "custom");
    let description = scraped["annotations"]["description"].as_str().unwrap();
    assert!(description.contains(&format!("{port}/tcp in host by holder")), "{scraped:#}");

    let (code, _, stderr) = run(&mut daemon.ask(&["reap", "--job", "scraped", "--yes"]));
    assert_eq!(code, 0, "{stderr}");
    hear("SnifferListenerLeaked", "resolved");
    hear("SnifferLeakedListeners", "resolved");
}
