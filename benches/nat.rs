//! `cargo bench --bench nat`: what it takes to read 2,000 NAT rules and to follow them to the ports that they take, once they have
//! changed and once they have not, and how long `sniffer can-bind` takes beside a daemon on such a host.
//!
//! The rules are made in a network namespace of the benchmark's own, which it removes. Prints a markdown table. Needs root, `ip`, `nft`
//! and `iptables`. Exit code 1 where a target is missed or nothing could be measured.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "common/mod.rs"]
mod common;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sched::{CloneFlags, setns};
use sniffer::judge::nat;
use sniffer::kernel::nat::{Makers, NatTables, Room, Whose};
use sniffer::kernel::surroundings;

use common::Failure;
use common::daemon::{Daemon, SNIFFER};
use common::table::{markdown, median};

const RULES: usize = 2000;
/// The first port of the rules.
const FIRST: usize = 10_000;
const SETTLE: Duration = Duration::from_secs(3);
/// Targets, in milliseconds.
const READING_MS: f64 = 25.0;
const CAN_BIND_MS: f64 = 5.0;

/// What reading NAT rules takes.
#[derive(Debug, Parser)]
struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Given by `cargo bench`; without it, as in `cargo test --benches`, nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        return ExitCode::SUCCESS;
    }
    match measure(options.rounds.max(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("nat: {why}");
            ExitCode::FAILURE
        }
    }
}

/// A network namespace that ends with its owner.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Result<Self, Failure> {
        let netns = Netns(format!("sniffer-bench-{name}-{}", std::process::id()));
        run("ip", &["netns", "add", &netns.0], "")?;
        Ok(netns)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| format!("{program} does not run: {error}");
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().map_err(failed)?;
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes())).map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(()) } else { Err(format!("{program} {} failed", arguments.join(" "))) }
}

/// A rule a port, as a firewall script writes them.
fn native() -> String {
    let mut text = "table ip t {\nchain c {\ntype nat hook prerouting priority -100\n".to_owned();
    for n in 0..RULES {
        let _ = writeln!(
            text,
            "tcp dport {} dnat to 10.{}.{}.1:80 comment \"rule {n}\"",
            FIRST + n,
            n / 250,
            n % 250
        );
    }
    text + "}\n}\n"
}

/// NodePorts as kube-proxy makes them: four rules and three chains for a service with two servers.
fn services() -> String {
    let mut text = "*nat\n:KUBE-NODEPORTS - [0:0]\n".to_owned();
    let mut rules = "-A PREROUTING -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n".to_owned();
    for n in 0..RULES / 4 {
        let comment = format!("-m comment --comment \"ns/service-{n}:http\"");
        let _ = writeln!(text, ":KUBE-SVC-{n} - [0:0]\n:KUBE-SEP-{n}-0 - [0:0]\n:KUBE-SEP-{n}-1 - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-NODEPORTS -p tcp {comment} -m tcp --dport {} -j KUBE-SVC-{n}",
            FIRST + n
        );
        let _ =
            writeln!(rules, "-A KUBE-SVC-{n} -m statistic --mode random --probability 0.5 -j KUBE-SEP-{n}-0");
        let _ = writeln!(rules, "-A KUBE-SVC-{n} -j KUBE-SEP-{n}-1");
        for server in 0..2 {
            let _ = writeln!(
                rules,
                "-A KUBE-SEP-{n}-{server} -p tcp -m tcp -j DNAT --to-destination 10.244.{}.{}:80",
                n / 250,
                n % 250
            );
        }
    }
    text + &rules + "COMMIT\n"
}

