//! What becomes of the file: crashes, damage, no room, no right, two agents.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{answered, database, ended, holds};
use crate::common::{Daemon, Tree, alone, eventually, json, open_directory, ports_of_ones_own, run};

#[test]
#[ignore = "needs root"]
fn a_crash_loses_nothing_and_a_listener_that_went_on_is_one_hold() {
    let mut daemon = Daemon::start("");
    let [stays, goes] = ports_of_ones_own();
    let _stays = Tree::holder(&[&format!("tcp:127.0.0.1:{stays}")]);
    let goes_tree = Tree::holder(&[&format!("tcp:127.0.0.1:{goes}")]);
    let before = eventually("both are remembered", || {
        Some((holds(&daemon, stays).pop()?, holds(&daemon, goes).pop()?))
    });
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    drop(goes_tree);
    // Nobody watches: the file is read, and says until when somebody did.
    let file = database(&daemon);
    let (code, document) = json(alone().args(["history", &format!("{stays}"), "--db"]).arg(&file));
    assert_eq!((code, &document["holds"][0]["id"]), (0, &before.0["id"]), "{document:#}");
    daemon.crash_and_restart();
    let after = eventually("both are there again", || {
        let document = answered(&mut daemon.ask(&["history", &format!("{goes}")]))?;
        document["holds"].as_array()?.first().filter(|hold| !hold["end"].is_null()).cloned()
    });
    assert_eq!((&after["id"], &after["end"]), (&before.1["id"], &"agent_restart".into()), "{after:#}");
    let same = holds(&daemon, stays);
    assert_eq!(same.len(), 1, "{same:#?}");
    for field in ["id", "from", "until", "holder"] {
        assert_eq!(same[0][field], before.0[field], "{field}");
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_younger_than_a_second_survives_every_kill() {
    let mut daemon = Daemon::start("");
    for round in 0..8 {
        let [port] = ports_of_ones_own();
        let _tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
        // As soon as anybody may rely on it.
        std::thread::sleep(std::time::Duration::from_millis(900));
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let (code, document) =
            json(alone().args(["history", &format!("{port}"), "--db"]).arg(database(&daemon)));
        assert_eq!(code, 0, "round {round}: {document:#}");
        daemon.crash_and_restart();
    }
}

#[test]
#[ignore = "needs root"]
fn a_damaged_file_is_moved_aside_whole_and_a_new_one_is_begun() {
    let directory = open_directory();
    let path = directory.path().join("history.db");
    let garbage = vec![b'x'; 9000];
    fs::write(&path, &garbage).unwrap();
    let daemon = Daemon::start_in(directory, "");
    let [port] = ports_of_ones_own();
    drop(Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]));
    ended(&daemon, port);
    let kept = fs::read_dir(daemon.directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept
        .filter(|path| path.to_str().unwrap().contains("damaged-"))
        .find(|path| fs::read(path).unwrap() == garbage);
    assert!(kept.is_some() && daemon.log().contains("is damaged"), "{}", daemon.log());
}

#[test]
#[ignore = "needs root"]
fn damage_that_shows_later_is_moved_aside_too() {
    let mut daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    drop(Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]));
    ended(&daemon, port);
    daemon.signal(rustix::process::Signal::TERM);
    daemon.child.wait().unwrap();
    let path = database(&daemon);
    let mut bytes = fs::read(&path).unwrap();
    // The header stays as it is.
    bytes[4096..].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    daemon.child = Daemon::command(&daemon.directory).spawn().unwrap();
    let _again = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    eventually("it is remembered in a new file", || {
        let (code, ..) = run(&mut daemon.ask(&["history", &format!("{port}")]));
        (code == 0).then_some(())
    });
    assert!(daemon.log().contains("is damaged"), "{}", daemon.log());
}

