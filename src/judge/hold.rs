//! How a hold ended, and whether another one is its comeback.

use jiff::{SignedDuration, Timestamp};

use crate::model::hold::{Comeback, End, Hold};
use crate::model::process::Exit;

/// A listener that is back after a longer time is another story, and losses before it are.
pub const WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// What is known of the process that had a hold last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is alive: so it let go of it.
    Alive,
    /// It ended.
    Ended {
        /// With this status, where that was told.
        exit: Option<Exit>,
        /// Whether the OOM killer chose it.
        by_oom: bool,
    },
    /// Nobody was known to have it.
    Nobody,
}

/// How a hold ended whose last process and namespace are in this state.
pub fn end(last: Last, netns_gone: bool) -> (End, Option<Exit>) {
    match last {
        Last::Ended { exit, by_oom: true } => (End::OomKilled, exit),
        Last::Ended { exit, by_oom: false } => (End::Exit, exit),
        Last::Alive | Last::Nobody if netns_gone => (End::NetnsGone, None),
        Last::Alive => (End::Closed, None),
        Last::Nobody => (End::Unknown, None),
    }
}

/// Losses of one port by one program, the last of them in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Losses {
    /// The hold that was lost last.
    pub last: Hold,
    /// When each was lost, the newest last; not older than [`WINDOW`] before it.
    pub moments: Vec<Timestamp>,
}

/// Moments that are remembered of one port: a service that crashes every 100 ms has more in ten minutes, and is told as this many.
const MAX_MOMENTS: usize = 1000;

impl Losses {
    /// Another loss; `before` are those of the same port.
    pub fn with(before: Option<Losses>, hold: Hold, at: Timestamp) -> Losses {
        let mut moments = before
            .filter(|losses| program(&losses.last) == program(&hold))
            .map(|losses| losses.moments)
            .unwrap_or_default();
        moments.retain(|moment| at.duration_since(*moment) <= WINDOW);
        if moments.len() >= MAX_MOMENTS {
            moments.remove(0);
        }
        moments.push(at);
        Losses { last: hold, moments }
    }

    /// The comeback that a hold is, which began at that moment: the same program listens again in time, as another process.
    pub fn comeback(&self, hold: &Hold) -> Option<Comeback> {
        let lost_at = self.last.until?;
        let gap = hold.from.duration_since(lost_at);
        let pid = |hold: &Hold| hold.holder.as_ref().map(|holder| (holder.pid, holder.start_time));
        let is_back = program(hold).is_some()
            && program(&self.last) == program(hold)
            && pid(&self.last) != pid(hold)
            && (SignedDuration::ZERO..=WINDOW).contains(&gap);
        is_back.then(|| Comeback {
            hold: self.last.id,
            end: self.last.end.unwrap_or(End::Unknown),
            exit: self.last.exit,
            lost_at,
            gap_ms: i64::try_from(gap.as_millis()).unwrap_or(i64::MAX),
            times: self.moments.len() as u64,
            since: self.moments.first().copied().unwrap_or(lost_at),
            cgroup: self.last.cgroup.clone(),
            pid: self.last.holder.as_ref().map(|holder| holder.pid),
        })
    }
}

fn program(hold: &Hold) -> Option<&str> {
    hold.holder.as_ref()?.comm.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hold::fixtures::{at, hold};

    #[test]
    fn the_end_follows_from_who_had_it_last() {
        let killed = Some(Exit { code: None, signal: Some(9) });
        let ended = |by_oom| Last::Ended { exit: killed, by_oom };
        assert_eq!(end(ended(true), true), (End::OomKilled, killed));
        assert_eq!(
            end(ended(false), true),
            (End::Exit, killed),
            "a container's namespace goes with its process"
        );
        assert_eq!(end(Last::Alive, false), (End::Closed, None));
        assert_eq!(end(Last::Nobody, true), (End::NetnsGone, None));
        assert_eq!(end(Last::Nobody, false), (End::Unknown, None), "nothing is invented");
    }

    #[test]
    fn a_listener_that_comes_back_counts_its_losses() {
        let lost = |second, pid| Hold { until: Some(at(second)), end: Some(End::OomKilled), ..hold(1, pid) };
        let first = Losses::with(None, lost(0, 10), at(0));
        let back = Hold { from: at(4), ..hold(2, 11) };
        let comeback = first.comeback(&back).unwrap();
        assert_eq!((comeback.times, comeback.gap_ms, comeback.end), (1, 4000, End::OomKilled));
        assert_eq!(comeback.pid, Some(10));
        let second = Losses::with(Some(first.clone()), lost(60, 11), at(60));
        assert_eq!(second.comeback(&Hold { from: at(61), ..hold(3, 12) }).map(|back| back.times), Some(2));
        assert_eq!(first.comeback(&Hold { from: at(3000), ..hold(4, 13) }), None, "long after it");
        assert_eq!(first.comeback(&Hold { from: at(4), ..hold(2, 10) }), None, "the same process");
        let later = Losses::with(Some(second), lost(2000, 12), at(2000));
        assert_eq!(later.moments, [at(2000)], "older losses are another story");
    }

    #[test]
    fn another_program_is_no_comeback() {
        let lost =
            Losses::with(None, Hold { until: Some(at(0)), end: Some(End::Exit), ..hold(1, 10) }, at(0));
        let mut other = Hold { from: at(1), ..hold(2, 11) };
        let mut holder = other.holder.as_deref().cloned().unwrap();
        holder.comm = Some("another".to_owned());
        other.holder = Some(holder.into());
        assert_eq!(lost.comeback(&other), None);
        let nobody = Hold { holder: None, from: at(1), ..hold(2, 11) };
        assert_eq!(lost.comeback(&nobody), None);
    }

    proptest::proptest! {
        #[test]
        fn losses_are_counted_within_their_window_and_never_invented(
            gaps in proptest::collection::vec(1i64..400, 1..30),
        ) {
            let (mut losses, mut now, mut lost) = (None, 0, Vec::new());
            for (gap, pid) in gaps.into_iter().zip(10..) {
                now += gap;
                let hold = Hold { until: Some(at(now)), end: Some(End::Exit), ..hold(u64::from(pid), pid) };
                losses = Some(Losses::with(losses, hold, at(now)));
                lost.push(now);
            }
            let losses: Losses = losses.unwrap();
            let expected = lost.iter().filter(|second| now - **second <= WINDOW.as_secs());
            let expected: Vec<_> = expected.map(|second| at(*second)).collect();
            proptest::prop_assert_eq!(&losses.moments, &expected);
            let back = losses.comeback(&Hold { from: at(now + 1), ..hold(99, 99) }).unwrap();
            proptest::prop_assert_eq!((back.times, back.since), (expected.len() as u64, expected[0]));
        }
    }
}
