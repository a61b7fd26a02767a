//! The agent with real process trees: jobs, leaks, metrics, reload, restarts, and everything that can be sent to its socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Daemon, NamedNetns, Tree, claims, eventually, holder, holders, ip, json, one_runner_on_this_host,
    open_directory, program, run,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A GitHub runner's tree: `Runner.Worker` → `bash` (a step) → a server that the step leaves behind.
fn github(directory: &TempDir, id: &str, server: &[&str]) -> Tree {
    let worker = program(directory, "Runner.Worker");
    let bash = program(directory, "bash");
    let mut command = Command::new(worker);
    command.arg("worker").arg(format!("env:RUNNER_TRACKING_ID={id}"));
    command.args([
        "env:GITHUB_JOB=coverage-test",
        "env:GITHUB_REPOSITORY=envoyproxy/gateway",
        "env:GITHUB_RUN_ID=991",
    ]);
    command.args(["--", &bash, "step", "leave"]).args(server);
    Tree::start(&mut command, &["worker", "step", "server"])
}

#[track_caller]
fn verdict(daemon: &Daemon, port: u16) -> (String, Value) {
    let document = daemon.who_holds(port);
    let claim = &document["claims"][0];
    (claim["verdict"].as_str().unwrap_or("none").to_owned(), claim.clone())
}

/// The ports that `sniffer leaks` names. Other tests' processes may be among them; the exit code always fits.
#[track_caller]
fn leaked(daemon: &Daemon) -> Vec<u64> {
    let (code, leaks) = json(&mut daemon.ask(&["leaks"]));
    let ports: Vec<u64> =
        leaks["claims"].as_array().unwrap().iter().map(|claim| claim["port"].as_u64().unwrap()).collect();
    assert_eq!(code, i32::from(!ports.is_empty()));
    ports
}

#[test]
#[ignore = "needs root"]
fn a_listener_that_outlives_its_github_job_is_a_leak_everywhere_it_can_be_asked() {
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let programs = open_directory();
    let server = program(&programs, "provider.test");
    let tree = github(&programs, "github_leak", &["--", &server, "server", "setsid", "tcp:127.0.0.1:0"]);
    let port = tree.get("server").port();
    let (healthy, claim) = verdict(&daemon, port);
    assert_eq!(healthy, "healthy", "{claim:#}");
    assert_eq!((&claim["job"]["state"], &claim["job"]["name"]), (&"running".into(), &"coverage-test".into()));
    assert!(!leaked(&daemon).contains(&port.into()), "it has not leaked yet");

    tree.get("worker").kill();
    let claim = eventually("the server is a leak", || {
        let (verdict, claim) = verdict(&daemon, port);
        (verdict == "leaked").then_some(claim)
    });
    assert_eq!((&claim["job"]["state"], claim["job"]["ended"].is_string()), (&"ended".into(), true));
    assert!(claim["reason"].as_str().unwrap().contains("grace 300ms"), "{}", claim["reason"]);
    assert!(leaked(&daemon).contains(&port.into()));
    let text = run(&mut daemon.ask(&["who-holds", &port.to_string()])).1;
    assert!(text.contains("LEAKED") && text.contains(&format!("kill {}", tree.get("server").pid)), "{text}");
    let info = format!(
        "sniffer_leaked_listener_info{{ci=\"github\",comm=\"provider.test\",job=\"coverage-test\",netns=\"host\",port=\"{port}\",protocol=\"tcp\",repository=\"envoyproxy/gateway\"}} 1"
    );
    eventually("the metric is there", || daemon.get("/metrics").filter(|(_, text)| text.contains(&info)));
    assert!(daemon.metric("sniffer_leaked_listeners{ci=\"github\"}") >= Some(1.0));
    let line = eventually("it is logged", || {
        let log = daemon.log();
        log.lines()
            .find(|line| line.contains("event=\"leak\"") && line.contains(&format!("port={port}")))
            .map(str::to_owned)
    });
    for field in ["comm=\"provider.test\"", "job=\"coverage-test\""] {
        assert!(line.contains(field), "{field} in {line}");
    }

    tree.get("server").kill();
    eventually("the metric goes", || daemon.get("/metrics").filter(|(_, text)| !text.contains(&info)));
    assert!(daemon.metric("sniffer_leaks_total{ci=\"github\"}") >= Some(1.0));
    let is_resolution = |line: &str| line.contains("leak_resolved") && line.contains(&format!("port={port}"));
    eventually("that is logged", || daemon.log().lines().any(is_resolution).then_some(()));
    assert!(!leaked(&daemon).contains(&port.into()));
}

