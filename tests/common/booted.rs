//! A Debian that is booted in a container, for tests of what runs under a real systemd.
//!
//! Every test boots anew from one cached root, with whatever it writes in memory only. A container gets no process events
//! from the kernel, so nothing is claimed about them there.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What Debian's smallest root lacks: a booting systemd, `ip netns`, and kill(1) for the unit's reload.
const PACKAGES: [&str; 4] = ["systemd", "systemd-sysv", "iproute2", "procps"];
/// Listens on a port, then makes a file that says so. The smallest Debian has Perl.
const LISTENER: &str = r#"
use IO::Socket::INET;
my $socket = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 1) or die "cannot listen: $@";
open(my $file, ">", $ARGV[1]) or die "cannot say so: $!";
sleep;
"#;
/// A busy machine boots slowly; one that takes longer is stuck.
const BOOT: Duration = Duration::from_secs(120);
/// For everything else that is waited for.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const STEP: Duration = Duration::from_millis(50);

/// A file of this package.
pub(crate) fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until a look succeeds. One that does not in time fails the test with what was seen last.
pub(crate) fn wait<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(last) if began.elapsed() > within => panic!("{what} did not come in {within:?}: {last}"),
            Err(_) => thread::sleep(STEP),
        }
    }
}

/// A booted container.
pub(crate) struct Host {
    /// Held for its end.
    _container: Container,
    /// Its pid 1, as this host numbers it.
    leader: Pid,
    /// One container at a time: the root can be locked by one only.
    _turn: File,
}

impl Host {
    /// Boots with these files of this host at those places.
    pub(crate) fn boot(files: &[(PathBuf, &str)]) -> Host {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("systemd-root");
        fs::create_dir_all(&cache).unwrap();
        let turn = File::create(cache.join("lock")).unwrap();
        turn.lock().unwrap();
        let console = cache.join("console.log");
        let container = Container::start(&root(&cache), files, &console);
        let log = || fs::read_to_string(&console).unwrap_or_default();
        let leader = wait("the container", SOON, || container.leader().ok_or_else(log));
        let host = Host { _container: container, leader, _turn: turn };
        wait("the end of the boot", BOOT, || {
            let state = text(&host.run("systemctl is-system-running").stdout);
            matches!(state.trim(), "running" | "degraded").then_some(()).ok_or_else(|| state + &log())
        });
        host
    }

    /// Runs a line of the shell as root inside.
    pub(crate) fn run(&self, line: &str) -> Output {
        let leader = self.leader.as_raw_nonzero().to_string();
        Command::new("nsenter")
            .args(["--target", &leader, "--all", "--", "timeout", "60", "sh", "-c", line])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .output()
            .expect("nsenter of util-linux runs")
    }

    /// Runs a line that must succeed, and returns what it printed.
    pub(crate) fn done(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{line}: {}\n{out}{err}\njournal:\n{}",
            output.status,
            self.journal()
        );
        out
    }

    pub(crate) fn show(&self, property: &str) -> String {
        self.show_of("sniffer", property)
    }

    pub(crate) fn show_of(&self, unit: &str, property: &str) -> String {
        self.done(&format!("systemctl show --value --property {property} {unit}")).trim().to_owned()
    }

    pub(crate) fn journal(&self) -> String {
        text(&self.run("journalctl --sync; journalctl --quiet --unit sniffer --output cat").stdout)
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        self.done(&format!("mkdir -p $(dirname {path}) && cat > {path} <<'END'\n{content}\nEND"));
    }

    /// Adds to the unit's [Service] section, in place of what was added before.
    pub(crate) fn drop_in(&self, directives: &str) {
        self.write("/run/systemd/system/sniffer.service.d/test.conf", &format!("[Service]\n{directives}"));
        self.done("systemctl daemon-reload");
    }

    /// A listener of root's as a service of its own, as a job of GitHub's would leave it. `within` is a command to run it by.
    pub(crate) fn listen(&self, unit: &str, property: &str, within: &str, port: u16) {
        self.write("/run/listen.pl", LISTENER);
        self.done(&format!(
            "systemd-run --quiet --unit={unit} --property={property} --setenv=GITHUB_ACTIONS=true \
             --setenv=RUNNER_TRACKING_ID=github_1f0c {within} perl /run/listen.pl {port} /run/{unit}.listens"
        ));
        wait("the listener", SOON, || {
            let there =
                self.run(&format!("test -e /run/{unit}.listens || {{ systemctl status {unit}; false; }}"));
            there.status.success().then_some(()).ok_or_else(|| text(&there.stdout))
        });
    }

    /// Asks who holds a port, as a user without any privilege.
    pub(crate) fn ask_as_nobody(&self, port: u16) -> Value {
        let nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups";
        let output = self.run(&format!("{nobody} sniffer who-holds {port} --json"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}{}{}", text(&output.stdout), text(&output.stderr), self.journal())
        })
    }
}

