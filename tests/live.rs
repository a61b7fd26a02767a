//! Without a daemon: real sockets, real namespaces, real processes, one look.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{
    Daemon, NamedNetns, Tree, alone, claims, eventually, holder, holders, ip, json, open_directory, program,
    run,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::Value;

#[track_caller]
fn who_holds(port: u16) -> Value {
    json(alone().args(["who-holds", &port.to_string()])).1
}

#[track_caller]
fn only_claim(document: &Value) -> &Value {
    // Another test may have the same port in a namespace of its own, or have left it in TIME_WAIT.
    let ours = |claim: &&Value| claim["netns"]["name"] == "host" && claim["kind"] != "time_wait";
    let claims: Vec<&Value> = document["claims"].as_array().unwrap().iter().filter(ours).collect();
    assert_eq!(claims.len(), 1, "{document:#}");
    claims[0]
}

/// The claim that this process holds.
#[track_caller]
fn claim_of(document: &Value, pid: u32) -> &Value {
    let held = |claim: &&Value| holders(claim).contains(&pid);
    document["claims"].as_array().unwrap().iter().find(held).unwrap_or_else(|| panic!("{document:#}"))
}

#[test]
fn a_listener_is_told_with_its_process() {
    let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
    let document = who_holds(tree.it().port());
    let claim = only_claim(&document);
    assert_eq!((&claim["kind"], &claim["state"]), (&"listener".into(), &"LISTEN".into()));
    assert_eq!(claim["netns"]["name"], "host");
    let holder = &claim["holders"][0];
    assert_eq!(holder["pid"], tree.it().pid);
    assert_eq!(holder["cwd"], std::env::current_dir().unwrap().to_str().unwrap());
    assert_eq!(holder["cmdline"][1], "it");
    assert_eq!(holder["ancestry"][0]["pid"], std::process::id());
    assert!(holder["exe"].as_str().unwrap().ends_with("/holder"));
    assert!(holder["start_time"].is_string());
    assert_eq!(claim["since"], Value::Null, "one look does not know since when");
}

#[test]
fn udp_bound_and_dual_stack_are_all_seen() {
    let tree = Tree::holder(&["udp:[::1]:0", "bound:127.0.0.1:0", "tcp:[::]:0"]);
    let ports = tree.it().ports.clone();
    let udp = who_holds(ports[0]);
    assert_eq!(
        (&only_claim(&udp)["kind"], &only_claim(&udp)["protocol"]),
        (&"listener".into(), &"udp".into())
    );
    let bound = who_holds(ports[1]);
    if doctor_lists_bound_sockets() {
        assert_eq!(only_claim(&bound)["kind"], "bound");
    }
    let (code, dual) = json(alone().args(["who-holds", &format!("127.0.0.1:{}", ports[2])]));
    assert_eq!(
        (code, &only_claim(&dual)["address"]),
        (0, &"::".into()),
        "a dual-stack wildcard takes IPv4 too"
    );
}

fn doctor_lists_bound_sockets() -> bool {
    let (_, document) = json(alone().arg("doctor"));
    document["checks"]
        .as_array()
        .unwrap()
        .iter()
        .any(|check| check["name"] == "bound sockets" && check["ok"] == true)
}

#[test]
fn a_connections_own_port_and_its_time_wait_are_claims() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let port = client.local_addr().unwrap().port();
    let connected = who_holds(port);
    let claim = only_claim(&connected);
    assert_eq!(claim["kind"], "connection");
    assert_eq!(claim["peer"]["port"], listener.local_addr().unwrap().port());
    assert!(holders(claim).contains(&std::process::id()), "{claim:#}");
    let (_, text, _) = run(alone().args(["who-holds", &port.to_string()]));
    assert!(text.contains("which lies in net.ipv4.ip_local_port_range ("), "{text}");
    let (mut server, _) = listener.accept().unwrap();
    // Who closes first has the TIME_WAIT.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    server.read_to_end(&mut Vec::new()).unwrap();
    drop(server);
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    let waiting = eventually("the client's port is in TIME_WAIT", || {
        let document = who_holds(port);
        (!claims(&document, "kind", "time_wait").is_empty()).then_some(document)
    });
    let claim = claims(&waiting, "kind", "time_wait")[0];
    assert_eq!(claim["owner"]["type"], "kernel");
    assert!(claim["expires_ms"].as_u64().unwrap() <= 60_000);
    let advice = waiting["advice"][0].as_str().unwrap();
    assert!(advice.contains("SO_REUSEADDR"), "{advice}");
}