#[test]
#[ignore = "needs root"]
fn a_process_that_blanked_its_variables_keeps_the_job_it_came_from() {
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let programs = open_directory();
    let (worker, bash) = (program(&programs, "Runner.Worker"), program(&programs, "bash"));
    let server = program(&programs, "evader");
    let mut command = Command::new(worker);
    command.args([
        "worker",
        "env:RUNNER_TRACKING_ID=github_evader",
        "env:GITHUB_JOB=test",
        "--",
        &bash,
        "step",
    ]);
    command.args([
        "unset:RUNNER_TRACKING_ID",
        "unset:GITHUB_JOB",
        "--",
        &server,
        "server",
        "setsid",
        "tcp:127.0.0.1:0",
    ]);
    let tree = Tree::start(&mut command, &["worker", "step", "server"]);
    let port = tree.get("server").port();
    // In the first answer: a question waits for the events that came before it.
    let (healthy, claim) = verdict(&daemon, port);
    assert_eq!((healthy.as_str(), &claim["job"]["id"]), ("healthy", &"github_evader".into()), "{claim:#}");
    tree.get("step").kill();
    eventually("the step is gone", || (!tree.get("step").is_alive()).then_some(()));
    let (healthy, claim) = verdict(&daemon, port);
    assert_eq!((healthy.as_str(), &claim["job"]["id"]), ("healthy", &"github_evader".into()), "{claim:#}");
}

#[test]
#[ignore = "needs root"]
fn gitlab_jenkins_and_buildkite_jobs_begin_and_end_by_their_own_rules() {
    let daemon = Daemon::start("");
    let programs = open_directory();
    let server = program(&programs, "server");
    let (bash, runner) = (program(&programs, "bash"), program(&programs, "gitlab-runner"));
    let (java, agent) = (program(&programs, "java"), program(&programs, "buildkite-agent"));
    let listen = ["--", server.as_str(), "server", "tcp:127.0.0.1:0"];

    // The runner's shell has no variables itself; what it starts has.
    let mut gitlab = Command::new(runner);
    gitlab.args([
        "runner",
        "--",
        &bash,
        "shell",
        "env:GITLAB_CI=true",
        "env:CI_JOB_ID=77",
        "env:CI_JOB_NAME=rspec",
    ]);
    gitlab.args(["env:CI_PROJECT_PATH=group/app", "env:CI_SERVER_URL=https://gitlab.example"]).args(listen);
    let gitlab = Tree::start(&mut gitlab, &["runner", "shell", "server"]);

    let mut jenkins = Command::new(java);
    jenkins.args(["agent", "env:JENKINS_NODE_COOKIE=cookie-1", "env:JOB_NAME=nightly", "env:BUILD_NUMBER=5"]);
    jenkins.args(["--", &bash, "step"]).args(listen);
    let jenkins = Tree::start(&mut jenkins, &["agent", "step", "server"]);

    let mut buildkite = Command::new(&agent);
    buildkite.args([
        "agent",
        "env:BUILDKITE_JOB_ID=0190-uuid",
        "env:BUILDKITE_STEP_KEY=unit",
        "--",
        &agent,
        "bootstrap",
    ]);
    buildkite.args(listen);
    let buildkite = Tree::start(&mut buildkite, &["agent", "bootstrap", "server"]);

    for (tree, ci, id, name, ends) in [
        (&gitlab, "gitlab", "77", "rspec", "shell"),
        (&jenkins, "jenkins", "cookie-1", "nightly", "step"),
        (&buildkite, "buildkite", "0190-uuid", "unit", "bootstrap"),
    ] {
        let port = tree.get("server").port();
        let claim = eventually("the job is known", || {
            let (_, claim) = verdict(&daemon, port);
            (!claim["job"].is_null()).then_some(claim)
        });
        let job = &claim["job"];
        assert_eq!(job["id"], id);
        assert_eq!((&job["ci"], &job["name"], &job["state"]), (&ci.into(), &name.into(), &"running".into()));
        tree.get(ends).kill();
        eventually("the job has ended", || {
            let (_, claim) = verdict(&daemon, port);
            (claim["job"]["state"] == "ended").then_some(())
        });
    }
    // Buildkite's bootstrap lives as long as the job: its end is believed at once. The others may only pause.
    eventually("the listener leaks", || {
        (verdict(&daemon, buildkite.get("server").port()).0 == "leaked").then_some(())
    });
    assert_eq!(verdict(&daemon, jenkins.get("server").port()).0, "grace");
}

