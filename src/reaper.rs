//! `[leak] reap = true`: the agent ends what has leaked by itself, after an extra grace. Off by default.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::engine::agent::Agent;
use crate::engine::status::Status;
use crate::engine::{Question, Topic};
use crate::judge::reap::{Wish, plan};
use crate::kernel::doom;
use crate::model::claim::Claim;
use crate::model::escape::Escaped;
use crate::model::reap::Doomed;

/// How often it is looked for leaks that are due.
const TICK: Duration = Duration::from_secs(1);
/// What could not be ended is tried again after this long.
const AGAIN: Duration = Duration::from_secs(60);

/// Identity of a leaked socket: its namespace and its number there.
type Leaked = (u64, u64);

/// Since when each socket is known to have leaked.
#[derive(Debug, Default)]
struct Waiting(HashMap<Leaked, Instant>);

impl Waiting {
    /// Takes note of what leaks now; answers what has done so for long enough. That is not named again for a while.
    fn due(&mut self, leaking: &HashSet<Leaked>, after: Duration, now: Instant) -> HashSet<Leaked> {
        self.0.retain(|key, _| leaking.contains(key));
        for key in leaking {
            self.0.entry(*key).or_insert(now + after);
        }
        let due: HashSet<Leaked> =
            self.0.iter().filter(|(_, due)| **due <= now).map(|(key, _)| *key).collect();
        for key in &due {
            self.0.insert(*key, now + AGAIN);
        }
        due
    }
}

/// Ends what has leaked for that long, for ever.
pub async fn run(agent: Agent, after: Duration) {
    let mut waiting = Waiting::default();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let due = waiting.due(&leaking(&agent.status()), after, Instant::now());
        if !due.is_empty() {
            reap(&agent, &due).await;
        }
    }
}

fn leaking(status: &Status) -> HashSet<Leaked> {
    status.leaks.iter().map(|leak| (leak.netns.inode, leak.key.cookie)).collect()
}

/// Asks once more, so that what was excused meanwhile is left alone, and ends the rest.
async fn reap(agent: &Agent, due: &HashSet<Leaked>) {
    let mut claims = match agent.ask(Question { topic: Topic::Leaks, netns: None }).await {
        Ok(answer) => answer.claims,
        Err(why) => return tracing::warn!("what has leaked could not be asked, and is not ended: {why}"),
    };
    claims.retain(|claim| is_due(claim, due));
    let mut doomed = plan(&claims, &Wish::Leaked);
    let ended = tokio::task::spawn_blocking(move || {
        doom::act(&mut doomed);
        doomed
    });
    for process in ended.await.unwrap_or_default() {
        log(&process);
    }
}

fn is_due(claim: &Claim, due: &HashSet<Leaked>) -> bool {
    claim.socket.as_ref().is_some_and(|socket| due.contains(&(claim.netns.inode, socket.cookie)))
}

fn log(process: &Doomed) {
    let comm = Escaped(process.comm.as_deref().unwrap_or("?")).to_string();
    let ports: Vec<String> =
        process.holds.iter().map(|held| format!("{}/{}", held.port, held.protocol)).collect();
    let (pid, ports) = (process.pid, ports.join(", "));
    match (&process.spared, process.outcome) {
        (Some(why), _) => {
            tracing::warn!(
                event = "spared",
                pid,
                comm,
                ports,
                "{comm} (pid {pid}) has leaked {ports} and is not ended: {}",
                Escaped(why)
            );
        }
        (None, Some(outcome)) => {
            tracing::warn!(
                event = "reaped",
                pid,
                comm,
                ports,
                outcome,
                "{comm} (pid {pid}) has leaked {ports}: {outcome}"
            );
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_leaked_for_long_enough_is_due_and_not_again_at_once() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let after = Duration::from_secs(60);
        let at = |seconds| start + Duration::from_secs(seconds);
        let (one, two) = ((1, 10), (1, 20));
        let none = HashSet::new();
        assert_eq!(waiting.due(&HashSet::from([one]), after, at(0)), none);
        assert_eq!(waiting.due(&HashSet::from([one, two]), after, at(30)), none);
        assert_eq!(waiting.due(&HashSet::from([one, two]), after, at(60)), HashSet::from([one]));
        assert_eq!(waiting.due(&HashSet::from([one, two]), after, at(61)), none, "it was tried");
        assert_eq!(waiting.due(&HashSet::from([one]), after, at(91)), none, "the other was excused");
        assert_eq!(waiting.due(&HashSet::from([one, two]), after, at(120)), HashSet::from([one]));
    }
}
