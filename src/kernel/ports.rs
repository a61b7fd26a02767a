//! Settings of the kernel about ports (ip(7), `net.ipv4.*` of sysctl).

use std::fs;

/// `net.ipv4.ip_local_port_range` of this program's network namespace: the ports that the kernel chooses from.
pub fn ephemeral() -> Option<(u16, u16)> {
    parse_range(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_two_numbers() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32768, 60999)));
        for odd in ["", "1", "1 x", "70000 80000"] {
            assert_eq!(parse_range(odd), None, "{odd:?}");
        }
    }
}
