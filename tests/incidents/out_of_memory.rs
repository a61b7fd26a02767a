//! Knative / Kourier: a gateway that reached its limit of memory, was killed, came back, and was killed again. Here with a real limit
//! and the kernel's OOM killer.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::common::cgroup::Small;
use crate::common::{self, Daemon, Tree, eventually, open_directory, ports_of_ones_own, program};
use crate::sample::Sample;
use crate::{counted, printed};

const TIMES: usize = 3;
/// What whoever starts it again waits first, as kubelet does.
const BACK_OFF: Duration = Duration::from_millis(1200);

fn holds(daemon: &Daemon, port: u16) -> Vec<Value> {
    let (_, document) = common::json(&mut daemon.ask(&["history", &port.to_string()]));
    document["holds"].as_array().unwrap().clone()
}

/// The holds, once there are so many and the newest is described. Whose memory is whose is read of a process that lives, which a gateway
/// does for longer than the time between two looks.
#[track_caller]
fn described(daemon: &Daemon, port: u16, count: usize) -> Vec<Value> {
    eventually("its holder is described", || {
        let holds = holds(daemon, port);
        let last = holds.last().filter(|_| holds.len() == count)?;
        last["holder"]["cgroup"].is_string().then_some(holds)
    })
}

#[test]
#[ignore = "needs root"]
fn a_gateway_that_the_oom_killer_takes_again_and_again_is_told_with_when_why_and_how_often() {
    let daemon = Daemon::start("");
    let cgroup = Small::new("kourier");
    let directory = open_directory();
    let [port] = ports_of_ones_own();
    let gateway = |fate: &[&str]| {
        program(&directory, "envoy");
        let mut command = Command::new("./envoy");
        command.current_dir(directory.path());
        command.args(["it", &format!("put-into:{}", cgroup.path.display()), "with:reuseaddr"]);
        command.args([&format!("tcp:127.0.0.1:{port}"), "say"]).args(fate);
        Tree::start(&mut command, &["it"])
    };
    for time in 1..=TIMES {
        // Certificates come in until there is no memory left.
        let full = directory.path().join(format!("full-{time}"));
        let tree = gateway(&[&format!("wait:{}", full.display()), &cgroup.eat()]);
        assert_eq!(common::holders(&daemon.who_holds(port)["claims"][0]), [tree.it().pid]);
        described(&daemon, port, time);
        fs::write(&full, "").unwrap();
        let lost =
            eventually("it is lost", || holds(&daemon, port).pop().filter(|hold| !hold["until"].is_null()));
        assert_eq!((&lost["end"], &lost["exit"]["signal"]), (&"oom_killed".into(), &9.into()), "{lost:#}");
        assert_eq!(lost["holder"]["pid"], tree.it().pid);
        // Whoever asks while it is gone is told why.
        let told = printed(&daemon, &["who-holds", &port.to_string()], 1);
        assert!(told.contains("killed by the OOM killer in control group"), "{told}");
        assert_eq!(told.contains(&format!("It has happened {time} times")), time > 1, "{told}");
        std::thread::sleep(BACK_OFF);
    }
    let back = gateway(&[]);
    let holds = described(&daemon, port, TIMES + 1);

    // It was lost because its process was killed, in which control group; it is back, as whom, and how often that has been so.
    let claim = daemon.who_holds(port)["claims"][0].clone();
    let comeback = &claim["comeback"];
    let lost = &holds[TIMES - 1];
    let name = cgroup.path.file_name().unwrap().to_str().unwrap();
    assert_eq!(common::holders(&claim), [back.it().pid]);
    assert_eq!((&comeback["end"], &comeback["times"]), (&"oom_killed".into(), &TIMES.into()), "{claim:#}");
    assert_eq!((&comeback["hold"], &comeback["pid"]), (&lost["id"], &lost["holder"]["pid"]));
    assert_eq!((&comeback["lost_at"], &comeback["since"]), (&lost["until"], &holds[0]["until"]));
    assert!(comeback["cgroup"].as_str().unwrap().ends_with(name), "{comeback:#}");
    let gap = comeback["gap_ms"].as_i64().unwrap();
    assert!((i64::try_from(BACK_OFF.as_millis()).unwrap()..60_000).contains(&gap), "{gap} ms");
    assert_eq!(holds[TIMES]["comeback"], *comeback, "history says the same");

    let group = comeback["cgroup"].as_str().unwrap().to_owned();
    let words = [
        (group.as_str(), "/kubepods/burstable/pod7f3a/kourier-gateway"),
        (cgroup.path.to_str().unwrap(), "/sys/fs/cgroup/kourier-gateway"),
        (directory.path().to_str().unwrap(), "/run/kourier"),
    ];
    let sample = Sample { words: &words, ports: &[(port, "8443")], ..Sample::default() };
    let told = shortened(&printed(&daemon, &["who-holds", &port.to_string()], 0));
    assert!(told.contains(&format!("it came back {}.{}s later", gap / 1000, gap % 1000 / 100)), "{told}");
    let now = Sample {
        pids: &["5230", "5177"],
        moments: &["14:03:11", "14:03:11", "14:03:07"],
        spans: &["9s", "9s", "13s", "4.2s", "8m"],
        ..sample
    };
    insta::assert_snapshot!("back", now.of(&told));
    let sample = Sample { words: &words, ports: &[(port, "8443")], ..Sample::default() };
    let told = shortened(&printed(&daemon, &["history", &port.to_string()], 0));
    let before = Sample {
        pids: &["4121", "4810", "5177", "5230"],
        moments: &[
            "13:50:02", "13:55:01", "13:55:05", "13:59:12", "13:55:01", "13:59:15", "14:03:07", "13:59:12",
            "14:03:11", "14:03:07",
        ],
        spans: &[
            "4m59s", "4m7s", "8m19s", "4.1s", "3m52s", "4m8s", "3.9s", "4m11s", "9s", "13s", "4.2s", "8m6s",
        ],
        ..sample
    };
    insta::assert_snapshot!("history", before.of(&told));

    counted(&daemon, "sniffer_listeners_lost_total{end=\"oom_killed\"}", TIMES as f64);
}

/// Without the arguments by which the test makes it eat.
fn shortened(text: &str) -> String {
    let command = |line: &str| match line.find("./envoy it ") {
        Some(at) => line[..at].to_owned() + "./envoy",
        None => line.to_owned(),
    };
    text.lines().map(|line| command(line) + "\n").collect()
}
