//! Kubernetes DRA: a clean-up ran on when its test had ended, and broke the next one. Here a test leaves a clean-up behind, with and
//! without a listener.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{self, Daemon, Held, eventually, open_directory, ports_of_ones_own, program};
use crate::sample::Sample;
use crate::{counted, printed};

/// A test that passes and leaves what its arguments name. Each of them says that it is there before the test ends.
const TEST: &str = r#"#!/bin/sh
for left in "$@"; do
  case $left in
    clean-up) ./clean-up it say wait:go >clean-up.said 2>/dev/null & ;;
    plugin) ./plugin it tcp:127.0.0.1:PORT say wait:go >plugin.said 2>/dev/null & ;;
  esac
done
for left in "$@"; do
  while [ ! -s "$left.said" ]; do sleep 0.01; done
done
echo PASS
"#;

const LEFT: [&str; 2] = ["clean-up", "plugin"];

/// Where the tests lie.
struct Tests {
    directory: TempDir,
    port: u16,
}

impl Tests {
    fn new() -> Tests {
        let [port] = ports_of_ones_own();
        let tests = Tests { directory: open_directory(), port };
        for name in LEFT {
            program(&tests.directory, name);
        }
        let test = tests.path().join("dra-test");
        fs::write(&test, TEST.replace("PORT", &port.to_string())).unwrap();
        fs::set_permissions(&test, fs::Permissions::from_mode(0o755)).unwrap();
        tests
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs the test as a step of a job.
    fn run(&self, daemon: &Daemon, job: &str, options: &[&str], left: &[&str]) -> (Output, Value) {
        let report = self.path().join("report.json");
        let mut command =
            daemon.ask(&["run", "--name", "TestRegistrationHandler", "--grace", "0s", "--report"]);
        command.arg(&report).args(options).args(["--", "./dra-test"]).args(left);
        let output =
            command.env("SNIFFER_JOB_ID", job).env("TZ", "UTC").current_dir(self.path()).output().unwrap();
        (output, serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap())
    }
}

impl Drop for Tests {
    /// Ends what was left: it would be of the same job in the next run.
    fn drop(&mut self) {
        for name in LEFT {
            if let Some(pid) = pid(&self.path().join(format!("{name}.said"))) {
                let left = Held { pid, ports: vec![], words: vec![] };
                left.kill();
                eventually("it has ended", || (!left.is_alive()).then_some(()));
            }
        }
    }
}

#[track_caller]
fn start(daemon: &Daemon, job: &str) {
    let arguments =
        ["job", "start", "--id", job, "--name", "unit-test", "--repository", "kubernetes/kubernetes"];
    printed(daemon, &arguments, 0);
}

/// Who said so.
fn pid(said: &Path) -> Option<u32> {
    fs::read_to_string(said).ok()?.split(' ').nth(1)?.parse().ok()
}

#[test]
#[ignore = "needs root"]
fn what_a_test_leaves_is_told_by_its_name_when_it_ends() {
    let daemon = Daemon::start("");
    let tests = Tests::new();
    start(&daemon, "dra-17");
    let (output, report) = tests.run(&daemon, "dra-17", &["--fail-on-leak"], &["clean-up", "plugin"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), b"PASS\n".as_slice()), "{told}");
    assert_eq!(
        (&report["name"], &report["code"]),
        (&"TestRegistrationHandler".into(), &0.into()),
        "{report:#}"
    );
    let left = |comm: &str| {
        let all = report["left"].as_array().unwrap();
        all.iter()
            .find(|left| left["process"]["comm"] == comm)
            .unwrap_or_else(|| panic!("{comm}: {report:#}"))
    };
    let pids = LEFT.map(|name| pid(&tests.path().join(format!("{name}.said"))));
    assert_eq!(
        [&left("clean-up")["process"]["pid"], &left("plugin")["process"]["pid"]],
        pids.map(Value::from).each_ref()
    );
    assert_eq!(left("clean-up")["ports"], json!([]));
    assert_eq!(left("plugin")["ports"][0]["port"], tests.port);
    let sample = Sample {
        ports: &[(tests.port, "8081")],
        pids: &["4121", "4122"],
        moments: &["14:03:07", "14:03:07"],
        spans: &["0s", "0s"],
        ..Sample::default()
    };
    insta::assert_snapshot!("left", sample.of(&told));

    // The daemon knows the test's name too, and that what it left outlives the job.
    assert_eq!(
        daemon.who_holds(tests.port)["claims"][0]["test"],
        json!({"framework": "custom", "name": "TestRegistrationHandler"})
    );
    daemon.job("end", "dra-17");
    eventually("it has leaked", || (daemon.verdict(tests.port).0 == "leaked").then_some(()));
    counted(&daemon, "sniffer_leaked_listeners{ci=\"custom\"}", 1.0);
}

#[test]
#[ignore = "needs root"]
fn where_no_port_is_the_cause_that_is_said() {
    let daemon = Daemon::start("");
    let tests = Tests::new();
    start(&daemon, "dra-18");
    let (output, report) = tests.run(&daemon, "dra-18", &["--fail-on-leak"], &["clean-up"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "no port is left: {told}");
    assert_eq!(
        report["left"][0]["process"]["pid"].as_u64(),
        pid(&tests.path().join("clean-up.said")).map(u64::from),
        "{report:#}"
    );
    assert!(
        told.contains(
            "test TestRegistrationHandler: ./dra-test clean-up left 1 process and 0 held ports behind"
        ),
        "{told}"
    );
    // Somebody else's conflict at the same time is none of this job.
    let _blocker = common::Tree::holder(&[&format!("tcp:127.0.0.1:{}", tests.port)]);
    let loser = common::Tree::holder(&[&format!("try:tcp:127.0.0.1:{}", tests.port)]);
    assert_eq!(loser.it().said("refused"), [98]);
    eventually("it is told", || {
        let (_, document) = common::json(&mut daemon.ask(&["conflicts"]));
        let all = document["conflicts"].as_array()?;
        all.iter().any(|conflict| conflict["port"] == tests.port).then_some(())
    });
    daemon.job("end", "dra-18");
    let (code, document) = common::json(&mut daemon.ask(&["report", "--job", "dra-18"]));
    assert_eq!((code, &document["conflicts"]), (0, &json!([])), "{document:#}");
    assert_eq!(document["summary"][0], "No port conflict was seen in this job.");
    assert_eq!(document["incomplete"], json!([]));
    let host = rustix::system::uname();
    let words = [(host.nodename().to_str().unwrap(), "ci-7")];
    let told = printed(&daemon, &["report", "--job", "dra-18"], 0);
    let sample =
        Sample { words: &words, moments: &["14:03:09", "14:03:11"], spans: &["2s"], ..Sample::default() };
    insta::assert_snapshot!("no_conflict", sample.of(&told));
}
