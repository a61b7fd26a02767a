//! Which ports are shared silently: one `SO_REUSEPORT` group whose sockets belong to more than one job, so that requests of
//! one job's tests reach the other's server and nobody is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::job::JobKey;
use crate::model::netns::NetnsKey;
use crate::model::socket::{Protocol, SocketKey};

/// Where sockets of one group are.
pub type Group = (NetnsKey, Protocol, IpAddr, u16);

/// A listener with the jobs of those that have it open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The socket.
    pub key: SocketKey,
    /// Protocol.
    pub protocol: Protocol,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Jobs of its holders.
    pub jobs: Vec<&'a JobKey>,
}

/// The groups that more than one job shares, with these jobs.
pub fn shared<'a>(listeners: impl IntoIterator<Item = Member<'a>>) -> BTreeMap<Group, BTreeSet<JobKey>> {
    let mut groups: BTreeMap<Group, (usize, BTreeSet<&JobKey>)> = BTreeMap::new();
    for member in listeners {
        let group = (member.key.netns, member.protocol, member.address, member.port);
        let (sockets, jobs) = groups.entry(group).or_default();
        *sockets += 1;
        jobs.extend(member.jobs);
    }
    groups
        .into_iter()
        .filter(|(_, (sockets, jobs))| *sockets > 1 && jobs.len() > 1)
        .map(|(group, (_, jobs))| (group, jobs.into_iter().cloned().collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(id: &str) -> JobKey {
        JobKey { ci: "github".to_owned(), id: id.to_owned() }
    }

    fn member(cookie: u64, port: u16, jobs: Vec<&JobKey>) -> Member<'_> {
        let netns = NetnsKey { device: 4, inode: 1 };
        let key = SocketKey { netns, cookie };
        Member { key, protocol: Protocol::Tcp, address: IpAddr::from([0, 0, 0, 0]), port, jobs }
    }

    #[test]
    fn only_several_sockets_of_several_jobs_are_shared_silently() {
        let (a, b) = (job("a"), job("b"));
        let groups = shared([
            member(1, 80, vec![&a]),
            member(2, 80, vec![&b]),
            member(3, 81, vec![&a]),
            member(4, 81, vec![&a]),
            member(5, 82, vec![&a]),
            member(6, 82, vec![]),
            member(7, 83, vec![&a, &b]),
        ]);
        assert_eq!(
            groups.keys().map(|group| group.3).collect::<Vec<_>>(),
            [80],
            "inherited by another job is not shared"
        );
        assert_eq!(groups.values().next().unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn a_port_is_shared_where_two_sockets_are_and_two_jobs(
            sockets in prop::collection::vec((0u16..3, prop::collection::vec(0usize..3, 0..3)), 0..8),
        ) {
            let jobs: Vec<JobKey> = ["a", "b", "c"].map(job).into();
            let members = sockets.iter().zip(1..).map(|((port, own), cookie)| {
                member(cookie, *port, own.iter().map(|number| &jobs[*number]).collect())
            });
            let found: BTreeSet<u16> = shared(members).keys().map(|group| group.3).collect();
            let expected = (0..3).filter(|port| {
                let here: Vec<_> = sockets.iter().filter(|(other, _)| other == port).collect();
                let jobs: BTreeSet<usize> = here.iter().flat_map(|(_, jobs)| jobs.clone()).collect();
                here.len() > 1 && jobs.len() > 1
            });
            prop_assert_eq!(found, expected.collect());
        }
    }
}
