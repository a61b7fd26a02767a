//! What happens on the host meanwhile: processes, sockets, refusals, namespaces, containers and jobs that come and go, each kind in a thread
//! of its own, and somebody who asks all the time. All of it is this test's own, and ends with it.

use std::any::Any;
use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{NamedNetns, SNIFFER, Tree, holder, ip, listener, open_directory, program};
use crate::engine::Engine;

/// Sockets that one thread has open.
const KEPT: usize = 64;
/// How much the others are given way to (nice(2)).
const PATIENT: i32 = 10;
/// Attempts of each of four threads, in one storm.
const ATTEMPTS: usize = 5_000;
/// A leftover stays so long: its grace of 300 ms, and time to be told.
const LEFT: Duration = Duration::from_millis(1_500);

/// How often what happened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) processes: AtomicU64,
    pub(super) sockets: AtomicU64,
    pub(super) storm_binds: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) namespaces: AtomicU64,
    pub(super) containers: AtomicU64,
    pub(super) jobs: AtomicU64,
    pub(super) answers: AtomicU64,
}

/// Everything that comes and goes.
pub(super) struct Churn {
    pub(super) counts: Counts,
    /// The namespace that every other one has a cable to: a namespace that ends takes its cable along.
    pub(super) hub: NamedNetns,
    engine: Engine,
    programs: TempDir,
    agent: PathBuf,
}

