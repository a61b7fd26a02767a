//! The real runners of tests, each with a test that leaves a server behind: `sniffer run` within them finds it, and the daemon names
//! the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::common::{Daemon, SNIFFER, eventually, run};
use super::{SERVER, end, pid_and_port, text};

/// What a runner is told to put before a test's program.
fn wrapped() -> String {
    format!("{SNIFFER} run --fail-on-leak --grace 0s --")
}

struct Project(TempDir);

impl Project {
    /// A directory with these files, and the server's program beside them.
    fn new(files: &[(&str, &str)]) -> Project {
        let project = Project(tempfile::tempdir().unwrap());
        for (name, contents) in files.iter().chain([&("server.py", SERVER)]) {
            let path = project.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents.replace("DIRECTORY", project.0.path().to_str().unwrap())).unwrap();
        }
        project
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A runner in this directory, with nothing in its environment of whatever runs this test.
    fn runner(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).env_clear();
        for kept in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
            command.envs(std::env::vars_os().filter(|(name, _)| name == kept));
        }
        command
    }
}

/// Runs the runner. Its test has to fail with 3 for what it left, and the daemon has to name it.
#[track_caller]
fn assert_found(project: &Project, runner: &mut Command, framework: &str, name: &str) {
    let daemon = Daemon::start("");
    let Output { status, stdout, stderr } = runner.output().expect("the runner is installed by scripts/test");
    let said = format!("{}{}", text(&stdout), text(&stderr));
    let (pid, port) = eventually("the server was started", || {
        let server = project.path().join("server");
        assert!(server.exists(), "{said}");
        Some(pid_and_port(&server))
    });
    let claim = daemon.who_holds(port)["claims"][0].clone();
    end(pid);
    assert!(!status.success(), "what it left makes it fail: {said}");
    assert!(said.contains("left 1 process and 1 held port behind"), "{said}");
    assert_eq!(claim["holders"][0]["pid"], pid, "{claim:#}");
    assert_eq!(claim["test"], serde_json::json!({"framework": framework, "name": name}), "{claim:#}");
}

/// A crate with one test.
fn crate_with_a_test() -> Project {
    let runner = wrapped().split(' ').map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    Project::new(&[
        ("Cargo.toml", "[package]\nname = \"shop\"\nversion = \"0.1.0\"\nedition = \"2021\"\n"),
        ("src/lib.rs", ""),
        (".cargo/config.toml", &format!("[target.'cfg(all())']\nrunner = [{runner}]\n")),
        (
            "tests/api.rs",
            r#"#[test]
fn leaves_a_server() {
    let run = std::process::Command::new("python3").args(["DIRECTORY/server.py", "DIRECTORY/server", "60"]).status();
    assert!(run.unwrap().success());
    while !std::path::Path::new("DIRECTORY/server").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
"#,
        ),
    ])
}

#[test]
#[ignore = "needs root and nextest"]
fn below_nextest_the_test_is_named() {
    let project = crate_with_a_test();
    let mut nextest = project.runner("cargo");
    nextest.args(["nextest", "run", "--offline", "--no-fail-fast"]);
    assert_found(&project, &mut nextest, "nextest", "leaves_a_server");
}

#[test]
#[ignore = "needs root"]
fn below_cargo_test_its_binary_is_named() {
    let project = crate_with_a_test();
    let mut cargo = project.runner("cargo");
    cargo.args(["test", "--offline", "--test", "api"]);
    assert_found(&project, &mut cargo, "cargo", "api");
}

#[test]
#[ignore = "needs root and go"]
fn below_go_test_its_binary_is_named() {
    let project = Project::new(&[
        ("go.mod", "module example.org/shop\n\ngo 1.19\n"),
        (
            "shop_test.go",
            r#"package shop

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestLeavesAServer(t *testing.T) {
	if err := exec.Command("python3", "DIRECTORY/server.py", "DIRECTORY/server", "60").Run(); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat("DIRECTORY/server"); err != nil; _, err = os.Stat("DIRECTORY/server") {
		time.Sleep(5 * time.Millisecond)
	}
}
"#,
        ),
    ]);
    let mut go = project.runner("go");
    go.args(["test", "-exec", &wrapped(), "./..."]);
    go.env("GOCACHE", project.path().join("cache")).env("GOFLAGS", "-mod=mod").env("GOPROXY", "off");
    assert_found(&project, &mut go, "go", "shop.test");
}

const PYTEST: &str = r#"
import os, subprocess, time

def test_leaves_a_server():
    subprocess.run(["python3", "DIRECTORY/server.py", "DIRECTORY/server", "60"], check=True)
    while not os.path.exists("DIRECTORY/server"):
        time.sleep(0.005)
"#;

fn assert_found_below_pytest(options: &[&str]) {
    let project = Project::new(&[("tests/test_api.py", PYTEST)]);
    let mut pytest = project.runner(SNIFFER);
    pytest.args(["run", "--fail-on-leak", "--grace", "0s", "--", "/usr/bin/python3", "-m", "pytest", "-q"]);
    pytest.args(options).arg("tests");
    assert_found(&project, &mut pytest, "pytest", "tests/test_api.py::test_leaves_a_server");
}

#[test]
#[ignore = "needs root and pytest"]
fn below_pytest_the_test_is_named() {
    assert_found_below_pytest(&[]);
}

#[test]
#[ignore = "needs root and pytest-xdist"]
fn below_a_worker_of_xdist_the_test_is_named() {
    assert_found_below_pytest(&["-n", "1"]);
}

#[test]
#[ignore = "needs root and ctest"]
fn below_ctest_its_program_is_named() {
    let script = "python3 DIRECTORY/server.py DIRECTORY/server 60; while [ ! -e DIRECTORY/server ]; do sleep 0.01; done";
    let wrapped: Vec<String> = wrapped().split(' ').map(|word| format!("\"{word}\"")).collect();
    let test = format!("add_test(api {} \"DIRECTORY/test_api\")\n", wrapped.join(" "));
    let program = format!("#!/bin/sh\n{script}\n");
    let project = Project::new(&[("CTestTestfile.cmake", test.as_str()), ("test_api", program.as_str())]);
    fs::set_permissions(project.path().join("test_api"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut ctest = project.runner("ctest");
    ctest.arg("--verbose");
    assert_found(&project, &mut ctest, "ctest", "test_api");
}

#[test]
#[ignore = "needs root and make"]
fn a_makefile_can_have_it_as_a_prefix() {
    let makefile = "RUN = SNIFFER\ntest:\n\t$(RUN) python3 DIRECTORY/server.py DIRECTORY/server 60\n";
    let project =
        Project::new(&[("Makefile", &makefile.replace("SNIFFER", &format!("{SNIFFER} run --name make --")))]);
    let daemon = Daemon::start("");
    let (code, _, stderr) = run(project.runner("make").arg("test"));
    let server = project.path().join("server");
    eventually("the server was started", || server.exists().then_some(()));
    let (pid, port) = pid_and_port(&server);
    let claim: Value = daemon.who_holds(port)["claims"][0].clone();
    end(pid);
    assert_eq!((code, &claim["test"]["name"]), (0, &"make".into()), "{stderr}");
    assert!(stderr.contains("left 1 process"), "{stderr}");
}
