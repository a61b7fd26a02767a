//! Hard use for a while: everything that a host can do comes and goes in storms, the agent is killed again and again, and afterwards its
//! table is the kernel's, its file is whole, nobody was told twice, and it has no more of anything than before.
//!
//! `SNIFFER_SOAK_MINUTES` says how long; without it less than one. `scripts/soak` runs half an hour of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

#[path = "soak/agent.rs"]
mod agent;
#[path = "soak/churn.rs"]
mod churn;
mod common;
#[path = "soak/engine.rs"]
mod engine;
#[path = "alerts/hook.rs"]
mod hook;
#[path = "soak/kernel.rs"]
mod kernel;
#[path = "soak/told.rs"]
mod told;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent::{Figures, Remembered};
use churn::Churn;
use common::{Daemon, Held, Tree, eventually, listener};
use engine::Engine;
use told::Told;

/// Kills in half an hour, and at the least.
const KILLS_A_MINUTE: f64 = 200.0 / 30.0;
const KILLS_AT_LEAST: f64 = 10.0;
/// Shares of the whole: under kills, and then with one agent, until it is warm and after that.
const KILLED: f64 = 0.6;
const WARMS_UP: f64 = 0.12;
const GOES_ON: f64 = 0.28;
/// More than after the warming up may be there: a descriptor of a connection that ends, a worker of the runtime.
const MORE_DESCRIPTORS: usize = 4;
const MORE_THREADS: usize = 2;
/// What the allocator keeps in pieces: a tenth, and some. In a few seconds what the agent remembers of ended processes, binds and refusals
/// has not reached its bounds yet, and still grows.
const MORE_MEMORY: f64 = 1.10;
const MORE_MIB: f64 = 8.0;
const MORE_MIB_WHILE_COLD: f64 = 48.0;
/// From so many minutes on it is warm.
const WARM_MINUTES: f64 = 10.0;

#[allow(clippy::disallowed_methods, reason = "how long the test lasts is said from outside")]
fn minutes() -> f64 {
    let minutes = std::env::var("SNIFFER_SOAK_MINUTES").ok();
    minutes.map_or(0.6, |minutes| minutes.parse().expect("SNIFFER_SOAK_MINUTES is a number"))
}

#[test]
#[ignore = "needs root and Docker's engine"]
fn after_storms_and_kills_the_agent_knows_what_the_kernel_knows_and_has_no_more_than_before() {
    let minutes = minutes();
    let kills = (minutes * KILLS_A_MINUTE).max(KILLS_AT_LEAST).round() as u32;
    let share = |share: f64| Duration::from_secs_f64(60.0 * minutes * share);

    let told = Told::start();
    let engine = Engine::start();
    let engines = format!("[containers]\nengines = [\"{}\"]\n", engine.socket().display());
    let mut daemon = Daemon::start(&format!("{engines}{}", told.config()));
    let churn = Churn::new(daemon.socket(), engine);
    // Open over all kills, and over the end of the job.
    let stays = Tree::holder(&["tcp:127.0.0.1:0"]);
    churn.declare("start", "stays");
    let left = listener(&["env:SNIFFER_JOB_ID=stays"]);
    daemon.who_holds(left.get("server").port());
    churn.declare("end", "stays");
    told.fires(left.get("server").port());

    let mut slowest = Duration::ZERO;
    let begun = Instant::now();
    churn.run(begun + share(KILLED), || {
        for kill in 0..kills {
            let at = begun + share(KILLED) * kill / kills;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            told.note_kill();
            slowest = slowest.max(agent::kill_and_restart(&mut daemon));
            let found =
                agent::answer(&daemon, &["who-holds", &format!("127.0.0.1:{}/tcp", stays.it().port())]);
            assert_eq!(common::holders(&found["claims"][0]), [stays.it().pid], "{found:#}");
        }
    });
    churn.run(Instant::now() + share(WARMS_UP), || ());
    let over = if minutes < WARM_MINUTES { agent::A_WHILE } else { agent::A_LONGER_WHILE };
    let warm = agent::figures(&daemon, over);
    churn.run(Instant::now() + share(GOES_ON), || ());
    eventually("no namespace is kept alive", || cables(&churn).is_empty().then_some(()));
    let after = agent::figures(&daemon, over);

    let sockets = agent::table_is_the_kernels(&daemon);
    let open = agent::open_holds_are_the_kernels(&daemon);
    let file = agent::remembered(&daemon);
    show(&churn, &daemon, (kills, slowest), (sockets, open), &file, told.count(), (warm, after));
    one_hold(&daemon, stays.it());
    one_hold(&daemon, left.get("server"));
    assert_eq!(daemon.verdict(left.get("server").port()).0, "leaked");
    told.each_once();
    has_not_grown(warm, after, if minutes < WARM_MINUTES { MORE_MIB_WHILE_COLD } else { MORE_MIB });
    assert!(!daemon.log().contains("panicked"), "the agent has panicked");
}

