//! The file as a whole: what is written is read, what is too old or too much goes, and what a query costs stays small.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::retention::Limits;
use super::store::Store;
use super::{Asked, Reader, guard};
use crate::model::claim::fixtures::github;
use crate::model::conflict::{Call, Cause, Conflict, Loser};
use crate::model::hold::fixtures::{at, hold};
use crate::model::hold::{Comeback, End, Hold, HoldKey, Record};
use crate::model::job::{JobKey, JobState};
use crate::model::netns::NetnsSelector;
use crate::model::process::{Exit, Holder};
use crate::model::target::Target;

fn file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    std::fs::write(&path, "").unwrap();
    (directory, path)
}

fn record(hold: Hold) -> (Record, Option<JobKey>) {
    let job = hold.job.as_ref().map(|job| JobKey { ci: job.ci.clone(), id: job.id.clone() });
    let key = HoldKey::Socket(hold.id);
    (Record::Hold(Box::new(hold), key), job)
}

fn ended(id: u64, from: i64, seconds: i64) -> Hold {
    let until = at(from).checked_add(SignedDuration::from_secs(seconds)).unwrap();
    Hold { from: at(from), until: Some(until), end: Some(End::Closed), ..hold(id, 7) }
}

fn ids(path: &Path, asked: &Asked) -> Vec<u64> {
    let shown = Reader::open(path).unwrap().holds(asked).unwrap();
    shown.found.iter().map(|hold| hold.id).collect()
}

fn of(target: &str) -> Asked {
    Asked { target: Some(target.parse::<Target>().unwrap()), ..Asked::default() }
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let (_directory, path) = file();
    let mut store = Store::open(&path).unwrap();
    let comeback = Comeback {
        hold: 1,
        end: End::OomKilled,
        exit: Some(Exit::of_status(9)),
        lost_at: at(1),
        gap_ms: 4200,
        times: 3,
        since: at(0),
        cgroup: Some("/it".to_owned()),
        pid: Some(4121),
    };
    let whole = Hold {
        job: Some(github(JobState::Running, "1").into()),
        leaked_at: Some(at(5)),
        end: Some(End::Exit),
        exit: Some(Exit::of_status(3 << 8)),
        until: Some(at(9)),
        from_known: false,
        comeback: Some(Box::new(comeback)),
        ..hold(4, 7)
    };
    let open = hold(5, 8);
    store.apply(vec![record(whole.clone()), record(open.clone())], at(10)).unwrap();
    let found = Reader::open(&path).unwrap().holds(&of("8081")).unwrap().found;
    assert_eq!(found, [whole, open.clone()]);
    assert_eq!(store.events, 2);
    // Told again it is the same one, with what is new.
    let job = Some(github(JobState::Ended, "1").into());
    let later = Hold { until: Some(at(20)), end: Some(End::OomKilled), job, ..open };
    store.apply(vec![record(later.clone())], at(21)).unwrap();
    let found = Reader::open(&path).unwrap().holds(&of("8081")).unwrap().found;
    assert_eq!((found.len(), found[1].until, found[1].end), (2, later.until, later.end));
    assert_eq!(store.events, 2);
}

#[test]
fn who_had_it_then_is_found_however_long_it_lasted() {
    let (_directory, path) = file();
    let mut store = Store::open(&path).unwrap();
    // One of each class, all of which had it at second 200,000, and one before and one after.
    let lasting = [1, 9, 59, 599, 3599, 20_000, 80_000, 200_000];
    let had =
        lasting.iter().zip(10..).map(|(seconds, id)| record(ended(id, 200_000 - seconds + 1, *seconds)));
    let others = [record(ended(1, 199_000, 999)), record(ended(2, 200_001, 5))];
    store.apply(had.chain(others).chain([record(hold(30, 9))]).collect(), at(300_000)).unwrap();
    let moment = Some(at(200_000));
    for target in ["8081", "8081/tcp", "8000-8100", "1-65535", "127.0.0.1:8081"] {
        let asked = Asked { since: moment, until: moment, ..of(target) };
        let mut found = ids(&path, &asked);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13, 14, 15, 16, 17, 30], "{target}");
    }
    let asked = Asked { since: Some(at(200_003)), ..of("8081") };
    assert_eq!(ids(&path, &asked), [30, 2]);
    assert_eq!(ids(&path, &of("8081/udp")), [0u64; 0]);
    assert_eq!(ids(&path, &of("127.0.0.2:8081")), [0u64; 0]);
    let elsewhere = Asked { netns: Some(NetnsSelector::Name("blue".to_owned())), ..of("8081") };
    assert_eq!(ids(&path, &elsewhere), [0u64; 0]);
    let newest = Asked { limit: Some(2), ..of("8081") };
    let shown = Reader::open(&path).unwrap().holds(&newest).unwrap();
    assert_eq!((shown.found.len(), shown.truncated), (2, true));
}

