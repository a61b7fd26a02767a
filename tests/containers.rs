//! Ports of containers, with the real engines of Docker and Podman and the real plugin of CNI, each in a network namespace of its own: nothing of
//! this host's is touched.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

#[path = "containers/agent.rs"]
mod agent;
mod common;
#[allow(dead_code, reason = "no test is built for other kernels here")]
#[path = "kernels/executables.rs"]
mod executables;
#[path = "containers/rootless.rs"]
mod rootless;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Daemon, NamedNetns, Tree, alone, claims, eventually, ip, json, open_directory, program, run};
use serde_json::Value;
use tempfile::TempDir;

/// A static busybox, which `scripts/kernels` fetches.
const BUSYBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/kernels/busybox");

/// A container's files, as a tar(1) archive.
#[track_caller]
fn image(directory: &Path) -> Vec<u8> {
    let root = directory.join("image");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("there is no busybox: run scripts/kernels");
    Command::new("tar").arg("-C").arg(&root).args(["-c", "."]).output().unwrap().stdout
}

/// Where programs are looked for, these first.
#[allow(clippy::disallowed_methods, reason = "what a child is given")]
fn path_with(programs: &Path) -> String {
    format!("{}:{}", programs.display(), std::env::var("PATH").unwrap())
}

/// An engine on private paths, in a network namespace of its own. Its containers end with it.
struct Docker {
    /// One at a time: two engines give their first containers the same address, and then that tells of neither.
    _alone: MutexGuard<'static, ()>,
    engine: Child,
    directory: TempDir,
    netns: NamedNetns,
}

impl Docker {
    #[track_caller]
    fn start(name: &str, options: &[&str]) -> Docker {
        Docker::start_with(name, options, "nft")
    }

