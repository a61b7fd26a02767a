//! Virtual servers of IPVS, from `/proc/net/ip_vs` (`ip_vs_info_seq_show` of net/netfilter/ipvs/ip_vs_ctl.c): reading a file loads
//! no module, as asking over netlink would.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::model::nat::{Backend, Chain, Destination, Hook, Rule, Share, Table, Then, Traffic, number};
use crate::model::ranges::RangeSet;
use crate::model::socket::Protocol;

/// In `/proc/net`.
pub(super) const FILE: &str = "ip_vs";
/// What its claims name as their chain.
const CHAIN: &str = "IPVS";

/// The virtual servers of the calling thread's namespace; none where the kernel has no IPVS. Errors: the file cannot be read.
pub(super) fn table() -> io::Result<Option<Table>> {
    match fs::read_to_string(Path::new("/proc/thread-self/net").join(FILE)) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Decodes `/proc/net/ip_vs`: a line for each virtual server, and indented ones for where it sends its traffic:
/// `TCP  C0A80001:0050 rr`, `  -> 0A000002:1F90      Masq    1      0          0`.
pub fn parse(text: &str) -> Option<Table> {
    let mut rules: Vec<Rule> = Vec::new();
    // Whether the servers that follow are of the last rule.
    let mut known = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next().and_then(parse_place)) {
            (Some("->"), Some((address, port))) => {
                if let (true, Some(last)) = (known, rules.last_mut()) {
                    let to = Then::Send(Destination { address: Some(address), port: Some(port) });
                    let first = matches!(last.then, Then::Send(Destination { address: None, .. }));
                    if first {
                        last.then = to;
                    } else {
                        // The scheduler gives each some; all of them together have all.
                        let next = Rule { then: to, ..last.clone() };
                        for traffic in &mut last.traffic {
                            traffic.share = traffic.share.max(Share::ByChance);
                        }
                        rules.push(next);
                    }
                }
            }
            (Some(protocol), Some((address, port))) => {
                let Ok(protocol) = protocol.to_ascii_lowercase().parse::<Protocol>() else {
                    known = false;
                    continue;
                };
                known = true;
                let to = Destination { address: None, port: None };
                rules.push(Rule {
                    traffic: vec![traffic(protocol, address, port)],
                    comment: None,
                    then: Then::Send(to),
                });
            }
            // For marked packets: which those are another table says.
            (Some("FWM"), None) => {
                let to = Destination { address: None, port: None };
                let marked = Traffic { share: Share::Some, ..Traffic::all() };
                rules.push(Rule { traffic: vec![marked], comment: None, then: Then::Send(to) });
                known = true;
            }
            // The heading.
            _ => {}
        }
    }
    (!rules.is_empty()).then(|| Table {
        backend: Backend::Ipvs,
        name: CHAIN.to_owned(),
        chains: vec![Chain { name: CHAIN.to_owned(), hook: Some(Hook::Prerouting), rules }],
    })
}

fn traffic(protocol: Protocol, address: IpAddr, port: u16) -> Traffic {
    let place = RangeSet::one(number(address));
    let (four, six) = match address {
        IpAddr::V4(_) => (place, RangeSet::none()),
        IpAddr::V6(_) => (RangeSet::none(), place),
    };
    Traffic {
        protocols: RangeSet::one(protocol.number()),
        // A persistent server of port 0 takes every port.
        ports: if port == 0 { RangeSet::all() } else { RangeSet::one(port) },
        four,
        six,
        share: Share::All,
    }
}

/// `C0A80001:0050` or `[2001:0db8:0000:0000:0000:0000:0000:0001]:0050`.
fn parse_place(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(six) => six.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None if address.len() == 8 => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
        None => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux prints it; the kernel that the tests run on has no IPVS.
    const SERVERS: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  C0A80001:7531 rr  persistent 10800
  -> 0A000002:1F90      Masq    1      0          0         
  -> 0A000003:1F90      Masq    1      0          0         
UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 wlc 
FWM  00000001 rr 
SCTP C0A80001:0050 rr 
";

    #[test]
    fn servers_are_rules() {
        let table = parse(SERVERS).unwrap();
        let rules = &table.chains[0].rules;
        let to = Destination { address: Some([10, 0, 0, 2].into()), port: Some(8080) };
        let server = traffic(Protocol::Tcp, [192, 168, 0, 1].into(), 30001);
        let by_chance = Traffic { share: Share::ByChance, ..server.clone() };
        let one = |traffic, to| Rule { traffic: vec![traffic], comment: None, then: Then::Send(to) };
        let other = Destination { address: Some([10, 0, 0, 3].into()), port: Some(8080) };
        assert_eq!(rules[..2], [one(by_chance, to), one(server, other)]);
        assert!(rules[2].traffic[0].six.contains(number("2001:db8::1".parse().unwrap())));
        assert_eq!(rules[2].then, Then::Send(Destination { address: None, port: None }), "it has no server");
        assert_eq!((rules.len(), rules[3].traffic[0].share), (4, Share::Some), "marked packets may be any");
    }

    #[test]
    fn what_is_no_server_is_none() {
        for text in [
            "",
            "IP Virtual Server version 1.2.1 (size=4096)\n",
            "TCP\n-> x\nTCP :\nTCP é:1\n",
            "TCP C0A8:1 rr",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
