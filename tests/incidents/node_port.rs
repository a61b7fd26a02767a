//! Gardener: a NodePort wandered, and when it was to come back another service had it. NodePorts are NAT rules: no socket shows them.
//! Here with the rules of kube-proxy in a namespace that is the node, and a client in another one.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{self, Daemon, NamedNetns, eventually, ip};
use crate::sample::Sample;
use crate::{counted, inside, printed};

const NODE: &str = "10.9.0.1";
const NODE_PORT: u16 = 30445;
/// The port that the controller chose instead.
const WANDERED: u16 = 30194;
const INGRESS: Service = Service {
    name: "istio-system/istio-ingressgateway:https",
    hash: "G6D3V5KS3PXPUEDS",
    pod: "10.244.1.5:8443",
};
const GRAFANA: Service =
    Service { name: "monitoring/grafana:web", hash: "XPGD46QRK7WJZT7O", pod: "10.244.2.7:3000" };

/// A service with one pod, and what kube-proxy calls its chains.
struct Service {
    name: &'static str,
    hash: &'static str,
    pod: &'static str,
}

/// A node of a cluster, and a client that reaches it.
struct Cluster {
    node: NamedNetns,
    client: NamedNetns,
}

impl Cluster {
    fn new() -> Cluster {
        let cluster = Cluster { node: NamedNetns::new("node"), client: NamedNetns::new("client") };
        let (node, client) = (&cluster.node.0, &cluster.client.0);
        ip(&["-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client]);
        ip(&["-n", node, "address", "add", &format!("{NODE}/24"), "dev", "eth0"]);
        ip(&["-n", client, "address", "add", "10.9.0.2/24", "dev", "eth0"]);
        for netns in [node, client] {
            ip(&["-n", netns, "link", "set", "lo", "up"]);
            ip(&["-n", netns, "link", "set", "eth0", "up"]);
        }
        // The pods live on the node: their addresses are its own.
        for service in [INGRESS, GRAFANA] {
            let (address, _) = service.pod.split_once(':').unwrap();
            ip(&["-n", node, "address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        cluster
    }

    /// Writes the whole table at once, as kube-proxy does.
    fn node_ports(&self, ports: &[(u16, &Service)]) {
        let mut chains = String::from(":KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n");
        let mut rules = String::from(
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n",
        );
        for (port, Service { name, hash, pod }) in ports {
            chains +=
                &format!(":KUBE-EXT-{hash} - [0:0]\n:KUBE-SVC-{hash} - [0:0]\n:KUBE-SEP-{hash} - [0:0]\n");
            rules += &format!(
                "-A KUBE-NODEPORTS -p tcp -m comment --comment \"{name}\" -m tcp --dport {port} -j KUBE-EXT-{hash}\n\
                 -A KUBE-EXT-{hash} -m comment --comment \"masquerade traffic for {name} external destinations\" -j MARK --set-xmark 0x4000/0x4000\n\
                 -A KUBE-EXT-{hash} -j KUBE-SVC-{hash}\n\
                 -A KUBE-SVC-{hash} -m comment --comment \"{name} -> {pod}\" -j KUBE-SEP-{hash}\n\
                 -A KUBE-SEP-{hash} -p tcp -m comment --comment \"{name}\" -m tcp -j DNAT --to-destination {pod}\n"
            );
        }
        let table = format!("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{chains}{rules}COMMIT\n");
        let mut restore = self.node.command("iptables-nft-restore").stdin(Stdio::piped()).spawn().unwrap();
        restore.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(restore.wait().unwrap().success(), "{table}");
    }

    /// A listener on the node, which is asked for connections and never waits for one.
    fn listener(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        let listener = inside(&self.node, move || TcpListener::bind(address)).expect("the bind succeeds");
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A connection of the client to a port of the node.
    fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        let to: SocketAddr = format!("{NODE}:{port}").parse().unwrap();
        inside(&self.client, move || TcpStream::connect_timeout(&to, Duration::from_secs(20)))
    }
}

#[track_caller]
fn accepts(listener: &TcpListener) {
    eventually("the connection arrives", || listener.accept().ok());
}

/// The holds of a port that are remembered, once there are so many and so many of them have ended.
#[track_caller]
fn remembered(daemon: &Daemon, netns: &str, port: u16, count: usize, ended: usize) -> Vec<Value> {
    eventually("the rules are remembered", || {
        let port = port.to_string();
        let (_, document) = common::json(&mut daemon.ask(&["history", &port, "--netns", netns]));
        let holds = document["holds"].as_array()?.clone();
        let over = holds.iter().filter(|hold| !hold["until"].is_null()).count();
        (holds.len() == count && over == ended).then_some(holds)
    })
}

#[test]
#[ignore = "needs root, ip and iptables"]
fn who_claims_a_node_port_is_told_and_who_claimed_it_before_and_that_a_bind_there_gets_nothing() {
    let cluster = Cluster::new();
    let daemon = Daemon::start("");
    let netns = cluster.node.0.clone();
    let ingress = cluster.listener(INGRESS.pod);
    cluster.node_ports(&[(NODE_PORT, &INGRESS)]);
    cluster.connect(NODE_PORT).expect("the gateway is reached");
    accepts(&ingress);
    remembered(&daemon, &netns, NODE_PORT, 1, 0);

    // The controller gives it another port; what people see is a connection refused, and an empty log of the gateway.
    cluster.node_ports(&[(WANDERED, &INGRESS)]);
    assert_eq!(cluster.connect(NODE_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(ingress.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let [before] = &remembered(&daemon, &netns, NODE_PORT, 1, 1)[..] else { panic!("one is remembered") };
    // When it is to come back, another service has it.
    cluster.node_ports(&[(WANDERED, &INGRESS), (NODE_PORT, &GRAFANA)]);
    let holds = remembered(&daemon, &netns, NODE_PORT, 2, 1);
    assert_eq!(&holds[0], before);
    assert_eq!(remembered(&daemon, &netns, WANDERED, 1, 0)[0]["nat"]["comment"], INGRESS.name);

    // Who claimed it before, and until when; who claims it now.
    for (hold, service) in holds.iter().zip([INGRESS, GRAFANA]) {
        let (address, port) = service.pod.split_once(':').unwrap();
        let nat = &hold["nat"];
        assert_eq!((&hold["kind"], &hold["holder"]), (&"nat_rule".into(), &Value::Null), "{hold:#}");
        assert_eq!((&nat["comment"], &nat["to_address"]), (&service.name.into(), &address.into()));
        assert_eq!(nat["to_port"], port.parse::<u16>().unwrap());
        assert_eq!(nat["chain"], "KUBE-NODEPORTS", "where the port is decided");
    }
    assert!(holds[0]["until"].as_str() <= holds[1]["from"].as_str(), "{holds:#?}");
    let words = [(netns.as_str(), "node-1")];
    let sample = Sample { words: &words, ..Sample::default() };
    let port = NODE_PORT.to_string();
    let told = printed(&daemon, &["history", &port, "--netns", &netns], 0);
    let moments = ["09:12:40", "14:03:07", "14:21:33"];
    insta::assert_snapshot!(
        "before",
        Sample { moments: &moments, spans: &["4h50m", "12m"], ..sample }.of(&told)
    );
    let claim = only_rule(&daemon, &port, &netns);
    assert_eq!(
        claim["owner"],
        json!({"type": "service", "name": GRAFANA.name, "container": null, "image": null})
    );
    assert_eq!((&claim["nat"]["to_address"], &claim["nat"]["to_port"]), (&"10.244.2.7".into(), &3000.into()));
    let told = printed(&daemon, &["who-holds", &port, "--netns", &netns], 0);
    insta::assert_snapshot!("now", Sample { words: &words, ..Sample::default() }.of(&told));

    // A socket is bound there all the same, and nobody reaches it.
    let target = format!("{port}/tcp");
    let (_, answer) = common::json(&mut daemon.ask(&["can-bind", &target, "--netns", &netns]));
    assert_eq!((&answer["would_succeed"], &answer["errno"]), (&true.into(), &Value::Null));
    let told = printed(&daemon, &["can-bind", &target, "--netns", &netns], 0);
    insta::assert_snapshot!("in_vain", Sample { words: &words, ..Sample::default() }.of(&told));
    let in_vain = cluster.listener(&format!("0.0.0.0:{port}"));
    let grafana = cluster.listener(GRAFANA.pod);
    cluster.connect(NODE_PORT).expect("grafana is reached");
    accepts(&grafana);
    assert_eq!(in_vain.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "it went elsewhere");
    let both = daemon.who_holds(NODE_PORT);
    assert_eq!(common::claims(&both, "kind", "listener").len(), 1, "{both:#}");
    assert!(
        both["advice"].to_string().contains(&format!("whoever binds port {port} gets none of that")),
        "{both:#}"
    );

    counted(&daemon, "sniffer_held_ports{kind=\"nat_rule\",protocol=\"tcp\"}", 2.0);
}

#[track_caller]
fn only_rule(daemon: &Daemon, port: &str, netns: &str) -> Value {
    let (code, document) = common::json(&mut daemon.ask(&["who-holds", port, "--netns", netns]));
    let rules = common::claims(&document, "kind", "nat_rule");
    assert_eq!((code, rules.len()), (0, 1), "{document:#}");
    rules[0].clone()
}