fn conflict(id: u64, second: i64) -> Conflict {
    let holder = Holder::unknown(7);
    let loser = Loser {
        pid: holder.pid,
        start_time: None,
        ppid: None,
        uid: None,
        user: None,
        comm: Some("server".to_owned()),
        exe: None,
        cmdline: None,
        cwd: None,
        unit: None,
        container: None,
        ancestry: Vec::new(),
        job: Some(github(JobState::Running, "1")),
        test: None,
    };
    Conflict {
        id,
        at: at(second),
        last_at: at(second),
        call: Call::Bind,
        protocol: crate::model::socket::Protocol::Tcp,
        address: [127, 0, 0, 1].into(),
        port: 8081,
        netns: hold(1, 7).netns,
        errno: None,
        errno_known: false,
        attempts: 1,
        loser,
        blockers: Vec::new(),
        cause: Cause::Unknown,
        explanation: "x".repeat(1000),
    }
}

#[test]
fn what_is_too_old_goes_with_all_that_only_it_named() {
    let (_directory, path) = file();
    let mut store = Store::open(&path).unwrap();
    let day = 86_400;
    for n in 0..300u64 {
        let holder = Holder { comm: Some(format!("program {n}")), ..Holder::unknown(n as u32) };
        let hold = Hold { holder: Some(holder.into()), ..ended(n + 1, n as i64 * day / 100, 10) };
        let told = Record::Conflict(conflict(1000 + n, n as i64 * day / 100).into());
        store.apply(vec![record(hold), (told, None)], at(n as i64 * day / 100)).unwrap();
    }
    // One of the first day goes on.
    store.apply(vec![record(Hold { port: 9000, ..hold(900, 5) })], at(0)).unwrap();
    let limits = Limits { age: Duration::from_hours(24), bytes: u64::MAX };
    while store.clean(&path, limits, at(3 * day)).unwrap() {}
    let left = ids(&path, &of("8081"));
    assert_eq!((left.first(), left.last(), left.len()), (Some(&201), Some(&300), 100));
    assert_eq!(ids(&path, &of("9000")), [900], "what goes on stays");
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        store.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((count("conflict"), store.events), (100, 201));
    assert_eq!(count("conflict_job"), 100);
    // Those that were named shortly before the oldest that is left may be there still.
    assert!((101..=120).contains(&count("process")), "{}", count("process"));
    let open = Reader::open(&path).unwrap().holds(&of("9000")).unwrap().found;
    assert_eq!(open[0].holder.as_ref().map(|holder| holder.pid), Some(5), "with all that it names");
    assert!(Reader::open(&path).unwrap().kept_since().unwrap() >= Some(at(0)));
}

