//! Would the kernel allow this bind? From the claims on its port and the surroundings, without binding anything.
//!
//! Source: `__inet_bind` in net/ipv4/af_inet.c, `__inet6_bind` in net/ipv6/af_inet6.c: the checks are in their order. What other
//! programs at the cgroup's hooks or a security module would say is not known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::overlap::{self, Place, Standing};
use crate::model::answer::{Answer, SCHEMA};
use crate::model::can_bind::{CanBind, IN_USE, Manner, OneBind};
use crate::model::claim::Claim;
use crate::model::socket::{ClaimKind, Protocol};
use crate::model::surroundings::{LocalAddress, Surroundings};
use crate::model::target::Target;

/// One bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish<'a> {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address; the IPv6 wildcard for every address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// How.
    pub manner: &'a Manner,
}

/// What the kernel would say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling<'a> {
    /// The error, or that there is none; `None` where it depends on what is not known.
    pub errno: Option<Result<(), &'static str>>,
    /// What stands in the way.
    pub blockers: Vec<&'a Claim>,
    /// What may stand in the way: its options are not known.
    pub undecided: Vec<&'a Claim>,
    /// Whether somebody has the port, and would let the new one in beside it.
    pub shared: bool,
}

/// Judges one bind. `claims` are the sockets of that namespace on that port, and perhaps others.
pub fn rule<'a>(wish: &Wish<'_>, claims: &'a [Claim], here: &Surroundings) -> Ruling<'a> {
    let refused = |errno| Ruling {
        errno: Some(Err(errno)),
        blockers: Vec::new(),
        undecided: Vec::new(),
        shared: false,
    };
    if let Some(errno) = before_sockets(wish, here) {
        return refused(errno);
    }
    let new = Place {
        protocol: wish.protocol,
        address: wish.address,
        v6only: wish.manner.v6only,
        ifindex: wish.manner.interface.as_deref().and_then(|name| here.ifindex(name)),
        reuseaddr: Some(wish.manner.reuseaddr),
        reuseport: Some(wish.manner.reuseport),
        uid: Some(wish.manner.uid),
        standing: Standing::Other,
    };
    let (mut blockers, mut undecided, mut shared) = (Vec::new(), Vec::new(), false);
    for claim in claims.iter().filter(|claim| claim.port == wish.port && takes_the_port(claim)) {
        let there = overlap::place(claim);
        if here.mapped_wildcard_is_narrow && overlap::is_mapped_under_wildcard(&there, &new) {
            continue;
        }
        match overlap::blocks(&there, &new) {
            Some(true) => blockers.push(claim),
            None => undecided.push(claim),
            Some(false) => {
                let has_it = matches!(claim.kind, ClaimKind::Listener | ClaimKind::Bound);
                shared |= has_it && claim.protocol == wish.protocol && overlap::addresses_meet(&there, &new);
            }
        }
    }
    let errno = match (blockers.is_empty(), undecided.is_empty()) {
        (false, _) => Some(Err(IN_USE)),
        (true, false) => None,
        // The addresses could not be read: whether this one is there nobody knows.
        (true, true) => here.is_local(wish.address).map(|_| Ok(())),
    };
    Ruling { errno, blockers, undecided, shared }
}

/// A connection that nobody has accepted yet stands behind its listener.
fn takes_the_port(claim: &Claim) -> bool {
    claim.socket.is_some() && claim.state != "SYN_RECV"
}