/// A tree of processes as a CI system makes it: the program at the top, then each with the variables that it gives to the next, then a
/// server. Each is called by its program's name.
fn ci_tree(directory: &TempDir, chain: &[(&str, &[&str])]) -> Tree {
    let mut command: Option<Command> = None;
    for (name, variables) in chain {
        let program = program(directory, name);
        let command = match &mut command {
            None => command.insert(Command::new(program)),
            Some(command) => command.args(["--", &program]),
        };
        command.arg(name).args(variables.iter().map(|variable| format!("env:{variable}")));
    }
    let mut command = command.unwrap();
    command.args(["--", &program(directory, "server"), "server", "tcp:127.0.0.1:0"]);
    let labels: Vec<&str> = chain.iter().map(|(name, _)| *name).chain(["server"]).collect();
    Tree::start(&mut command, &labels)
}

#[test]
#[ignore = "needs root"]
fn jobs_of_the_other_systems_begin_and_end_by_their_own_rules() {
    let daemon = Daemon::start("");
    let programs = open_directory();
    let azure = &["VSTS_PROCESS_LOOKUP_ID=vsts_1", "AGENT_JOBNAME=Linux tests", "BUILD_BUILDID=9"][..];
    let circle = &["CIRCLE_WORKFLOW_JOB_ID=u-1", "CIRCLE_JOB=unit", "CIRCLE_BUILD_NUM=31"];
    let prow = &["PROW_JOB_ID=p-1", "JOB_NAME=pull-unit", "BUILD_ID=12"];
    let teamcity = &[
        "TEAMCITY_VERSION=2025.11",
        "TEAMCITY_PROJECT_NAME=Shop",
        "TEAMCITY_BUILDCONF_NAME=Tests",
        "BUILD_NUMBER=7",
    ];
    let drone = &["DRONE_REPO=o/r", "DRONE_BUILD_NUMBER=12", "DRONE_STAGE_NUMBER=1", "DRONE_STAGE_NAME=e2e"];
    let woodpecker = &[
        "CI=woodpecker",
        "CI_REPO=o/r",
        "CI_PIPELINE_NUMBER=3",
        "CI_WORKFLOW_NUMBER=1",
        "CI_WORKFLOW_NAME=lint",
    ];
    let steps: &[&str] = &[];
    // The chain of processes, the job's id, name and run, and whose end is the job's. Those that end with a step may only pause.
    for (ci, chain, id, name, run, ends, at_once) in [
        (
            "azure",
            &[("Agent.Listener", steps), ("Agent.Worker", azure), ("bash", steps)][..],
            "vsts_1",
            "Linux tests",
            "9",
            "Agent.Worker",
            true,
        ),
        (
            "circleci",
            &[("circleci-runner", steps), ("circleci-agent", circle), ("sh", steps)],
            "u-1",
            "unit",
            "31",
            "circleci-agent",
            false,
        ),
        (
            "prow",
            &[("containerd-shim", prow), ("entrypoint", steps), ("make", steps)],
            "p-1",
            "pull-unit",
            "12",
            "entrypoint",
            true,
        ),
        ("teamcity", &[("java", teamcity), ("gradle", steps)], "Shop/Tests#7", "Tests", "7", "gradle", false),
        ("drone", &[("drone-runner", drone), ("step", steps)], "o/r/12/1", "e2e", "12", "step", false),
        ("woodpecker", &[("agent", woodpecker), ("bash", steps)], "o/r/3/1", "lint", "3", "bash", false),
    ] {
        let tree = ci_tree(&programs, chain);
        let port = tree.get("server").port();
        let (healthy, claim) = verdict(&daemon, port);
        let job = &claim["job"];
        assert_eq!((&job["ci"], &job["id"]), (&ci.into(), &id.into()), "{claim:#}");
        assert_eq!(
            (&job["name"], &job["run"], healthy.as_str()),
            (&name.into(), &run.into(), "healthy"),
            "{ci}"
        );
        tree.get(ends).kill();
        let expected = if at_once { "leaked" } else { "grace" };
        eventually(&format!("the end of the {ci} job"), || {
            (verdict(&daemon, port).0 == expected).then_some(())
        });
    }
}

