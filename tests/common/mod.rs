//! What live tests share: process trees made of `holder`, the command, a daemon of the test's own, and waiting.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests; each test file uses some of them"
)]

pub mod cgroup;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a loaded machine; a condition that holds is noticed within milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Debian's `nobody` and its group `nogroup`.
const NOBODY: u32 = 65_534;

/// The command under test.
pub const SNIFFER: &str = env!("CARGO_BIN_EXE_sniffer");

/// Where the holder program lies: cargo builds examples beside the binary.
pub fn holder() -> PathBuf {
    Path::new(SNIFFER).parent().unwrap().join("examples/holder")
}

/// Waits until `look` finds something.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A directory for programs and sockets that every user can reach.
pub fn open_directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("sniffer-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A program under another name: the name it is called by is what the kernel calls the process. A link, since a copy that
/// another test's fork still has open for writing cannot be run.
pub fn program(directory: &TempDir, name: &str) -> String {
    let path = directory.path().join(name);
    if !path.exists() {
        std::os::unix::fs::symlink(holder(), &path).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

/// A process that said that it is there.
#[derive(Debug, Clone)]
pub struct Held {
    pub pid: u32,
    pub ports: Vec<u16>,
    /// What else it said.
    pub words: Vec<String>,
}

impl Held {
    /// Reads `LABEL PID PORT… WORD…`.
    fn read(line: &str) -> (String, Held) {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let label = words.next().unwrap().to_owned();
        let pid = words.next().and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("who is {line:?}?"));
        let (ports, words): (Vec<&str>, Vec<&str>) = words.partition(|word| word.parse::<u16>().is_ok());
        let ports = ports.into_iter().filter_map(|port| port.parse().ok()).collect();
        (label, Held { pid, ports, words: words.into_iter().map(str::to_owned).collect() })
    }

    /// The numbers it said after `name:`.
    pub fn said(&self, name: &str) -> Vec<i128> {
        let values = self.words.iter().filter_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
        values.map(|value| value.parse().unwrap()).collect()
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Ends it as a crash would.
    pub fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }

    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }
}

/// A tree of processes. All of them end with it, since they share its standard input.
pub struct Tree {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    pub members: HashMap<String, Held>,
}

impl Tree {
    /// Starts a tree and waits until these labels have said that they are there.
    #[track_caller]
    pub fn start(command: &mut Command, labels: &[&str]) -> Tree {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut tree = Tree { child, stdin, lines, members: HashMap::new() };
        while labels.iter().any(|label| !tree.members.contains_key(*label)) {
            tree.hear();
        }
        tree
    }

    /// Waits until one of them says something, for the first time or again; answers who.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        let line = self.lines.next().expect("the tree says who is there").unwrap();
        let (label, held) = Held::read(&line);
        self.members.insert(label.clone(), held);
        label
    }

    /// One process: `holder LABEL ACTIONS`.
    #[track_caller]
    pub fn holder(actions: &[&str]) -> Tree {
        Tree::start(Command::new(holder()).arg("it").args(actions), &["it"])
    }

    #[track_caller]
    pub fn get(&self, label: &str) -> &Held {
        &self.members[label]
    }

    pub fn it(&self) -> &Held {
        self.get("it")
    }

    /// Waits for the end of one that ends by itself.
    #[track_caller]
    pub fn wait(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
        // The children's ends are waited for, so that no port of theirs is seen by the next test.
        let end = Instant::now() + DEADLINE;
        while self.members.values().any(Held::is_alive) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process with these variables, and a listener that it starts: `shell` and `server`.
#[track_caller]
pub fn listener(variables: &[&str]) -> Tree {
    let mut command = Command::new(holder());
    command.arg("shell").args(variables);
    command.args(["--", holder().to_str().unwrap(), "server", "tcp:127.0.0.1:0"]);
    Tree::start(&mut command, &["shell", "server"])
}

/// The command without a daemon.
pub fn alone() -> Command {
    let mut command = Command::new(SNIFFER);
    command.env("SNIFFER_SOCKET", "/nonexistent/sniffer.sock");
    command
}

/// Runs, and answers with exit code, standard output and standard error.
#[track_caller]
pub fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

/// Runs with `--json` and answers with exit code and document.
#[track_caller]
pub fn json(command: &mut Command) -> (i32, Value) {
    let (code, stdout, stderr) = run(command.arg("--json"));
    let document =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"));
    (code, document)
}

/// The claims of a document whose `field` is `value`.
pub fn claims<'a>(document: &'a Value, field: &str, value: &str) -> Vec<&'a Value> {
    document["claims"].as_array().unwrap().iter().filter(|claim| claim[field] == value).collect()
}

