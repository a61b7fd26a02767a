//! TARGET: `8081`, `8081/udp`, `127.0.0.1:8081`, `[::1]:8081/tcp`, `8000-8100`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::socket::{Protocol, Socket};

/// A port, or a range of ports, that somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Ports, never empty, never 0.
    pub ports: RangeInclusive<u16>,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only claims that would stand in the way of this address.
    pub address: Option<IpAddr>,
}

/// Why a target was refused; a sentence without the offending text's own line breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no target: {reason}; write 8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100", text.escape_default())]
pub struct TargetError {
    text: String,
    reason: String,
}

impl Target {
    /// Whether it names one port.
    pub fn is_single(&self) -> bool {
        self.ports.start() == self.ports.end()
    }

    /// Whether a socket takes part in what is asked: its port, its protocol, and an address that overlaps.
    pub fn matches(&self, socket: &Socket) -> bool {
        let port = socket.port..=socket.port;
        self.meets(socket.protocol, socket.address, socket.v6only, &port)
    }

    /// Whether it concerns these ports of an address.
    pub fn meets(
        &self,
        protocol: Protocol,
        address: IpAddr,
        v6only: Option<bool>,
        ports: &RangeInclusive<u16>,
    ) -> bool {
        self.ports.start() <= ports.end()
            && ports.start() <= self.ports.end()
            && self.protocol.is_none_or(|asked| asked == protocol)
            && self.address.is_none_or(|asked| overlaps(asked, address, v6only))
    }
}

/// Whether a claim on `held` concerns `asked`: the same address, or a wildcard on either side that covers the other.
/// `::` covers IPv4 too unless the socket says `IPV6_V6ONLY` (ipv6(7)).
fn overlaps(asked: IpAddr, held: IpAddr, v6only: Option<bool>) -> bool {
    let dual_stack = v6only != Some(true);
    match (asked.to_canonical(), held.to_canonical()) {
        (IpAddr::V4(asked), IpAddr::V4(held)) => {
            asked == held || asked.is_unspecified() || held.is_unspecified()
        }
        (IpAddr::V6(asked), IpAddr::V6(held)) => {
            asked == held || asked.is_unspecified() || held.is_unspecified()
        }
        (IpAddr::V4(_), IpAddr::V6(held)) => held.is_unspecified() && dual_stack,
        (IpAddr::V6(asked), IpAddr::V4(_)) => asked.is_unspecified(),
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        parse(text).map_err(|reason| TargetError { text: shorten(text), reason: reason.to_owned() })
    }
}

/// An error message quotes at most this much of what was typed.
const QUOTED_CHARS: usize = 60;

fn shorten(text: &str) -> String {
    text.chars().take(QUOTED_CHARS).collect()
}

fn parse(text: &str) -> Result<Target, &'static str> {
    let (place, protocol) = match text.split_once('/') {
        Some((place, word)) => {
            (place, Some(word.parse().map_err(|()| "the protocol is neither tcp nor udp")?))
        }
        None => (text, None),
    };
    let (address, ports) = match split_address(place)? {
        Some((address, ports)) => (Some(address), ports),
        None => (None, place.strip_prefix("*:").or(place.strip_prefix(':')).unwrap_or(place)),
    };
    let ports = match ports.split_once('-') {
        Some((first, last)) => parse_port(first)?..=parse_port(last)?,
        None => {
            let port = parse_port(ports)?;
            port..=port
        }
    };
    if ports.is_empty() {
        return Err("the range ends before it starts");
    }
    Ok(Target { ports, protocol, address })
}

fn split_address(place: &str) -> Result<Option<(IpAddr, &str)>, &'static str> {
    if let Some(rest) = place.strip_prefix('[') {
        let (address, port) = rest.split_once("]:").ok_or("an IPv6 address is written [address]:port")?;
        let address: Ipv6Addr = address.parse().map_err(|_| "the IPv6 address cannot be read")?;
        return Ok(Some((address.into(), port)));
    }
    let Some((address, port)) = place.rsplit_once(':') else { return Ok(None) };
    if address.contains(':') {
        return Err("an IPv6 address is written in brackets");
    }
    let address: Ipv4Addr = match address {
        // As ss(8) writes every address.
        "*" | "" => return Ok(None),
        text => text.parse().map_err(|_| "the address is no IPv4 address (names are not looked up)")?,
    };
    Ok(Some((address.into(), port)))
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a port is a number");
    }
    match text.parse() {
        Ok(0) | Err(_) => Err("a port lies between 1 and 65535"),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}", self.ports.start())?;
        if !self.is_single() {
            write!(f, "-{}", self.ports.end())?;
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_forms_are_read_and_shown_again() {
        for text in ["8081", "8081/udp", "127.0.0.1:8081", "[::1]:8081/tcp", "8000-8100", "1", "65535"] {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_star_is_every_address_of_both_families() {
        for text in ["*:8081", ":8081"] {
            assert_eq!(text.parse::<Target>().unwrap().address, None);
        }
    }

    #[test]
    fn malformed_targets_are_refused_in_one_line() {
        for text in [
            "99999",
            "abc",
            "8081/xyz",
            "8100-8000",
            "",
            "0",
            "-1",
            "+80",
            "80-",
            "::1:80",
            "[::1]80",
            "host:80",
            "1.2.3:80",
            "8081/",
            "80/tcp/udp",
            "8 0",
            "１２",
            "a\nb",
            "\u{1b}[31m",
        ] {
            let error = text.parse::<Target>().expect_err(text).to_string();
            assert!(!error.contains(['\n', '\u{1b}']), "{error:?}");
        }
        let long = "9".repeat(100_000).parse::<Target>().expect_err("too long").to_string();
        assert!(long.len() < 300, "{}", long.len());
    }

    #[test]
    fn a_dual_stack_wildcard_stands_in_the_way_of_ipv4() {
        let any6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let v4 = IpAddr::from([127, 0, 0, 1]);
        assert!(overlaps(v4, any6, Some(false)));
        assert!(!overlaps(v4, any6, Some(true)));
        assert!(!overlaps(v4, IpAddr::from([127, 0, 0, 2]), None));
        assert!(overlaps(v4, "::ffff:127.0.0.1".parse().unwrap(), Some(false)));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Target>();
        }
    }
}
