//! Sockets and findings as literals.

use std::net::IpAddr;

use super::*;
use crate::model::socket::SocketState;

pub(crate) const NETNS: NetnsKey = NetnsKey { device: 4, inode: 7 };

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(crate) fn listener(cookie: u64, port: u16) -> Socket {
    Socket {
        key: SocketKey { netns: NETNS, cookie },
        protocol: Protocol::Tcp,
        state: SocketState::Listen,
        address: IpAddr::from([127, 0, 0, 1]),
        port,
        peer: None,
        v6only: None,
        ifindex: None,
        interface: None,
        inode: u32::try_from(cookie).unwrap() + 1000,
        uid: 0,
        cgroup_id: None,
        expires_ms: None,
        options: None,
    }
}

pub(crate) fn findings(second: i64, sockets: Option<Vec<Socket>>) -> Findings {
    Findings {
        taken_at: at(second),
        query: DiagQuery { ports: None, depth: Depth::Everything },
        all_netns: true,
        namespaces: vec![NetnsFound {
            key: NETNS,
            shown: Netns { inode: 7, name: Some("host".to_owned()), kept_by: None },
            sockets,
            read_from: at(second),
            read_until: at(second),
            surroundings: None,
            nat: None,
        }],
        cgroups: HashMap::new(),
        holders: HashMap::new(),
        read_everywhere: false,
        processes_read: 0,
        netns_descriptors: None,
        netns_mounts: None,
        processes: Vec::new(),
        described: HashMap::new(),
        oom_kills: HashMap::new(),
        also: HashMap::new(),
        containers: Vec::new(),
        places: Vec::new(),
        gaps: Vec::new(),
    }
}
