//! What to do next, in sentences, from the claims on a port.
//!
//! A command that is proposed holds numbers and checked names only: process names and units are chosen by others.

use crate::model::claim::{Claim, Nat, Owner, OwnerType, Verdict};
use crate::model::container::SHORT_ID_CHARS;
use crate::model::job::Job;
use crate::model::socket::ClaimKind;
use crate::model::surroundings::Surroundings;

/// What matters besides the claims.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    /// Whether all processes were looked into, so that who was not found is not there.
    pub whole: bool,
    /// What is known of one network namespace, by its inode.
    pub here: Option<(u64, &'a Surroundings)>,
}

/// Sentences for these claims, without repeating any.
pub fn advice(claims: &[Claim], sight: Sight<'_>) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    for sentence in claims.iter().filter_map(|claim| for_claim(claim, sight)) {
        if !sentences.contains(&sentence) {
            sentences.push(sentence);
        }
    }
    sentences
}

fn for_claim(claim: &Claim, sight: Sight<'_>) -> Option<String> {
    match claim.kind {
        ClaimKind::TimeWait => Some(format!(
            "Port {} is in TIME_WAIT, for 60s at most: set SO_REUSEADDR before bind, or wait.",
            claim.port
        )),
        ClaimKind::Connection if claim.peer.is_some() && !claim.holders.is_empty() => {
            for_connection(claim, sight)
        }
        ClaimKind::NatRule => claim.nat.as_ref().map(|nat| for_rule(claim, nat)),
        ClaimKind::Connection | ClaimKind::Reserved => None,
        ClaimKind::Listener | ClaimKind::Bound => for_holder(claim, sight),
    }
}

fn for_rule(claim: &Claim, nat: &Nat) -> String {
    let seen_by = match (nat.local_only, nat.conditional) {
        (true, _) => "what processes of this host send to it",
        (false, true) => "some of its traffic",
        (false, false) => "its traffic",
    };
    let end = match (container(&claim.owner), &claim.owner.name) {
        (Some(name), _) => format!("stop container {name}, or publish another port of it"),
        (None, Some(name)) if claim.owner.kind == OwnerType::Service => {
            format!("give service {name} another nodePort")
        }
        _ => "remove the rule".to_owned(),
    };
    format!(
        "A rule sends {seen_by} to {} before any socket sees it: whoever binds port {} gets none of that. Use another port, or {end}.",
        nat.destination(),
        claim.port
    )
}

fn for_connection(claim: &Claim, sight: Sight<'_>) -> Option<String> {
    let client = claim.holders.first()?.pid;
    let here = sight.here.filter(|(inode, _)| *inode == claim.netns.inode);
    let range = here.and_then(|(_, here)| here.ephemeral.clone()).filter(|range| range.contains(&claim.port));
    let why = range.map_or_else(String::new, |range| {
        let (first, last) = range.into_inner();
        format!(
            ", which lies in net.ipv4.ip_local_port_range ({first}-{last}): the kernel gives such ports to whoever connects"
        )
    });
    Some(format!(
        "A connection of process {client} uses {0} as its own port{why}; a bind to {0} can fail until it is closed. Keep clients off the port: sysctl net.ipv4.ip_local_reserved_ports={0}.",
        claim.port
    ))
}

fn for_holder(claim: &Claim, sight: Sight<'_>) -> Option<String> {
    let Some(holder) = claim.holders.first() else {
        return Some(if sight.whole {
            format!(
                "No process was found with a descriptor of it: it may be on its way between two (SCM_RIGHTS, unix(7)), registered with an io_uring (io_uring_register(2)), the kernel's own, or its process is just ending.{}",
                made_in(claim)
            )
        } else {
            "No process was found that has it open; what could not be seen may have it: as root, and with the daemon, sniffer sees more."
                .to_owned()
        });
    };
    let end = how_to_end(claim).unwrap_or_else(|| format!("kill {}", holder.pid));
    Some(match (claim.verdict, &claim.job) {
        (Verdict::Leaked, Some(job)) => format!(
            "It was left behind by {}. End it: {end}. Next time: stop it in a step that always runs, or bind port 0.",
            words(job)
        ),
        (Verdict::Grace, Some(job)) => {
            format!("{} has ended; if it does not let go by itself: {end}.", capitalised(&words(job)))
        }
        (Verdict::Healthy, Some(job)) => {
            format!(
                "{} still needs it: wait for that, or use another port (bind port 0, read it back).",
                capitalised(&words(job))
            )
        }
        (Verdict::Exempt, _) if claim.owner.container.is_some() => {
            format!("It holds the port for a container: {end}, or publish another port of it.")
        }
        (Verdict::Exempt, _) => {
            "It outlives jobs on purpose: use another port, or stop it yourself.".to_owned()
        }
        _ => format!(
            "If process {} is not needed: {end}. Otherwise use another port (bind port 0, read it back).",
            holder.pid
        ),
    })
}