#[test]
fn a_file_that_is_too_large_shrinks_and_keeps_the_newest() {
    let (_directory, path) = file();
    let mut store = Store::open(&path).unwrap();
    for batch in 0..40u64 {
        let records = (0..1000).map(|n| {
            let id = batch * 1000 + n + 1;
            let holder = Holder { comm: Some(format!("program {id}")), ..Holder::unknown(id as u32) };
            record(Hold { holder: Some(holder.into()), ..ended(id, id as i64, 1) })
        });
        store.apply(records.collect(), at(batch as i64 * 1000)).unwrap();
    }
    let before = guard::bytes(&path);
    let limits = Limits { age: Duration::from_hours(24 * 365), bytes: before / 4 };
    let now = at(40_000);
    for _ in 0..200 {
        if guard::bytes(&path) <= limits.bytes {
            break;
        }
        store.clean(&path, limits, now).unwrap();
    }
    let after = guard::bytes(&path);
    assert!(after <= limits.bytes, "{before} {after}");
    let left = ids(&path, &of("8081"));
    assert!(left.len() > 2000 && left.last() == Some(&40_000), "{} are left", left.len());
    assert_eq!(left.len() as u64, store.events);
    assert_eq!(left.first(), left.iter().min(), "the oldest went first");
}

#[test]
fn what_goes_on_no_more_and_was_not_told_has_ended() {
    let (_directory, path) = file();
    let mut store = Store::open(&path).unwrap();
    store.note_boot("this").unwrap();
    store.apply(vec![record(hold(1, 7)), record(hold(2, 8))], at(5)).unwrap();
    let left = store.left("this").unwrap();
    assert_eq!((left.holds.len(), left.last_id, left.alive_until), (2, 2, at(5)));
    let of_another_boot = store.left("that").unwrap();
    assert!(
        of_another_boot.holds.iter().all(|kept| matches!(kept.key, HoldKey::Rule(_))),
        "no cookie of ours"
    );
    store.apply(vec![(Record::Open(vec![2]), None)], at(60)).unwrap();
    let found = Reader::open(&path).unwrap().holds(&of("8081")).unwrap().found;
    assert_eq!((found[0].end, found[0].until), (Some(End::Unknown), Some(at(60))));
    assert_eq!((found[1].end, found[1].until), (None, None));
}

#[test]
fn a_clock_that_was_set_back_leaves_everything_readable() {
    let (_directory, path) = file();
    let mut store = Store::open(&path).unwrap();
    store.apply(vec![record(ended(1, 7200, 10))], at(7210)).unwrap();
    // An hour earlier, and told later.
    store
        .apply(
            vec![record(ended(2, 3600, 10)), record(Hold { until: Some(at(3000)), ..ended(3, 3605, 0) })],
            at(3620),
        )
        .unwrap();
    assert_eq!(ids(&path, &of("8081")), [2, 3, 1]);
    let limits = Limits { age: Duration::from_hours(24), bytes: u64::MAX };
    assert!(!store.clean(&path, limits, at(3700)).unwrap());
    assert_eq!(store.events, 3);
    let asked = Asked { since: Some(Timestamp::MIN), until: Some(Timestamp::MAX), ..of("8081") };
    assert_eq!(ids(&path, &asked).len(), 3);
}

#[test]
fn a_file_that_is_too_short_for_a_database_is_damaged_and_not_taken_for_a_new_one() {
    let (_directory, path) = file();
    std::fs::write(&path, [0]).unwrap();
    assert!(matches!(Store::open(&path), Err(super::Unkept::Damaged { .. })));
    assert!(Reader::open(&path).is_err());
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_sentence_and_no_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..3000)) {
        let (_directory, path) = file();
        std::fs::write(&path, &bytes).unwrap();
        proptest::prop_assert!(Store::open(&path).is_err() && Reader::open(&path).is_err());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn a_file_with_any_page_overwritten_panics_nobody(page in 1usize..20, byte in proptest::num::u8::ANY) {
        let (_directory, path) = file();
        let mut store = Store::open(&path).unwrap();
        store.apply((1..50).map(|id| record(ended(id, id as i64, 1))).collect(), at(99)).unwrap();
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        let place = (page * 4096).min(bytes.len() - 4096);
        bytes[place..place + 4096].fill(byte);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(reader) = Reader::open(&path) {
            let _ = reader.holds(&of("8081"));
            let _ = reader.conflicts(&Asked::default());
            let _ = reader.jobs("1", None);
        }
        if let Ok(mut store) = Store::open(&path) {
            let _ = store.left("this");
            let _ = store.apply(vec![record(hold(100, 7))], at(100));
        }
    }
}
