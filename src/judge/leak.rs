//! Has a listener leaked? Only where every holder belongs to a job, every one of those jobs is over, and the grace with it.

use jiff::{SignedDuration, Timestamp};

use crate::model::claim::Verdict;
use crate::model::job::{JobKey, JobState};
use crate::model::socket::ClaimKind;

/// A job as far as leaks go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Identity.
    pub key: JobKey,
    /// Whether it is over.
    pub state: JobState,
    /// When it ended, where that was seen.
    pub ended: Option<Timestamp>,
    /// The earliest moment at which it is known to have been over.
    pub over_since: Option<Timestamp>,
    /// How long such a job may seem over and go on (the pause between two steps).
    pub pause: SignedDuration,
}

/// A process that has the socket open, as far as leaks go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderStanding {
    /// The entry of the exempt list it falls under.
    pub exempt: Option<String>,
    /// Its job.
    pub job: Option<Standing>,
}

/// A verdict with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// The job it is about: a running one before an ended one.
    pub job: Option<JobKey>,
    /// When the passing of time alone changes it.
    pub until: Option<Timestamp>,
}

/// How sure the judge can be of the moments in [`Standing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watching {
    /// The daemon has been watching since `over_since`.
    Continuously,
    /// One look: a job seen to be over may have ended this very moment.
    Once,
}

/// Judges a claim by its holders.
pub fn judge(
    kind: ClaimKind,
    holders: &[HolderStanding],
    now: Timestamp,
    grace: SignedDuration,
    watching: Watching,
) -> Judgement {
    let jobs: Vec<&Standing> = holders.iter().filter_map(|holder| holder.job.as_ref()).collect();
    let job = jobs.iter().find(|job| job.state != JobState::Ended).or(jobs.first());
    let verdict = |verdict, reason: String| Judgement {
        verdict,
        reason,
        job: job.map(|job| job.key.clone()),
        until: None,
    };
    if let Some(entry) = holders.iter().find_map(|holder| holder.exempt.as_deref()) {
        return verdict(Verdict::Exempt, format!("'{entry}' is exempt: it may outlive jobs"));
    }
    let Some(job) = job else {
        return verdict(Verdict::Unattributed, nobody(kind, holders).to_owned());
    };
    match job.state {
        JobState::Running => return verdict(Verdict::Healthy, "its job is running".to_owned()),
        JobState::Unknown => {
            return verdict(Verdict::Healthy, "nothing shows that its job has ended".to_owned());
        }
        JobState::Ended => {}
    }
    if jobs.len() < holders.len() {
        let reason = "its job has ended, and a process of no known job has it open too";
        return verdict(Verdict::Unattributed, reason.to_owned());
    }
    if !matches!(kind, ClaimKind::Listener | ClaimKind::Bound) {
        let reason = "its job has ended; the port is free when the connection closes";
        return verdict(Verdict::Healthy, reason.to_owned());
    }
    // Of several ended jobs the last one counts.
    let last = jobs.iter().max_by_key(|job| job.over_since).unwrap_or(job);
    let (Some(over_since), Watching::Continuously) = (last.over_since, watching) else {
        return verdict(Verdict::Grace, "its job has ended; when is not known without the daemon".to_owned());
    };
    let over = now.duration_since(over_since).max(SignedDuration::ZERO);
    let grace = grace.max(last.pause);
    let ago = match last.ended {
        Some(_) => format!("job ended {} ago", span(over)),
        None => format!("job ended before {} ago", span(over)),
    };
    let reason = format!("{ago} (grace {})", span(grace));
    if over >= grace {
        return verdict(Verdict::Leaked, reason);
    }
    Judgement { until: over_since.checked_add(grace).ok(), ..verdict(Verdict::Grace, reason) }
}

fn nobody(kind: ClaimKind, holders: &[HolderStanding]) -> &'static str {
    match (holders.is_empty(), kind) {
        (true, ClaimKind::Connection) => "no process has it open",
        (true, ClaimKind::TimeWait) => {
            "the kernel keeps the port after a connection was closed, for 60s at most"
        }
        (true, _) => "no process was found that has it open",
        (false, _) => "no CI job is known for it",
    }
}

