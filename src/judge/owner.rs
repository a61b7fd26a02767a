//! Whom a person would name: the container behind a proxy or a rule, the service behind a NodePort, the unit behind pid 1.
//!
//! Names come from comments of rules and arguments of proxies, which are others' text: what has not the form that the tool gives it
//! is not believed.

use std::net::IpAddr;

use crate::model::claim::{Claim, Nat, Owner, OwnerType};
use crate::model::container::{Container, Place, Proxy, SHORT_ID_CHARS, is_id, monitored, value_of};
use crate::model::nat::Backend;
use crate::model::process::Holder;
use crate::model::socket::Protocol;

/// kube-proxy's own table of nftables.
const KUBE_PROXY: &str = "kube-proxy";

/// What is known of the containers of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// As their engines list them.
    pub containers: &'a [Container],
    /// Addresses of network namespaces, with the container that lives there.
    pub places: &'a [Place],
}

/// Whose a socket is. `kernel` says that no file refers to it.
pub fn of_socket(claim: &Claim, known: &Known<'_>, kernel: bool) -> Owner {
    if let Some(id) = claim.holders.iter().find_map(|holder| holder.container.as_deref()) {
        return known.owner(id, None);
    }
    if let Some(owner) = claim.holders.iter().find_map(|holder| behind_proxy(holder, claim, known)) {
        return owner;
    }
    // pid 1 keeps the socket of a unit with socket activation, beside the service or alone.
    if let (true, Some(unit)) = (
        claim.holders.len() > 1 && claim.holders.last().is_some_and(|holder| holder.pid == 1),
        claim.holders.first().and_then(|holder| holder.unit.clone()),
    ) {
        return Owner::new(OwnerType::Unit, Some(unit));
    }
    match claim.holders.first() {
        Some(holder) => Owner::new(OwnerType::Process, holder.comm.clone()),
        None if kernel => Owner::new(OwnerType::Kernel, None),
        None => Owner::new(OwnerType::Unknown, None),
    }
}

/// Whose a rule is.
pub fn of_rule(claim: &Claim, nat: &Nat, known: &Known<'_>) -> Owner {
    if let Some(service) = service(nat) {
        return Owner::new(OwnerType::Service, Some(service));
    }
    let container = host_port(nat)
        .map(|id| known.by_id(id).unwrap_or_else(|| id.to_owned()))
        .or_else(|| nat.to_address.and_then(|address| known.at(address)))
        .or_else(|| known.publishing(claim.protocol, claim.address, claim.port));
    container.map_or_else(|| Owner::new(OwnerType::Unknown, None), |id| known.owner(&id, None))
}

/// The network namespace behind an address, if it is a container's.
pub fn netns_behind(nat: &Nat, known: &Known<'_>) -> Option<u64> {
    let address = nat.to_address?;
    known.only(|place| place.addresses.contains(&address)).map(|place| place.netns)
}

impl Known<'_> {
    /// A container by its whole id, or the beginning of it.
    fn by_id(&self, id: &str) -> Option<String> {
        let listed = self.containers.iter().map(|container| container.id.as_str());
        let living = self.places.iter().map(|place| place.container.as_str());
        listed.chain(living).find(|known| known.starts_with(id)).map(str::to_owned)
    }

    /// The one place of which this is true; two networks may give an address twice.
    fn only(&self, is_it: impl Fn(&Place) -> bool) -> Option<&Place> {
        let mut found = self.places.iter().filter(|place| is_it(place));
        let first = found.next()?;
        found.all(|other| other.container == first.container).then_some(first)
    }

    /// The container that this program forwards to, which forwards to one alone.
    fn forwarded_by(&self, pid: u32) -> Option<String> {
        self.only(|place| place.forwarders.contains(&pid)).map(|place| place.container.clone())
    }

    /// The container that has an address.
    fn at(&self, address: IpAddr) -> Option<String> {
        let mut listed = self.containers.iter().filter(|container| container.addresses.contains(&address));
        match (listed.next(), listed.next()) {
            (Some(container), None) => Some(container.id.clone()),
            (Some(_), Some(_)) => None,
            (None, _) => {
                self.only(|place| place.addresses.contains(&address)).map(|place| place.container.clone())
            }
        }
    }

    /// The container whose engine says that it publishes a port.
    fn publishing(&self, protocol: Protocol, address: IpAddr, port: u16) -> Option<String> {
        let is_it = |container: &&Container| {
            container.published.iter().any(|published| {
                let same = published.address.is_none_or(|asked| address.is_unspecified() || asked == address);
                published.protocol == protocol && published.port == port && same
            })
        };
        let mut found = self.containers.iter().filter(is_it);
        found.next().filter(|_| found.next().is_none()).map(|container| container.id.clone())
    }

    /// A container as an owner: its pod, its name (`told` where its engine does not say), or the beginning of its id.
    fn owner(&self, id: &str, told: Option<&str>) -> Owner {
        let short = id.get(..SHORT_ID_CHARS).unwrap_or(id);
        let known = self.containers.iter().find(|container| container.id == id);
        let pod = known.and_then(|container| container.pod.clone());
        let lives = || self.places.iter().find(|place| place.container == id)?.name.as_deref();
        let listed = known.and_then(|container| container.name.as_deref());
        let name = listed.or(told).or_else(lives).unwrap_or(short).to_owned();
        Owner {
            kind: if pod.is_some() { OwnerType::Pod } else { OwnerType::Container },
            name: Some(pod.unwrap_or(name)),
            container: Some(id.to_owned()),
            image: known.and_then(|container| container.image.clone()),
        }
    }
}

