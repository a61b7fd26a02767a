//! `sniffer conflicts`: its times, its exit codes, and why there may be no answer.

use serde_json::Value;

use super::{Watcher, all_alone, conflicts, get, of_port, settle, watcher};
use crate::common::{Daemon, SNIFFER, Tree, alone, eventually, json, run};

struct Refused {
    port: u16,
    _both: [Tree; 2],
}

fn refused(daemon: &Daemon) -> Refused {
    let blocker = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = blocker.it().port();
    let loser = Tree::holder(&[&format!("try:tcp:127.0.0.1:{port}")]);
    eventually("it is told", || (!of_port(daemon, port).is_empty()).then_some(()));
    Refused { port, _both: [blocker, loser] }
}

/// Whether the conflict of this port is among those since then.
#[track_caller]
fn is_told_since(daemon: &Daemon, since: &str, port: u16) -> bool {
    let (code, document) = json(&mut daemon.ask(&["conflicts", "--since", since]));
    let conflicts = document["conflicts"].as_array().unwrap();
    assert_eq!(code, i32::from(conflicts.is_empty()), "{since}: {document:#}");
    conflicts.iter().any(|conflict| conflict["port"] == port)
}

#[test]
#[ignore = "needs root"]
fn since_takes_a_span_a_time_of_day_or_a_whole_moment() {
    let daemon: Watcher = watcher();
    let refused = refused(&daemon);
    let (_, document) = json(&mut daemon.ask(&["conflicts"]));
    let now: jiff::Timestamp = document["as_of"].as_str().unwrap().parse().unwrap();
    let minute_ago = now - jiff::SignedDuration::from_secs(60);
    let of_day = minute_ago.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M").to_string();
    for since in ["90s", "15m", "2h", "7d", &of_day, &minute_ago.to_string()] {
        assert!(is_told_since(&daemon, since, refused.port), "{since}");
    }
    let offset = minute_ago.to_zoned(jiff::tz::TimeZone::fixed(jiff::tz::offset(2)));
    let offset = offset.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    assert!(is_told_since(&daemon, &offset, refused.port), "{offset}");
    assert!(!is_told_since(&daemon, &now.to_string(), refused.port), "that was before");
}

#[test]
#[ignore = "needs root"]
fn a_moment_that_is_none_is_refused_with_what_would_be() {
    let daemon = watcher();
    for since in ["nonsense", "25:99", "-5s", "5w", "", "99999999999999999999s", "2026-13-01T00:00:00Z"] {
        let (code, stdout, stderr) = run(&mut daemon.ask(&["conflicts", &format!("--since={since}")]));
        assert_eq!((code, stdout.as_str()), (2, ""), "{since}: {stderr}");
        assert!(stderr.contains("--since") && stderr.contains("14:03"), "{since}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
#[ignore = "needs root"]
fn without_a_daemon_there_is_no_answer_and_a_way_to_one() {
    let (code, stdout, stderr) = run(alone().arg("conflicts"));
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("sniffer daemon") && stderr.contains("systemctl start sniffer"), "{stderr}");
}

#[test]
#[ignore = "needs root"]
fn an_agent_that_may_not_see_refusals_says_why_instead_of_none() {
    let _turn = super::beside_others();
    for events in ["poll", "proc"] {
        let daemon = Daemon::start(&format!("watch.events = \"{events}\""));
        let blocker = Tree::holder(&["tcp:127.0.0.1:0", "try:tcp:127.0.0.1:PORT"]);
        assert_eq!(blocker.it().said("refused"), [98]);
        for json in [&["conflicts"][..], &["conflicts", "--json"]] {
            let (code, stdout, stderr) = run(&mut daemon.ask(json));
            assert_eq!((code, stdout.as_str()), (2, ""), "{events}: {stderr}");
            assert!(stderr.contains("watch.events"), "{events}: {stderr}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn where_none_was_seen_it_is_said_since_when() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let (code, stdout, stderr) = run(&mut daemon.ask(&["conflicts"]));
    assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
    assert!(stdout.starts_with("No bind has failed since the daemon started, "), "{stdout}");
    let (code, document) = json(&mut daemon.ask(&["conflicts"]));
    assert_eq!((code, &document["conflicts"]), (1, &Value::Array(vec![])));
    let moment = |name: &str| document[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(moment("watched_since") < moment("as_of"));
    assert_eq!((&document["schema"], &document["incomplete"]), (&1.into(), &Value::Array(vec![])));
}

#[test]
#[ignore = "needs root"]
fn none_since_a_moment_is_not_called_none_since_the_start() {
    let _alone = all_alone();
    let daemon = Daemon::start("");
    let refused = refused(&daemon);
    let (_, document) = json(&mut daemon.ask(&["conflicts"]));
    let now = document["as_of"].as_str().unwrap().to_owned();
    assert!(!is_told_since(&daemon, &now, refused.port));
    let (code, stdout, _) = run(&mut daemon.ask(&["conflicts", "--since", &now]));
    assert_eq!(code, 1);
    assert!(stdout.starts_with("No bind has failed since"), "{stdout}");
    assert!(!stdout.contains("since the daemon started"), "one has: {stdout}");
}

#[test]
#[ignore = "needs root"]
fn the_control_socket_refuses_nonsense_and_answers_the_same_document() {
    let daemon = watcher();
    let refused = refused(&daemon);
    let get = |path: &str| get(&daemon, path);
    let whole = get("/v1/conflicts?since=90s");
    assert!(
        whole.starts_with("HTTP/1.1 200") && whole.contains(&format!("\"port\":{}", refused.port)),
        "{whole}"
    );
    assert!(get("/v1/conflicts?since=nonsense").starts_with("HTTP/1.1 400"));
    assert!(get("/v1/conflicts?since=%ff").starts_with("HTTP/1.1 400"));
}

#[test]
#[ignore = "needs root"]
fn what_the_agent_tries_out_itself_is_no_conflict() {
    let daemon = watcher();
    // A socket on the IPv4-mapped wildcard: whether it covers 127.0.0.1 differs between kernels, so the agent tries.
    let held = Tree::holder(&["tcp:[::ffff:0.0.0.0]:0"]);
    let reply =
        get(&daemon, &format!("/v1/can-bind?target=[::ffff:127.0.0.1]:{}/tcp&netns=host", held.it().port()));
    assert!(reply.contains("\"would_succeed\""), "{reply}");
    settle(&daemon);
    let by_the_agent = |conflict: &Value| conflict["loser"]["exe"].as_str().is_some_and(|exe| exe == SNIFFER);
    assert!(!conflicts(&daemon).iter().any(by_the_agent));
}