/// The agent goes on without a history and says why; whoever asks is told so.
#[track_caller]
fn assert_unkept(daemon: &Daemon, why: &str) {
    eventually("it is said", || daemon.log().contains(why).then_some(()));
    assert_eq!(daemon.metric("sniffer_history_up"), Some(0.0));
    let (status, ready) = daemon.get("/readyz").unwrap();
    assert!(status == 200 && ready.contains("degraded: history: ") && ready.contains(why), "{ready}");
    let (code, _, stderr) = run(&mut daemon.ask(&["history", "8081"]));
    assert!(code == 2 && stderr.contains(why), "{stderr}");
    // The rest works as ever, the page among it.
    let [port] = ports_of_ones_own();
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    assert_eq!(daemon.who_holds(port)["claims"][0]["holders"][0]["pid"], tree.it().pid);
    let now = eventually("the page shows what is now", || {
        let (_, body) = daemon.get("/v1/timeline")?;
        let timeline: Value = serde_json::from_str(&body).unwrap();
        let held = timeline["holds"].as_array()?.iter().any(|hold| hold["port"] == port);
        held.then_some(timeline)
    });
    assert!(
        now["history"]["kept"] == false && now["history"]["why"].as_str().unwrap().contains(why),
        "{}",
        now["history"]
    );
}

fn sql(path: &Path, statement: &str) {
    let script = format!(
        "import sqlite3; c = sqlite3.connect('{}'); c.execute('{statement}'); c.commit()",
        path.display()
    );
    assert!(Command::new("python3").args(["-c", &script]).status().unwrap().success());
}

#[test]
#[ignore = "needs root"]
fn a_file_of_a_newer_version_or_of_another_program_is_left_as_it_is() {
    let mut daemon = Daemon::start("");
    daemon.signal(rustix::process::Signal::TERM);
    daemon.child.wait().unwrap();
    let path = database(&daemon);
    sql(&path, "PRAGMA user_version = 99");
    let before = fs::read(&path).unwrap();
    daemon.crash_and_restart();
    assert_unkept(&daemon, "was made by a newer sniffer");
    assert_eq!(fs::read(&path).unwrap(), before);

    let directory = open_directory();
    let path = directory.path().join("history.db");
    sql(&path, "CREATE TABLE theirs (x)");
    let before = fs::read(&path).unwrap();
    let other = Daemon::start_in(directory, "");
    assert_unkept(&other, "is the database of another program");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
#[ignore = "needs root"]
fn a_file_that_is_taken_away_is_begun_anew_with_what_goes_on() {
    let daemon = Daemon::start("");
    let [port] = ports_of_ones_own();
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    let before = eventually("it is remembered", || holds(&daemon, port).pop());
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", database(&daemon).display()));
    }
    let after = eventually("a new file is begun", || {
        Some(
            answered(&mut daemon.ask(&["history", &format!("{port}")]))?["holds"]
                .as_array()?
                .first()?
                .clone(),
        )
    });
    assert_eq!(
        (&after["id"], &after["from"], &after["holder"]),
        (&before["id"], &before["from"], &before["holder"])
    );
    drop(tree);
    assert_eq!(ended(&daemon, port)["end"], "closed");
}

#[test]
#[ignore = "needs root"]
fn of_two_agents_one_writes_and_the_other_takes_over() {
    let mut first = Daemon::start("");
    let path = database(&first);
    let second = SecondAgent::start(&path);
    assert_unkept(&second.0, "another agent writes to");
    let [port] = ports_of_ones_own();
    let _tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    eventually("the first remembers", || holds(&first, port).pop());
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let taken = eventually("the second remembers", || {
        let document = answered(&mut second.0.ask(&["history", &format!("{port}")]))?;
        document["holds"].as_array().filter(|holds| holds.iter().any(|hold| hold["until"].is_null())).cloned()
    });
    // The first one's hold, and the second one's, which it has numbered by itself.
    assert_eq!(taken.iter().filter(|hold| hold["until"].is_null()).count(), 1, "{taken:#?}");
}

/// A daemon of its own, but for the file of its history.
struct SecondAgent(Daemon);

impl SecondAgent {
    fn start(path: &Path) -> SecondAgent {
        let mut daemon = Daemon::start("");
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let config = daemon.directory.path().join("config.toml");
        let own = daemon.directory.path().join("history.db");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace(own.to_str().unwrap(), path.to_str().unwrap())).unwrap();
        daemon.crash_and_restart();
        SecondAgent(daemon)
    }
}