#[test]
fn every_process_that_inherited_the_socket_is_a_holder() {
    let child = holder();
    let tree = Tree::start(
        Command::new(holder()).args(["parent", "tcp-inherit:127.0.0.1:0", "--"]).arg(child).arg("child"),
        &["parent", "child"],
    );
    let document = who_holds(tree.get("parent").port());
    let mut expected = vec![tree.get("parent").pid, tree.get("child").pid];
    expected.sort_unstable();
    assert_eq!(holders(only_claim(&document)), expected);
}

#[test]
fn a_process_that_was_handed_the_socket_is_a_holder() {
    let directory = open_directory();
    let path = directory.path().join("hand-over");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(holder());
    command.arg("it").arg(format!("receive:{}", path.display()));
    let sender = std::thread::scope(|scope| {
        let started = scope.spawn(|| Tree::start(&mut command, &["it"]));
        let stream = eventually("the holder waits for the descriptor", || UnixStream::connect(&path).ok());
        send(&stream, &listener);
        started.join().unwrap()
    });
    let document = who_holds(listener.local_addr().unwrap().port());
    // A child that another test starts has it open too, between its fork and its exec.
    let found = holders(only_claim(&document));
    assert!([std::process::id(), sender.it().pid].iter().all(|pid| found.contains(pid)), "{document:#}");
}

fn send(stream: &UnixStream, listener: &TcpListener) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(stream, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn a_job_is_named_by_the_variables_of_its_processes() {
    let tree = Tree::start(
        Command::new(holder())
            .args(["it", "tcp:127.0.0.1:0"])
            .env("RUNNER_TRACKING_ID", "github_one-look")
            .env("GITHUB_JOB", "test")
            .env("GITHUB_REPOSITORY", "envoyproxy/gateway")
            .env("GITHUB_RUN_ID", "991"),
        &["it"],
    );
    let document = who_holds(tree.it().port());
    let job = &only_claim(&document)["job"];
    assert_eq!((&job["ci"], &job["id"]), (&"github".into(), &"github_one-look".into()));
    assert_eq!((&job["name"], &job["run"]), (&"test".into(), &"991".into()));
    assert_eq!(job["repository"], "envoyproxy/gateway");
}

#[test]
fn hostile_names_stay_text() {
    let directory = open_directory();
    let evil = program(&directory, "e\u{1b}[31m\nvil\u{9b}");
    let tree =
        Tree::start(Command::new(evil).args(["it", "tcp:127.0.0.1:0", "env:A=\u{1b}]0;x\u{7}"]), &["it"]);
    let port = tree.it().port().to_string();
    for arguments in [vec!["who-holds", port.as_str()], vec!["list"]] {
        let (_, text, stderr) = run(alone().args(&arguments));
        assert!(text.contains("e\\x1b[31m\\nvil"), "{text}");
        for c in text.chars().chain(stderr.chars()) {
            assert!(c == '\n' || !c.is_control(), "{c:?} in {text}");
        }
    }
    assert_eq!(only_claim(&who_holds(tree.it().port()))["holders"][0]["pid"], tree.it().pid);
}

#[test]
fn a_name_and_a_command_line_that_are_not_utf8_are_replaced_visibly() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let directory = open_directory();
    let odd = directory.path().join(OsStr::from_bytes(b"odd\xff"));
    std::os::unix::fs::symlink(holder(), &odd).unwrap();
    let tree = Tree::start(
        Command::new(odd).args(["it", "tcp:127.0.0.1:0"]).arg(OsStr::from_bytes(b"env:A=\xff\xfe")),
        &["it"],
    );
    let document = who_holds(tree.it().port());
    let holder = &only_claim(&document)["holders"][0];
    assert_eq!(holder["cmdline"][3], "env:A=\u{fffd}\u{fffd}");
    // The rest of what /proc says of it is as good as ever.
    let own = rustix::process::geteuid().as_raw();
    assert_eq!((&holder["comm"], &holder["uid"]), (&"odd\u{fffd}".into(), &own.into()), "{holder:#}");
}

