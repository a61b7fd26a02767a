//! Jobs that hooks declare: `sniffer job`, and the hooks of `integrations/` as their runners would run them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Daemon, SNIFFER, Tree, eventually, holder, json, listener, open_directory, program, run};
use serde_json::Value;
use tempfile::TempDir;

#[track_caller]
fn job(daemon: &Daemon, arguments: &[&str]) -> (i32, String, String) {
    run(daemon.ask(&["job"]).args(arguments))
}

/// The jobs of this id that `job list` names: other tests' are among the others.
#[track_caller]
fn listed(daemon: &Daemon, id: &str) -> Vec<Value> {
    let (_, jobs) = json(&mut daemon.ask(&["job", "list"]));
    jobs["jobs"].as_array().unwrap().iter().filter(|job| job["id"] == id).cloned().collect()
}

#[test]
#[ignore = "needs root"]
fn a_declared_job_ends_when_it_is_said() {
    let daemon = Daemon::start("");
    let (code, stdout, stderr) =
        job(&daemon, &["start", "--id", "nightly-7", "--name", "nightly", "--run", "7"]);
    assert_eq!((code, stdout.contains("nightly")), (0, true), "{stderr}");
    let tree = listener(&["env:SNIFFER_JOB_ID=nightly-7"]);
    let port = tree.get("server").port();
    let (healthy, claim) = daemon.verdict(port);
    assert_eq!((healthy.as_str(), &claim["job"]["id"]), ("healthy", &"nightly-7".into()), "{claim:#}");
    assert_eq!((&claim["job"]["name"], &claim["job"]["ci"]), (&"nightly".into(), &"custom".into()));
    assert_eq!(listed(&daemon, "nightly-7")[0]["state"], "running");
    assert_eq!(job(&daemon, &["list"]).0, 0);

    let (code, ended) = json(&mut daemon.ask(&["job", "end", "--id", "nightly-7"]));
    assert_eq!((code, &ended["job"]["state"]), (0, &"ended".into()), "{ended:#}");
    let left: Vec<u64> =
        ended["left"].as_array().unwrap().iter().map(|claim| claim["port"].as_u64().unwrap()).collect();
    assert_eq!(left, [u64::from(port)], "{ended:#}");
    eventually("it has leaked", || (daemon.verdict(port).0 == "leaked").then_some(()));
}

