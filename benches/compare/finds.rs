//! Ports that are taken in several ways, and which tool names who has them. Every mark is read from a real answer.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use crate::common::daemon::Daemon;
use crate::common::load::{Load, Scale};
use crate::common::table::markdown;
use crate::common::{Failure, interrupt, worker};
use crate::questions::{names, output};
use crate::tools::Tool;

const JOB: &str = "0191-compare";
/// Nobody answers there: it is only the target of a rule.
const NAT_TARGET: &str = "192.0.2.5";
const NAT_PORT: u16 = 30_445;
/// The agent sees a change by an event, or at its next look.
const SEEN: Duration = Duration::from_secs(3);

/// A child that ends with its guard.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A listener of a CI job, with its port.
fn of_job() -> Result<(Process, u16), Failure> {
    let failed = |error: std::io::Error| format!("the job's process cannot be started: {error}");
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args([worker::ARGUMENT, "1", "4"]).env("BUILDKITE", "true").env("BUILDKITE_JOB_ID", JOB);
    let mut child = Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?);
    let mut line = String::new();
    let stdout = child.0.stdout.take().ok_or("the job's process says nothing")?;
    BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    let port = line.split_whitespace().nth(1).and_then(|port| port.parse().ok());
    Ok((child, port.ok_or_else(|| format!("the job's process said {line:?}"))?))
}

/// A port that only connections in TIME_WAIT have.
fn time_wait() -> std::io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let client = TcpStream::connect(address)?;
    let (server, _) = listener.accept()?;
    // Who closes first waits.
    server.shutdown(Shutdown::Both)?;
    drop(server);
    std::thread::sleep(Duration::from_millis(50));
    drop(client);
    Ok(address.port())
}

/// A TCP socket that is bound and does not listen.
fn bound() -> rustix::io::Result<(OwnedFd, u16)> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let name = SocketAddrV4::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, name.port()))
}

pub(crate) fn table(tools: &[Tool]) -> Result<String, Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    let load = Load::make(Scale { processes: 4, descriptors: 10, listeners: 10, namespaces: 1 })?;
    let inside = load.unique(true)?;
    let netns = inside.netns.as_deref().ok_or("a listener inside has no namespace")?;
    let rule = format!(
        "add table ip nat; add chain ip nat pre {{ type nat hook prerouting priority -100; }}; add rule ip nat pre tcp dport {NAT_PORT} dnat to {NAT_TARGET}:80"
    );
    let nft = output(Command::new("ip").args(["netns", "exec", netns, "nft", &rule]))?;
    if !nft.status.success() {
        return Err(format!("nft: {}", String::from_utf8_lossy(&nft.stderr)));
    }
    let directory = tempfile::tempdir().map_err(failed("no temporary directory"))?;
    let mut daemon = Daemon::start(directory.path())?;
    daemon.wait_ready()?;

    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed("no listener"))?;
    let port = listener.local_addr().map_err(failed("no listener"))?.port();
    let inherited: OwnedFd = listener.try_clone().map_err(failed("no second descriptor"))?.into();
    let heir = Command::new("sleep").arg("600").stdin(Stdio::from(inherited)).spawn().map(Process);
    let heir = heir.map_err(failed("sleep"))?;
    let (_bound, bound_port) = bound().map_err(|error| failed("no bound socket")(error.into()))?;
    let waiting = time_wait().map_err(failed("no TIME_WAIT"))?;
    let (job, job_port) = of_job()?;
    let (mut gone, gone_port) = of_job()?;
    let gone_pid = gone.0.id();
    interrupt::sleep(SEEN)?;
    gone.0.stdin.take();
    gone.0.wait().map_err(failed("a process does not end"))?;
    interrupt::sleep(SEEN)?;

    let own = std::process::id();
    let says = |output: &Output, words: &[&str]| {
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        words.iter().any(|word| text.contains(&word.to_lowercase()))
    };
    let mut rows = Vec::new();
    for tool in tools {
        interrupt::check()?;
        let ask = |port: u16| output(&mut tool.ask(port, &daemon.socket));
        let of_nat = output(&mut tool.ask_within(netns, NAT_PORT, &daemon.socket))?;
        let line = |output: Output, port: u16| {
            // Of a tool that lists all, what is about the port.
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let about =
                text.lines().filter(|line| line.contains(&port.to_string())).collect::<Vec<_>>().join("\n");
            Output { stdout: about.into_bytes(), ..output }
        };
        let both = ask(port)?;
        // The past is another question, which the others have no word for.
        let past = match tool.daemon {
            Some(true) => {
                let mut history = Command::new(crate::common::daemon::SNIFFER);
                history.args(["history", &gone_port.to_string()]).env("SNIFFER_SOCKET", &daemon.socket);
                output(&mut history)?
            }
            _ => ask(gone_port)?,
        };
        let found = [
            names(&both, port, own),
            names(&both, port, own) && names(&both, port, heir.0.id()),
            names(&ask(inside.port)?, inside.port, inside.pid),
            names(&ask(bound_port)?, bound_port, own),
            says(&line(ask(waiting)?, waiting), &["time_wait", "time-wait", "timewait"]),
            says(&of_nat, &[NAT_TARGET]),
            says(&ask(job_port)?, &[JOB]),
            names(&past, gone_port, gone_pid),
        ];
        let mut cells = vec![
            format!("`{}`", tool.line()),
            if tool.daemon == Some(true) { "with its daemon" } else { "" }.to_owned(),
        ];
        cells.extend(found.map(|found| if found { "yes" } else { "-" }.to_owned()));
        rows.push(<[String; 10]>::try_from(cells).map_err(|_| "a row has as many cells as the head")?);
    }
    drop((job, load));
    let head = [
        "tool",
        "",
        "the holder",
        "every holder",
        "in another namespace",
        "bound, not listening",
        "TIME_WAIT",
        "NAT rule",
        "CI job",
        "who had it before",
    ];
    Ok(markdown(head, rows))
}
