//! Whom to end so that ports are let go: a plan, made from claims. Nobody is ended here.

use std::collections::BTreeMap;

use crate::model::claim::{Claim, Verdict};
use crate::model::container::Proxy;
use crate::model::container::SHORT_ID_CHARS;
use crate::model::process::Holder;
use crate::model::reap::{Doomed, Held};
use crate::model::socket::ClaimKind;

/// What is to be let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// What is judged leaked.
    Leaked,
    /// What this job left, as far as it is judged leaked.
    Job(String),
    /// What the user names by its port.
    Named,
}

/// The processes to end, in order of their pids. Each holder of a listener or a bound socket is one; whoever only has a connection there is
/// a client, and none.
pub fn plan(claims: &[Claim], wish: &Wish) -> Vec<Doomed> {
    let mut doomed: BTreeMap<u32, Doomed> = BTreeMap::new();
    let meant = |claim: &&Claim| match wish {
        Wish::Leaked => claim.verdict == Verdict::Leaked,
        Wish::Job(id) => {
            claim.verdict == Verdict::Leaked && claim.job.as_ref().is_some_and(|job| job.id == *id)
        }
        Wish::Named => true,
    };
    let holds = |claim: &&Claim| matches!(claim.kind, ClaimKind::Listener | ClaimKind::Bound);
    for claim in claims.iter().filter(holds).filter(meant) {
        let Some(socket) = &claim.socket else { continue };
        for holder in &claim.holders {
            // What cannot be proven at the last moment is not ended.
            let Some(fd) = holder.fd else { continue };
            let entry = doomed.entry(holder.pid).or_insert_with(|| Doomed {
                pid: holder.pid,
                start_time: holder.start_time,
                comm: holder.comm.clone(),
                uid: holder.uid,
                user: holder.user.clone(),
                cmdline: holder.cmdline.clone(),
                holds: Vec::new(),
                spared: None,
                outcome: None,
            });
            entry.spared = entry.spared.take().or_else(|| spared(claim, holder));
            entry.holds.push(Held {
                protocol: claim.protocol,
                address: claim.address,
                port: claim.port,
                netns: claim.netns.clone(),
                fd,
                inode: socket.inode,
                reason: format!("{}: {}", claim.verdict.as_str(), claim.reason),
            });
        }
    }
    doomed.into_values().collect()
}

/// Why a process is left alone whatever is wished.
fn spared(claim: &Claim, holder: &Holder) -> Option<String> {
    if holder.pid == 1 {
        let unit = claim.owner.name.as_deref().unwrap_or("the unit");
        return Some(format!("pid 1 keeps it for a unit: stop the socket unit of {unit}"));
    }
    if let Some(id) = &holder.container {
        let id = id.get(..SHORT_ID_CHARS).unwrap_or(id);
        return Some(format!("it runs in a container: stop container {id}"));
    }
    match holder.comm.as_deref()? {
        // An engine that could not be asked which container it is for is still no process to end.
        comm if Proxy::named(comm).is_some() => {
            let which = claim.owner.container.as_ref().and(claim.owner.name.as_deref());
            let end = which.map_or_else(|| "stop that".to_owned(), |name| format!("stop container {name}"));
            Some(format!("it holds the port for a container: {end}"))
        }
        "systemd" => Some("it keeps it for a user's unit: stop that socket unit".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::fixtures::{claim, github, holder};
    use crate::model::claim::{Owner, OwnerType};
    use crate::model::job::JobState;

    fn of(verdict: Verdict, pid: u32, job: &str) -> Claim {
        Claim {
            verdict,
            holders: vec![holder(pid, "server")],
            job: Some(github(JobState::Ended, job)),
            ..claim()
        }
    }

    fn pids(claims: &[Claim], wish: &Wish) -> Vec<u32> {
        plan(claims, wish).iter().map(|doomed| doomed.pid).collect()
    }

    #[test]
    fn only_what_has_leaked_is_ended_unless_somebody_names_it() {
        let claims = [
            of(Verdict::Leaked, 10, "a"),
            of(Verdict::Grace, 11, "a"),
            of(Verdict::Leaked, 12, "b"),
            of(Verdict::Exempt, 13, "a"),
        ];
        assert_eq!(pids(&claims, &Wish::Leaked), [10, 12]);
        assert_eq!(pids(&claims, &Wish::Job("a".to_owned())), [10]);
        assert_eq!(pids(&claims, &Wish::Job("c".to_owned())), [0u32; 0]);
        assert_eq!(pids(&claims, &Wish::Named), [10, 11, 12, 13]);
    }

    #[test]
    fn clients_pid_1_and_proxies_of_containers_are_spared() {
        let client = Claim { kind: ClaimKind::Connection, ..of(Verdict::Leaked, 20, "a") };
        assert_eq!(pids(&[client], &Wish::Named), [0u32; 0]);
        let activated = Claim { holders: vec![holder(5, "web"), holder(1, "systemd")], ..claim() };
        let plan = plan(&[activated], &Wish::Named);
        assert_eq!((plan[0].pid, plan[0].spared.is_some(), plan[1].spared.is_none()), (1, true, true));
        let owner = Owner {
            container: Some("4f".to_owned()),
            ..Owner::new(OwnerType::Container, Some("web".to_owned()))
        };
        let proxy = Claim { holders: vec![holder(7, "docker-proxy")], owner, ..claim() };
        let spared = |claims: &[Claim]| super::plan(claims, &Wish::Named)[0].spared.clone();
        assert_eq!(
            spared(std::slice::from_ref(&proxy)).as_deref(),
            Some("it holds the port for a container: stop container web")
        );
        // Nobody could be asked whose container it is.
        let unknown = Claim { owner: Owner::new(OwnerType::Process, None), ..proxy };
        assert!(spared(&[unknown]).is_some());
        let inside = Holder { container: Some("4f1c9e0b7a6d5c4b".to_owned()), ..holder(8, "server") };
        let inside = Claim { holders: vec![inside], ..claim() };
        assert_eq!(spared(&[inside]).as_deref(), Some("it runs in a container: stop container 4f1c9e0b7a6d"));
        let users = Claim { holders: vec![holder(9, "systemd")], ..claim() };
        assert!(spared(&[users]).is_some());
    }

    #[test]
    fn a_process_that_holds_two_ports_is_ended_once() {
        let one = of(Verdict::Leaked, 10, "a");
        let two = Claim { port: 9000, ..one.clone() };
        let plan = plan(&[one, two], &Wish::Leaked);
        assert_eq!((plan.len(), plan[0].holds.len()), (1, 2));
    }
}