/// The service of a NodePort: `namespace/service:port`. kube-proxy writes it at each rule of a service; where it makes rules of nftables
/// itself it is the name of the chain that the port's element leads to.
pub fn service(nat: &Nat) -> Option<String> {
    let by_nftables = nat.table == KUBE_PROXY && nat.backend == Backend::Nftables.as_str();
    let by_kube_proxy = nat.chain.starts_with("KUBE-") || by_nftables;
    let comment = nat.comment.as_deref().filter(|_| by_kube_proxy);
    let written = comment.and_then(|comment| comment.split_whitespace().find(|word| is_service(word)));
    written.map(str::to_owned).or_else(|| of_chain(&nat.chain).filter(|_| by_nftables))
}

/// `external-42NFTM6N-namespace/service/tcp/port`: what it is for, a hash, and whose it is; of a port without a name nothing comes last.
fn of_chain(chain: &str) -> Option<String> {
    let (purpose, rest) = chain.split_once('-')?;
    let (hash, service) = rest.split_once('-')?;
    let is_hash =
        !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let ours = ["external", "service", "firewall"].contains(&purpose) && is_hash;
    let [namespace, name, _, port] = <[&str; 4]>::try_from(service.split('/').collect::<Vec<_>>()).ok()?;
    let colon = if port.is_empty() { "" } else { ":" };
    Some(format!("{namespace}/{name}{colon}{port}")).filter(|service| ours && is_service(service))
}

/// Labels of DNS, a slash, and perhaps the name of a port.
fn is_service(word: &str) -> bool {
    let plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
    };
    word.split_once('/').is_some_and(|(namespace, service)| {
        let (name, port) = service.split_once(':').unwrap_or((service, "0"));
        plain(namespace) && plain(name) && (port.is_empty() || plain(port))
    })
}

/// The portmap plugin of CNI writes `dnat name: "network" id: "container"`, and in its own table of nftables the container alone.
fn host_port(nat: &Nat) -> Option<&str> {
    let own_table = nat.table == "cni_hostport";
    let comment = nat.comment.as_deref().filter(|_| own_table || nat.chain.starts_with("CNI-"))?;
    let id = match comment.split_once("id: \"") {
        Some((_, after)) => after.split('"').next()?,
        None => Some(comment).filter(|_| own_table)?,
    };
    is_id(id).then_some(id)
}

/// The container for which a process holds a port.
fn behind_proxy(holder: &Holder, claim: &Claim, known: &Known<'_>) -> Option<Owner> {
    let arguments = holder.cmdline.as_deref().unwrap_or_default();
    let told = match Proxy::named(holder.comm.as_deref()?)? {
        Proxy::Docker => {
            value_of(arguments, "-container-ip").and_then(|address| known.at(address.parse().ok()?))
        }
        Proxy::Publisher => None,
        Proxy::Monitor => {
            let (id, name) = monitored(arguments)?;
            return Some(known.owner(id, name));
        }
        Proxy::Inside => known.forwarded_by(holder.pid),
        Proxy::UserNetwork => {
            known.forwarded_by(holder.pid).or_else(|| behind_user_network(arguments, known))
        }
    };
    let id = told.or_else(|| known.publishing(claim.protocol, claim.address, claim.port))?;
    Some(known.owner(&id, None))
}

