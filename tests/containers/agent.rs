//! The agent in a container, by the recipe of packaging/container, with exactly the privileges of packaging/kubernetes/daemonset.yaml.
//!
//! What Kubernetes makes of the manifest is done here with Docker's options: the same capabilities, namespaces and mounts. Only where
//! the agent writes, and its configuration, lie in a directory of the test's own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sniffer::kernel::capability;
use tempfile::TempDir;

use super::Docker;
use super::common::{SNIFFER, Tree, claims, eventually, json, open_directory, run};
use super::executables;

/// Documents of the manifest, by their kind.
#[track_caller]
fn manifest(kind: &str) -> Value {
    const TO_JSON: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/kubernetes/daemonset.yaml");
    // Debian's own Python has its own modules.
    let (code, documents, stderr) = run(Command::new("/usr/bin/python3").args(["-c", TO_JSON, file]));
    assert_eq!(code, 0, "python3-yaml is installed: {stderr}");
    let documents: Vec<Value> = serde_json::from_str(&documents).unwrap();
    documents.into_iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_daemon_set_grants_what_the_program_uses_and_nothing_else() {
    let set = manifest("DaemonSet");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let security = &container["securityContext"];
    let mut granted = words(&security["capabilities"]["add"]);
    granted.sort_unstable();
    let mut used = capability::USED.map(|capability| capability.name.strip_prefix("CAP_").unwrap());
    used.sort_unstable();
    assert_eq!(granted, used);
    assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(
        (&security["privileged"], &security["allowPrivilegeEscalation"]),
        (&false.into(), &false.into())
    );
    assert_eq!(security["readOnlyRootFilesystem"], true);
    let image = container["image"].as_str().unwrap();
    assert!(image.ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))), "{image}");
}

/// Builds the image by its recipe, from a static binary.
#[track_caller]
fn build(docker: &Docker) {
    let context = tempfile::tempdir().unwrap();
    fs::copy(executables::programs().path("sniffer"), context.path().join("sniffer")).unwrap();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/container/Dockerfile");
    let mut build = docker.client(&["build", "--tag", "sniffer", "--file", recipe]);
    // The engine's own builder: nothing is fetched for it.
    let output =
        build.arg(context.path()).env("DOCKER_BUILDKIT", "0").stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The options that stand for the manifest, and the arguments of its container.
fn options(directory: &Path) -> Vec<String> {
    let set = manifest("DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&true.into(), &true.into()));
    let mut options: Vec<String> =
        ["--pid=host", "--network=host", "--cgroupns=private", "--read-only", "--cap-drop=ALL"]
            .map(str::to_owned)
            .to_vec();
    options.extend(
        ["no-new-privileges", "apparmor=unconfined"].map(|option| format!("--security-opt={option}")),
    );
    options.extend(words(&security["capabilities"]["add"]).iter().map(|name| format!("--cap-add={name}")));
    options.push(format!("--user={}:{}", security["runAsUser"], security["runAsGroup"]));
    for mount in container["volumeMounts"].as_array().unwrap() {
        let name = mount["name"].as_str().unwrap();
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap();
        let own = directory.join(name);
        let source = match name {
            "config" | "run" | "state" => own.to_str().unwrap(),
            _ => volume["hostPath"]["path"].as_str().unwrap(),
        };
        let read_only = if mount["readOnly"] == true { "ro" } else { "rw" };
        let slave = if mount["mountPropagation"] == "HostToContainer" { ",rslave" } else { "" };
        options
            .push(format!("--volume={source}:{}:{read_only}{slave}", mount["mountPath"].as_str().unwrap()));
    }
    options.push("sniffer".to_owned());
    options.extend(words(&container["args"]).iter().map(|word| (*word).to_owned()));
    options
}

/// Status of an HTTP request to the agent, in the engine's network namespace.
fn status(docker: &Docker, path: &str) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/9817; printf 'GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3; head -n 1 <&3"
    );
    let output = docker.netns.command("bash").args(["-c", &script]).stderr(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

struct Agent<'a> {
    docker: &'a Docker,
    directory: TempDir,
}

impl Agent<'_> {
    #[track_caller]
    fn start(docker: &Docker) -> Agent<'_> {
        let directory = open_directory();
        for name in ["config", "run", "state"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let config = manifest("ConfigMap")["data"]["config.toml"].as_str().unwrap().to_owned();
        fs::write(directory.path().join("config/config.toml"), config).unwrap();
        let mut start = docker.client(&["run", "--detach", "--name", "agent"]);
        let output = start.args(options(directory.path())).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let agent = Agent { docker, directory };
        eventually("it is ready", || {
            let running =
                docker.client(&["inspect", "--format", "{{.State.Running}}", "agent"]).output().unwrap();
            assert!(running.stdout.starts_with(b"true"), "it ended: {}", agent.log());
            status(docker, "/readyz").contains(" 200 ").then_some(())
        });
        agent
    }

    fn log(&self) -> String {
        let log = self.docker.client(&["logs", "agent"]).stderr(Stdio::piped()).output().unwrap();
        String::from_utf8_lossy(&[log.stdout, log.stderr].concat()).into_owned()
    }

    /// Asked from the host, by its socket.
    fn ask(&self, arguments: &[&str]) -> Value {
        let mut ask = Command::new(SNIFFER);
        ask.env("SNIFFER_SOCKET", self.directory.path().join("run/sniffer.sock")).args(arguments);
        json(&mut ask).1
    }
}

#[test]
#[ignore = "needs root and Docker's engine"]
fn with_the_privileges_of_the_daemon_set_it_sees_as_much_as_on_the_host() {
    let docker = Docker::start("agent", &[]);
    build(&docker);
    let agent = Agent::start(&docker);
    // Its probes.
    let set = manifest("DaemonSet");
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let path =
            set["spec"]["template"]["spec"]["containers"][0][probe]["httpGet"]["path"].as_str().unwrap();
        assert!(status(&docker, path).contains(" 200 "), "{probe} {path}");
    }

    // A process of the host, in another network namespace than the agent's.
    let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
    let answer = agent.ask(&["who-holds", &format!("{}/tcp", tree.it().port())]);
    let listeners = claims(&answer, "kind", "listener");
    assert_eq!((&answer["source"], listeners.len()), (&"daemon".into(), 1), "{answer:#}\n{}", agent.log());
    let holder = &listeners[0]["holders"][0];
    assert_eq!(
        (&holder["pid"], &holder["comm"], &holder["user"]),
        (&tree.it().pid.into(), &"holder".into(), &"root".into()),
        "{holder:#}"
    );
    // Seen as it bound, which only the kernel's programs tell.
    assert_eq!(listeners[0]["binder"]["pid"], tree.it().pid, "{answer:#}\n{}", agent.log());

    // A bind that is refused, with both sides.
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = first.local_addr().unwrap().port();
    assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
    eventually("the refused bind is told", || {
        let told = agent.ask(&["conflicts"]);
        let conflicts = told["conflicts"].as_array()?.clone();
        let is_ours =
            |conflict: &Value| conflict["port"] == port && conflict["loser"]["pid"] == std::process::id();
        conflicts.into_iter().find(is_ours).map(drop)
    });

    // What it says of itself, with the same privileges.
    let doctor = docker.client(&["exec", "agent", "sniffer", "doctor", "--json"]).output().unwrap();
    let doctor: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let missing = doctor["checks"].as_array().unwrap().iter().filter(|check| check["ok"] != true);
    // The kernel has those for its first network namespace only, and the engine's is another here. BPF tells the same.
    let missing: Vec<&Value> = missing.filter(|check| check["name"] != "process events").collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
