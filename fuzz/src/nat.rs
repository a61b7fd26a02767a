//! Rules of NAT as their makers keep them, followed to the ports that they take.

use std::net::{IpAddr, Ipv4Addr};

use sniffer::judge::nat::claims;
use sniffer::kernel::nat::{Budget, Dumped, FOUR, SIX, decode_chains, decode_ipvs, decode_table};
use sniffer::model::nat::{Table, Then};

/// Messages of nftables: a byte for the family, and then each with a byte for its kind and two for its length.
pub fn nftables(bytes: &[u8]) {
    let Some((family, mut rest)) = bytes.split_first() else { return };
    let (mut chains, mut elements, mut dumped) = (Vec::new(), Vec::new(), Dumped::default());
    while let Some(([kind, low, high], more)) = rest.split_first_chunk() {
        let (message, more) = more.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(more.len()));
        let list = match kind % 4 {
            0 => &mut chains,
            1 => &mut dumped.rules,
            2 => &mut dumped.sets,
            _ => &mut elements,
        };
        list.push(message.to_vec());
        rest = more;
    }
    for (mut key, chains) in decode_chains(&chains).unwrap_or_default() {
        key.0 = *family;
        let mut moving = false;
        let mut give = |_: &str| Ok(elements.clone());
        let table = decode_table(&key, chains, &dumped, &mut give, &mut Budget::new(10_000), &mut moving);
        if let Ok(table) = table {
            follow(&table);
        }
    }
}

/// A blob of iptables: a byte for the family, `struct ipt_getinfo`, the entries.
pub fn iptables(bytes: &[u8]) {
    const INFO_BYTES: usize = 84;
    let Some((family, rest)) = bytes.split_first() else { return };
    let Some((info, entries)) = rest.split_at_checked(INFO_BYTES) else { return };
    let layout = if family % 2 == 0 { FOUR } else { SIX };
    if let Some(table) = layout.decode(info, entries) {
        follow(&table);
    }
}

/// `/proc/net/ip_vs`.
pub fn ipvs(bytes: &[u8]) {
    if let Some(table) = decode_ipvs(&String::from_utf8_lossy(bytes)) {
        assert!(table.chains.iter().any(|chain| !chain.rules.is_empty()));
        follow(&table);
    }
}

/// A port that a rule may take is never free: the first rule that a packet meets takes something, unless there is nothing that it is for.
fn follow(table: &Table) {
    const TCP: u128 = 6;
    const UDP: u128 = 17;
    let found = claims(std::slice::from_ref(table), None);
    for claim in &found.claims {
        assert!(claim.ports.start() <= claim.ports.end());
    }
    let first = table.chains.iter().find(|chain| chain.hook.is_some()).and_then(|chain| chain.rules.first());
    if let Some(rule) = first.filter(|rule| matches!(rule.then, Then::Send(_))) {
        let takes = rule.traffic.iter().any(|traffic| {
            let ports = traffic.ports.without(&sniffer::model::ranges::RangeSet::one(0u16));
            let known = traffic.protocols.contains(TCP) || traffic.protocols.contains(UDP);
            known
                && ports.ranges().any(|range| *range.start() <= 65_535)
                && !(traffic.four.is_none() && traffic.six.is_none())
        });
        assert!(!takes || found.cut_short || !found.claims.is_empty(), "{rule:?}");
    }
    claims(std::slice::from_ref(table), Some(&[IpAddr::from(Ipv4Addr::new(10, 0, 0, 1))]));
}