/// Who made a socket may be found by the control group that it was made in, which is told after its end too.
fn made_in(claim: &Claim) -> String {
    let cgroup = claim.socket.as_ref().and_then(|socket| socket.cgroup.as_deref());
    let told = cgroup.filter(|cgroup| *cgroup != "/");
    told.map_or_else(String::new, |cgroup| format!(" It was made in control group {cgroup}."))
}

fn words(job: &Job) -> String {
    match (&job.name, &job.repository) {
        (Some(name), Some(repository)) => format!("{} job {name} of {repository}", job.ci),
        (Some(name), None) => format!("{} job {name}", job.ci),
        _ => format!("{} job {}", job.ci, job.id),
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn how_to_end(claim: &Claim) -> Option<String> {
    let holder = claim.holders.first()?;
    if let Some(container) = container(&claim.owner) {
        return Some(format!("stop container {container}"));
    }
    let unit = holder.unit.as_deref().filter(|unit| unit.ends_with(".service") && is_plain(unit))?;
    // A CI runner's unit is not the thing to stop; a service of its own is.
    let whole_unit =
        claim.job.is_none() && claim.owner.kind != OwnerType::Container && !unit.starts_with("user@");
    whole_unit.then(|| format!("systemctl stop {unit}"))
}

/// A container as its engine takes it in a command: by its name, where that is a plain one.
fn container(owner: &Owner) -> Option<&str> {
    let id = owner.container.as_deref()?;
    let name = owner.name.as_deref().filter(|name| owner.kind == OwnerType::Container && is_plain(name));
    name.or(id.get(..SHORT_ID_CHARS))
}

fn is_plain(unit: &str) -> bool {
    unit.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"@._-:".contains(&byte))
        && !unit.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::Peer;
    use crate::model::claim::fixtures::claim;

    #[test]
    fn nobody_has_it_is_said_only_where_all_were_looked_into() {
        let orphan = Claim { holders: Vec::new(), ..claim() };
        let said = |whole| advice(std::slice::from_ref(&orphan), Sight { whole, here: None }).join("");
        assert!(said(true).contains("SCM_RIGHTS") && !said(true).contains("as root"), "{}", said(true));
        assert!(said(false).contains("as root") && !said(false).contains("SCM_RIGHTS"), "{}", said(false));
    }

    #[test]
    fn of_a_clients_port_it_is_said_where_the_kernel_took_it_from() {
        let peer = Some(Peer { address: std::net::Ipv4Addr::LOCALHOST.into(), port: 9 });
        let client = Claim { kind: ClaimKind::Connection, peer, ..claim() };
        let here = |range| Surroundings { ephemeral: Some(range), ..Surroundings::default() };
        let said = |inode, range| {
            let (claims, here) = (std::slice::from_ref(&client), here(range));
            advice(claims, Sight { whole: true, here: Some((inode, &here)) }).join("")
        };
        let own = client.netns.inode;
        assert!(said(own, 8000..=9000).contains("ip_local_port_range (8000-9000)"));
        assert!(!said(own, 32768..=60999).contains("ip_local_port_range"));
        assert!(!said(own + 1, 8000..=9000).contains("ip_local_port_range"), "another namespace has its own");
    }

    #[test]
    fn a_unit_with_an_odd_name_enters_no_command() {
        assert!(is_plain("actions.runner.org-repo.service"));
        assert!(!is_plain("a;reboot.service"));
        assert!(!is_plain("-x.service"));
    }
}