/// Pids of a claim's holders.
pub fn holders(claim: &Value) -> Vec<u32> {
    let mut pids: Vec<u32> = claim["holders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|holder| holder["pid"].as_u64().unwrap() as u32)
        .collect();
    pids.sort_unstable();
    pids
}

/// A daemon of the test's own.
pub struct Daemon {
    pub child: Child,
    pub directory: TempDir,
    pub metrics: String,
}

impl Daemon {
    /// Starts with short times; `more` goes into config.toml, whose `[leak] grace` is 300 ms.
    #[track_caller]
    pub fn start(more: &str) -> Daemon {
        Daemon::start_in(open_directory(), more)
    }

    #[track_caller]
    pub fn start_in(directory: TempDir, more: &str) -> Daemon {
        let metrics = Daemon::configure(&directory, more);
        let child = Daemon::command(&directory).spawn().unwrap();
        let mut daemon = Daemon { child, directory, metrics };
        daemon.wait_until_ready();
        daemon
    }

    /// Starts it in surroundings that the holder makes with these actions.
    #[track_caller]
    pub fn start_by(actions: &[&str], more: &str) -> Daemon {
        let directory = open_directory();
        let metrics = Daemon::configure(&directory, more);
        let command = Daemon::command(&directory);
        let mut by_holder = within(actions, &command);
        let child = Daemon::logged(&mut by_holder, &directory).spawn().unwrap();
        let mut daemon = Daemon { child, directory, metrics };
        daemon.wait_until_ready();
        daemon
    }

    /// Starts it as a user of its own with these capabilities (capabilities(7), without `CAP_`, in small letters) and no others.
    #[track_caller]
    pub fn start_with_capabilities(capabilities: &[&str], more: &str) -> Daemon {
        let directory = open_directory();
        let metrics = Daemon::configure(&directory, more);
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let program = directory.path().join("sniffer");
        fs::copy(SNIFFER, &program).unwrap();
        let set = capabilities.iter().fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
        command.args(["--clear-groups", "--no-new-privs"]);
        command.args(["inh-caps", "ambient-caps", "bounding-set"].map(|kind| format!("--{kind}={set}")));
        command.arg(program).arg("daemon").arg("--config").arg(directory.path().join("config.toml"));
        let child = Daemon::logged(&mut command, &directory).spawn().unwrap();
        let mut daemon = Daemon { child, directory, metrics };
        daemon.wait_until_ready();
        daemon
    }

    /// Writes its configuration; answers where its metrics are.
    fn configure(directory: &TempDir, more: &str) -> String {
        let port = free_port();
        let metrics = format!("127.0.0.1:{port}");
        let config = format!(
            "control.socket = \"{}\"\nmetrics.listen = \"{metrics}\"\nwatch.interval = \"200ms\"\nleak.grace = \"300ms\"\nhistory.path = \"{}\"\nagent.state = \"{}\"\n{more}\n",
            directory.path().join("s.sock").display(),
            directory.path().join("history.db").display(),
            directory.path().join("state.json").display()
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        metrics
    }

    pub fn command(directory: &TempDir) -> Command {
        let mut command = Command::new(SNIFFER);
        command.arg("daemon").arg("--config").arg(directory.path().join("config.toml"));
        Daemon::logged(&mut command, directory);
        command
    }

    fn logged<'a>(command: &'a mut Command, directory: &TempDir) -> &'a mut Command {
        let log = File::options().create(true).append(true).open(directory.path().join("log")).unwrap();
        command
            .env("SNIFFER_LOG", "sniffer=debug")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
    }

    /// Ends it as a crash would, and starts it again.
    #[track_caller]
    pub fn crash_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Daemon::command(&self.directory).spawn().unwrap();
        self.wait_until_ready();
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        eventually("the daemon is ready", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended: {}", self.log());
            self.get("/readyz").filter(|(status, _)| *status == 200)
        });
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s.sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The command, asking this daemon.
    pub fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SNIFFER);
        command.env("SNIFFER_SOCKET", self.socket()).args(arguments);
        command
    }

    /// What it keeps for the next one, once that is so.
    #[track_caller]
    pub fn kept(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let read = || serde_json::from_slice(&fs::read(self.directory.path().join("state.json")).ok()?).ok();
        eventually(what, || read().filter(&is_so).map(drop));
    }

    /// `sniffer job start` or `end`.
    #[track_caller]
    pub fn job(&self, verb: &str, id: &str) {
        let (code, _, stderr) = run(&mut self.ask(&["job", verb, "--id", id]));
        assert_eq!(code, 0, "{stderr}");
    }

    /// A listener that has outlived its declared job: it leaks when its grace is over. With its port.
    #[track_caller]
    pub fn leftover(&self, id: &str) -> (Tree, u16) {
        self.job("start", id);
        let tree = listener(&[&format!("env:SNIFFER_JOB_ID={id}")]);
        let port = tree.get("server").port();
        assert_eq!(self.who_holds(port)["claims"][0]["job"]["id"], id);
        self.job("end", id);
        (tree, port)
    }

    /// The verdict on the listener of a port, and its claim.
    #[track_caller]
    pub fn verdict(&self, port: u16) -> (String, Value) {
        let claim = self.who_holds(port)["claims"][0].clone();
        (claim["verdict"].as_str().unwrap_or("none").to_owned(), claim)
    }

    #[track_caller]
    pub fn who_holds(&self, port: u16) -> Value {
        let (_, document) = json(&mut self.ask(&["who-holds", &port.to_string()]));
        assert_eq!(document["source"], "daemon", "{}", self.log());
        document
    }

    /// Status and body of an HTTP request to the metrics address.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = std::net::TcpStream::connect(&self.metrics).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    }

    /// The value of one series.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics")?;
        body.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprint_log(&self.log());
        }
    }
}

