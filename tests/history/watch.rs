//! `--watch`: the answer again whenever it changes.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::common::{Daemon, Tree, alone, ports_of_ones_own};

struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(command: &mut Command) -> Watch {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watch { child, lines }
    }

    /// The next document.
    fn document(&mut self) -> Value {
        let line = self.lines.next().expect("it goes on").unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Documents until one has so many claims.
    fn until(&mut self, claims: usize) -> Value {
        loop {
            let document = self.document();
            if document["claims"].as_array().unwrap().len() == claims {
                return document;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn each_change_is_a_line_of_json() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    let mut watch = Watch::start(&mut daemon.ask(&["who-holds", &port.to_string(), "--watch", "--json"]));
    assert_eq!(watch.document()["claims"], Value::Array(vec![]));
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    let held = watch.until(1);
    assert_eq!(
        (&held["claims"][0]["holders"][0]["pid"], &held["source"]),
        (&tree.it().pid.into(), &"daemon".into())
    );
    drop(tree);
    watch.until(0);
}

#[test]
#[ignore = "needs root"]
fn it_is_told_as_text_too_and_without_a_daemon() {
    let [port] = ports_of_ones_own();
    let mut watch = Watch::start(alone().args(["who-holds", &port.to_string(), "--watch"]));
    let mut says = |words: &str| {
        let lines: Vec<String> =
            watch.lines.by_ref().map(Result::unwrap).take_while(|line| !line.contains(words)).collect();
        assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "no terminal is there: {lines:?}");
    };
    says("nobody holds it");
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    says(&format!("is held by holder (pid {})", tree.it().pid));
    drop(tree);
    says("nobody holds it");
    let mut list = Watch::start(alone().args(["list", "--watch"]));
    assert!(list.lines.next().unwrap().unwrap().starts_with("--- "));
}

#[test]
#[ignore = "needs root"]
fn whoever_stops_reading_ends_it() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    let mut watch = Watch::start(&mut daemon.ask(&["who-holds", &port.to_string(), "--watch", "--json"]));
    watch.document();
    let Watch { child, lines } = &mut watch;
    // The pipe's reading end goes with the reader.
    let empty =
        BufReader::new(Command::new("true").stdout(Stdio::piped()).spawn().unwrap().stdout.take().unwrap());
    drop(std::mem::replace(lines, empty.lines()));
    let _tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