/// A small file system, unmounted with the test.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(path: &Path, options: &str) -> Mounted {
        fs::create_dir_all(path).unwrap();
        let mut command = Command::new("mount");
        assert!(command.args(["-t", "tmpfs", "-o", options, "none"]).arg(path).status().unwrap().success());
        Mounted(path.to_owned())
    }

    fn remount(&self, options: &str) {
        let mut command = Command::new("mount");
        assert!(command.args(["-o", &format!("remount,{options}")]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A daemon whose history lies in a file system of its own.
fn daemon_on(directory: &Path) -> Daemon {
    SecondAgent::start(&directory.join("history.db")).0
}

#[test]
#[ignore = "needs root"]
fn where_nothing_can_be_written_the_agent_goes_on_and_begins_again_when_it_can() {
    let directory = open_directory();
    let mounted = Mounted::new(&directory.path().join("disk"), "size=4m");
    mounted.remount("ro");
    let daemon = daemon_on(&mounted.0);
    assert_unkept(&daemon, "Read-only file system");
    let [port] = ports_of_ones_own();
    let tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    daemon.who_holds(port);
    mounted.remount("rw");
    let hold = eventually("it is remembered then", || {
        Some(
            answered(&mut daemon.ask(&["history", &format!("{port}")]))?["holds"]
                .as_array()?
                .first()?
                .clone(),
        )
    });
    assert_eq!(hold["holder"]["pid"], tree.it().pid, "what began meanwhile is there: {hold:#}");
    assert_eq!(daemon.metric("sniffer_history_up"), Some(1.0));
    drop((tree, daemon));
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_said_and_what_was_lost_is_counted() {
    let directory = open_directory();
    let mounted = Mounted::new(&directory.path().join("disk"), "size=1m");
    let daemon = daemon_on(&mounted.0);
    let filler = mounted.0.join("filler");
    // Everything but what SQLite has already.
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    let churn = || drop(Tree::holder(&["churn:90:tcp:127.0.0.1:0"]));
    eventually("it is full", || {
        churn();
        (daemon.metric("sniffer_history_up") == Some(0.0)).then_some(())
    });
    assert_unkept(&daemon, "full");
    assert!(daemon.metric("sniffer_history_lost_total").unwrap() > 0.0);
    fs::remove_file(&filler).unwrap();
    let [port] = ports_of_ones_own();
    let _tree = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    eventually("it is kept again", || {
        let (code, ..) = run(&mut daemon.ask(&["history", &format!("{port}")]));
        (code == 0).then_some(())
    });
    drop(daemon);
}

#[test]
#[ignore = "needs root"]
fn the_file_is_for_its_owner_and_group_alone() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start("");
    for end in ["", "-wal", "-shm"] {
        let path = format!("{}{end}", database(&daemon).display());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640, "{path}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_link_in_the_files_place_leads_the_agent_nowhere() {
    let directory = open_directory();
    let precious = directory.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    for name in ["history.db", "state.json.new"] {
        std::os::unix::fs::symlink(&precious, directory.path().join(name)).unwrap();
    }
    let daemon = Daemon::start_in(directory, "");
    assert_unkept(&daemon, "history.db");
    daemon.job("start", "kept-nowhere");
    eventually("it says so", || daemon.log().contains("state.json").then_some(()));
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
}

#[test]
#[ignore = "needs root"]
fn an_agent_without_a_history_says_that_none_is_wanted() {
    let mut daemon = Daemon::start("");
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let config = daemon.directory.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let path = database(&daemon);
    fs::write(&config, text.replace(path.to_str().unwrap(), "")).unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", path.display()));
    }
    daemon.crash_and_restart();
    let (code, _, stderr) = run(&mut daemon.ask(&["history", "8081"]));
    assert!(code == 2 && stderr.contains("history.path is empty"), "{stderr}");
    assert_eq!(daemon.metric("sniffer_history_up"), None);
    assert!(!path.exists());
}