#[test]
#[ignore = "needs root"]
fn every_kind_of_namespace_is_looked_into() {
    let named = NamedNetns::new("named");
    let in_named = Tree::start(named.command(holder()).args(["it", "tcp:0.0.0.0:0"]), &["it"]);
    let claim = claim_of(&who_holds(in_named.it().port()), in_named.it().pid).clone();
    assert_eq!(
        (&claim["netns"]["name"], &claim["netns"]["inode"]),
        (&named.0.as_str().into(), &named.inode().into())
    );

    let in_unnamed =
        Tree::start(Command::new("unshare").arg("-n").arg(holder()).args(["it", "udp:0.0.0.0:0"]), &["it"]);
    let claim = claim_of(&who_holds(in_unnamed.it().port()), in_unnamed.it().pid).clone();
    assert_eq!(claim["netns"]["name"], Value::Null);
    assert_eq!(claim["netns"]["kept_by"], format!("process {}", in_unnamed.it().pid));

    let by_descriptor = Tree::holder(&["netns-tcp:0.0.0.0:0"]);
    let claim = claim_of(&who_holds(by_descriptor.it().port()), by_descriptor.it().pid).clone();
    assert!(claim["netns"]["kept_by"].as_str().unwrap().starts_with("fd "), "{claim:#}");
    assert_eq!(holders(&claim), [by_descriptor.it().pid]);
}

/// Makes a listener in a namespace that none of its threads stays in, says its port, and puts its only descriptor on its way to itself.
const IN_FLIGHT: &str = r"
import ctypes, os, socket, sys
enter = lambda fd: ctypes.CDLL(None).setns(fd, 0x40000000)
own, other = os.open('/proc/self/ns/net', 0), os.open(sys.argv[1], 0)
assert enter(other) == 0
listener = socket.socket()
listener.bind(('0.0.0.0', 0))
listener.listen()
assert enter(own) == 0
os.close(other)
here, there = socket.socketpair(socket.AF_UNIX)
socket.send_fds(here, [b'x'], [listener.fileno()])
port = listener.getsockname()[1]
listener.close()
print(port, flush=True)
sys.stdin.read()
";

#[test]
#[ignore = "needs root"]
fn a_listener_in_flight_in_a_namespace_that_its_mount_alone_keeps_is_nobodys_and_said_so() {
    let netns = NamedNetns::new("flight");
    let mut sender = Command::new("python3");
    sender.args(["-c", IN_FLIGHT, &format!("/run/netns/{}", netns.0)]);
    let mut sender = sender.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(sender.stdout.take().unwrap()), &mut port)
        .unwrap();
    let port = port.trim();
    let (code, document) = json(alone().args(["who-holds", port, "--netns", &netns.0]));
    let claim = &document["claims"][0];
    assert_eq!((code, &claim["kind"], &claim["owner"]["type"]), (0, &"listener".into(), &"unknown".into()));
    assert_eq!((holders(claim), &claim["netns"]["name"]), (vec![], &netns.0.as_str().into()), "{claim:#}");
    let mount = format!("mount /run/netns/{}", netns.0);
    assert_eq!(claim["netns"]["kept_by"], mount.as_str(), "{claim:#}");
    // The agent looks into every process, pid 1 among them where it can be.
    let daemon = Daemon::start("");
    let (_, text, _) = run(&mut daemon.ask(&["who-holds", port, "--netns", &netns.0]));
    if std::fs::read_link("/proc/1/fd/0").is_ok() {
        let said = "none: no process was found with a descriptor of it";
        assert!(text.contains(said) && text.contains("SCM_RIGHTS"), "{text}");
        assert!(!text.contains("as root"), "there is no more to see: {text}");
    } else {
        // A security module keeps it from root: then it may be the holder, for all that anybody can see.
        assert!(text.contains("the open files of pid 1 could not be read, so it may be a holder"), "{text}");
        assert!(text.contains("process    none found;") && !text.contains("SCM_RIGHTS"), "{text}");
    }
    // Nobody has it in any other namespace.
    let inode = netns.inode().to_string();
    assert_eq!(run(alone().args(["who-holds", port, "--netns", &inode])).0, 0);
    assert_eq!(run(alone().args(["who-holds", port, "--netns", "host"])).0, 1);
    drop(sender.stdin.take());
    sender.wait().unwrap();
}

#[test]
#[ignore = "needs root"]
fn the_same_port_in_two_namespaces_is_two_claims() {
    let netns = NamedNetns::new("twice");
    let here = Tree::holder(&["tcp:127.0.0.1:0"]);
    let port = here.it().port();
    let there = Tree::start(netns.command(holder()).args(["it", &format!("tcp:0.0.0.0:{port}")]), &["it"]);
    let document = who_holds(port);
    let found: Vec<Vec<u32>> = document["claims"].as_array().unwrap().iter().map(holders).collect();
    assert_eq!(found, [vec![here.it().pid], vec![there.it().pid]], "the own namespace comes first");
    let pid = format!("PID:{}", there.it().pid);
    let (_, narrowed) = json(alone().args(["who-holds", &port.to_string(), "--netns", &pid]));
    assert_eq!(holders(claim_of(&narrowed, there.it().pid)), [there.it().pid]);
    let (_, list) = json(alone().arg("list"));
    let listed = list["claims"].as_array().unwrap().iter().filter(|claim| claim["port"] == port).count();
    assert_eq!(listed, 2);
}

