//! What the settings of a namespace say about a port that somebody asks about: reservations, privileged ports, a host behind this one.

use std::net::{IpAddr, Ipv6Addr};

use crate::model::claim::{Claim, Owner, OwnerType};
use crate::model::netns::Netns;
use crate::model::socket::{ClaimKind, Protocol};
use crate::model::surroundings::Surroundings;
use crate::model::target::Target;

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The reservations (`net.ipv4.ip_local_reserved_ports`, for TCP and UDP of both families) that this target meets. They hold
/// nothing: who asks for such a port by its number gets it.
pub fn reserved(target: &Target, here: &Surroundings, netns: &Netns) -> Vec<Claim> {
    let meeting = |protocol: Protocol| {
        here.reserved.iter().filter(move |range| target.meets(protocol, ANY, Some(false), range)).map(
            move |range| {
                let port = *range.start().max(target.ports.start());
                let last = *range.end().min(target.ports.end());
                let which = if port == last { "it" } else { &format!("{port}-{last}") };
                Claim {
                    owner: Owner::new(OwnerType::Kernel, None),
                    ..Claim::without_socket(
                        ClaimKind::Reserved,
                        protocol,
                        (ANY, Some(false)),
                        port,
                        netns.clone(),
                        format!("net.ipv4.ip_local_reserved_ports names {which}: who asks for it by number gets it, nobody else does"),
                    )
                }
            },
        )
    };
    Protocol::ALL.into_iter().flat_map(meeting).collect()
}

/// What to know about a port that nobody holds.
pub fn when_free(target: &Target, here: &Surroundings) -> Vec<String> {
    let mut sentences = Vec::new();
    if let Some(from) = here.unprivileged_from.filter(|from| target.ports.start() < from) {
        sentences.push(format!(
            "Ports below {from} want root or CAP_NET_BIND_SERVICE: a bind without it fails with EACCES (permission denied), whether the port is free or not."
        ));
    }
    if here.windows {
        sentences.push(
            "This is Linux inside of Windows (WSL): nothing here holds it, a program of Windows may. Ask there: netstat -ano"
                .to_owned(),
        );
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn netns() -> Netns {
        Netns { inode: 7, name: Some("host".to_owned()), kept_by: None }
    }

    fn meeting(target: &str, reserved: &[std::ops::RangeInclusive<u16>]) -> Vec<(Protocol, u16, String)> {
        let here = Surroundings { reserved: reserved.to_vec(), ..Surroundings::default() };
        let claims = super::reserved(&target.parse().unwrap(), &here, &netns());
        claims.into_iter().map(|claim| (claim.protocol, claim.port, claim.reason)).collect()
    }

    #[test]
    fn a_reservation_is_told_for_each_protocol_it_is_for() {
        let found = meeting("8081", &[8000..=8100]);
        assert_eq!(found.iter().map(|found| found.0).collect::<Vec<_>>(), [Protocol::Tcp, Protocol::Udp]);
        assert!(found[0].2.contains("names it:"), "{found:?}");
        assert_eq!(meeting("8081/udp", &[8081..=8081]).len(), 1);
        assert_eq!(meeting("127.0.0.1:8081/tcp", &[8081..=8081]).len(), 1);
        assert_eq!(meeting("8082", &[8081..=8081]), []);
        let several = meeting("8050-8200/tcp", &[8000..=8100, 8150..=8150]);
        assert_eq!(several.iter().map(|found| found.1).collect::<Vec<_>>(), [8050, 8150]);
        assert!(several[0].2.contains("names 8050-8100:"), "{several:?}");
    }

    #[test]
    fn of_a_free_port_it_is_said_who_may_bind_it_and_who_else_may_hold_it() {
        let of = |target: &str, windows| {
            let here = Surroundings { unprivileged_from: Some(1024), windows, ..Surroundings::default() };
            when_free(&target.parse().unwrap(), &here).join(" ")
        };
        assert!(of("80", false).contains("EACCES") && !of("80", false).contains("Windows"));
        assert!(of("8081", true).contains("netstat -ano") && !of("8081", true).contains("EACCES"));
        assert_eq!(of("8081", false), "");
    }
}