/// A number that no other has.
fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn count(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

fn rest(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

impl Churn {
    /// `agent` is the control socket.
    pub(super) fn new(agent: PathBuf, engine: Engine) -> Churn {
        let hub = NamedNetns::new("soak-hub");
        Churn { counts: Counts::default(), hub, engine, programs: open_directory(), agent }
    }

    /// Lets everything happen until then, and does `meanwhile`. Afterwards nothing of it is left.
    pub(super) fn run(&self, until: Instant, meanwhile: impl FnOnce()) {
        let kinds: [&(dyn Fn() + Sync); 7] = [
            &|| self.processes(),
            &|| self.sockets(),
            &|| self.storm(),
            &|| self.namespace(),
            &|| self.container(),
            &|| self.job(),
            &|| self.ask(),
        ];
        std::thread::scope(|scope| {
            for kind in kinds {
                scope.spawn(move || {
                    // It is the agent that is tried, and not who gets the processor. What a thread starts is as patient.
                    rustix::process::nice(PATIENT).unwrap();
                    while Instant::now() < until {
                        kind();
                    }
                });
            }
            meanwhile();
        });
    }

    /// Forks, execs and exits.
    fn processes(&self) {
        let children: Vec<_> = (0..20).map(|_| Command::new("true").spawn().unwrap()).collect();
        count(&self.counts.processes, children.len());
        for mut child in children {
            child.wait().unwrap();
        }
        rest(50);
    }

    /// Listeners, connections and UDP sockets of both families; what was opened last stays a little.
    fn sockets(&self) {
        let mut open: VecDeque<Box<dyn Any>> = VecDeque::new();
        for round in 0..4 * KEPT {
            let address = if round % 2 == 0 { "127.0.0.1:0" } else { "[::1]:0" };
            let listener = TcpListener::bind(address).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let sockets: [Box<dyn Any>; 4] = [
                Box::new(listener.accept().unwrap()),
                Box::new(stream),
                Box::new(listener),
                Box::new(UdpSocket::bind(address).unwrap()),
            ];
            open.extend(sockets);
            open.drain(..open.len().saturating_sub(KEPT));
            count(&self.counts.sockets, 4);
            rest(5);
        }
    }

    /// Binds that are refused, tens of thousands of them, and as many that are not.
    fn storm(&self) {
        let refused = format!("retry:{ATTEMPTS}:tcp:127.0.0.1:PORT");
        let bound = format!("churn:{ATTEMPTS}:tcp:127.0.0.1:0");
        let tree = Tree::holder(&["tcp:127.0.0.1:0", "threads:4", &refused, &bound]);
        let said = |name: &str| tree.it().said(name).into_iter().sum::<i128>();
        count(&self.counts.refusals, usize::try_from(said("refused-times")).unwrap());
        count(&self.counts.storm_binds, usize::try_from(said("bound")).unwrap());
        drop(tree);
        rest(500);
    }

    /// Namespaces that a name keeps, then a process alone; a process; a descriptor. Each with a listener, the first with a cable.
    fn namespace(&self) {
        let number = next();
        let named = NamedNetns::new(&format!("soak-{number}"));
        let (near, hub) = (format!("v{number}"), &self.hub.0);
        ip(&["-n", hub, "link", "add", &near, "type", "veth", "peer", "name", "far", "netns", &named.0]);
        let inside = Tree::start(named.command(holder()).args(["it", "tcp:0.0.0.0:0"]), &["it"]);
        let by_process = Tree::holder(&["netns", "tcp:127.0.0.1:0", "udp:127.0.0.1:0"]);
        let by_descriptor = Tree::holder(&["netns-tcp:0.0.0.0:0"]);
        count(&self.counts.namespaces, 3);
        drop(named);
        rest(50);
        drop((inside, by_process, by_descriptor));
    }

    /// A container with a published port.
    fn container(&self) {
        self.engine.run_briefly(&format!("soak-{}", next()));
        count(&self.counts.containers, 1);
    }

    /// Jobs that end and leave a listener behind, which goes later: a declared one each time, and one of the others.
    fn job(&self) {
        let number = next();
        let id = format!("soak-{number}");
        self.declare("start", &id);
        let declared = listener(&[&format!("env:SNIFFER_JOB_ID={id}")]);
        let other = if number.is_multiple_of(4) { self.github(number) } else { Some(self.gitlab(number)) };
        count(&self.counts.jobs, 1 + usize::from(other.is_some()));
        self.declare("end", &id);
        std::thread::sleep(LEFT);
        drop((declared, other));
    }

    /// `sniffer job start` or `end`, again while the agent is being killed.
    pub(super) fn declare(&self, verb: &str, id: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut command = self.sniffer(&["job", verb, "--id", id]);
            let output = command.output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            // It may have done so before it was killed.
            if output.status.success() || error.contains("already") {
                return;
            }
            assert!(Instant::now() < end, "{error}");
            rest(50);
        }
    }

    fn sniffer(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SNIFFER);
        command.env("SNIFFER_SOCKET", &self.agent).args(arguments).stdin(Stdio::null());
        command
    }

    /// A script of GitLab's runner that leaves a server behind.
    fn gitlab(&self, number: u64) -> Tree {
        let mut command = Command::new(program(&self.programs, "gitlab-runner"));
        command.args(["runner", "--", &program(&self.programs, "bash"), "shell", "env:GITLAB_CI=true"]);
        command.args([
            &format!("env:CI_JOB_ID={number}"),
            "env:CI_PROJECT_PATH=soak/soak",
            "setsid",
            "leave",
        ]);
        command.args(["--", holder().to_str().unwrap(), "server", "tcp:127.0.0.1:0"]);
        Tree::start(&mut command, &["runner", "shell", "server"])
    }

    /// A step of GitHub's runner that leaves a server behind; none where another test has a runner.
    fn github(&self, number: u64) -> Option<Tree> {
        let lock = std::fs::File::create("/tmp/sniffer-test-runner.lock").unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()?;
        let mut command = Command::new(program(&self.programs, "Runner.Worker"));
        command.args(["worker", &format!("env:RUNNER_TRACKING_ID=github_{number}"), "env:GITHUB_JOB=soak"]);
        command.args([
            "env:GITHUB_REPOSITORY=soak/soak",
            "--",
            &program(&self.programs, "bash"),
            "step",
            "leave",
        ]);
        command.args(["--", holder().to_str().unwrap(), "server", "tcp:127.0.0.1:0"]);
        let tree = Tree::start(&mut command, &["worker", "step", "server"]);
        tree.get("worker").kill();
        Some(tree)
    }

    /// Whatever people ask. While the agent is being killed nobody answers.
    fn ask(&self) {
        for question in [&["list"][..], &["leaks"], &["conflicts", "--since", "1m"], &["history", "1-65535"]]
        {
            let output = self.sniffer(question).arg("--json").output().unwrap();
            count(&self.counts.answers, usize::from(output.status.code() != Some(2)));
            rest(100);
        }
    }
}
