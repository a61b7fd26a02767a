//! Five incidents of other projects' CI, each replayed with real processes, namespaces, rules and limits, and what the product says of
//! it: text, JSON, metrics. docs/incidents.md tells them with this very output.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

#[path = "incidents/fixed_port.rs"]
mod fixed_port;
#[path = "incidents/left_behind.rs"]
mod left_behind;
#[path = "incidents/node_port.rs"]
mod node_port;
#[path = "incidents/out_of_memory.rs"]
mod out_of_memory;
#[path = "incidents/sample.rs"]
mod sample;
#[path = "incidents/stale_view.rs"]
mod stale_view;

use std::fs::{self, File};
use std::path::Path;

use common::{Daemon, NamedNetns, eventually, run};

/// What a command of the client prints, with this exit code. Times are those of UTC, as in the samples.
#[track_caller]
fn printed(daemon: &Daemon, arguments: &[&str], code: i32) -> String {
    let (exit, stdout, stderr) = run(daemon.ask(arguments).env("TZ", "UTC"));
    assert_eq!((exit, stderr.as_str()), (code, ""), "{arguments:?}: {stdout}");
    stdout
}

/// Waits until a series counts so many at least: others on this host may add to it.
#[track_caller]
fn counted(daemon: &Daemon, series: &str, least: f64) {
    eventually(series, || daemon.metric(series).filter(|value| *value >= least));
}

/// Does something in a namespace: sockets that it makes stay there.
fn inside<T: Send + 'static>(netns: &NamedNetns, act: impl FnOnce() -> T + Send + 'static) -> T {
    let entered = File::open(format!("/run/netns/{}", netns.0)).unwrap();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(&entered, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        act()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn the_documentation_shows_what_is_really_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = fs::read_to_string(root.join("docs/incidents.md")).unwrap();
    let mut shown = 0;
    for entry in fs::read_dir(root.join("tests/incidents/snapshots")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "snap") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let printed = text.splitn(3, "---\n").nth(2).expect("a snapshot has a head").trim_end();
        assert!(told.contains(printed), "docs/incidents.md does not show {}:\n{printed}", path.display());
        shown += 1;
    }
    assert_eq!(shown, 11, "every command of the chapters has its snapshot");
}