/// pasta(1) and slirp4netns(1) are told the namespace that they serve: by a process in it, or by a path. Podman names the socket after the
/// container by which it tells slirp4netns of ports.
fn behind_user_network(arguments: &[String], known: &Known<'_>) -> Option<String> {
    let socket = value_of(arguments, "--api-socket").and_then(|path| path.rsplit('/').next());
    if let Some(id) = socket.and_then(|name| name.strip_suffix(".net")).filter(|id| is_id(id)) {
        return Some(id.to_owned());
    }
    let place = arguments.iter().skip(1).find_map(|argument| {
        let argument = argument.strip_prefix("--netns=").unwrap_or(argument);
        let pid = argument.strip_prefix("/proc/").and_then(|rest| rest.split('/').next()).unwrap_or(argument);
        known.only(|place| {
            pid.parse().is_ok_and(|pid| place.pids.contains(&pid))
                || (argument.starts_with('/') && place.mounts.iter().any(|mount| mount == argument))
        })
    });
    place.map(|place| place.container.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::fixtures::{claim, holder};
    use crate::model::container::Published;

    const ID: &str = "6af1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f";

    fn nat(chain: &str, comment: &str) -> Nat {
        Nat {
            backend: "iptables".to_owned(),
            chain: chain.to_owned(),
            to_address: Some([172, 17, 0, 2].into()),
            to_port: Some(80),
            comment: Some(comment.to_owned()),
            table: "nat".to_owned(),
            last_port: None,
            conditional: false,
            local_only: false,
            others: Vec::new(),
        }
    }

    fn listed() -> [Container; 1] {
        [Container {
            id: ID.to_owned(),
            name: Some("web".to_owned()),
            image: Some("busybox".to_owned()),
            pod: None,
            addresses: vec![[172, 17, 0, 2].into()],
            published: vec![Published { protocol: Protocol::Tcp, address: None, port: 8081 }],
        }]
    }

    fn named(owner: &Owner) -> (OwnerType, Option<&str>) {
        (owner.kind, owner.name.as_deref())
    }

    #[test]
    fn services_are_named_by_the_comments_of_kube_proxy_only() {
        let by = |chain: &str, comment: &str| of_rule(&claim(), &nat(chain, comment), &Known::default());
        for (comment, name) in [
            ("default/web:http", Some("default/web:http")),
            ("masquerade traffic for ns/svc external destinations", Some("ns/svc")),
            ("a b c", None),
            ("../../etc:x y", None),
            ("default/\u{1b}[31m", None),
        ] {
            assert_eq!(by("KUBE-NODEPORTS", comment).name.as_deref(), name, "{comment:?}");
        }
        assert_eq!(named(&by("PREROUTING", "default/web:http")), (OwnerType::Unknown, None));
    }

    #[test]
    fn services_are_named_by_the_chains_of_kube_proxys_nftables_only() {
        let of = |table: &str, chain: &str| {
            let (backend, table) = ("nftables".to_owned(), table.to_owned());
            service(&Nat { backend, table, comment: None, ..nat(chain, "") })
        };
        for (chain, name) in [
            ("external-42NFTM6N-ns2/svc-2/tcp/p80", Some("ns2/svc-2:p80")),
            ("service-42NFTM6N-ns2/svc2/udp/", Some("ns2/svc2")),
            ("endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80", None),
            ("external-42NFTM6N-ns2/svc2/tcp", None),
            ("external-lower-ns2/svc2/tcp/p80", None),
            ("external-42NFTM6N-ns2/\u{1b}[31m/tcp/p80", None),
            ("services", None),
        ] {
            assert_eq!(of("kube-proxy", chain).as_deref(), name, "{chain:?}");
        }
        assert_eq!(of("mine", "external-42NFTM6N-ns2/svc2/tcp/p80"), None);
    }

    #[test]
    fn containers_are_found_by_id_by_address_and_by_what_they_publish() {
        let listed = listed();
        let known = Known { containers: &listed, places: &[] };
        let by_id = of_rule(&claim(), &nat("CNI-DN-1", &format!("dnat name: \"cbr0\" id: \"{ID}\"")), &known);
        assert_eq!(named(&by_id), (OwnerType::Container, Some("web")));
        let own_table = Nat { table: "cni_hostport".to_owned(), ..nat("hostports", ID) };
        assert_eq!(named(&of_rule(&claim(), &own_table, &known)), (OwnerType::Container, Some("web")));
        let elsewhere = Nat { to_address: None, ..nat("hostports", ID) };
        assert_eq!(host_port(&elsewhere), None, "whoever writes an id into another table says nothing");
        let docker = of_rule(&claim(), &nat("DOCKER", ""), &known);
        assert_eq!(
            (named(&docker), docker.image.as_deref()),
            ((OwnerType::Container, Some("web")), Some("busybox"))
        );
        let elsewhere = Nat { to_address: None, ..nat("DOCKER", "") };
        assert_eq!(named(&of_rule(&claim(), &elsewhere, &known)).1, Some("web"), "it publishes 8081");
        let place = Place {
            netns: 7,
            addresses: vec![[172, 17, 0, 2].into()],
            container: ID.to_owned(),
            name: None,
            first: None,
            pids: vec![5],
            forwarders: Vec::new(),
            mounts: Vec::new(),
        };
        let silent = Known { containers: &[], places: std::slice::from_ref(&place) };
        assert_eq!(named(&of_rule(&claim(), &nat("DOCKER", ""), &silent)).1, Some("6af1a2b3c4d5"));
        assert_eq!(netns_behind(&nat("DOCKER", ""), &silent), Some(7));
        let places = [place.clone(), Place { container: "0f".to_owned(), ..place }];
        let twice = Known { containers: &[], places: &places };
        assert_eq!(
            named(&of_rule(&claim(), &nat("DOCKER", ""), &twice)),
            (OwnerType::Unknown, None),
            "two have it"
        );
    }

    #[test]
    fn behind_a_proxy_there_is_a_container() {
        let listed = listed();
        let places = [Place {
            netns: 7,
            addresses: vec![[10, 0, 2, 100].into()],
            container: "0badcafe0badcafe".to_owned(),
            name: None,
            first: None,
            pids: vec![55],
            forwarders: vec![10],
            mounts: vec!["/run/user/1/netns/netns-1".to_owned()],
        }];
        let known = Known { containers: &listed, places: &places };
        let by = |comm: &str, port: u16, arguments: &[&str]| {
            let cmdline = Some(arguments.iter().map(|argument| (*argument).to_owned()).collect());
            let proxy = Claim { port, holders: vec![Holder { cmdline, ..holder(9, comm) }], ..claim() };
            of_socket(&proxy, &known, false)
        };
        for comm in ["rootlessport", "passt.avx2"] {
            let forwards = Claim { port: 1, holders: vec![holder(10, comm)], ..claim() };
            assert_eq!(named(&of_socket(&forwards, &known, false)).1, Some("0badcafe0bad"), "{comm}");
        }
        for (comm, port, arguments, name) in [
            (
                "docker-proxy",
                1,
                &["/usr/bin/docker-proxy", "-container-ip", "172.17.0.2", "-container-port", "80"][..],
                "web",
            ),
            ("docker-proxy", 8081, &["docker-proxy"], "web"),
            ("dockerd", 8081, &["dockerd"], "web"),
            ("rootlesskit", 8081, &["rootlesskit"], "web"),
            (
                "slirp4netns",
                1,
                &["slirp4netns", "--api-socket", &format!("/run/user/1/libpod/tmp/{ID}.net"), "tap0"],
                "web",
            ),
            ("pasta", 1, &["pasta", "--config-net", "--netns", "/run/user/1/netns/netns-1"], "0badcafe0bad"),
            ("pasta", 1, &["pasta", "/proc/55/ns/net"], "0badcafe0bad"),
            ("slirp4netns", 1, &["slirp4netns", "--mtu=65520", "55", "tap0"], "0badcafe0bad"),
            ("conmon", 1, &["/usr/bin/conmon", "--api-version", "1", "-c", ID, "-u", ID], "web"),
            ("conmon", 1, &["conmon", "-c", "0badcafe0badcafe", "-n", "db", "--exit-dir", "/x"], "db"),
            ("conmon", 1, &["conmon", "-c", "0badcafe0badcafe"], "0badcafe0bad"),
        ] {
            assert_eq!(
                named(&by(comm, port, arguments)),
                (OwnerType::Container, Some(name)),
                "{arguments:?}"
            );
        }
        for (comm, arguments) in [
            ("dockerd", &["dockerd"][..]),
            ("docker-proxy", &["docker-proxy", "-container-ip", "x"]),
            ("conmon", &["conmon", "-c", "../../etc", "-n", "db"]),
            ("slirp4netns", &["slirp4netns", "--api-socket", "/tmp/../../etc.net", "tap0"]),
            ("nc", &["nc"]),
        ] {
            assert_eq!(named(&by(comm, 1, arguments)), (OwnerType::Process, Some(comm)));
        }
    }
}
