//! Names of interfaces by index, in the calling thread's namespace (rtnetlink(7), `RTM_GETLINK`).

use std::collections::HashMap;
use std::io;

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::Dumper;
use crate::model::socket::Socket;

/// `RTM_GETLINK` of linux/rtnetlink.h.
const RTM_GETLINK: u16 = 18;

/// Fills in the interface names of sockets that are bound to one. Asks only where there is such a socket.
pub fn name_interfaces(sockets: &mut [Socket]) -> io::Result<()> {
    if sockets.iter().all(|socket| socket.ifindex.is_none()) {
        return Ok(());
    }
    let names = names()?;
    for socket in sockets {
        socket.interface = socket.ifindex.and_then(|index| names.get(&index).cloned());
    }
    Ok(())
}

/// Names of all interfaces, by index.
pub fn names() -> io::Result<HashMap<u32, String>> {
    let mut request = vec![0; LinkMessage::default().buffer_len()];
    LinkMessage::default().emit(&mut request);
    let links = Dumper::open(NETLINK_ROUTE)?.dump(RTM_GETLINK, &request, |found, payload| {
        found.extend(decode(payload));
    })?;
    Ok(links.into_iter().collect())
}

/// Index and name, of one message of `RTM_GETLINK` (`struct ifinfomsg` and attributes); `None` where it is malformed or names none.
pub fn decode(payload: &[u8]) -> Option<(u32, String)> {
    let link = LinkMessage::parse(payload).ok()?;
    let name = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })?;
    Some((link.header.index, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_a_name() {
        assert!(names().unwrap().values().any(|name| name == "lo"));
    }

    #[test]
    fn a_truncated_message_has_no_name() {
        assert_eq!(decode(&[0; 15]), None);
    }
}