/// Ends of cables in the hub: each belongs to a namespace that is there.
fn cables(churn: &Churn) -> Vec<String> {
    let output = churn.hub.command("ip").args(["-oneline", "link", "show", "type", "veth"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// What a process had open over all kills is one hold, which goes on. Elsewhere others may have had a port of the same number.
#[track_caller]
fn one_hold(daemon: &Daemon, held: &Held) {
    let document = agent::answer(daemon, &["history", &format!("127.0.0.1:{}/tcp", held.port())]);
    let holds = document["holds"].as_array().unwrap();
    let own: Vec<_> = holds.iter().filter(|hold| hold["holder"]["pid"] == held.pid).collect();
    assert!(own.len() == 1 && own[0]["until"].is_null(), "{document:#}");
}

#[track_caller]
fn has_not_grown(warm: Figures, after: Figures, more_mib: f64) {
    assert!(after.descriptors <= warm.descriptors + MORE_DESCRIPTORS, "{warm:?} {after:?}");
    assert!(after.threads <= warm.threads + MORE_THREADS, "{warm:?} {after:?}");
    assert!(after.resident_mib <= warm.resident_mib * MORE_MEMORY + more_mib, "{warm:?} {after:?}");
    assert_eq!((warm.namespaces, after.namespaces), (0, 0), "it keeps network namespaces open");
}

#[allow(clippy::print_stdout, reason = "whoever lets it soak wants to see what it did")]
fn show(
    churn: &Churn,
    daemon: &Daemon,
    (kills, slowest): (u32, Duration),
    (sockets, open): (usize, usize),
    file: &Remembered,
    alerts: usize,
    (warm, after): (Figures, Figures),
) {
    let counts = &churn.counts;
    let counted = [
        ("processes", &counts.processes),
        ("sockets, kept a while", &counts.sockets),
        ("binds in storms", &counts.storm_binds),
        ("refused binds", &counts.refusals),
        ("network namespaces", &counts.namespaces),
        ("containers", &counts.containers),
        ("jobs that left a listener", &counts.jobs),
        ("answers", &counts.answers),
    ];
    println!("\nwhat happened                       count");
    for (what, counter) in counted {
        println!("{what:<32} {:>8}", counter.load(Ordering::Relaxed));
    }
    println!("{:<32} {kills:>8}  ready again after {slowest:.1?} at the most", "kills of the agent");
    println!("\nof the last agent, after            warming up   the end");
    println!("{:<34} {:>11} {:>9}", "descriptors", warm.descriptors, after.descriptors);
    println!("{:<34} {:>11} {:>9}", "threads", warm.threads, after.threads);
    println!("{:<34} {:>11.1} {:>9.1}", "resident memory, MiB", warm.resident_mib, after.resident_mib);
    println!("{:<34} {:>11} {:>9}", "other namespaces it has open", warm.namespaces, after.namespaces);
    println!("\nat the end");
    println!("{sockets} sockets are listed, and the kernel has the same; {open} holds go on, and no other");
    println!(
        "the file has {} holds and {} refusals, {:.1} MiB, and is whole",
        file.holds,
        file.refusals,
        file.bytes as f64 / 1_048_576.0
    );
    println!("{alerts} alerts were told");
    for family in ["sniffer_events_total", "sniffer_events_lost_total", "sniffer_history_lost_total"] {
        println!("{family} {}", agent::sum(daemon, family));
    }
}