#[test]
#[ignore = "needs root"]
fn out_of_order_changes_nothing_and_says_why() {
    let daemon = Daemon::start("");
    let refused = |arguments: &[&str], why: &str| {
        let (code, stdout, stderr) = job(&daemon, arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(stderr.contains(why), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    };
    refused(&["end", "--id", "a"], "no job 'a' is known");
    assert_eq!(listed(&daemon, "a").len(), 0);
    assert_eq!(job(&daemon, &["start", "--id", "a"]).0, 0);
    refused(&["start", "--id", "a"], "was started already");
    // Of another system it is another job; then one has to say which.
    assert_eq!(job(&daemon, &["start", "--id", "a", "--ci", "gitlab"]).0, 0);
    refused(&["end", "--id", "a"], "several jobs have the id 'a' (custom, gitlab)");
    assert_eq!(job(&daemon, &["end", "--id", "a", "--ci", "gitlab"]).0, 0);
    let of_custom =
        || listed(&daemon, "a").into_iter().filter(|job| job["ci"] == "custom").collect::<Vec<_>>();
    let before = of_custom();
    assert_eq!(job(&daemon, &["end", "--id", "a"]).0, 0);
    refused(&["end", "--id", "a"], "has ended already");
    refused(&["start", "--id", "a"], "has ended already");
    let after = of_custom();
    assert_eq!(after.len(), 1);
    assert_eq!(before[0]["started"], after[0]["started"]);
    assert_eq!((before[0]["state"].as_str(), after[0]["state"].as_str()), (Some("running"), Some("ended")));
    refused(&["start", "--id", "run-1"], "sniffer run");
    refused(&["start", "--id", "b", "--ci", "nobody-knows"], "no CI system");
    refused(&["start", "--id", "b", "--name", "x\u{1b}[2J"], "control characters");
    refused(&["start", "--id", "b", "--pid", "4194305"], "no process 4194305");
    refused(&["start", "--id", "b", "--pid", "1"], "no process 1 here");
}

#[test]
fn without_a_daemon_it_says_so() {
    for arguments in [&["start", "--id", "a"][..], &["end", "--id", "a"], &["list"]] {
        let (code, stdout, stderr) = run(common::alone().arg("job").args(arguments));
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains("no sniffer daemon answers"), "{stderr}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_job_of_a_process_ends_with_it() {
    let daemon = Daemon::start("");
    let mut command = Command::new(holder());
    let inner = [
        holder().to_str().unwrap(),
        "shell",
        "--",
        holder().to_str().unwrap(),
        "server",
        "setsid",
        "tcp:127.0.0.1:0",
    ]
    .map(str::to_owned);
    command.arg("runner").arg("--").args(&inner);
    let tree = Tree::start(&mut command, &["runner", "shell", "server"]);
    let (shell, port) = (tree.get("shell").clone(), tree.get("server").port());
    assert_eq!(job(&daemon, &["start", "--id", "p", "--pid", &shell.pid.to_string()]).0, 0);
    let (healthy, claim) = daemon.verdict(port);
    assert_eq!((healthy.as_str(), &claim["job"]["id"]), ("healthy", &"p".into()), "{claim:#}");
    shell.kill();
    eventually("it has leaked", || (daemon.verdict(port).0 == "leaked").then_some(()));
    // The hook comes late, which is no mistake of its.
    assert_eq!(job(&daemon, &["end", "--id", "p"]).0, 0);
    assert_eq!(job(&daemon, &["end", "--id", "p"]).0, 2);
}

/// The command as another user, who must be able to reach the program.
fn as_nobody(daemon: &Daemon, programs: &TempDir, arguments: &[&str]) -> (i32, String, String) {
    as_nobody_by(daemon, programs, None, &[], arguments)
}

/// The same by another program, whose arguments come before the command's path.
fn as_nobody_by(
    daemon: &Daemon,
    programs: &TempDir,
    by: Option<&str>,
    before: &[&str],
    arguments: &[&str],
) -> (i32, String, String) {
    let copy = programs.path().join("sniffer");
    if !copy.exists() {
        fs::copy(SNIFFER, &copy).unwrap();
    }
    let mut command = Command::new(holder());
    command.env("SNIFFER_SOCKET", daemon.socket()).args(["it", "say", "uid:65534", "exec", "--"]);
    run(command.args(by).args(before).arg(copy).args(arguments))
}

#[test]
#[ignore = "needs root"]
fn jobs_of_other_users_are_not_to_be_touched() {
    let daemon = Daemon::start("");
    let programs = open_directory();
    let refused = |arguments: &[&str]| {
        let (code, _, stderr) = as_nobody(&daemon, &programs, arguments);
        assert_eq!(code, 2, "{arguments:?}");
        assert!(stderr.contains("another user's"), "{arguments:?}: {stderr}");
    };
    assert_eq!(job(&daemon, &["start", "--id", "roots"]).0, 0);
    refused(&["job", "end", "--id", "roots"]);
    // Known by its processes, declared by nobody.
    let tree = listener(&["env:BUILDKITE_JOB_ID=b-1"]);
    let port = tree.get("server").port();
    assert_eq!(daemon.verdict(port).0, "healthy");
    refused(&["job", "end", "--id", "b-1"]);
    refused(&["job", "start", "--id", "b-1", "--ci", "buildkite"]);
    refused(&["job", "start", "--id", "c", "--pid", &tree.get("shell").pid.to_string()]);
    assert_eq!(daemon.verdict(port).0, "healthy");
    // Nor by a process of theirs that claims to be in it.
    let planted = ["BUILDKITE_JOB_ID=b-1", "sh", "-c", "sleep 5 & \"$0\" job end --id b-1"];
    let (code, _, stderr) = as_nobody_by(&daemon, &programs, Some("env"), &planted, &[]);
    assert!(code == 2 && stderr.contains("another user's"), "{stderr}");
    assert_eq!(daemon.verdict(port).0, "healthy");
    // Nor by taking it over as another system's.
    let tree = listener(&["env:SNIFFER_JOB_ID=undeclared"]);
    assert_eq!(daemon.verdict(tree.get("server").port()).1["job"]["id"], "undeclared");
    assert_eq!(
        as_nobody(&daemon, &programs, &["job", "start", "--id", "undeclared", "--ci", "github"]).0,
        0,
        "it is free to be called so"
    );
    assert_eq!(as_nobody(&daemon, &programs, &["job", "end", "--id", "undeclared", "--ci", "github"]).0, 0);
    let (verdict, claim) = daemon.verdict(tree.get("server").port());
    assert_eq!((verdict.as_str(), &claim["job"]["ci"]), ("healthy", &"custom".into()), "{claim:#}");
    // Declared and ended before it began, by somebody whose it is not: that counts for nothing.
    for verb in ["start", "end"] {
        let squatted = ["job", verb, "--id", "b-2", "--ci", "buildkite"];
        assert_eq!(as_nobody(&daemon, &programs, &squatted).0, 0);
    }
    let tree = listener(&["env:BUILDKITE_JOB_ID=b-2"]);
    let (healthy, claim) = daemon.verdict(tree.get("server").port());
    assert_eq!((healthy.as_str(), &claim["job"]["id"]), ("healthy", &"b-2".into()), "{claim:#}");
    refused(&["job", "end", "--id", "b-2"]);
    // A name of nobody's system is whoever declared it first; others' processes are not of it.
    assert_eq!(as_nobody(&daemon, &programs, &["job", "start", "--id", "squatted"]).0, 0);
    let tree = listener(&["env:SNIFFER_JOB_ID=squatted"]);
    assert_eq!(as_nobody(&daemon, &programs, &["job", "end", "--id", "squatted"]).0, 0);
    let (unattributed, claim) = daemon.verdict(tree.get("server").port());
    assert_eq!((unattributed.as_str(), &claim["job"]), ("unattributed", &Value::Null), "{claim:#}");
    // Their own they may.
    assert_eq!(as_nobody(&daemon, &programs, &["job", "start", "--id", "mine"]).0, 0);
    assert_eq!(as_nobody(&daemon, &programs, &["job", "end", "--id", "mine"]).0, 0);
}

fn hook(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations").join(path)
}

/// What a hook finds in its environment, and nothing else.
fn hooked(daemon: &Daemon, command: &mut Command, variables: &[(&str, &str)]) -> (i32, String, String) {
    let path = format!("{}:/usr/bin:/bin", Path::new(SNIFFER).parent().unwrap().display());
    command
        .env_clear()
        .env("PATH", path)
        .env("SNIFFER_SOCKET", daemon.socket())
        .envs(variables.iter().copied());
    run(command)
}

const GITHUB: [(&str, &str); 5] = [
    ("RUNNER_TRACKING_ID", "github_1f0c"),
    ("GITHUB_JOB", "coverage-test"),
    ("GITHUB_REPOSITORY", "envoyproxy/gateway"),
    ("GITHUB_RUN_ID", "991"),
    ("GITHUB_SERVER_URL", "https://github.com"),
];

#[test]
#[ignore = "needs root"]
fn at_the_end_of_a_github_job_its_leaks_and_refusals_are_annotated_and_summarised() {
    let daemon = Daemon::start("");
    let programs = open_directory();
    let summary = programs.path().join("summary.md");
    let (code, _, stderr) = hooked(&daemon, &mut Command::new(hook("github/job-started.sh")), &GITHUB);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let worker = program(&programs, "Runner.Worker");
    let server = program(&programs, "provider.test");
    let mut command = Command::new(worker);
    command.arg("worker").args(GITHUB.map(|(name, value)| format!("env:{name}={value}")));
    command.args([
        "--",
        &program(&programs, "bash"),
        "step",
        "leave",
        "--",
        &server,
        "server",
        "setsid",
        "tcp:127.0.0.1:0",
        "try:tcp:127.0.0.1:PORT",
    ]);
    let tree = Tree::start(&mut command, &["worker", "step", "server"]);
    let port = tree.get("server").port();
    eventually("the refusal is known", || {
        let (_, conflicts) = json(&mut daemon.ask(&["conflicts"]));
        let conflicts = conflicts["conflicts"].as_array()?.clone();
        conflicts.iter().any(|conflict| conflict["port"] == port).then_some(())
    });
    let mut variables = GITHUB.to_vec();
    let summary_path = summary.to_str().unwrap().to_owned();
    variables.push(("GITHUB_STEP_SUMMARY", &summary_path));
    let (code, stdout, stderr) =
        hooked(&daemon, &mut Command::new(hook("github/job-completed.sh")), &variables);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let warnings: Vec<&str> = stdout.lines().filter(|line| line.starts_with("::warning ")).collect();
    assert_eq!(warnings.len(), 2, "{stdout}");
    assert!(
        warnings[0]
            .contains(&format!("title=Port {port}/tcp is still held::tcp 127.0.0.1:{port} by provider.test")),
        "{stdout}"
    );
    assert!(warnings[1].contains(&format!("title=Port {port}/tcp was refused::")), "{stdout}");
    let text = fs::read_to_string(&summary).unwrap();
    assert!(
        text.contains("### Ports that this job left held") && text.contains("| provider.test |"),
        "{text}"
    );
    assert!(text.contains("### Binds of this job that failed"), "{text}");
    let listed = listed(&daemon, "github_1f0c");
    assert_eq!(listed.len(), 1, "the hook and the processes tell of one job: {listed:#?}");
    assert_eq!(listed[0]["state"], "ended", "though its worker goes on");
    eventually("it has leaked", || (daemon.verdict(port).0 == "leaked").then_some(()));
    // Twice: a word, and no failure.
    let (code, stdout, stderr) =
        hooked(&daemon, &mut Command::new(hook("github/job-completed.sh")), &variables);
    assert_eq!((code, stdout.as_str()), (0, ""));
    assert!(stderr.contains("has ended already"), "{stderr}");
}

#[test]
#[ignore = "needs root"]
fn hooks_of_other_systems_tell_of_the_job_that_its_processes_name() {
    let buildkite =
        [("BUILDKITE_JOB_ID", "b-7"), ("BUILDKITE_LABEL", "unit"), ("BUILDKITE_PIPELINE_SLUG", "shop")];
    let gitlab = [
        ("GITLAB_CI", "true"),
        ("CI_JOB_ID", "4711"),
        ("CI_JOB_NAME", "unit"),
        ("CI_SERVER_URL", "https://gitlab.example"),
        ("CI_PROJECT_PATH", "shop/api"),
    ];
    let pipeline =
        [("JENKINS_NODE_COOKIE", "cookie-1"), ("JOB_NAME", "unit"), ("BUILD_TAG", "jenkins-unit-7")];
    let freestyle = [("JENKINS_SERVER_COOKIE", "s"), ("BUILD_TAG", "jenkins-unit-8"), ("JOB_NAME", "unit")];
    let daemon = Daemon::start("");
    for (ci, id, start, end, variables) in [
        ("buildkite", "b-7", "buildkite/hooks/pre-command", "buildkite/hooks/pre-exit", &buildkite[..]),
        ("gitlab", "4711", "gitlab/job-start.sh", "gitlab/job-end.sh", &gitlab),
        ("jenkins", "cookie-1", "jenkins/job-start.sh", "jenkins/job-end.sh", &pipeline),
        ("jenkins", "jenkins-unit-8", "jenkins/job-start.sh", "jenkins/job-end.sh", &freestyle),
    ] {
        // Buildkite's agent sources its hooks; a shell that ended within would not say so.
        let runner = |file: &str| {
            let mut command = Command::new("bash");
            let sourced = file.starts_with("buildkite");
            if sourced {
                command.args(["-eu", "-c", &format!(". {} && echo went on", hook(file).display())]);
            } else {
                command.arg("-c").arg(hook(file));
            }
            let (code, stdout, stderr) = hooked(&daemon, &mut command, variables);
            assert_eq!((code, stderr.as_str()), (0, ""), "{file}");
            assert_eq!(stdout.contains("went on"), sourced, "{stdout}");
            stdout
        };
        runner(start);
        let environment: Vec<String> =
            variables.iter().map(|(name, value)| format!("env:{name}={value}")).collect();
        let tree = listener(&environment.iter().map(String::as_str).collect::<Vec<_>>());
        let port = tree.get("server").port();
        let (healthy, claim) = daemon.verdict(port);
        assert_eq!(
            (healthy.as_str(), &claim["job"]["ci"], &claim["job"]["id"]),
            ("healthy", &ci.into(), &id.into()),
            "{claim:#}"
        );
        assert_eq!(listed(&daemon, id).len(), 1, "the hook and the processes tell of one job");
        let told = runner(end);
        assert!(told.contains(&format!("tcp 127.0.0.1:{port} by holder")), "{told}");
        eventually("it has leaked, with no pause for another step", || {
            (daemon.verdict(port).0 == "leaked").then_some(())
        });
    }
}

#[test]
#[ignore = "needs root"]
fn the_same_number_on_two_servers_is_two_jobs_to_hooks_too() {
    let daemon = Daemon::start("");
    let (one, other) = (gitlab_on("https://one"), gitlab_on("https://other"));
    let trees = [&one, &other].map(|variables| {
        let environment = variables.map(|(name, value)| format!("env:{name}={value}"));
        listener(&environment.each_ref().map(String::as_str))
    });
    let ports = trees.each_ref().map(|tree| tree.get("server").port());
    for variables in [&one, &other] {
        let (code, _, stderr) = hooked(&daemon, &mut Command::new(hook("gitlab/job-start.sh")), variables);
        assert_eq!((code, stderr.as_str()), (0, ""));
    }
    let (_, told, stderr) = hooked(&daemon, &mut Command::new(hook("gitlab/job-end.sh")), &one);
    assert!(told.contains(&format!("tcp 127.0.0.1:{}", ports[0])) && stderr.is_empty(), "{told}{stderr}");
    eventually("it has leaked", || (daemon.verdict(ports[0]).0 == "leaked").then_some(()));
    assert_eq!(daemon.verdict(ports[1]).0, "healthy", "the other goes on");
    let (_, stdout, stderr) = hooked(&daemon, &mut Command::new(hook("gitlab/job-end.sh")), &other);
    assert!(stdout.contains(&ports[1].to_string()), "{stdout}{stderr}");
}

fn gitlab_on(server: &'static str) -> [(&'static str, &'static str); 3] {
    [("GITLAB_CI", "true"), ("CI_JOB_ID", "4712"), ("CI_SERVER_URL", server)]
}

#[test]
#[ignore = "needs root"]
fn a_worker_that_ends_while_no_agent_watches_has_ended_its_job() {
    let mut daemon = Daemon::start("");
    let (code, _, stderr) = hooked(
        &daemon,
        &mut Command::new(hook("buildkite/hooks/pre-command")),
        &[("BUILDKITE_JOB_ID", "b-9")],
    );
    assert_eq!((code, stderr.as_str()), (0, ""));
    let program = holder();
    let program = program.to_str().unwrap();
    let mut command = Command::new(program);
    command.args(["agent", "env:BUILDKITE_JOB_ID=b-9", "--", program, "shell", "--"]);
    command.args([program, "server", "setsid", "tcp:127.0.0.1:0"]);
    let tree = Tree::start(&mut command, &["agent", "shell", "server"]);
    let port = tree.get("server").port();
    assert_eq!(daemon.verdict(port).0, "healthy");
    daemon.kept("the job with its process", |state| {
        let mut jobs = state["jobs"].as_array().unwrap().iter();
        jobs.any(|job| job["facts"]["id"] == "b-9" && !job["processes"].as_array().unwrap().is_empty())
    });
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    tree.get("shell").kill();
    daemon.crash_and_restart();
    eventually("it has leaked", || (daemon.verdict(port).0 == "leaked").then_some(()));
}

#[test]
#[ignore = "needs root"]
fn nonsense_on_the_control_socket_is_refused() {
    let daemon = Daemon::start("");
    for (path, body, status) in [
        ("/v1/job/start", "", "400"),
        ("/v1/job/start", "{\"id\": 7}", "422"),
        ("/v1/job/end", "[[[[", "422"),
        ("/v1/job/end", "{\"id\"", "400"),
        ("/v1/job/end", "{\"id\": \"nobody-knows\"}", "404"),
        ("/v1/jobs", "{}", "405"),
        ("/v1/job/start", &format!("{{\"id\": \"{}\"}}", "x".repeat(600)), "400"),
        ("/v1/job/start", &"x".repeat(30_000), "413"),
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A body that is too large is not read to its end.
        let _ = stream.write_all(body.as_bytes());
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
}

#[test]
fn hooks_without_a_daemon_fail_no_job() {
    for (file, variable) in [
        ("github/job-started.sh", "RUNNER_TRACKING_ID"),
        ("github/job-completed.sh", "RUNNER_TRACKING_ID"),
        ("buildkite/hooks/pre-command", "BUILDKITE_JOB_ID"),
        ("buildkite/hooks/pre-exit", "BUILDKITE_JOB_ID"),
        ("gitlab/job-start.sh", "CI_JOB_ID"),
        ("gitlab/job-end.sh", "CI_JOB_ID"),
        ("jenkins/job-start.sh", "BUILD_TAG"),
        ("jenkins/job-end.sh", "BUILD_TAG"),
    ] {
        let with_sniffer = format!("{}:/usr/bin:/bin", Path::new(SNIFFER).parent().unwrap().display());
        for path in [with_sniffer.as_str(), "/usr/bin:/bin"] {
            let mut command = Command::new(hook(file));
            command
                .env_clear()
                .env("PATH", path)
                .env("SNIFFER_SOCKET", "/nonexistent/s.sock")
                .env(variable, "1");
            let (code, stdout, stderr) = run(&mut command);
            assert_eq!((code, stdout.as_str()), (0, ""), "{file}: {stderr}");
            assert_eq!(
                stderr.contains("no sniffer daemon answers"),
                path == with_sniffer,
                "{file}: {stderr}"
            );
        }
    }
}