/// `8m31s`, `2h5m`, `3d4h`: the two largest units, as contract and people write them; `300ms` below a second.
pub fn span(duration: SignedDuration) -> String {
    if (1..1000).contains(&duration.as_millis()) {
        return format!("{}ms", duration.as_millis());
    }
    let seconds = duration.as_secs().max(0);
    let (days, hours, minutes, seconds) =
        (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, 0) => format!("{m}m"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, 0, _) => format!("{h}h"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, 0, _, _) => format!("{d}d"),
        (d, h, _, _) => format!("{d}d{h}h"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn job(id: &str, over: Option<i64>) -> HolderStanding {
        HolderStanding {
            exempt: None,
            job: Some(Standing {
                key: JobKey { ci: "github".to_owned(), id: id.to_owned() },
                state: if over.is_some() { JobState::Ended } else { JobState::Running },
                ended: over.map(at),
                over_since: over.map(at),
                pause: SignedDuration::ZERO,
            }),
        }
    }

    const STRANGER: HolderStanding = HolderStanding { exempt: None, job: None };

    fn judged(holders: &[HolderStanding], now: i64) -> Judgement {
        let grace = SignedDuration::from_secs(30);
        judge(ClaimKind::Listener, holders, at(now), grace, Watching::Continuously)
    }

    #[test]
    fn a_listener_leaks_when_job_and_grace_are_over() {
        assert_eq!(judged(&[job("a", None)], 1000).verdict, Verdict::Healthy);
        assert_eq!(judged(&[job("a", Some(0))], 29).verdict, Verdict::Grace);
        let leaked = judged(&[job("a", Some(0))], 511);
        assert_eq!(
            (leaked.verdict, leaked.reason.as_str()),
            (Verdict::Leaked, "job ended 8m31s ago (grace 30s)")
        );
    }

    #[test]
    fn one_running_job_among_the_holders_is_enough() {
        let judgement = judged(&[job("a", Some(0)), job("b", None)], 1000);
        assert_eq!(judgement.verdict, Verdict::Healthy);
        assert_eq!(judgement.job.unwrap().id, "b");
    }

    #[test]
    fn a_holder_of_no_known_job_keeps_it_from_being_a_leak() {
        assert_eq!(judged(&[job("a", Some(0)), STRANGER], 1000).verdict, Verdict::Unattributed);
        assert_eq!(judged(&[STRANGER], 1000).verdict, Verdict::Unattributed);
        assert_eq!(judged(&[], 1000).verdict, Verdict::Unattributed);
    }

    #[test]
    fn the_last_of_several_ended_jobs_counts() {
        assert_eq!(judged(&[job("a", Some(0)), job("b", Some(90))], 100).verdict, Verdict::Grace);
    }

    #[test]
    fn an_exempt_program_is_said_to_be_exempt() {
        let mut holder = job("a", Some(0));
        holder.exempt = Some("bazel".to_owned());
        assert_eq!(judged(&[holder], 1000).verdict, Verdict::Exempt);
    }

    #[test]
    fn a_connection_of_an_ended_job_is_no_leak() {
        let judgement = judge(
            ClaimKind::Connection,
            &[job("a", Some(0))],
            at(999),
            SignedDuration::ZERO,
            Watching::Continuously,
        );
        assert_eq!(judgement.verdict, Verdict::Healthy);
    }

    #[test]
    fn a_job_that_may_only_pause_is_given_its_pause() {
        let mut holder = job("a", Some(0));
        holder.job.as_mut().unwrap().pause = SignedDuration::from_secs(60);
        assert_eq!(judged(std::slice::from_ref(&holder), 59).verdict, Verdict::Grace);
        assert_eq!(judged(&[holder], 60).verdict, Verdict::Leaked);
    }

    #[test]
    fn one_look_never_says_leaked() {
        let judgement =
            judge(ClaimKind::Listener, &[job("a", Some(0))], at(999), SignedDuration::ZERO, Watching::Once);
        assert_eq!(judgement.verdict, Verdict::Grace);
    }

    #[test]
    fn a_clock_that_steps_back_leaks_nothing() {
        assert_eq!(judged(&[job("a", Some(100))], 0).verdict, Verdict::Grace);
    }

    fn any_holder() -> impl Strategy<Value = HolderStanding> {
        let state = prop_oneof![Just(JobState::Running), Just(JobState::Unknown), Just(JobState::Ended)];
        let job =
            (0..3u8, state, prop::option::of(0..100i64), 0..50i64).prop_map(|(id, state, over, pause)| {
                let over = over.filter(|_| state == JobState::Ended).map(at);
                let key = JobKey { ci: "github".to_owned(), id: id.to_string() };
                Standing {
                    key,
                    state,
                    ended: over,
                    over_since: over,
                    pause: SignedDuration::from_secs(pause),
                }
            });
        let exempt = prop::option::weighted(0.1, Just("bazel".to_owned()));
        let mostly = prop::option::weighted(0.9, job);
        (exempt, mostly).prop_map(|(exempt, job)| HolderStanding { exempt, job })
    }

    proptest! {
        /// Whoever is not over, of a job or not, keeps it from being a leak.
        #[test]
        fn a_leak_has_holders_whose_jobs_are_all_over(
            holders in prop::collection::vec(any_holder(), 0..4),
            now in -10..200i64,
            grace in 0..60i64,
        ) {
            let grace = SignedDuration::from_secs(grace);
            let judgement = judge(ClaimKind::Listener, &holders, at(now), grace, Watching::Continuously);
            let is_over = |holder: &HolderStanding| {
                let over = |job: &Standing| job.over_since.is_some_and(|over| over.checked_add(grace).unwrap() <= at(now));
                holder.exempt.is_none() && holder.job.as_ref().is_some_and(|job| job.state == JobState::Ended && over(job))
            };
            // A job whose end has no moment is over, and nobody knows since when.
            let known = holders.iter().any(|holder| holder.job.as_ref().is_some_and(|job| job.over_since.is_some()));
            let timeless = |holder: &HolderStanding| {
                holder.exempt.is_none()
                    && holder.job.as_ref().is_some_and(|job| job.state == JobState::Ended && job.over_since.is_none())
            };
            if judgement.verdict == Verdict::Leaked {
                prop_assert!(known && holders.iter().all(|holder| is_over(holder) || timeless(holder)), "{holders:?}");
            }
            if let Some(until) = judgement.until {
                prop_assert!(until > at(now));
                let then = judge(ClaimKind::Listener, &holders, until, grace, Watching::Continuously);
                prop_assert_eq!(then.verdict, Verdict::Leaked, "the moment that was told is the moment");
            }
            let once = judge(ClaimKind::Listener, &holders, at(now), grace, Watching::Once);
            prop_assert_ne!(once.verdict, Verdict::Leaked);
        }
    }

    #[test]
    fn spans_read_as_people_write_them() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (511, "8m31s"),
            (7500, "2h5m"),
            (90_000, "1d1h"),
            (-5, "0s"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(SignedDuration::from_secs(seconds)), text);
        }
        assert_eq!(span(SignedDuration::from_millis(300)), "300ms");
    }
}
