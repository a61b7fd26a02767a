//! Containers. Their names come from the engine that runs them: the list of Docker's API (`GET /containers/json`), which Podman
//! serves too.
//!
//! It is asked only where a claim leads to a container, never needed, and never waited for: an engine that hangs is left alone for a while.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};

use super::mounts::NetnsMount;
use super::netns::{self, Inhabitants, NetnsEntry};
use super::{descriptors, process, surroundings, unix_http};
use crate::model::container::{Container, Place, Proxy, Published, monitored};
use crate::model::netns::NetnsKey;
use crate::model::process::Holder;
use crate::model::socket::Protocol;
use crate::model::surroundings::LocalAddress;

/// An engine that answers takes milliseconds.
const TIMEOUT: Duration = Duration::from_millis(250);
/// One that does not answer is asked again after this time.
const REST: Duration = Duration::from_secs(30);
/// So long a list is believed: containers come and go.
const FRESH: Duration = Duration::from_millis(500);
/// A list is a kilobyte or so for each container.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// The labels that kubelet gives its containers.
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";

/// The engines of this host, and what they said last.
#[derive(Debug, Default)]
pub struct Engines {
    sockets: Vec<PathBuf>,
    asked: Mutex<BTreeMap<PathBuf, Asked>>,
}

#[derive(Debug, Clone)]
struct Asked {
    at: Instant,
    said: Result<Arc<Vec<Container>>, String>,
}

impl Engines {
    /// Engines that serve these sockets, where they are there.
    pub fn new(sockets: impl IntoIterator<Item = PathBuf>) -> Self {
        Engines { sockets: sockets.into_iter().collect(), asked: Mutex::default() }
    }

    /// The containers of all engines, and why an engine that is there did not tell.
    pub fn containers(&self) -> (Vec<Container>, Vec<String>) {
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for socket in &self.sockets {
            match self.ask(socket) {
                Some(Ok(containers)) => found.extend(containers.iter().cloned()),
                Some(Err(why)) => silent.push(format!("{}: {why}", socket.display())),
                None => {}
            }
        }
        (found, silent)
    }

    fn ask(&self, socket: &PathBuf) -> Option<Result<Arc<Vec<Container>>, String>> {
        let known = self
            .lock()
            .get(socket)
            .cloned()
            .filter(|asked| asked.at.elapsed() < if asked.said.is_ok() { FRESH } else { REST });
        if let Some(asked) = known {
            return Some(asked.said);
        }
        let said = match unix_http::get(socket, "/containers/json", TIMEOUT, MAX_BYTES) {
            Err(error) if is_absence(&error) => return None,
            Err(error) => Err(error.to_string()),
            Ok((status, _)) if !status.is_success() => Err(format!("it answered {status}")),
            Ok((_, body)) => parse(&body).map(Arc::new).map_err(|error| error.to_string()),
        };
        self.lock().insert(socket.clone(), Asked { at: Instant::now(), said: said.clone() });
        Some(said)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one network namespace that a program forwards to, as it shows itself: rootlessport has a child there, pasta a descriptor of it.
/// `listens_in` are those where its sockets are.
pub fn forwards_to(holder: &Holder, listens_in: impl FnOnce() -> HashSet<u64>) -> Option<u64> {
    let mut namespaces: HashSet<u64> = match Proxy::named(holder.comm.as_deref()?)? {
        Proxy::Inside => {
            process::children(holder.pid).into_iter().filter_map(|pid| netns::of_process(pid).ok()).collect()
        }
        Proxy::UserNetwork => {
            descriptors::scan(&[holder.pid], Some(&HashSet::new()), 1).netns.into_keys().collect()
        }
        Proxy::Docker | Proxy::Publisher | Proxy::Monitor => return None,
    };
    let own = listens_in();
    namespaces.retain(|inode| !own.contains(inode));
    namespaces.iter().next().copied().filter(|_| namespaces.len() == 1)
}

/// A container that lives somewhere.
#[derive(Clone)]
struct Resident {
    container: String,
    name: Option<String>,
    first: Option<u32>,
}

/// The container in which a process is: by its control group, or as one that a monitor started. What forwards to a container is in none.
fn resident(pid: u32) -> Option<Resident> {
    let named = |pid| Proxy::named(&process::glance(pid).ok()?.comm);
    if matches!(named(pid), Some(Proxy::Inside | Proxy::UserNetwork)) {
        return None;
    }
    if let Some(container) = process::container(pid) {
        return Some(Resident { container, name: None, first: None });
    }
    let (_, parent) = process::parentage(pid).ok()?;
    let arguments = process::arguments(parent).filter(|_| named(parent) == Some(Proxy::Monitor))?;
    let (id, name) = monitored(&arguments)?;
    // What is put into a container later has a monitor of its own.
    let is_first = !arguments.iter().any(|argument| argument == "-e" || argument == "--exec");
    Some(Resident {
        container: id.to_owned(),
        name: name.map(str::to_owned),
        first: Some(pid).filter(|_| is_first),
    })
}

/// Which containers live in these namespaces, at which addresses, and who of `forwarders` forwards to each. A container without a process is
/// not found.
pub fn places(
    mut entries: Vec<NetnsEntry>,
    inhabitants: &Inhabitants,
    mounts: &[NetnsMount],
    forwarders: &[(u32, u64)],
) -> Vec<Place> {
    let inhabited = |entry: &NetnsEntry| {
        let pids = inhabitants.get(&entry.key.inode)?;
        Some((pids.clone(), pids.iter().find_map(|pid| resident(*pid))?))
    };
    let homes: HashMap<NetnsKey, (Vec<u32>, Resident)> =
        entries.iter().filter_map(|entry| Some((entry.key, inhabited(entry)?))).collect();
    entries.retain(|entry| homes.contains_key(&entry.key));
    // One that cannot be entered is a gap of the look that this belongs to.
    let (found, _) = netns::visit(&entries, |_| surroundings::addresses());
    let place = |(key, addresses): (NetnsKey, Vec<LocalAddress>)| {
        let (pids, Resident { container, name, first }) = homes.get(&key)?.clone();
        let forwarders = forwarders.iter().filter(|(_, inode)| *inode == key.inode);
        let mounted = mounts.iter().filter(|mount| mount.inode == key.inode);
        // Every namespace has those of loopback.
        let addresses = addresses.iter().map(|local| local.address).filter(|own| !own.is_loopback());
        Some(Place {
            netns: key.inode,
            addresses: addresses.collect(),
            container,
            name,
            first,
            pids,
            forwarders: forwarders.map(|(pid, _)| *pid).collect(),
            mounts: mounted.map(|mount| mount.mount_point.display().to_string()).collect(),
        })
    };
    found.into_iter().filter_map(place).collect()
}

/// No engine, or one that does not talk to us: nothing that has to be said in every answer.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied)
}

/// A container as the API lists it. Anything may be missing or null.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    names: Vec<String>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<Port>,
    #[serde(default, deserialize_with = "or_default")]
    network_settings: NetworkSettings,
}