fn before_sockets(wish: &Wish<'_>, here: &Surroundings) -> Option<&'static str> {
    let Manner { v6only, uid, interface, .. } = wish.manner;
    let ifindex = interface.as_deref().map(|name| here.ifindex(name));
    if ifindex == Some(None) {
        return Some("ENODEV");
    }
    let privileged = *uid != 0 && here.unprivileged_from.is_some_and(|from| wish.port < from);
    let foreign = here.is_local(wish.address) == Some(false);
    match wish.address {
        IpAddr::V4(_) if foreign => Some("EADDRNOTAVAIL"),
        IpAddr::V4(_) => privileged.then_some("EACCES"),
        IpAddr::V6(_) if !here.six => Some("EAFNOSUPPORT"),
        IpAddr::V6(six) if six.is_multicast() && wish.protocol == Protocol::Tcp => Some("EINVAL"),
        IpAddr::V6(_) if privileged => Some("EACCES"),
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => {
            if *v6only {
                Some("EINVAL")
            } else {
                foreign.then_some("EADDRNOTAVAIL")
            }
        }
        IpAddr::V6(six) if needs_interface(six) && ifindex.is_none() => Some("EINVAL"),
        IpAddr::V6(six) => {
            let elsewhere = ifindex.flatten().is_some_and(|ifindex| is_elsewhere(six, ifindex, here));
            (foreign || elsewhere).then_some("EADDRNOTAVAIL")
        }
    }
}

/// Link-local addresses, and multicast ones of the link or the interface (`__ipv6_addr_needs_scope_id`).
fn needs_interface(six: Ipv6Addr) -> bool {
    six.is_unicast_link_local() || (six.is_multicast() && matches!(six.octets()[1] & 0xf, 1 | 2))
}

/// Addresses of the link and of the host are taken on their own interface only (`__ipv6_chk_addr_and_flags`).
fn is_elsewhere(six: Ipv6Addr, ifindex: u32, here: &Surroundings) -> bool {
    let narrow = six.is_loopback() || six.is_unicast_link_local();
    let on_it = |addresses: &Vec<LocalAddress>| {
        addresses.iter().any(|local| local.address == IpAddr::V6(six) && local.ifindex == ifindex)
    };
    narrow && !here.nonlocal_six && !here.addresses.as_ref().is_none_or(on_it)
}

/// The binds that a target stands for: every protocol it leaves open, and for every address the wildcard that covers both
/// families, where there is IPv6.
pub fn wishes<'a>(
    target: &'a Target,
    manner: &'a Manner,
    here: &Surroundings,
) -> impl Iterator<Item = Wish<'a>> {
    let every = if here.six { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let address = target.address.unwrap_or(every);
    let protocols = Protocol::ALL.into_iter().filter(|one| target.protocol.is_none_or(|asked| asked == *one));
    protocols.flat_map(move |protocol| {
        target.ports.clone().map(move |port| Wish { protocol, address, port, manner })
    })
}

/// Judges all binds of a target, from an answer about its ports in one namespace. Of a namespace that could not be read nothing
/// is judged.
pub fn judge(target: &Target, manner: &Manner, answer: Answer) -> CanBind {
    let Answer { as_of, source, query, mut incomplete, looked, claims, surroundings, .. } = answer;
    let (mut binds, mut keys, mut uncertain) = (Vec::new(), Vec::new(), 0);
    let (mut errno, mut undecided, mut shared) = (None, surroundings.is_none(), false);
    if let Some(here) = &surroundings {
        for wish in wishes(target, manner, here) {
            let ruling = rule(&wish, &claims, here);
            let one = OneBind {
                protocol: wish.protocol,
                address: wish.address,
                port: wish.port,
                would_succeed: ruling.errno.map(|errno| errno.is_ok()),
                errno: ruling.errno.and_then(Result::err).map(str::to_owned),
            };
            undecided |= one.would_succeed.is_none();
            shared |= ruling.shared;
            uncertain += ruling.undecided.len();
            errno = errno.or_else(|| one.errno.clone());
            keys.extend(ruling.blockers.iter().chain(&ruling.undecided).filter_map(|claim| key(claim)));
            if target.is_single() || one.would_succeed != Some(true) {
                binds.push(one);
            }
        }
        if here.addresses.is_none() {
            incomplete.push("the addresses of this host".to_owned());
        }
    }
    if uncertain > 0 {
        incomplete.push(format!(
            "whether {uncertain} sockets let another one beside them (SO_REUSEADDR, SO_REUSEPORT): the kernel's programs, which tell, cannot be used here; `sniffer doctor` says why"
        ));
    }
    let mut warnings = surroundings.map(|here| warnings(target, manner, shared, &here)).unwrap_or_default();
    warnings.extend(rules(target, &claims, looked.nat));
    CanBind {
        schema: SCHEMA,
        as_of,
        source,
        target: query,
        manner: manner.clone(),
        incomplete,
        would_succeed: match (&errno, undecided) {
            (Some(_), _) => Some(false),
            (None, true) => None,
            (None, false) => Some(true),
        },
        errno,
        blockers: claims
            .into_iter()
            .filter(|claim| key(claim).is_some_and(|key| keys.contains(&key)))
            .collect(),
        warnings,
        binds,
    }
}

/// What rules take: such a port is free, and its traffic goes elsewhere.
fn rules(target: &Target, claims: &[Claim], read: bool) -> Vec<String> {
    let taken =
        claims.iter().filter_map(|claim| Some((claim, claim.nat.as_ref()?))).filter(|(claim, nat)| {
            let ports = claim.port..=nat.last_port.unwrap_or(claim.port);
            target.meets(claim.protocol, claim.address, claim.v6only, &ports)
        });
    let mut warnings: Vec<String> = taken
        .map(|(claim, nat)| {
            let owner = claim.owner.name.as_ref().map(|name| format!(", of {} {name}", claim.owner.kind.as_str()));
            format!(
                "A rule takes {} of {} before any socket sees it, and sends it to {}: {}{}. A bind succeeds and gets none of that.",
                if nat.conditional || nat.local_only { "some of the traffic" } else { "the traffic" },
                SocketAddr::new(claim.address, claim.port),
                nat.destination(),
                nat.rule(),
                owner.unwrap_or_default(),
            )
        })
        .collect();
    if !read {
        warnings.push(
            "NAT rules were not read (watch.nat = false): one of them may take the port's traffic before it reaches a socket."
                .to_owned(),
        );
    }
    warnings
}

