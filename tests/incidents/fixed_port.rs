//! Envoy Gateway: the port of a health probe was hard-coded, so parallel tests and leftovers of earlier runs took it from each other.
//! Here with real test binaries of Go, of three jobs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    self, Daemon, Tree, eventually, one_runner_on_this_host, open_directory, ports_of_ones_own, program, run,
};
use crate::sample::Sample;
use crate::{counted, printed};

const MANAGER: &str = r#"package health

import (
	"fmt"
	"net"
)

const address = "127.0.0.1:PORT"

// Start makes the manager, with its health probe.
func Start() (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("failed to create manager: error listening on %s: %w", address, err)
	}
	return listener, nil
}
"#;

/// Holds the port until it is told to go on.
const PROVIDER: &str = r#"package provider

import (
	"os"
	"testing"
	"time"

	"example.org/gateway/health"
)

func TestProvider(t *testing.T) {
	listener, err := health.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := os.WriteFile("listening", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat("done"); err != nil; _, err = os.Stat("done") {
		time.Sleep(5 * time.Millisecond)
	}
}
"#;

const GATEWAY: &str = r#"package gateway

import (
	"testing"

	"example.org/gateway/health"
)

func TestGateway(t *testing.T) {
	listener, err := health.Start()
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}
"#;

/// The repository, with its port, and where its tests are run.
struct Repository {
    directory: TempDir,
    programs: TempDir,
}

impl Repository {
    fn new(port: u16) -> Repository {
        let repository = Repository { directory: open_directory(), programs: open_directory() };
        for (name, contents) in [
            ("go.mod", "module example.org/gateway\n\ngo 1.19\n"),
            ("health/manager.go", &MANAGER.replace("PORT", &port.to_string())),
            ("provider/provider_test.go", PROVIDER),
            ("gateway/gateway_test.go", GATEWAY),
        ] {
            let path = repository.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        fs::create_dir(repository.temporary()).unwrap();
        // Compiled before anything is timed: the jobs only run it.
        let (code, stdout, stderr) =
            run(repository.go(&mut Command::new("go")).args(["test", "-run", "^$", "./..."]));
        assert_eq!(code, 0, "{stdout}{stderr}");
        repository
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where go puts the binaries of tests.
    fn temporary(&self) -> PathBuf {
        self.path().join("tmp")
    }

    /// With all that go needs in its environment, and nothing of the surroundings.
    fn go<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(self.path()).env_clear();
        for kept in ["PATH", "HOME"] {
            command.envs(std::env::vars_os().filter(|(name, _)| name == kept));
        }
        // The standard library is compiled once, not in each run of this test.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache");
        command.env("GOCACHE", cache).env("GOTMPDIR", self.temporary());
        command.env("GOFLAGS", "-mod=mod").env("GOPROXY", "off")
    }

    /// `Runner.Worker` → `bash` → `go` → the test: one job of GitHub's.
    fn job(&self, (id, name, run): (&str, &str, &str), actions: &[&str], test: &str, package: &str) -> Tree {
        let mut worker = Command::new(program(&self.programs, "Runner.Worker"));
        self.go(&mut worker).arg("worker");
        for (variable, value) in [
            ("RUNNER_TRACKING_ID", id),
            ("GITHUB_JOB", name),
            ("GITHUB_REPOSITORY", "envoyproxy/gateway"),
            ("GITHUB_RUN_ID", run),
        ] {
            worker.arg(format!("env:{variable}={value}"));
        }
        let step =
            format!("go test -count=1 -timeout 2m -run '^{test}$' ./{package} >{id}.log 2>&1; exit $?");
        worker.args(actions).args(["--", "bash", "-c", &step]);
        Tree::start(&mut worker, &["worker"])
    }
}

/// Lets the test that holds the port end, also where this one fails.
struct Finish(PathBuf);

impl Drop for Finish {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "");
    }
}

/// The refusal that a job met, as JSON and as text.
#[track_caller]
fn refusal(daemon: &Daemon, id: &str) -> (Value, String) {
    let conflict = eventually("the refusal is told", || {
        let (_, document) = common::json(&mut daemon.ask(&["conflicts"]));
        document["conflicts"]
            .as_array()?
            .iter()
            .find(|conflict| conflict["loser"]["job"]["id"] == id)
            .cloned()
    });
    let loser = format!("gateway.test (pid {}) was refused", conflict["loser"]["pid"]);
    let text = printed(daemon, &["conflicts"], 0);
    let told = text.split("\n\n").find(|told| told.contains(&loser)).expect("the same is told as text");
    (conflict, told.replace(", inferred", ""))
}