#[test]
#[ignore = "needs root"]
fn a_custom_system_is_followed_by_its_variables_and_its_worker() {
    let daemon = Daemon::start(
        "[[jobs.custom]]\nname = \"my-ci\"\nid_env = [\"MY_CI_JOB_UUID\"]\nends = \"my-ci-worker\"",
    );
    let programs = open_directory();
    let (worker, server) = (program(&programs, "my-ci-worker"), program(&programs, "server"));
    let mut command = Command::new(worker);
    command.args(["worker", "env:MY_CI_JOB_UUID=u-1", "--", &server, "server", "tcp:127.0.0.1:0"]);
    let tree = Tree::start(&mut command, &["worker", "server"]);
    let (_, claim) = verdict(&daemon, tree.get("server").port());
    assert_eq!((&claim["job"]["ci"], &claim["job"]["id"]), (&"my-ci".into(), &"u-1".into()));
    tree.get("worker").kill();
    eventually("the server is a leak", || {
        (verdict(&daemon, tree.get("server").port()).0 == "leaked").then_some(())
    });
    assert!(daemon.metric("sniffer_leaks_total{ci=\"my-ci\"}").is_some());
}

#[test]
#[ignore = "needs root"]
fn an_exempt_program_is_said_to_be_exempt_and_is_no_leak() {
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let programs = open_directory();
    let server = program(&programs, "sccache");
    let tree = github(&programs, "github_exempt", &["--", &server, "server", "tcp:127.0.0.1:0"]);
    tree.get("worker").kill();
    let claim = eventually("the job has ended", || {
        let (_, claim) = verdict(&daemon, tree.get("server").port());
        (claim["job"]["state"] == "ended").then_some(claim)
    });
    assert_eq!(claim["verdict"], "exempt");
    assert!(claim["reason"].as_str().unwrap().contains("sccache"));
    assert!(!leaked(&daemon).contains(&tree.get("server").port().into()));
}

#[test]
#[ignore = "needs root"]
fn without_process_events_polling_finds_the_same_leak() {
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("watch.events = \"poll\"");
    let programs = open_directory();
    let server = program(&programs, "server");
    let tree = github(&programs, "github_poll", &["--", &server, "server", "tcp:127.0.0.1:0"]);
    eventually("the job is known", || {
        (verdict(&daemon, tree.get("server").port()).0 == "healthy").then_some(())
    });
    tree.get("worker").kill();
    eventually("the server is a leak", || {
        (verdict(&daemon, tree.get("server").port()).0 == "leaked").then_some(())
    });
    let (_, ready) = daemon.get("/readyz").unwrap();
    assert!(ready.contains("degraded: proc: switched off"), "{ready}");
    assert_eq!(daemon.metric("sniffer_source_up{source=\"proc\"}"), Some(0.0));
}

#[test]
#[ignore = "needs root"]
fn an_agent_restarted_in_the_middle_knows_running_jobs_and_old_leftovers() {
    let _alone = one_runner_on_this_host();
    let mut daemon = Daemon::start("");
    let programs = open_directory();
    let server = program(&programs, "server");
    let listen = ["--", server.as_str(), "server", "tcp:127.0.0.1:0"];
    let ended = github(&programs, "github_ended", &listen);
    ended.get("worker").kill();
    eventually("the worker is gone", || (!ended.get("worker").is_alive()).then_some(()));
    // A worker that started within the same clock tick could be the leftover's own, for all that can be seen.
    let start = |pid: u32| sniffer::kernel::process::start(pid).unwrap();
    let tick = start(ended.get("server").pid);
    eventually("the clock has ticked", || (start(Tree::holder(&[]).it().pid) > tick).then_some(()));
    let running =
        github(&programs, "github_running", &["env:STEP=1", "--", &server, "server", "tcp:127.0.0.1:0"]);
    daemon.crash_and_restart();
    assert_eq!(verdict(&daemon, running.get("server").port()).0, "healthy");
    eventually("the leftover is a leak", || {
        (verdict(&daemon, ended.get("server").port()).0 == "leaked").then_some(())
    });
    let (_, claim) = verdict(&daemon, ended.get("server").port());
    assert_eq!(claim["job"]["ended"], Value::Null, "when it ended was not seen");
    assert_eq!(claim["since"], Value::Null);
    assert_eq!(verdict(&daemon, running.get("server").port()).0, "healthy");
}

#[test]
#[ignore = "needs root"]
fn a_freed_port_is_free_and_a_bound_one_is_held_in_the_very_next_answer() {
    let daemon = Daemon::start("");
    for _ in 0..20 {
        // A process of its own: what this one has open a child that another test starts has too, between its fork and its exec.
        let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
        let (pid, port) = (tree.it().pid, tree.it().port().to_string());
        let answer = || json(&mut daemon.ask(&["who-holds", &port, "--netns", "host"])).1;
        let held = answer();
        assert_eq!(holders(&held["claims"][0]), [pid], "{held:#}");
        drop(tree);
        assert_eq!(answer()["claims"], Value::Array(vec![]));
    }
}