/// The root to boot from, made at the first use. Under its final name it is complete.
fn root(cache: &Path) -> PathBuf {
    // The suite of this host, so that its libc is not older than the one that the binary was linked to.
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .expect("a Debian, or one of its kin")
        .trim_matches('"');
    // With the packages in its name a root made for other ones is not taken.
    let root = cache.join(format!("{suite}+{}", PACKAGES.join("+")));
    if !root.exists() {
        let unfinished = cache.join("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        let made = Command::new("timeout")
            .args([
                "15m",
                "debootstrap",
                "--variant=minbase",
                &format!("--include={}", PACKAGES.join(",")),
                suite,
            ])
            .arg(&unfinished)
            .stdin(Stdio::null())
            .output()
            .expect("timeout of coreutils runs");
        assert!(made.status.success(), "debootstrap: {}{}", text(&made.stdout), text(&made.stderr));
        fs::rename(&unfinished, &root).unwrap();
    }
    root
}

/// A running systemd-nspawn. The container is ended when this is dropped, also by a failing test.
struct Container(Child);

impl Container {
    /// Boots the root with these files at their places. Writes go to memory: the root stays as it is.
    fn start(root: &Path, files: &[(PathBuf, &str)], console: &Path) -> Container {
        let binds = files.iter().map(|(from, to)| format!("--bind-ro={}:{to}", from.display()));
        let log = File::create(console).unwrap();
        // setpriv: where even the test is killed, the container ends with it. A network of its own leaves the container
        // its CAP_NET_ADMIN, and keeps the ports of this host out of it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "systemd-nspawn", "--quiet", "--boot", "--volatile=overlay"])
            .args(["--register=no", "--keep-unit", "--private-network", "--link-journal=no"])
            .arg("--console=pipe")
            .arg(format!("--machine=sniffer-test-{}", std::process::id()))
            .arg(format!("--directory={}", root.display()))
            .args(binds)
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .expect("setpriv of util-linux runs");
        Container(child)
    }

    /// The container's pid 1: the child of systemd-nspawn that has the pid 1 inside.
    fn leader(&self) -> Option<Pid> {
        let parent = format!("PPid:\t{}", self.0.id());
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            let leads =
                status.lines().any(|line| line == parent) && inside.split_whitespace().nth(1) == Some("1");
            leads.then(|| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))?
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let leader = self.leader();
        let cgroups = leader.map(cgroups_of).unwrap_or_default();
        if let Some(leader) = leader {
            // With its pid 1 the kernel ends every process of the container.
            let _ = kill_process(leader, Signal::KILL);
        } else {
            let _ = self.0.kill();
        }
        let began = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if began.elapsed() > SOON {
                let _ = self.0.kill();
                let _ = self.0.wait();
                break;
            }
            thread::sleep(STEP);
        }
        for cgroup in cgroups {
            remove_cgroup(&cgroup);
        }
    }
}

/// Where the container lives in the hierarchies that its systemd uses. Nobody removes these where no systemd runs outside.
fn cgroups_of(leader: Pid) -> Vec<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", leader.as_raw_nonzero())).unwrap_or_default();
    let of = |line: &str, prefix: &str, mount: &str| {
        let group = line.strip_prefix(prefix)?.strip_suffix("/init.scope")?;
        Some(Path::new(mount).join(group.strip_prefix('/')?)).filter(|path| path.is_dir())
    };
    groups
        .lines()
        .flat_map(|line| {
            [
                of(line, "0::", "/sys/fs/cgroup"),
                of(line, "0::", "/sys/fs/cgroup/unified"),
                line.split_once(':')
                    .and_then(|(_, rest)| of(rest, "name=systemd:", "/sys/fs/cgroup/systemd")),
            ]
        })
        .flatten()
        .filter(|path| path.ends_with("payload"))
        .collect()
}

/// Removes what is empty; a group with processes in it stays.
fn remove_cgroup(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