fn key(claim: &Claim) -> Option<u64> {
    claim.socket.as_ref().map(|socket| socket.cookie)
}

fn warnings(target: &Target, manner: &Manner, shared: bool, here: &Surroundings) -> Vec<String> {
    let mut warnings = Vec::new();
    let ports = &target.ports;
    let meets =
        |range: &std::ops::RangeInclusive<u16>| ports.start() <= range.end() && range.start() <= ports.end();
    let reserved = |port: u16| here.reserved.iter().any(|range| range.contains(&port));
    if let Some(range) = here.ephemeral.as_ref().filter(|range| meets(range))
        && !ports.clone().all(|port| reserved(port) || !range.contains(&port))
    {
        warnings.push(format!(
            "The kernel gives ports {}-{} to outgoing connections: one of them may have it when you bind. Keep it free: sysctl net.ipv4.ip_local_reserved_ports={}",
            range.start(),
            range.end(),
            if target.is_single() { ports.start().to_string() } else { format!("{}-{}", ports.start(), ports.end()) },
        ));
    }
    if here.reserved.iter().any(meets) {
        warnings.push(
            "It is reserved (net.ipv4.ip_local_reserved_ports): the kernel gives it to nobody who does not ask for it by number."
                .to_owned(),
        );
    }
    if let Some(from) = here.unprivileged_from.filter(|from| ports.start() < from && manner.uid == 0) {
        warnings
            .push(format!("Ports below {from} want root or CAP_NET_BIND_SERVICE: other users get EACCES."));
    }
    if shared {
        warnings.push(
            "Somebody has this port already and lets others in beside it: requests may reach either."
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::answer::{AnswerSource, Looked, Query};
    use crate::model::claim::fixtures::claim;

    fn here() -> Surroundings {
        let local = |address: &str, prefix, ifindex| LocalAddress {
            address: address.parse().unwrap(),
            prefix,
            ifindex,
        };
        Surroundings {
            ephemeral: Some(32768..=60999),
            unprivileged_from: Some(1024),
            six: true,
            addresses: Some(vec![local("127.0.0.1", 8, 1), local("::1", 128, 1), local("fe80::1", 64, 2)]),
            interfaces: vec![(1, "lo".to_owned()), (2, "eth0".to_owned())],
            ..Surroundings::default()
        }
    }

    fn errno(address: &str, port: u16, manner: &Manner) -> Option<Result<(), &'static str>> {
        let wish = Wish { protocol: Protocol::Tcp, address: address.parse().unwrap(), port, manner };
        rule(&wish, &[], &here()).errno
    }

    #[test]
    fn what_no_socket_decides_comes_first() {
        let user = Manner { uid: 1000, ..Manner::default() };
        let on = |name: &str| Manner { interface: Some(name.to_owned()), ..Manner::default() };
        for (address, port, manner, expected) in [
            ("0.0.0.0", 80, &Manner::default(), Ok(())),
            ("0.0.0.0", 80, &user, Err("EACCES")),
            ("::", 80, &user, Err("EACCES")),
            ("0.0.0.0", 8080, &user, Ok(())),
            ("192.0.2.1", 80, &user, Err("EADDRNOTAVAIL")),
            ("2001:db8::1", 80, &user, Err("EACCES")),
            ("2001:db8::1", 8080, &user, Err("EADDRNOTAVAIL")),
            ("fe80::1", 8080, &user, Err("EINVAL")),
            ("fe80::1", 8080, &on("eth0"), Ok(())),
            ("fe80::1", 8080, &on("lo"), Err("EADDRNOTAVAIL")),
            ("::1", 8080, &on("eth0"), Err("EADDRNOTAVAIL")),
            ("0.0.0.0", 8080, &on("nope"), Err("ENODEV")),
            ("::ffff:127.0.0.1", 8080, &Manner { v6only: true, ..Manner::default() }, Err("EINVAL")),
            ("ff02::1", 8080, &Manner::default(), Err("EINVAL")),
        ] {
            assert_eq!(errno(address, port, manner), Some(expected), "{address}:{port} {manner:?}");
        }
        let blind = Surroundings { addresses: None, ..here() };
        let manner = Manner::default();
        let wish =
            Wish { protocol: Protocol::Tcp, address: [10, 0, 0, 1].into(), port: 8080, manner: &manner };
        assert_eq!(rule(&wish, &[], &blind).errno, None, "whether the address is there is not known");
    }

    #[test]
    fn of_a_namespace_that_could_not_be_read_nothing_is_said_to_be_free() {
        let target: Target = "8081".parse().unwrap();
        let ask = |surroundings| {
            let answer = Answer {
                schema: SCHEMA,
                as_of: "2026-11-21T14:03:07Z".parse().unwrap(),
                source: AnswerSource::Daemon,
                query: Query::new(Some(&target), None),
                incomplete: vec!["network namespace 7: no permission".to_owned()],
                looked: Looked::default(),
                claims: vec![],
                advice: vec![],
                surroundings,
            };
            let told = judge(&target, &Manner::default(), answer);
            (told.would_succeed, told.errno, told.binds.len())
        };
        assert_eq!(ask(None), (None, None, 0));
        assert_eq!(ask(Some(here())), (Some(true), None, 2));
    }

    #[test]
    fn without_ipv6_every_address_is_ipv4() {
        let target: Target = "8081/tcp".parse().unwrap();
        let manner = Manner::default();
        let address =
            |here: &Surroundings| wishes(&target, &manner, here).map(|wish| wish.address).collect::<Vec<_>>();
        assert_eq!(address(&here()), [IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
        assert_eq!(address(&Surroundings { six: false, ..here() }), [IpAddr::from(Ipv4Addr::UNSPECIFIED)]);
        let both: Target = "8081".parse().unwrap();
        assert_eq!(wishes(&both, &manner, &here()).count(), 2, "a bare port is TCP and UDP");
    }

    #[test]
    fn a_claim_of_unknown_options_decides_only_where_they_matter() {
        let claims = [Claim { reuseaddr: None, reuseport: None, ..claim() }];
        let ask = |manner: &Manner| {
            let wish =
                Wish { protocol: Protocol::Tcp, address: Ipv4Addr::UNSPECIFIED.into(), port: 8081, manner };
            let ruling = rule(&wish, &claims, &here());
            (ruling.errno, ruling.blockers.len(), ruling.undecided.len())
        };
        assert_eq!(ask(&Manner::default()), (Some(Err("EADDRINUSE")), 1, 0));
        let sharing = Manner { reuseport: true, uid: 1001, ..Manner::default() };
        assert_eq!(ask(&sharing), (None, 0, 1));
        assert_eq!(ask(&Manner { uid: 7, ..sharing }), (Some(Err("EADDRINUSE")), 1, 0), "another user's");
    }

    #[test]
    fn what_may_go_wrong_all_the_same_is_said() {
        let said = |target: &str, here: &Surroundings| {
            warnings(&target.parse().unwrap(), &Manner::default(), false, here).join("\n")
        };
        assert!(said("40000", &here()).contains("ip_local_reserved_ports=40000"));
        let reserved = Surroundings { reserved: vec![40000..=40000], ..here() };
        assert!(
            said("40000", &reserved).contains("It is reserved")
                && !said("40000", &reserved).contains("outgoing")
        );
        assert!(said("40000-40001", &reserved).contains("outgoing"), "one of them is not");
        assert!(said("80", &here()).contains("CAP_NET_BIND_SERVICE"));
        assert!(!said("8080", &here()).contains("CAP_NET_BIND_SERVICE"));
    }

    proptest::proptest! {
        /// The claims are a plain list of listeners on one port: address, whether they share, whether that is known, user.
        #[test]
        fn a_port_that_is_held_is_never_said_to_be_free(
            held in proptest::collection::vec((0usize..3, proptest::option::of(proptest::bool::ANY), 0u32..2), 0..5),
            asked in 0usize..3,
            reuseport: bool,
        ) {
            let addresses = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
            let listeners: Vec<Claim> = held
                .iter()
                .map(|(place, shares, uid)| {
                    let mut claim = Claim { address: addresses[*place].into(), reuseport: *shares, ..claim() };
                    claim.socket.as_mut().unwrap().uid = *uid;
                    claim
                })
                .collect();
            let manner = Manner { reuseport, ..Manner::default() };
            let wish = Wish { protocol: Protocol::Tcp, address: addresses[asked].into(), port: 8081, manner: &manner };
            let errno = rule(&wish, &listeners, &here()).errno;
            let meets = |place: usize| place == asked || place == 0 || asked == 0;
            let lets_in = |shares: Option<bool>, uid: u32| reuseport && uid == 0 && shares == Some(true);
            let is_free = held.iter().all(|(place, shares, uid)| !meets(*place) || lets_in(*shares, *uid));
            proptest::prop_assert_eq!(errno == Some(Ok(())), is_free, "{:?}", errno);
        }
    }
}
