//! `sniffer reap`: a plan first, and its execution with `--yes`.

use clap::Args;

use super::ask::{Whom, ask};
use super::{ANSWERED, Failure, OTHERWISE, printed};
use crate::engine::{Question, Topic};
use crate::judge::reap::{Wish, plan};
use crate::kernel::doom::{LET_GO, NOT_PERMITTED, STAYED, act};
use crate::model::answer::SCHEMA;
use crate::model::claim::Claim;
use crate::model::reap::{Doomed, Reap};
use crate::model::socket::ClaimKind;
use crate::model::target::{Target, TargetError};
use crate::report;

/// Options of `reap`.
#[derive(Debug, Args)]
#[command(override_usage = "sniffer reap [OPTIONS] <TARGET|--job <ID>|--leaked>")]
pub(super) struct Options {
    /// The holders of this port, leaked or not: 8081, 127.0.0.1:8081/tcp or 8000-8100
    #[arg(required_unless_present_any = ["job", "leaked"], allow_negative_numbers = true)]
    target: Option<String>,
    /// What this job left, as far as it is judged leaked
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "leaked"])]
    job: Option<String>,
    /// Everything that is judged leaked
    #[arg(long, conflicts_with = "target")]
    leaked: bool,
    /// Act: without it the plan is printed and nothing is done
    #[arg(long)]
    yes: bool,
    /// Only this network namespace: a name (host is your own), an inode, or PID:n
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Plans, and acts if asked to.
pub(super) fn run(options: &Options) -> Result<u8, Failure> {
    let (topic, wish, whom) = match (&options.target, &options.job) {
        (Some(target), _) => {
            let target: Target = target.parse().map_err(|error: TargetError| error.to_string())?;
            (Topic::Target(target), Wish::Named, Whom::DaemonOrMyself)
        }
        (None, Some(job)) => (Topic::Leaks, Wish::Job(job.clone()), Whom::Daemon),
        (None, None) => (Topic::Leaks, Wish::Leaked, Whom::Daemon),
    };
    let netns = options.netns.as_deref().map(str::parse).transpose();
    let netns = netns.map_err(|why: String| format!("--netns: {why}"))?;
    let answer = ask(&Question { topic, netns }, whom)?;
    let processes = plan(&answer.claims, &wish);
    let mut reap =
        Reap { schema: SCHEMA, acted: options.yes, incomplete: answer.incomplete.clone(), processes };
    if options.yes {
        permitted(&reap.processes)?;
        act(&mut reap.processes);
    }
    printed(if options.json {
        report::print_json(&reap)
    } else {
        report::print(&report::reap(&reap, answer.as_of, &super::zone()))
    })?;
    for gap in &answer.incomplete {
        report::complain(&format!("not seen: {gap}"));
    }
    let refused = reap.processes.iter().filter(|doomed| doomed.outcome == Some(NOT_PERMITTED)).count();
    if refused > 0 {
        return Err(format!("{refused} processes may not be ended by this user; run as root"));
    }
    let unseen = |claim: &&Claim| {
        matches!(claim.kind, ClaimKind::Listener | ClaimKind::Bound) && claim.holders.is_empty()
    };
    if let Some(claim) = answer.claims.iter().find(unseen) {
        let cure = if rustix::process::geteuid().is_root() { "" } else { "; run as root" };
        return Err(format!("who holds port {} could not be seen{cure}", claim.port));
    }
    let stayed = reap.processes.iter().any(|doomed| [Some(STAYED), Some(LET_GO)].contains(&doomed.outcome));
    Ok(if stayed { OTHERWISE } else { ANSWERED })
}

/// Root may end every process, others their own. Nothing is done where one of them may not be ended.
fn permitted(processes: &[Doomed]) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    let foreign = |doomed: &&Doomed| doomed.spared.is_none() && own != 0 && doomed.uid != Some(own);
    match processes.iter().find(foreign) {
        Some(doomed) => Err(format!(
            "process {} belongs to {}: nothing was done; run as root or as that user",
            doomed.pid,
            doomed
                .user
                .clone()
                .or_else(|| doomed.uid.map(|uid| format!("uid {uid}")))
                .unwrap_or_else(|| "another user".to_owned())
        )),
        None => Ok(()),
    }
}