#[derive(Deserialize)]
struct Port {
    #[serde(rename = "IP", default)]
    ip: Option<String>,
    #[serde(rename = "PublicPort", default)]
    public: Option<u16>,
    #[serde(rename = "Type", default)]
    kind: Option<String>,
}

#[derive(Default, Deserialize)]
struct NetworkSettings {
    #[serde(rename = "Networks", default, deserialize_with = "or_default")]
    networks: BTreeMap<String, Network>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "IPAddress", default)]
    four: Option<String>,
    #[serde(rename = "GlobalIPv6Address", default)]
    six: Option<String>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The containers of a list as Docker's API gives it (`GET /containers/json`). Errors: it is no such list.
pub fn parse(body: &[u8]) -> serde_json::Result<Vec<Container>> {
    Ok(serde_json::from_slice::<Vec<Listed>>(body)?.into_iter().map(container).collect())
}

fn container(listed: Listed) -> Container {
    let label = |name: &str| listed.labels.get(name).filter(|value| !value.is_empty());
    let pod =
        label(POD_NAMESPACE).zip(label(POD_NAME)).map(|(namespace, name)| format!("{namespace}/{name}"));
    let networks = listed.network_settings.networks.values();
    let addresses = networks.flat_map(|network| [&network.four, &network.six]);
    Container {
        pod,
        name: listed.names.first().map(|name| name.trim_start_matches('/').to_owned()),
        image: listed.image,
        addresses: addresses.flatten().filter_map(|address| address.parse().ok()).collect(),
        published: listed.ports.iter().filter_map(published).collect(),
        id: listed.id,
    }
}

fn published(port: &Port) -> Option<Published> {
    let address: Option<IpAddr> = port.ip.as_ref().and_then(|address| address.parse().ok());
    Some(Published {
        protocol: port.kind.as_deref()?.parse::<Protocol>().ok()?,
        address: address.filter(|address| !address.is_unspecified()),
        port: port.public?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    const LIST: &str = r#"[
        {"Id": "abc", "Names": ["/web"], "Image": "busybox:1", "Labels": {"io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "n"},
         "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, {"PrivatePort": 53, "Type": "udp"},
                   {"IP": "127.0.0.1", "PrivatePort": 5, "PublicPort": 5, "Type": "sctp"}],
         "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""}, "host": {}}}},
        {"Id": "def", "Names": null, "Labels": null, "Ports": null, "NetworkSettings": null, "More": 1}
    ]"#;

    #[test]
    fn a_list_is_read_whatever_is_missing() {
        let containers = parse(LIST.as_bytes()).unwrap();
        assert_eq!(
            containers[0],
            Container {
                id: "abc".to_owned(),
                name: Some("web".to_owned()),
                image: Some("busybox:1".to_owned()),
                pod: Some("n/p".to_owned()),
                addresses: vec![[172, 17, 0, 2].into()],
                published: vec![Published { protocol: Protocol::Tcp, address: None, port: 8080 }],
            }
        );
        assert_eq!(containers[1], Container { id: "def".to_owned(), ..Container::default() });
        assert!(parse(b"{}").is_err());
    }

    /// Serves one answer to each who asks, or none.
    fn engine(answer: Option<&'static str>) -> (tempfile::TempDir, Engines) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(answer) = answer else {
                    silent.push(stream);
                    continue;
                };
                let _ = stream.read(&mut [0; 1024]);
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
            }
        });
        (directory, Engines::new([path]))
    }

    #[test]
    fn an_engine_is_asked_and_one_that_hangs_is_left_alone() {
        let (_directory, engines) = engine(Some(LIST));
        assert_eq!(engines.containers().0.len(), 2);
        let (_directory, engines) = engine(Some("garbage"));
        let (found, silent) = engines.containers();
        assert_eq!((found.len(), silent.len()), (0, 1));
        let (_directory, engines) = engine(None);
        let begun = Instant::now();
        let (found, silent) = engines.containers();
        assert!(found.is_empty() && silent[0].contains("timed out"), "{silent:?}");
        assert!(begun.elapsed() < TIMEOUT * 3);
        let again = Instant::now();
        assert_eq!(engines.containers().1.len(), 1);
        assert!(again.elapsed() < TIMEOUT / 2, "it was asked again at once");
        assert_eq!(Engines::new(["/nowhere/engine.sock".into()]).containers(), (vec![], vec![]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