#[test]
#[ignore = "needs root"]
fn children_that_inherit_a_socket_are_holders_in_the_next_answer() {
    let daemon = Daemon::start("");
    let child = holder();
    let mut command = Command::new(holder());
    command.args(["parent", "tcp-inherit:127.0.0.1:0", "--"]).arg(child).arg("child");
    let tree = Tree::start(&mut command, &["parent", "child"]);
    let port = tree.get("parent").port();
    let mut both = vec![tree.get("parent").pid, tree.get("child").pid];
    both.sort_unstable();
    eventually("both are holders", || (holders(&daemon.who_holds(port)["claims"][0]) == both).then_some(()));
    tree.get("parent").kill();
    eventually("the parent is gone", || (!tree.get("parent").is_alive()).then_some(()));
    let document = daemon.who_holds(port);
    assert_eq!(holders(&document["claims"][0]), [tree.get("child").pid], "the heir still holds it");
}

#[test]
#[ignore = "needs root"]
fn a_child_that_inherits_a_socket_under_another_number_is_a_holder_in_the_next_answer() {
    let daemon = Daemon::start("");
    let directory = open_directory();
    let go = directory.path().join("go");
    let child = holder();
    let mut command = Command::new(holder());
    command.args([
        "parent",
        "tcp:127.0.0.1:0",
        "say",
        &format!("wait:{}", go.display()),
        "dup-inherit",
        "--",
    ]);
    let mut tree = Tree::start(command.arg(child).arg("child"), &["parent"]);
    let parent = tree.get("parent").clone();
    let holders = || holders(&daemon.who_holds(parent.port())["claims"][0]);
    assert_eq!(holders(), [parent.pid]);
    std::fs::write(&go, "").unwrap();
    while tree.hear() != "child" {}
    let child = tree.get("child").pid;
    let mut both = [parent.pid, child];
    both.sort_unstable();
    assert_eq!(holders(), both);
    parent.kill();
    eventually("the parent is gone", || (!parent.is_alive()).then_some(()));
    assert_eq!(holders(), [child], "the heir still holds it");
}

#[test]
#[ignore = "needs root"]
fn since_is_when_the_agent_saw_it_appear() {
    let daemon = Daemon::start("");
    let before = daemon.who_holds(1)["as_of"].as_str().unwrap().to_owned();
    let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
    let (_, claim) = verdict(&daemon, tree.it().port());
    assert!(claim["since"].as_str().unwrap() > before.as_str(), "{claim:#}");
}

#[test]
#[ignore = "needs root"]
fn a_namespace_that_the_agent_watches_dies_when_its_owner_lets_go() {
    let daemon = Daemon::start("");
    let netns = NamedNetns::new("dies");
    let outside = format!("snf{}", std::process::id() % 100_000);
    ip(&["link", "add", &outside, "type", "veth", "peer", "name", "inside", "netns", &netns.0]);
    let inside = Tree::start(netns.command(holder()).args(["it", "tcp:0.0.0.0:0"]), &["it"]);
    assert_eq!(claims(&daemon.who_holds(inside.it().port()), "kind", "listener").len(), 1);
    let inode = netns.inode().to_string();
    let watched = || run(&mut daemon.ask(&["who-holds", "1", "--netns", &inode])).0;
    assert_eq!(watched(), 1);
    drop((inside, netns));
    // A veth ends with the namespace of its other end: the kernel's own word that nothing keeps that alive.
    let link = format!("/sys/class/net/{outside}");
    eventually("the namespace is gone", || (!std::path::Path::new(&link).exists()).then_some(()));
    assert_eq!(watched(), 2, "the next answer knows that it is gone");
}

#[test]
#[ignore = "needs root"]
fn sigterm_ends_it_in_under_a_second_and_takes_the_socket_along() {
    let mut daemon = Daemon::start("");
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(status.code(), Some(0));
    assert!(!daemon.socket().exists());
}

