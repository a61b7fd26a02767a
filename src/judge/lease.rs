//! Which ports a command is given for its own.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use crate::model::claim::Claim;
use crate::model::socket::ClaimKind;
use crate::model::surroundings::Surroundings;

/// They lie below the NodePorts of Kubernetes (30000-32767) and below what the kernel chooses from by default (32768-60999), so that
/// nobody gets one who did not ask for it by its number.
pub const RANGE: RangeInclusive<u16> = 20_000..=29_999;

/// All of them in the order in which they are tried, without those that the kernel chooses from and those that are reserved for somebody
/// (`net.ipv4.ip_local_reserved_ports`). `start` is any number: those who begin elsewhere seldom meet, and a port that was just let go of
/// rests.
pub fn order(here: &Surroundings, start: u32) -> impl Iterator<Item = u16> + use<> {
    let size = u32::from(RANGE.end() - RANGE.start()) + 1;
    let not: Vec<RangeInclusive<u16>> = here.ephemeral.iter().chain(&here.reserved).cloned().collect();
    let chosen = move |port: &u16| not.iter().any(|range| range.contains(port));
    (0..size)
        .filter_map(move |step| u16::try_from(u32::from(*RANGE.start()) + (start % size + step) % size).ok())
        .filter(move |port| !chosen(port))
}

/// The ports that somebody or something has, whatever the address and protocol. Of a rule that takes all of them none is better than
/// another, and reservations are no holders.
pub fn taken(claims: &[Claim]) -> HashSet<u16> {
    let last = |claim: &Claim| claim.nat.as_ref().and_then(|nat| nat.last_port).unwrap_or(claim.port);
    let ports =
        claims.iter().filter(|claim| claim.kind != ClaimKind::Reserved).map(|claim| claim.port..=last(claim));
    let leaves_some =
        |ports: &RangeInclusive<u16>| ports.start() > RANGE.start() || ports.end() < RANGE.end();
    ports.filter(leaves_some).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::Nat;
    use crate::model::claim::fixtures::claim;

    #[test]
    fn every_port_is_tried_once_from_anywhere_but_those_of_the_kernels_choice() {
        let here = |first, last, reserved: &[RangeInclusive<u16>]| Surroundings {
            ephemeral: Some(first..=last),
            reserved: reserved.to_vec(),
            ..Surroundings::default()
        };
        let tried: Vec<u16> = order(&here(1024, 20_009, &[]), 9_998 + 70_000).collect();
        assert_eq!(tried.get(..4), Some(&[29_998, 29_999, 20_010, 20_011][..]));
        let each: HashSet<u16> = tried.iter().copied().collect();
        assert_eq!((each.len(), tried.len()), (9_990, 9_990));
        assert_eq!(order(&here(1024, 65_535, &[]), 0).count(), 0);
        let rest: Vec<u16> = order(&here(32_768, 60_999, &[20_000..=20_004, 20_006..=29_999]), 0).collect();
        assert_eq!(rest, [20_005]);
    }

    #[test]
    fn what_a_rule_takes_is_taken() {
        let nat = Nat {
            backend: "nftables".to_owned(),
            chain: "c".to_owned(),
            to_address: None,
            to_port: Some(80),
            comment: None,
            table: "t".to_owned(),
            last_port: Some(20_002),
            conditional: true,
            local_only: false,
            others: vec![],
        };
        let rule = Claim { port: 20_000, nat: Some(nat.clone()), ..claim() };
        assert_eq!(taken(&[rule, claim()]), HashSet::from([20_000, 20_001, 20_002, 8081]));
        let all = Claim { port: 1, nat: Some(Nat { last_port: Some(65_535), ..nat }), ..claim() };
        let reserved = Claim { kind: ClaimKind::Reserved, ..claim() };
        assert_eq!(taken(&[all, reserved]), HashSet::new(), "one of them is as good as another");
    }
}
