//! Processes that were killed where nobody told by whom: the OOM killer's counters show whether it was that.

use std::collections::{HashMap, HashSet};

use crate::model::hold::{End, Hold, HoldKey};
use crate::model::job::JobKey;
use crate::model::process::Exit;

/// Control groups that are watched at the most, and ends that wait.
const MAX: usize = 256;

/// Holds that ended by SIGKILL, until the next look shows the counters.
#[derive(Debug, Default)]
pub(super) struct Doubtful {
    /// Set where the kernel tells whom its OOM killer chose: then nothing is in doubt.
    told: bool,
    ended: Vec<(Hold, HoldKey, Option<JobKey>)>,
    /// Kills so far, by control group.
    kills: HashMap<String, u64>,
}

fn cgroup(hold: &Hold) -> Option<&str> {
    hold.holder.as_ref()?.cgroup.as_deref()
}

impl Doubtful {
    pub(super) fn are_told(&mut self, told: bool) {
        self.told = told;
    }

    /// A hold has ended; answers whether how is in doubt, until [`Doubtful::counted`] says it.
    pub(super) fn note(&mut self, hold: &Hold, key: &HoldKey, job: Option<&JobKey>) -> bool {
        let killed = hold.exit.is_some_and(|exit| exit.signal == Some(Exit::KILL));
        let doubtful = !self.told && hold.end == Some(End::Exit) && killed && cgroup(hold).is_some();
        let noted = doubtful && self.ended.len() < MAX;
        if noted {
            self.ended.push((hold.clone(), key.clone(), job.cloned()));
        }
        noted
    }

    /// The control groups whose counters are to be read: those of the open holds, and of those in doubt.
    pub(super) fn wanted<'a>(&'a self, open: impl Iterator<Item = &'a Hold>) -> Vec<String> {
        if self.told {
            return Vec::new();
        }
        let all = open.chain(self.ended.iter().map(|(hold, ..)| hold));
        let distinct: HashSet<&str> = all.filter_map(cgroup).take(MAX).collect();
        distinct.into_iter().map(str::to_owned).collect()
    }

    /// The counters were read: answers what was in doubt, as it is known now. Where fewer were killed by the OOM killer than were
    /// killed nobody knows which, and it is said of none.
    pub(super) fn counted(&mut self, now: &HashMap<String, u64>) -> Vec<(Hold, HoldKey, Option<JobKey>)> {
        let mut pids: HashMap<String, HashSet<u32>> = HashMap::new();
        for (hold, ..) in &self.ended {
            if let (Some(cgroup), Some(holder)) = (cgroup(hold), &hold.holder) {
                pids.entry(cgroup.to_owned()).or_default().insert(holder.pid);
            }
        }
        let by_oom = |cgroup: &str| {
            let rise = now.get(cgroup)?.checked_sub(*self.kills.get(cgroup)?)?;
            Some(rise > 0 && rise >= pids.get(cgroup)?.len() as u64)
        };
        let mut found: Vec<_> = std::mem::take(&mut self.ended);
        for (hold, ..) in &mut found {
            if cgroup(hold).and_then(by_oom) == Some(true) {
                hold.end = Some(End::OomKilled);
                hold.cgroup = cgroup(hold).map(str::to_owned);
            }
        }
        self.kills.clone_from(now);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hold::fixtures::hold;
    use crate::model::process::Holder;

    fn killed(id: u64, pid: u32, cgroup: &str) -> Hold {
        let holder = Holder { cgroup: Some(cgroup.to_owned()), ..Holder::unknown(pid) };
        let exit = Some(Exit { code: None, signal: Some(Exit::KILL) });
        Hold { end: Some(End::Exit), exit, holder: Some(holder.into()), ..hold(id, pid) }
    }

    fn after(ends: &[Hold], before: u64, now: u64) -> Vec<u64> {
        let mut doubtful = Doubtful::default();
        let counted = |kills| HashMap::from([("/a".to_owned(), kills)]);
        assert_eq!(doubtful.counted(&counted(before)), []);
        for hold in ends {
            assert!(doubtful.note(hold, &HoldKey::Socket(hold.id), None));
        }
        let known = doubtful.counted(&counted(now));
        assert_eq!(known.len(), ends.len(), "nothing stays in doubt");
        known
            .into_iter()
            .filter(|(hold, ..)| hold.end == Some(End::OomKilled))
            .map(|(hold, ..)| hold.id)
            .collect()
    }

    #[test]
    fn a_kill_in_whose_group_the_oom_killer_struck_was_its() {
        assert_eq!(after(&[killed(1, 7, "/a")], 3, 4), [1]);
        assert_eq!(after(&[killed(1, 7, "/a")], 3, 3), [0u64; 0], "somebody else killed it");
        assert_eq!(after(&[killed(1, 7, "/b")], 3, 4), [0u64; 0], "elsewhere");
        let two = [killed(1, 7, "/a"), killed(2, 8, "/a")];
        assert_eq!(after(&two, 3, 4), [0u64; 0], "one of the two: which is not known");
        assert_eq!(after(&two, 3, 5), [1, 2]);
        assert_eq!(
            after(&[killed(1, 7, "/a"), killed(2, 7, "/a")], 3, 4),
            [1, 2],
            "two ports of one process"
        );
        let mut told = Doubtful::default();
        told.are_told(true);
        assert!(!told.note(&two[0], &HoldKey::Socket(1), None));
        assert!(told.ended.is_empty() && told.wanted(two.iter()).is_empty());
    }
}