#[test]
#[ignore = "needs root"]
fn a_socket_bound_to_an_interface_names_it() {
    let netns = NamedNetns::new("device");
    ip(&["-n", &netns.0, "link", "set", "lo", "up"]);
    let Ok(mut child) = netns
        .command("python3")
        .args(["-c", "import socket,sys\ns=socket.socket()\ns.setsockopt(1,25,b'lo')\ns.bind(('127.0.0.1',0))\ns.listen()\nprint(s.getsockname()[1],flush=True)\nsys.stdin.read()"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        panic!("python3 is needed");
    };
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut port)
        .unwrap();
    let document = who_holds(port.trim().parse().unwrap());
    assert_eq!(claim_of(&document, child.id())["interface"], "lo");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
#[ignore = "needs root, to become another user"]
fn an_unprivileged_user_sees_part_and_is_told_which_and_why() {
    let directory = open_directory();
    let sniffer = directory.path().join("sniffer");
    std::fs::copy(common::SNIFFER, &sniffer).unwrap();
    let tree = Tree::holder(&["tcp:127.0.0.1:0"]);
    let netns = NamedNetns::new("closed");
    let inside = Tree::start(netns.command(holder()).args(["it", "tcp:0.0.0.0:0"]), &["it"]);
    let as_nobody = || {
        let mut command = Command::new(&sniffer);
        command.uid(65_534).gid(65_534).env("SNIFFER_SOCKET", "/nonexistent").current_dir("/");
        command
    };
    let (code, document) = json(as_nobody().args(["who-holds", &tree.it().port().to_string()]));
    assert_eq!(code, 0, "the socket itself is visible");
    let claim = only_claim(&document);
    assert_eq!((&claim["holders"], &claim["owner"]["type"]), (&Value::Array(vec![]), &"unknown".into()));
    let incomplete = document["incomplete"].to_string();
    assert!(incomplete.contains("open files of") && incomplete.contains("run as root"), "{incomplete}");
    let (code, text, _) = run(as_nobody().args(["who-holds", &inside.it().port().to_string()]));
    assert_eq!(code, 1);
    assert!(text.contains("nobody that could be seen") && text.contains("could not be entered"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn processes_and_namespaces_that_vanish_in_the_middle_hurt_nobody() {
    let churn = std::thread::spawn(|| {
        for _ in 0..30 {
            let netns = NamedNetns::new("churn");
            let _ = netns.command("true").status();
        }
    });
    while !churn.is_finished() {
        let (code, document) = json(alone().arg("list"));
        assert!(code == 0 || code == 1);
        assert_eq!(
            document["incomplete"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|gap| gap.to_string().contains("namespace"))
                .count(),
            0,
            "{}",
            document["incomplete"]
        );
    }
    churn.join().unwrap();
}

#[test]
#[ignore = "needs root"]
fn whether_a_bind_would_succeed_is_told_with_what_stands_in_its_way() {
    let held = Tree::holder(&["with:reuseaddr", "tcp:127.0.0.1:0"]);
    let port = held.it().port();
    let ask = |target: &str, options: &[&str]| json(alone().arg("can-bind").arg(target).args(options));
    let (code, refused) = ask(&format!("{port}/tcp"), &[]);
    assert_eq!(
        (code, &refused["would_succeed"], &refused["errno"]),
        (1, &false.into(), &"EADDRINUSE".into())
    );
    assert_eq!(refused["blockers"][0]["holders"][0]["pid"], held.it().pid);
    assert_eq!(refused["target"]["port"], port);
    // Whoever listens lets nobody in beside it by SO_REUSEADDR.
    assert_eq!(ask(&format!("127.0.0.1:{port}/tcp"), &["--reuseaddr"]).0, 1);
    for (target, options) in [
        (format!("127.0.0.2:{port}/tcp"), &[][..]),
        (format!("[::1]:{port}/tcp"), &[]),
        (format!("{port}/udp"), &[]),
        (format!("{port}/tcp"), &["--v6only"]),
    ] {
        let (code, allowed) = ask(&target, options);
        assert_eq!(
            (code, &allowed["would_succeed"], &allowed["errno"]),
            (0, &true.into(), &Value::Null),
            "{target}"
        );
        assert_eq!(allowed["blockers"], Value::Array(vec![]));
    }
    let (code, both) = ask(&port.to_string(), &[]);
    assert_eq!(
        (code, both["binds"].as_array().unwrap().len()),
        (1, 2),
        "a bare port is TCP and UDP: {both:#}"
    );
    assert_eq!(ask("192.0.2.77:8080", &[]).1["errno"], "EADDRNOTAVAIL");
    assert_eq!(ask("80/tcp", &["--uid", "65534"]).1["errno"], "EACCES");
    assert_eq!(ask("8080/tcp", &["--interface", "nope0"]).1["errno"], "ENODEV");
    for wrong in [
        &["can-bind", "99999"][..],
        &["can-bind", "80", "--netns", "no-such"],
        &["can-bind", "80", "--uid", "x"],
    ] {
        let (code, out, err) = run(alone().args(wrong));
        assert_eq!((code, out.as_str()), (2, ""), "{wrong:?}: {err}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_bind_elsewhere_is_judged_by_what_is_there() {
    let netns = NamedNetns::new("can");
    let held = Tree::start(netns.command(holder()).args(["it", "tcp:0.0.0.0:18081"]), &["it"]);
    let ask = |options: &[&str]| json(alone().args(["can-bind", "18081/tcp"]).args(options));
    assert_eq!(ask(&[]).0, 0, "here it is free");
    let (code, there) = ask(&["--netns", &netns.0]);
    assert_eq!((code, &there["blockers"][0]["holders"][0]["pid"]), (1, &held.it().pid.into()));
}

#[test]
#[ignore = "needs root"]
fn waiting_for_a_port_ends_when_it_is_let_go_or_the_time_is_over() {
    let held = Tree::holder(&["udp:127.0.0.1:0"]);
    let target = format!("127.0.0.1:{}/udp", held.it().port());
    let (code, _, said) = run(alone().args(["wait-free", &target, "--timeout", "300ms"]));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("holder") && said.contains(&held.it().pid.to_string()), "{said}");
    let mut waiting =
        alone().args(["wait-free", &target, "--timeout", "20s"]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    drop(held);
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    assert_eq!(run(alone().args(["wait-free", &target, "--timeout", "soon"])).0, 2);
}

#[test]
#[ignore = "needs root"]
fn a_reserved_port_is_said_to_be_reserved_and_not_to_be_held() {
    let netns = NamedNetns::new("reserved");
    let setting = "echo 18090-18100 > /proc/sys/net/ipv4/ip_local_reserved_ports";
    assert!(netns.command("sh").args(["-c", setting]).status().unwrap().success());
    let ask = |target: &str, netns: &str| json(alone().args(["who-holds", target, "--netns", netns]));
    let (code, document) = ask("18095/tcp", &netns.0);
    assert_eq!(code, 1, "nobody holds it: {document:#}");
    let claim = &document["claims"][0];
    assert_eq!((&claim["kind"], &claim["owner"]["type"]), (&"reserved".into(), &"kernel".into()));
    assert!(claim["reason"].as_str().unwrap().contains("ip_local_reserved_ports"), "{claim:#}");
    assert_eq!(ask("18095/tcp", "host").1["claims"], Value::Array(vec![]), "here it is not");
    let (_, text, _) = run(alone().args(["who-holds", "18095", "--netns", &netns.0]));
    assert!(text.contains("nobody holds it.") && text.matches("reserved in").count() == 1, "{text}");
    let held = Tree::start(netns.command(holder()).args(["it", "tcp:0.0.0.0:18095"]), &["it"]);
    let (code, document) = ask("18095/tcp", &netns.0);
    assert_eq!((code, &document["claims"][0]["holders"][0]["pid"]), (0, &held.it().pid.into()));
    assert_eq!(document["claims"][1]["kind"], "reserved");
}

#[test]
#[ignore = "needs root"]
fn a_free_privileged_port_says_that_a_refusal_may_be_for_lack_of_rights() {
    let netns = NamedNetns::new("privileged");
    let (code, document) = json(alone().args(["who-holds", "80", "--netns", &netns.0]));
    assert_eq!(code, 1, "{document:#}");
    assert!(document["advice"][0].as_str().unwrap().contains("EACCES"), "{document:#}");
}