/// Times of reading and following the rules of a namespace: when they have changed, and when they have not. In milliseconds.
fn read(netns: &Netns, rounds: usize) -> Result<(Vec<f64>, Vec<f64>, usize), Failure> {
    let entered = File::open(format!("/run/netns/{}", netns.0)).map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        setns(&entered, CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
        let addresses: Vec<_> = surroundings::addresses()
            .map_err(|error| error.to_string())?
            .iter()
            .map(|local| local.address)
            .collect();
        let (mut changed, mut same, mut count) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let tables = NatTables::default();
            let begun = Instant::now();
            let found = tables
                .read(Makers::probe(), &Room::default(), Whose::Own)
                .map_err(|error| error.to_string())?;
            count = nat::claims(&found, Some(&addresses)).claims.len();
            changed.push(begun.elapsed().as_secs_f64() * 1000.0);
            let begun = Instant::now();
            let again = tables
                .read(Makers::probe(), &Room::default(), Whose::Own)
                .map_err(|error| error.to_string())?;
            same.push(begun.elapsed().as_secs_f64() * 1000.0);
            if !std::sync::Arc::ptr_eq(&found, &again) {
                return Err("rules that did not change were read again".to_owned());
            }
        }
        Ok((changed, same, count))
    })
    .join()
    .map_err(|_| "the reading failed".to_owned())?
}

/// Times of `sniffer can-bind` beside a daemon, in milliseconds.
fn can_bind(rounds: usize) -> Result<Vec<f64>, Failure> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut daemon = Daemon::start(directory.path())?;
    daemon.wait_ready()?;
    // What a start leaves to do is none of the question's business.
    std::thread::sleep(SETTLE);
    let mut times = Vec::new();
    for n in 0..rounds {
        let begun = Instant::now();
        let output = Command::new(SNIFFER)
            .args(["can-bind", &(FIRST + n).to_string(), "--json"])
            .env("SNIFFER_SOCKET", &daemon.socket)
            .output()
            .map_err(|error| error.to_string())?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        if !String::from_utf8_lossy(&output.stdout).contains("\"daemon\"") {
            return Err(format!("the daemon did not answer: {}", daemon.said()));
        }
    }
    Ok(times)
}

/// Times of a command that does nothing, in milliseconds.
fn nothing(rounds: usize) -> Result<Vec<f64>, Failure> {
    let once = |_| {
        let begun = Instant::now();
        let output = Command::new("true").output().map_err(|error| error.to_string())?;
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        if output.status.success() { Ok(took) } else { Err("true is false".to_owned()) }
    };
    (0..rounds).map(once).collect()
}

fn measure(rounds: usize) -> Result<bool, Failure> {
    let (plain, kube, legacy) = (Netns::new("native")?, Netns::new("kube")?, Netns::new("legacy")?);
    run("ip", &["netns", "exec", &plain.0, "nft", "-f", "-"], &native())?;
    run("ip", &["netns", "exec", &kube.0, "iptables-nft-restore"], &services())?;
    run("ip", &["netns", "exec", &legacy.0, "iptables-legacy-restore"], &services())?;
    let mut rows = Vec::new();
    let mut met = true;
    let mut row = |what: String, times: &[f64], target: Option<f64>| {
        let middle = median(times);
        let worst = times.iter().copied().fold(0.0, f64::max);
        let ok = target.is_none_or(|target| middle <= target);
        met &= ok;
        rows.push([
            what,
            format!("{middle:.2} ms"),
            format!("{worst:.2} ms"),
            target.map(|target| format!("≤ {target} ms")).unwrap_or_default(),
            target.map_or("", |_| if ok { "ok" } else { "MISSED" }).to_owned(),
        ]);
    };
    for (what, netns) in
        [("nftables", &plain), ("iptables-nft, NodePorts", &kube), ("iptables-legacy, NodePorts", &legacy)]
    {
        let (changed, same, claims) = read(netns, rounds)?;
        row(format!("{RULES} rules of {what}, changed: {claims} claims"), &changed, Some(READING_MS));
        row(format!("{RULES} rules of {what}, not changed"), &same, None);
    }
    row("`true`, which does nothing: what a command costs here".to_owned(), &nothing(rounds)?, None);
    row("`sniffer can-bind P`, daemon".to_owned(), &can_bind(rounds)?, Some(CAN_BIND_MS));
    println!("{}", markdown(["measured", "median", "worst", "target", "result"], rows));
    Ok(met)
}