#[test]
#[ignore = "needs root"]
fn sighup_reloads_and_a_bad_configuration_is_refused() {
    let _alone = one_runner_on_this_host();
    let daemon = Daemon::start("");
    let file = daemon.directory.path().join("config.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "[leak]\ngrace = 5\n").unwrap();
    daemon.signal(Signal::HUP);
    eventually("the mistake is named", || daemon.log().contains(":2:9: leak.grace").then_some(()));
    assert!(daemon.log().contains("the old one stays"));
    std::fs::write(&file, good.replace("300ms", "1h")).unwrap();
    daemon.signal(Signal::HUP);
    eventually("it is reloaded", || daemon.log().contains("configuration reloaded").then_some(()));
    let programs = open_directory();
    let server = program(&programs, "server");
    let tree = github(&programs, "github_reload", &["--", &server, "server", "tcp:127.0.0.1:0"]);
    assert_eq!(verdict(&daemon, tree.get("server").port()).0, "healthy");
    tree.get("worker").kill();
    let claim = eventually("the grace has begun", || {
        let (verdict, claim) = verdict(&daemon, tree.get("server").port());
        (verdict == "grace").then_some(claim)
    });
    assert!(claim["reason"].as_str().unwrap().contains("(grace 1h)"), "the new grace counts: {claim:#}");
}

#[test]
#[ignore = "needs root"]
fn a_taken_metrics_port_is_said_with_its_holder_and_the_agent_goes_on() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = open_directory();
    let socket = directory.path().join("s.sock");
    let config = format!(
        "control.socket = \"{}\"\nmetrics.listen = \"{}\"\n",
        socket.display(),
        taken.local_addr().unwrap()
    );
    std::fs::write(directory.path().join("config.toml"), config).unwrap();
    let child = Daemon::command(&directory).spawn().unwrap();
    let daemon = Daemon { child, directory, metrics: String::new() };
    let said = format!("(pid {})", std::process::id());
    eventually("the holder is named", || daemon.log().contains(&said).then_some(()));
    assert_eq!(
        holders(&daemon.who_holds(taken.local_addr().unwrap().port())["claims"][0]),
        [std::process::id()]
    );
}

#[test]
#[ignore = "needs root"]
fn a_second_daemon_on_the_same_socket_says_who_runs_already() {
    let daemon = Daemon::start("");
    let mut second = Command::new(common::SNIFFER);
    let (code, _, stderr) =
        run(second.args(["daemon", "--config"]).arg(daemon.directory.path().join("config.toml")));
    assert_eq!(code, 2);
    assert!(stderr.contains(&format!("(pid {})", daemon.child.id())), "{stderr}");
    assert_eq!(daemon.who_holds(1)["source"], "daemon", "the first one goes on");
}

#[test]
#[ignore = "needs root"]
fn a_socket_left_by_a_crash_is_taken_over() {
    let mut daemon = Daemon::start("");
    daemon.crash_and_restart();
    assert_eq!(daemon.who_holds(1)["source"], "daemon");
}

#[test]
#[ignore = "needs root"]
fn nothing_that_is_sent_to_the_control_socket_stops_the_answers() {
    let daemon = Daemon::start("");
    let connect = || UnixStream::connect(daemon.socket()).unwrap();
    let idle: Vec<UnixStream> = (0..200).map(|_| connect()).collect();
    let half = (0..20).map(|_| {
        let mut stream = connect();
        stream.write_all(b"GET /v1/who-holds?target=80 HT").unwrap();
        stream
    });
    let half: Vec<UnixStream> = half.collect();
    let huge = "A".repeat(1024 * 1024);
    let requests: [&[u8]; 6] = [
        b"\x00\xff\x16\x03\x01garbage\r\n\r\n",
        b"GET /v1/who-holds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/who-holds?target=%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"POST /v1/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        &format!("GET /{huge} HTTP/1.1\r\n\r\n").into_bytes(),
    ];
    for request in requests {
        let mut stream = connect();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        // A refusal may close the connection while the rest is still being sent.
        let _ = stream.write_all(request);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with("HTTP/1.1 4"), "{reply:.200}");
    }
    assert_eq!(daemon.who_holds(1)["claims"], Value::Array(vec![]));
    drop((idle, half));
    let (code, _, stderr) = run(&mut daemon.ask(&["who-holds", "80", "--netns", "no-such"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("no network namespace 'no-such'"), "{stderr}");
}

#[test]
#[ignore = "needs root"]
fn a_daemon_that_does_not_speak_http_is_told_and_done_without() {
    let directory = open_directory();
    let path = directory.path().join("odd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let answerer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"220 smtp ready\r\n");
    });
    let (code, stdout, stderr) =
        run(Command::new(common::SNIFFER).env("SNIFFER_SOCKET", &path).args(["list", "--json"]));
    answerer.join().unwrap();
    assert!(code == 0 || code == 1);
    assert!(stderr.contains("looking without it"), "{stderr}");
    assert!(stdout.contains("\"oneshot\""));
}

