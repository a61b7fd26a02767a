//! Which ports a command is given for its own.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use crate::model::claim::Claim;

/// They lie below the NodePorts of Kubernetes (30000-32767) and below what the kernel chooses from by default (32768-60999), so that
/// nobody gets one who did not ask for it by its number.
pub const RANGE: RangeInclusive<u16> = 20_000..=29_999;

/// All of them in the order in which they are tried, without those that the kernel chooses from. `start` is any number: those who begin
/// elsewhere seldom meet, and a port that was just let go of rests.
pub fn order(ephemeral: Option<(u16, u16)>, start: u32) -> impl Iterator<Item = u16> {
    let size = u32::from(RANGE.end() - RANGE.start()) + 1;
    let chosen = move |port: &u16| ephemeral.is_some_and(|(first, last)| (first..=last).contains(port));
    (0..size)
        .filter_map(move |step| u16::try_from(u32::from(*RANGE.start()) + (start % size + step) % size).ok())
        .filter(move |port| !chosen(port))
}

/// The ports that somebody or something has, whatever the address and protocol.
pub fn taken(claims: &[Claim]) -> HashSet<u16> {
    let last = |claim: &Claim| claim.nat.as_ref().and_then(|nat| nat.last_port).unwrap_or(claim.port);
    claims.iter().flat_map(|claim| claim.port..=last(claim)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::Nat;
    use crate::model::claim::fixtures::claim;

    #[test]
    fn every_port_is_tried_once_from_anywhere_but_those_of_the_kernels_choice() {
        let tried: Vec<u16> = order(Some((1024, 20_009)), 9_998 + 70_000).collect();
        assert_eq!(tried.get(..4), Some(&[29_998, 29_999, 20_010, 20_011][..]));
        let each: HashSet<u16> = tried.iter().copied().collect();
        assert_eq!((each.len(), tried.len()), (9_990, 9_990));
        assert_eq!(order(Some((1024, 65_535)), 0).count(), 0);
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
        let rule = Claim { port: 20_000, nat: Some(nat), ..claim() };
        assert_eq!(taken(&[rule, claim()]), HashSet::from([20_000, 20_001, 20_002, 8081]));
    }
}
