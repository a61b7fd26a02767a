//! Ports that forwarders hold for the containers of an ordinary user, with the real programs: Podman's rootlessport, slirp4netns(1) and pasta(1).
//!
//! The user is nobody that this host knows: a mount namespace shows other files in the place of /etc/passwd and the like.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::common::{NamedNetns, alone, claims, eventually, ip, json};
use super::{JOB, image, owner};

const UID: u32 = 47_110;
/// Becomes that user in a mount namespace of its own, and runs what follows. The device of tun(4) is root's alone on some hosts.
const ENTER: &str = "
for name in passwd group subuid subgid; do mount --bind \"$0/$name\" /etc/$name; done
mount -t tmpfs -o dev,mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && chmod 666 /dev/net/tun
exec setpriv --reuid 47110 --regid 47110 --clear-groups env -i HOME=\"$0/home\" XDG_RUNTIME_DIR=\"$0/run\" PATH=\"$PATH\" CONTAINERS_CONF=\"$0/containers.conf\" \"$@\"
";

/// An ordinary user with Podman, in a network namespace of its own.
struct User {
    directory: TempDir,
    netns: NamedNetns,
    pasta: Option<Child>,
}

impl User {
    #[track_caller]
    fn new() -> User {
        // slirp4netns' socket is named after the container, and may have 107 characters with its directories.
        let directory = tempfile::Builder::new().prefix("u-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let user = User { directory, netns: NamedNetns::new("rootless"), pasta: None };
        let netns = &user.netns.0;
        ip(&["-n", netns, "link", "set", "lo", "up"]);
        // pasta copies the addresses of whatever leads out.
        ip(&["-n", netns, "link", "add", "out", "type", "veth", "peer", "name", "nowhere"]);
        for link in ["out", "nowhere"] {
            ip(&["-n", netns, "link", "set", link, "up"]);
        }
        ip(&["-n", netns, "addr", "add", "192.0.2.1/24", "dev", "out"]);
        ip(&["-n", netns, "route", "add", "default", "via", "192.0.2.254"]);
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\npids_limit = 0\n\
                        [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        let home = user.directory.path().join("home");
        let passwd =
            format!("root:x:0:0::/root:/bin/sh\nsomebody:x:{UID}:{UID}::{}:/bin/sh\n", home.display());
        for (name, text) in [
            ("passwd", passwd.as_str()),
            ("group", "root:x:0:\nsomebody:x:47110:\n"),
            ("subuid", "somebody:300000:65536\n"),
            ("subgid", "somebody:300000:65536\n"),
            ("containers.conf", settings),
        ] {
            fs::write(user.directory.path().join(name), text).unwrap();
        }
        for own in ["home", "run"] {
            let own = user.directory.path().join(own);
            fs::create_dir(&own).unwrap();
            fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
            chown(&own, Some(UID), Some(UID)).unwrap();
        }
        let mut import = user.podman(&["import", "-", "box"]);
        let mut import =
            import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        import.stdin.take().unwrap().write_all(&image(user.directory.path())).unwrap();
        assert!(import.wait().unwrap().success());
        user
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns.0));
        command.args(["unshare", "--mount", "sh", "-c", ENTER]).arg(self.directory.path()).arg(program);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn podman(&self, arguments: &[&str]) -> Command {
        let mut podman = self.command("podman");
        podman.args(["--storage-driver", "vfs", "--runtime", "runc"]).args(arguments);
        podman
    }

    /// Starts a container that serves a port.
    #[track_caller]
    fn serves(&self, name: &str, options: &[&str]) {
        let mut start = self.podman(&["run", "--detach", "--name", name]);
        start.args(options).args(["box", "/bin/busybox", "httpd", "-f", "-p", "80"]);
        let output = start.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(mut pasta) = self.pasta.take() {
            let _ = pasta.kill();
            let _ = pasta.wait();
        }
        let _ = self.podman(&["rm", "--all", "--force", "--time", "0"]).output();
        // It keeps the user's namespaces.
        let pause = fs::read_to_string(self.directory.path().join("run/libpod/tmp/pause.pid")).ok();
        if let Some(pid) = pause.and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
#[ignore = "needs root, Podman, slirp4netns and pasta"]
fn what_forwards_to_a_users_container_holds_the_port_for_that_container() {
    let mut user = User::new();
    user.serves("by-rootlessport", &[&["--publish", "8091:80"][..], JOB].concat());
    let by_slirp = ["--network", "slirp4netns:port_handler=slirp4netns", "--publish", "8092:80"];
    user.serves("by-slirp4netns", &[&by_slirp[..], JOB].concat());
    user.serves("by-pasta", &[&["--network", "none"][..], JOB].concat());
    let inspected = user.podman(&["inspect", "by-pasta", "--format", "{{.State.Pid}}"]).output().unwrap();
    let pid = String::from_utf8(inspected.stdout).unwrap();
    // As newer Podmans run it, but for that.
    let ports =
        ["--foreground", "--config-net", "-4", "-t", "8093:80", "-u", "none", "-T", "none", "-U", "none"];
    user.pasta =
        Some(user.command("pasta").args(ports).arg(pid.trim()).stderr(Stdio::null()).spawn().unwrap());
    for (port, program, container) in [
        ("8091", "rootlessport", "by-rootlessport"),
        ("8092", "slirp4netns", "by-slirp4netns"),
        // It runs the faster one of its two programs where the processor can.
        ("8093", "passt|pasta", "by-pasta"),
    ] {
        // No engine serves an API that could be asked.
        let mut look = alone();
        look.args(["who-holds", port, "--netns", &user.netns.0]).env("DOCKER_HOST", "unix:///nowhere");
        let document =
            eventually("the port is held", || Some(json(&mut look)).filter(|(code, _)| *code == 0)).1;
        let claim = claims(&document, "kind", "listener")[0];
        let comm = claim["holders"][0]["comm"].as_str().unwrap();
        assert!(program.split('|').any(|program| comm.starts_with(program)), "{claim:#}");
        assert_eq!(owner(claim), ("container", container), "{document:#}");
        assert_eq!(claim["job"]["name"], "e2e", "the job inside it: {claim:#}");
    }
}