#[test]
#[ignore = "needs root"]
fn after_a_storm_of_processes_the_table_is_the_kernels() {
    let daemon = Daemon::start("");
    for _ in 0..400 {
        let status = Command::new("sh").args(["-c", "true & true & true & wait"]).status().unwrap();
        assert!(status.success());
    }
    let netns = NamedNetns::new("storm");
    ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
    let tree =
        Tree::start(netns.command(holder()).args(["it", "tcp:127.0.0.1:0", "udp:127.0.0.1:0"]), &["it"]);
    let sockets = |command: &mut Command| -> Vec<(u64, u64)> {
        let (_, document) = json(command.args(["list", "--netns", &netns.0]));
        let of = document["claims"].as_array().unwrap();
        of.iter()
            .map(|claim| (claim["port"].as_u64().unwrap(), claim["socket"]["cookie"].as_u64().unwrap()))
            .collect()
    };
    let with = sockets(&mut daemon.ask(&[]));
    assert_eq!(with, sockets(&mut common::alone()));
    let mut ports: Vec<u64> = tree.it().ports.iter().map(|port| u64::from(*port)).collect();
    ports.sort_unstable();
    assert_eq!(with.iter().map(|(port, _)| *port).collect::<Vec<_>>(), ports);
}

#[test]
#[ignore = "needs root"]
fn many_questions_at_once_are_all_answered_right() {
    let daemon = Daemon::start("");
    let tree = Tree::holder(&["tcp:127.0.0.1:0", "udp:127.0.0.1:0", "bound:127.0.0.1:0"]);
    std::thread::scope(|scope| {
        for port in tree.it().ports.clone().into_iter().chain([1, 2]) {
            let daemon = &daemon;
            scope.spawn(move || {
                for _ in 0..40 {
                    let document = daemon.who_holds(port);
                    assert_eq!(document["claims"].as_array().unwrap().len(), usize::from(port > 2), "{port}");
                }
            });
        }
    });
}

#[test]
#[ignore = "needs root"]
fn the_daemon_looks_into_namespaces_that_only_a_descriptor_keeps() {
    let daemon = Daemon::start("");
    let tree = Tree::holder(&["netns-tcp:0.0.0.0:0"]);
    let document = eventually("it is looked for", || {
        let document = daemon.who_holds(tree.it().port());
        let unsure = document["incomplete"].to_string().contains("ask again");
        assert!(
            unsure || !document["claims"].as_array().unwrap().is_empty(),
            "never a plain free: {document:#}"
        );
        (!unsure).then_some(document)
    });
    assert_eq!(holders(&document["claims"][0]), [tree.it().pid]);
}