    /// One whose rules are made by `iptables-nft` or `iptables-legacy`.
    #[track_caller]
    fn start_with(name: &str, options: &[&str], variant: &str) -> Docker {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let netns = NamedNetns::new(name);
        ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
        let at = |what: &str| directory.path().join(what).display().to_string();
        let programs = directory.path().join("programs");
        fs::create_dir(&programs).unwrap();
        for program in ["iptables", "ip6tables"] {
            let real = format!("/usr/sbin/{program}-{variant}");
            std::os::unix::fs::symlink(real, programs.join(program)).unwrap();
        }
        // Not by `ip netns exec`: that would hide the cgroups behind a fresh /sys.
        let engine = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", netns.0))
            .arg("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("run"), "--pidfile", &at("pid")])
            .args(["--host", &format!("unix://{}", at("docker.sock")), "--group", "root"])
            .args(options)
            .env("PATH", path_with(&programs))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .expect("dockerd does not run: install docker.io, or run scripts/test");
        let mut docker = Docker { _alone: alone, engine, directory, netns };
        docker.wait();
        docker.import();
        docker
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// Loading its modules and making its bridge takes seconds on a slow machine.
    #[track_caller]
    fn wait(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.client(&["version"]).output().unwrap().status.success() {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap();
            assert!(self.engine.try_wait().unwrap().is_none() && Instant::now() < until, "{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    fn import(&self) {
        let mut import = self.client(&["import", "-", "box"]);
        let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        import.stdin.take().unwrap().write_all(&image(self.directory.path())).unwrap();
        assert!(import.wait().unwrap().success());
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut client = Command::new("docker");
        client.env("DOCKER_HOST", format!("unix://{}", self.socket().display())).args(arguments);
        client.stderr(Stdio::null());
        client
    }

    /// Starts a container that serves a port; answers its id.
    #[track_caller]
    fn serves(&self, name: &str, options: &[&str]) -> String {
        let mut client = self.client(&["run", "--detach", "--name", name]);
        let output = client
            .args(options)
            .args(["box", "/bin/busybox", "httpd", "-f", "-p", "80"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A look by somebody who may ask this engine.
    fn look(&self, arguments: &[&str]) -> Command {
        let mut look = alone();
        look.args(arguments).args(["--netns", &self.netns.0]);
        look.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        look
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let all = self.client(&["ps", "-aq"]).output().map(|output| output.stdout).unwrap_or_default();
        for id in String::from_utf8_lossy(&all).split_whitespace() {
            let _ = self.client(&["rm", "-f", id]).stdout(Stdio::null()).status();
        }
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.engine.id()).unwrap()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.engine.wait();
        if std::thread::panicking() {
            common::eprint_log(&fs::read_to_string(self.directory.path().join("log")).unwrap_or_default());
        }
    }
}

fn owner(claim: &Value) -> (&str, &str) {
    (claim["owner"]["type"].as_str().unwrap(), claim["owner"]["name"].as_str().unwrap_or_default())
}

/// A job whose worker is nowhere on this host.
const JOB: &[&str] =
    &["-e", "GITLAB_CI=true", "-e", "CI_JOB_ID=4711", "-e", "CI_JOB_NAME=e2e", "-e", "CI_PROJECT_PATH=o/r"];

#[test]
#[ignore = "needs root and Docker's engine"]
fn a_published_port_is_the_containers_with_the_proxy_and_without() {
    let docker = Docker::start("docker-proxy", &[]);
    let id = docker.serves("web", &[&["-p", "8080:80"][..], JOB].concat());
    let (code, document) = json(&mut docker.look(&["who-holds", "8080/tcp"]));
    assert_eq!(code, 0, "{document:#}");
    let proxies = claims(&document, "kind", "listener");
    let rules = claims(&document, "kind", "nat_rule");
    assert!(!proxies.is_empty() && rules.len() == 1, "{document:#}");
    for claim in proxies.iter().chain(&rules) {
        assert_eq!(owner(claim), ("container", "web"), "{claim:#}");
        assert_eq!(
            (&claim["owner"]["container"], &claim["owner"]["image"]),
            (&id.as_str().into(), &"box".into())
        );
        assert_eq!(claim["job"]["name"], "e2e", "the job inside it: {claim:#}");
    }
    assert_eq!(proxies[0]["holders"][0]["comm"], "docker-proxy");
    assert_eq!((&rules[0]["nat"]["chain"], &rules[0]["nat"]["to_port"]), (&"DOCKER".into(), &80.into()));
    let (_, text, _) = run(&mut docker.look(&["who-holds", "8080/tcp"]));
    assert!(text.starts_with("8080/tcp is held by container web") && text.contains("image box"), "{text}");
    assert!(text.contains("stop container web"), "{text}");
    let (code, blocked) = json(&mut docker.look(&["can-bind", "8080/tcp"]));
    assert_eq!(
        (code, &blocked["errno"], owner(&blocked["blockers"][0])),
        (1, &"EADDRINUSE".into(), ("container", "web"))
    );

    // Without the engine's word the container is found where its address is.
    let (_, document) = json(docker.look(&["who-holds", "8080/tcp"]).env("DOCKER_HOST", "unix:///nowhere"));
    for claim in document["claims"].as_array().unwrap() {
        assert_eq!(owner(claim), ("container", &id[..12]), "{claim:#}");
    }
    // And one that hangs costs a moment, and is said.
    let directory = tempfile::tempdir().unwrap();
    let silent = directory.path().join("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let begun = Instant::now();
    let host = format!("unix://{}", silent.display());
    let (_, document) = json(docker.look(&["who-holds", "8080/tcp"]).env("DOCKER_HOST", host));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(owner(&document["claims"][0]), ("container", &id[..12]));
    let said = document["incomplete"]
        .as_array()
        .unwrap()
        .iter()
        .any(|gap| gap.as_str().unwrap().contains("silent.sock"));
    assert!(said, "{document:#}");

    // The daemon, which keeps the container's listener, judges the published port by that.
    let daemon = Daemon::start(&format!("containers.engines = [\"{}\"]", docker.socket().display()));
    let published = || {
        let document = daemon.who_holds(8080);
        claims(&document, "kind", "nat_rule").first().map(|claim| (*claim).clone())
    };
    let claim = published().unwrap();
    assert_eq!((owner(&claim), &claim["job"]["name"]), (("container", "web"), &"e2e".into()), "{claim:#}");
    assert!(claim["reason"].as_str().unwrap().starts_with("the listener behind it: "), "{claim:#}");
    assert!(docker.client(&["rm", "-f", "web"]).stdout(Stdio::null()).status().unwrap().success());
    eventually("it is gone with its container", || published().is_none().then_some(()));
}

#[test]
#[ignore = "needs root and Docker"]
fn what_runs_in_a_container_that_a_job_started_is_the_jobs_and_leaks_with_it() {
    let docker = Docker::start("sniffer-jobs", &[]);
    let daemon = Daemon::start("");
    let create = ["create", "box", "/bin/busybox", "sleep", "300"];
    let output = docker.client(&create).stderr(Stdio::inherit()).output().unwrap();
    let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    // As GitHub's runner has it: the worker starts the container, and enters it for each step, which has none of its variables.
    let programs = open_directory();
    let started = programs.path().join("started");
    let script = format!("docker start {id} && : > {} && exec cat", started.display());
    let mut worker = Command::new(program(&programs, "Runner.Worker"));
    worker.env("DOCKER_HOST", format!("unix://{}", docker.socket().display()));
    worker.args(["worker", "env:RUNNER_TRACKING_ID=github_in_container", "--", "sh", "-c", &script]);
    let tree = Tree::start(&mut worker, &["worker"]);
    eventually("it is started", || started.exists().then_some(()));
    let step = ["exec", "--detach", &id, "/bin/busybox", "httpd", "-p", "81"];
    assert!(docker.client(&step).status().unwrap().success());
    let held = || json(&mut daemon.ask(&["who-holds", "81/tcp"])).1;
    let claim =
        eventually("its port is held", || claims(&held(), "kind", "listener").first().cloned().cloned());
    let job = &claim["job"];
    assert_eq!((&job["ci"], &job["id"]), (&"github".into(), &"github_in_container".into()), "{claim:#}");
    assert_eq!(claim["verdict"], "healthy");
    drop(tree);
    eventually("it outlives its job", || claims(&held(), "verdict", "leaked").first().map(drop));
    assert!(docker.client(&["rm", "--force", &id]).output().unwrap().status.success());
}

#[test]
#[ignore = "needs root and Docker's engine"]
fn without_a_proxy_a_rule_alone_takes_the_port() {
    let docker = Docker::start("docker-rules", &["--userland-proxy=false"]);
    docker.serves("hidden", &["-p", "127.0.0.1:8081:80", "-p", "8082-8083:80-81"]);
    let (_, document) = json(&mut docker.look(&["who-holds", "8082-8083/tcp"]));
    let rules = claims(&document, "kind", "nat_rule");
    assert_eq!(rules.len(), 2, "{document:#}");
    assert!(rules.iter().all(|claim| owner(claim) == ("container", "hidden")), "{document:#}");
    let (_, document) = json(&mut docker.look(&["who-holds", "127.0.0.1:8081/tcp"]));
    assert_eq!(owner(&document["claims"][0]), ("container", "hidden"), "{document:#}");
    let (_, told) = json(&mut docker.look(&["can-bind", "8082/tcp"]));
    // Newer engines bind the port too, so that nobody else does.
    if told["would_succeed"] == true {
        let warned = told["warnings"].as_array().unwrap().iter().any(|warning| {
            let warning = warning.as_str().unwrap();
            warning.contains("container hidden") && warning.contains("gets none of that")
        });
        assert!(warned, "{told:#}");
    } else {
        assert_eq!(owner(&told["blockers"][0]), ("container", "hidden"), "{told:#}");
    }
}

#[test]
#[ignore = "needs root and Docker's engine"]
fn rules_of_iptables_legacy_are_the_containers_too() {
    let docker = Docker::start_with("docker-legacy", &["--userland-proxy=false"], "legacy");
    docker.serves("old", &[&["-p", "8085:80"][..], JOB].concat());
    let (_, document) = json(&mut docker.look(&["who-holds", "8085/tcp"]));
    let rules = claims(&document, "kind", "nat_rule");
    assert_eq!(rules.len(), 1, "{document:#}");
    assert_eq!(
        (&rules[0]["nat"]["backend"], &rules[0]["nat"]["chain"]),
        (&"iptables".into(), &"DOCKER".into())
    );
    assert_eq!(
        (owner(rules[0]), &rules[0]["job"]["name"]),
        (("container", "old"), &"e2e".into()),
        "{document:#}"
    );
}

/// Runs the portmap plugin as a container runtime does.
#[track_caller]
fn portmap(netns: &NamedNetns, command: &str, id: &str, sandbox: &Path) {
    let config = serde_json::json!({
        "cniVersion": "0.4.0", "name": "cbr0", "type": "portmap", "backend": "iptables", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {
            "cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": sandbox}],
            "ips": [{"version": "4", "interface": 0, "address": "10.85.0.2/16", "gateway": "10.85.0.1"}]
        }
    });
    let mut plugin = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", netns.0))
        .arg("/usr/lib/cni/portmap")
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ])
        .env("CNI_NETNS", sandbox)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = plugin.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "needs root and the plugins of CNI"]
fn a_host_port_is_the_containers() {
    let netns = NamedNetns::new("cni");
    ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
    let sandbox = NamedNetns::new("cni-sandbox");
    let place = Path::new("/run/netns").join(&sandbox.0);
    let id = "6af1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f";
    portmap(&netns, "ADD", id, &place);
    let look = || json(alone().args(["who-holds", "8080", "--netns", &netns.0]));
    let (code, document) = look();
    let rules = claims(&document, "kind", "nat_rule");
    assert_eq!((code, rules.len()), (0, 1), "{document:#}");
    assert_eq!(rules[0]["nat"]["to_address"], "10.85.0.2");
    // Nobody lists that container and nobody lives in its namespace: its id is in the rule.
    assert!(rules[0]["nat"]["comment"].as_str().unwrap().contains(id), "{document:#}");
    assert_eq!(owner(rules[0]), ("container", &id[..12]), "{document:#}");
    portmap(&netns, "DEL", id, &place);
    assert_eq!(look().0, 1, "freed with its container");
}

/// Podman on private paths, in a network namespace of its own.
struct Podman {
    directory: TempDir,
    netns: NamedNetns,
}

impl Podman {
    #[track_caller]
    fn new() -> Podman {
        let podman = Podman { directory: tempfile::tempdir().unwrap(), netns: NamedNetns::new("podman") };
        ip(&["-n", &podman.netns.0, "link", "set", "lo", "up"]);
        // Not every root may raise limits, and not every host's cgroups are systemd's.
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\npids_limit = 0\n\
                        [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(podman.at("containers.conf"), settings).unwrap();
        let mut import = podman.run(&["import", "-", "box"]);
        let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        import.stdin.take().unwrap().write_all(&image(podman.directory.path())).unwrap();
        assert!(import.wait().unwrap().success());
        podman
    }

    fn at(&self, what: &str) -> String {
        self.directory.path().join(what).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Command {
        let mut podman = Command::new("nsenter");
        podman.arg(format!("--net=/run/netns/{}", self.netns.0)).arg("podman");
        podman.args(["--root", &self.at("root"), "--runroot", &self.at("run"), "--tmpdir", &self.at("tmp")]);
        podman.args([
            "--storage-driver",
            "vfs",
            "--runtime",
            "runc",
            "--network-config-dir",
            &self.at("net"),
        ]);
        podman.args(arguments).env("CONTAINERS_CONF", self.at("containers.conf")).stderr(Stdio::null());
        podman
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]).stdout(Stdio::null()).status();
    }
}

#[test]
#[ignore = "needs root and Podman"]
fn a_port_that_podman_publishes_is_the_containers_and_not_its_monitors() {
    let podman = Podman::new();
    let mut start = podman.run(&["run", "--detach", "--name", "pod-web", "--publish", "8084:80"]);
    let output = start.args(JOB).args(["box", "/bin/busybox", "httpd", "-f", "-p", "80"]);
    let output = output.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let look = |host: &str| {
        let mut look = alone();
        look.args(["who-holds", "8084/tcp", "--netns", &podman.netns.0]).env("DOCKER_HOST", host);
        json(&mut look).1
    };
    // Without an engine to ask, its monitor's arguments name it, and the rule's comment.
    let document = look("unix:///nowhere");
    let (monitor, rule) =
        (&claims(&document, "kind", "listener")[0], &claims(&document, "kind", "nat_rule")[0]);
    assert_eq!(
        (owner(monitor), &monitor["holders"][0]["comm"]),
        (("container", "pod-web"), &"conmon".into())
    );
    assert_eq!(owner(rule), ("container", &id[..12]), "{document:#}");
    for claim in [monitor, rule] {
        assert_eq!(claim["job"]["name"], "e2e", "the job inside it: {claim:#}");
    }

    let socket = podman.at("podman.sock");
    let mut service = podman.run(&["system", "service", "--time", "60", &format!("unix://{socket}")]);
    let mut service = service.stdout(Stdio::null()).spawn().unwrap();
    eventually("its service listens", || Path::new(&socket).exists().then_some(()));
    let document = eventually("it answers", || {
        let document = look(&format!("unix://{socket}"));
        document["incomplete"].as_array().unwrap().is_empty().then_some(document)
    });
    for claim in document["claims"].as_array().unwrap() {
        assert_eq!(owner(claim), ("container", "pod-web"), "{claim:#}");
        assert_eq!(claim["owner"]["image"], "localhost/box:latest");
    }
    if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(service.id()).unwrap()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let _ = service.wait();
}
