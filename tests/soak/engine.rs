//! Docker's engine on private paths and in a network namespace of its own, for containers that come and go.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{NamedNetns, ip};

/// A static busybox, which `scripts/kernels` fetches.
const BUSYBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/kernels/busybox");
/// Loading its modules and making its bridge takes seconds on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine; its containers end with it.
pub(super) struct Engine {
    engine: Child,
    directory: TempDir,
    _netns: NamedNetns,
}

impl Engine {
    #[track_caller]
    pub(super) fn start() -> Engine {
        let directory = tempfile::tempdir().unwrap();
        let netns = NamedNetns::new("soak-engine");
        ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
        let at = |what: &str| directory.path().join(what).display().to_string();
        // Not by `ip netns exec`: that would hide the cgroups behind a fresh /sys.
        let engine = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", netns.0))
            .arg("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("run"), "--pidfile", &at("pid")])
            .args(["--host", &format!("unix://{}", at("docker.sock")), "--group", "root"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.path().join("log")).unwrap())
            .spawn()
            .expect("dockerd does not run: install docker.io, or run scripts/test");
        let mut engine = Engine { engine, directory, _netns: netns };
        let until = Instant::now() + PATIENCE;
        while !engine.client(&["version"]).status().unwrap().success() {
            let log = || fs::read_to_string(engine.directory.path().join("log")).unwrap();
            assert!(engine.engine.try_wait().unwrap().is_none() && Instant::now() < until, "{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        engine.import();
        engine
    }

    /// Where it is asked.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// Makes an image of busybox alone.
    #[track_caller]
    fn import(&self) {
        let root = self.directory.path().join("image");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy(BUSYBOX, root.join("bin/busybox")).expect("there is no busybox: run scripts/kernels");
        let files = Command::new("tar").arg("-C").arg(&root).args(["-c", "."]).output().unwrap().stdout;
        let mut import = self.client(&["import", "-", "box"]).stdin(Stdio::piped()).spawn().unwrap();
        import.stdin.take().unwrap().write_all(&files).unwrap();
        assert!(import.wait().unwrap().success());
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut client = Command::new("docker");
        client.env("DOCKER_HOST", format!("unix://{}", self.socket().display())).args(arguments);
        client.stdout(Stdio::null()).stderr(Stdio::null());
        client
    }

    /// Runs a container that serves a published port for a second, and removes it.
    #[track_caller]
    pub(super) fn run_briefly(&self, name: &str) {
        // The first process of a container is ended by nobody inside: it ends by itself.
        let script = "/bin/busybox httpd -f -p 80 & /bin/busybox sleep 1";
        let server = ["box", "/bin/busybox", "sh", "-c", script];
        let mut client = self.client(&["run", "--rm", "--name", name, "--publish", "80"]);
        let status = client.args(server).status().unwrap();
        assert!(status.success(), "{name} was not run");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.engine.id()).unwrap()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.engine.wait();
    }
}