#[test]
#[ignore = "needs root"]
fn a_process_whose_first_thread_ended_goes_on_being_one() {
    let daemon = Daemon::start("");
    let programs = open_directory();
    let server = program(&programs, "server");
    let bootstrap = format!(
        "import ctypes, os, subprocess, sys, threading\n\
        subprocess.Popen(['{server}', 'server', 'tcp:127.0.0.1:0'])\n\
        os.write(1, f'bootstrap {{os.getpid()}}\\n'.encode())\n\
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()\n\
        ctypes.CDLL(None).pthread_exit(None)\n"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &bootstrap]).env("BUILDKITE_JOB_ID", "headless");
    let tree = Tree::start(&mut command, &["bootstrap", "server"]);
    let status = || std::fs::read_to_string(format!("/proc/{}/stat", tree.get("bootstrap").pid)).unwrap();
    eventually("its first thread has ended", || status().contains(") Z ").then_some(()));
    let (verdict, claim) = verdict(&daemon, tree.get("server").port());
    assert_eq!((verdict.as_str(), &claim["job"]["state"]), ("healthy", &"running".into()), "{claim:#}");
    tree.get("bootstrap").kill();
    eventually("its end is noticed", || {
        let document = daemon.who_holds(tree.get("server").port());
        (document["claims"][0]["job"]["state"] == "ended").then_some(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_job_with_huge_variables_costs_little() {
    let daemon = Daemon::start("");
    let huge = "x".repeat(100_000);
    for number in 0..60 {
        let mut command = Command::new(holder());
        command.arg("it").env("BUILDKITE_JOB_ID", format!("huge-{number}")).env("BUILDKITE_LABEL", &huge);
        drop(Tree::start(&mut command, &["it"]));
    }
    assert_eq!(daemon.who_holds(1)["claims"], Value::Array(vec![]));
    let rss = daemon.metric("process_resident_memory_bytes ").unwrap();
    assert!(rss < 48.0 * 1024.0 * 1024.0, "{rss}");
    assert!(daemon.log().len() < 200_000, "{}", daemon.log().len());
}

#[test]
#[ignore = "needs root"]
fn a_file_that_is_no_socket_is_never_deleted() {
    let directory = open_directory();
    let file = directory.path().join("s.sock");
    std::fs::write(&file, "precious").unwrap();
    std::fs::write(
        directory.path().join("config.toml"),
        format!("control.socket = \"{}\"\n", file.display()),
    )
    .unwrap();
    let mut command = Command::new(common::SNIFFER);
    let (code, _, stderr) =
        run(command.args(["daemon", "--config"]).arg(directory.path().join("config.toml")));
    assert_eq!(code, 2);
    assert!(stderr.contains("no socket"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
#[ignore = "needs root"]
fn in_a_pid_namespace_it_polls_and_takes_no_event_for_its_own() {
    // Another subscriber, so that the kernel sends events to whoever listens.
    let _outside = Daemon::start("");
    let directory = open_directory();
    let config = format!(
        "control.socket = \"{}\"\nmetrics.listen = \"\"\n",
        directory.path().join("s.sock").display()
    );
    std::fs::write(directory.path().join("config.toml"), config).unwrap();
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", common::SNIFFER, "daemon", "--config"]);
    let child = command.arg(directory.path().join("config.toml")).stderr(log).spawn().unwrap();
    let inside = Daemon { child, directory, metrics: String::new() };
    eventually("it says that it polls", || {
        inside.log().contains("processes are polled instead").then_some(())
    });
}

#[test]
#[ignore = "needs root"]
fn binds_are_judged_with_the_options_of_whoever_is_there() {
    let daemon = Daemon::start("");
    let shared = Tree::holder(&["with:reuseport", "tcp:127.0.0.1:0", "udp:127.0.0.1:0"]);
    let bound = Tree::holder(&["with:reuseaddr", "bound:127.0.0.1:0"]);
    let left = Tree::holder(&["time-wait:127.0.0.1:0"]);
    let [tcp, udp] = shared.it().ports[..] else { panic!("two") };
    let (bound, left) = (bound.it().port(), left.it().port());
    let ask = |target: &str, options: &[&str]| {
        let (code, document) = json(daemon.ask(&["can-bind", target]).args(options));
        assert_eq!(document["source"], "daemon", "{}", daemon.log());
        (code, document)
    };
    for (target, options, code) in [
        (format!("127.0.0.1:{tcp}/tcp"), &["--reuseport"][..], 0),
        (format!("127.0.0.1:{tcp}/tcp"), &["--reuseaddr"], 1),
        (format!("127.0.0.1:{tcp}/tcp"), &["--reuseport", "--uid", "65534"], 1),
        (format!("127.0.0.1:{udp}/udp"), &["--reuseport"], 0),
        (format!("127.0.0.1:{udp}/udp"), &[], 1),
        (format!("127.0.0.1:{bound}/tcp"), &["--reuseaddr"], 0),
        (format!("127.0.0.1:{bound}/tcp"), &[], 1),
        (format!("127.0.0.1:{left}/tcp"), &["--reuseaddr"], 0),
        (format!("127.0.0.1:{left}/tcp"), &[], 1),
    ] {
        let (got, document) = ask(&target, options);
        assert_eq!(got, code, "{target} {options:?}: {document:#}\n{}", daemon.log());
    }
    let (_, waits) = ask(&format!("127.0.0.1:{left}/tcp"), &[]);
    assert_eq!(waits["blockers"][0]["kind"], "time_wait");
    let warned = ask(&format!("127.0.0.1:{tcp}/tcp"), &["--reuseport"]).1["warnings"].to_string();
    assert!(warned.contains("requests may reach either"), "{warned}");
}

#[test]
#[ignore = "needs root"]
fn whoever_waits_for_a_port_is_told_when_it_is_let_go() {
    let daemon = Daemon::start("");
    let held = Tree::holder(&["tcp:127.0.0.1:0"]);
    let target = format!("127.0.0.1:{}/tcp", held.it().port());
    let wait = |timeout: &str| daemon.ask(&["wait-free", &target, "--timeout", timeout]);
    let (code, document) = json(&mut wait("200ms"));
    assert_eq!((code, &document["errno"]), (1, &"EADDRINUSE".into()));
    let waiting = wait("30s").arg("--json").stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let began = std::time::Instant::now();
    drop(held);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", daemon.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["source"], &document["would_succeed"]), (&"daemon".into(), &true.into()));
}

#[test]
#[ignore = "needs root"]
fn questions_about_binds_that_make_no_sense_are_refused_in_words() {
    let daemon = Daemon::start("");
    for (query, word) in [
        ("", "target"),
        ("target=0", "between 1 and 65535"),
        ("target=80&uid=x", "uid"),
        ("target=80&reuseport=maybe", "reuseport"),
        ("target=80&netns=no-such", "no-such"),
        ("target=80&wait_ms=99999999999", "wait_ms"),
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let request = format!("GET /v1/can-bind?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 40") && reply.contains(word), "{query}: {reply}");
    }
}