#[test]
#[ignore = "needs root and go"]
fn a_fixed_port_is_named_with_both_tests_and_with_the_leftover_of_an_earlier_run() {
    let [port] = ports_of_ones_own();
    let repository = Repository::new(port);
    let daemon = Daemon::start("");
    let _alone = one_runner_on_this_host();
    let coverage = repository.job(("github_cover", "coverage-test", "991"), &[], "TestProvider", "provider");
    let finish = Finish(repository.path().join("provider/done"));
    let listening = repository.path().join("provider/listening");
    eventually("TestProvider listens", || listening.exists().then_some(()));
    let (pid, _) = holder(&daemon, port);

    // A parallel job is refused the port. What its people see is one line.
    let gateway = |id, run| {
        let job = repository.job((id, "gateway-test", run), &["reap"], "TestGateway", "gateway");
        assert_eq!(job.get("worker").said("status"), [1]);
        let log = fs::read_to_string(repository.path().join(format!("{id}.log"))).unwrap();
        assert!(
            log.contains("failed to create manager") && log.contains("bind: address already in use"),
            "{log}"
        );
    };
    gateway("github_parallel", "992");
    let (conflict, told) = refusal(&daemon, "github_parallel");
    assert_sides(&conflict, (pid, port), "concurrent_job");
    assert_eq!(conflict["blockers"][0]["job"]["state"], "running");
    assert_explained(
        &conflict,
        &[
            &format!("{port} is a fixed (hard-coded) port"),
            "gateway.test, provider.test asked for it 2 times",
        ],
    );
    let places = [(repository.path().to_str().unwrap(), "/home/runner/gateway")];
    let sample = Sample {
        words: &places,
        ports: &[(port, "8081")],
        pids: &["13497", "13403"],
        moments: &["14:03:07"],
        spans: &["5s", "2m0s"],
    };
    let built = |text: &str| without_build_numbers(&text.replace("/home/runner/gateway/tmp", "/tmp"));
    insta::assert_snapshot!("parallel", built(&sample.of(&told)));

    // The job is cancelled: its runner goes, its test does not.
    coverage.get("worker").kill();
    eventually("it has leaked", || (daemon.verdict(port).0 == "leaked").then_some(()));
    gateway("github_next", "993");
    let (conflict, told) = refusal(&daemon, "github_next");
    assert_sides(&conflict, (pid, port), "leaked_listener");
    assert_eq!(conflict["blockers"][0]["job"]["state"], "ended");
    assert_explained(&conflict, &["a job that has ended", &format!("kill {pid}"), "asked for it 3 times"]);
    insta::assert_snapshot!("leftover", built(&sample.of(&told)));

    counted(&daemon, "sniffer_bind_conflicts_total{cause=\"concurrent_job\",protocol=\"tcp\"}", 1.0);
    counted(&daemon, "sniffer_bind_conflicts_total{cause=\"leaked_listener\",protocol=\"tcp\"}", 1.0);
    counted(&daemon, "sniffer_leaked_listeners{ci=\"github\"}", 1.0);
    drop(finish);
    eventually("the port is let go", || {
        daemon.who_holds(port)["claims"].as_array()?.is_empty().then_some(())
    });
}

/// Who has the port: its pid and its job.
#[track_caller]
fn holder(daemon: &Daemon, port: u16) -> (u32, Value) {
    let claim = daemon.who_holds(port)["claims"][0].clone();
    assert_eq!(claim["test"], json!({"framework": "go", "name": "provider.test TestProvider"}), "{claim:#}");
    (claim["holders"][0]["pid"].as_u64().unwrap() as u32, claim["job"].clone())
}

/// Both sides with job, test binary and test.
#[track_caller]
fn assert_sides(conflict: &Value, (pid, port): (u32, u16), cause: &str) {
    let (loser, blocker) = (&conflict["loser"], &conflict["blockers"][0]);
    assert_eq!((&conflict["cause"], &conflict["port"]), (&cause.into(), &port.into()), "{conflict:#}");
    assert_eq!(
        (&loser["comm"], &loser["test"]["name"]),
        (&"gateway.test".into(), &"gateway.test TestGateway".into())
    );
    assert_eq!((&loser["job"]["ci"], &loser["job"]["name"]), (&"github".into(), &"gateway-test".into()));
    assert!(loser["cmdline"].as_array().unwrap().contains(&"-test.run=^TestGateway$".into()), "{loser:#}");
    assert_eq!(blocker["holders"][0]["pid"], pid, "{blocker:#}");
    assert_eq!(
        (&blocker["test"]["name"], &blocker["job"]["run"]),
        (&"provider.test TestProvider".into(), &"991".into())
    );
    assert_eq!(blocker["job"]["name"], "coverage-test");
    let arguments = blocker["holders"][0]["cmdline"].as_array().unwrap();
    assert!(arguments.contains(&"-test.run=^TestProvider$".into()), "{blocker:#}");
    // The cure: port 0, a port of each test's own, or none.
    assert_explained(conflict, &["set it to 0", "a port of its own", "nothing where it needs no listener"]);
}

#[track_caller]
fn assert_explained(conflict: &Value, words: &[&str]) {
    let explanation = conflict["explanation"].as_str().unwrap();
    for word in words {
        assert!(explanation.contains(word), "{word} in {explanation}");
    }
}

/// `/tmp/go-build3512/b001/gateway.test`: the number is another one each time.
fn without_build_numbers(text: &str) -> String {
    let mut parts = text.split("/go-build");
    let mut told = parts.next().unwrap().to_owned();
    for part in parts {
        told += "/go-build1";
        told += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    told
}