/// The same command in surroundings that the holder makes with these actions, before it becomes that program.
pub fn within(actions: &[&str], command: &Command) -> Command {
    let mut by_holder = Command::new(holder());
    by_holder
        .arg("within")
        .args(actions)
        .args(["exec", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => by_holder.env(name, value),
            None => by_holder.env_remove(name),
        };
    }
    by_holder
}

#[allow(clippy::print_stderr, reason = "a failing test shows the daemon's log")]
pub fn eprint_log(log: &str) {
    eprintln!("--- the daemon's log\n{log}---");
}

/// Ports below those that the kernel chooses from (32768 and up, ip_local_port_range), which nobody has and no other test is
/// given. They are read, not tried: a watching agent would hear of it.
#[track_caller]
pub fn ports_of_ones_own<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let tables =
        ["tcp", "tcp6", "udp", "udp6"].map(|table| std::fs::read_to_string(format!("/proc/net/{table}")));
    let taken: String = tables.into_iter().flatten().collect();
    let own = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let is_free = |port: &u16| !taken.contains(&format!(":{port:04X} "));
    let free: Vec<u16> = own.take_while(|port| *port < 32_000).filter(is_free).take(N).collect();
    free.try_into().expect("some ports are free")
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One test at a time, across processes: a `Runner.Worker` of another test could be the worker of this one's leftovers, and
/// the agent rightly would not call them leaked.
pub fn one_runner_on_this_host() -> File {
    let lock = File::create("/tmp/sniffer-test-runner.lock").unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    lock
}

/// A named network namespace of the test's own.
pub struct NamedNetns(pub String);

impl NamedNetns {
    #[track_caller]
    pub fn new(name: &str) -> NamedNetns {
        let name = format!("sniffer-test-{name}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        NamedNetns(name)
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program);
        command
    }

    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(format!("/run/netns/{}", self.0)).unwrap().ino()
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Runs ip(8).
#[track_caller]
pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
