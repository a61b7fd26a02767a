//! What a busy CI host gives to remember, made up: jobs whose processes hold four ports each, mostly for a short time; a tenth of the
//! holds are told twice, since they last; one in a thousand is a refusal, with both sides in full.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sniffer::model::claim::Claim;
use sniffer::model::conflict::{Call, Cause, Conflict, Loser};
use sniffer::model::hold::{End, Hold, HoldKey, Record};
use sniffer::model::job::{Job, JobKey, JobState, Test};
use sniffer::model::netns::Netns;
use sniffer::model::process::{Ancestor, Exit, Holder};
use sniffer::model::socket::{ClaimKind, Protocol};

/// The first of the ports.
pub(crate) const PORT: u16 = 20_000;
const PORTS: u64 = 5000;
const HOLDS_A_PROCESS: u64 = 4;
const HOLDS_A_JOB: u64 = 400;
const TESTS: u64 = 2000;
const PROGRAMS: u64 = 500;
/// One of so many is a refusal, and one of so many lasts.
const A_REFUSAL: u64 = 1000;
const LONG: u64 = 10;
/// Between the beginnings of two.
const STEP: SignedDuration = SignedDuration::from_millis(20);

pub(crate) struct Events {
    /// Holds and refusals so far.
    pub(crate) made: u64,
    seed: u64,
    began: Timestamp,
    holder: Arc<Holder>,
    test: Arc<Test>,
    job: Arc<Job>,
    /// By their ends.
    lasting: BTreeMap<(Option<Timestamp>, u64), (Hold, Option<JobKey>)>,
}

impl Events {
    /// The last of so many begins about now.
    pub(crate) fn ending_now(seed: u64, count: u64) -> Self {
        let all = SignedDuration::from_millis(STEP.as_millis() as i64 * count as i64);
        let began = sniffer::kernel::clock::now() - all;
        Events {
            made: 0,
            seed,
            began,
            holder: Arc::new(holder(0, began)),
            test: Arc::new(test(0)),
            job: Arc::new(job(0, began)),
            lasting: BTreeMap::new(),
        }
    }

    /// A number without an order, the same in every run (splitmix64).
    fn any(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// When the newest began.
    pub(crate) fn now(&self) -> Timestamp {
        let since = i64::try_from(self.made).unwrap_or(i64::MAX);
        self.began + SignedDuration::from_millis(since.saturating_mul(STEP.as_millis() as i64))
    }

    /// The next records, so many of them.
    pub(crate) fn some(&mut self, count: usize) -> Vec<(Record, Option<JobKey>)> {
        let mut records = Vec::with_capacity(count);
        while records.len() < count {
            let now = Some(self.now());
            match self.lasting.first_entry().filter(|first| first.key().0 < now) {
                Some(over) => {
                    let (hold, job) = over.remove();
                    records.push(record(hold, job));
                }
                None => records.push(self.next()),
            }
        }
        records
    }

    /// The ends of all that last.
    pub(crate) fn rest(&mut self) -> Vec<(Record, Option<JobKey>)> {
        std::mem::take(&mut self.lasting).into_values().map(|(hold, job)| record(hold, job)).collect()
    }

    fn next(&mut self) -> (Record, Option<JobKey>) {
        let number = self.made;
        let now = self.now();
        self.made += 1;
        if number.is_multiple_of(HOLDS_A_JOB) {
            self.job = Arc::new(job(number / HOLDS_A_JOB, now));
        }
        if number.is_multiple_of(HOLDS_A_PROCESS) {
            let process = number / HOLDS_A_PROCESS;
            self.holder = Arc::new(holder(process, now));
            self.test = Arc::new(test(process));
        }
        let port = PORT + (self.any() % PORTS) as u16;
        if number % A_REFUSAL == A_REFUSAL - 1 {
            return (Record::Conflict(Arc::new(self.conflict(number, port, now))), None);
        }
        let lasted = match self.any() % LONG {
            0 => SignedDuration::from_secs(2 + (self.any() % 600) as i64),
            _ => SignedDuration::from_millis(1 + (self.any() % 2000) as i64),
        };
        let mut hold = self.hold(number, port, now);
        let key = Some(JobKey { ci: self.job.ci.clone(), id: self.job.id.clone() });
        let ended = Hold {
            until: Some(now + lasted),
            end: Some(if number.is_multiple_of(5) { End::Closed } else { End::Exit }),
            exit: Some(Exit::of_status(0)).filter(|_| !number.is_multiple_of(5)),
            ..hold.clone()
        };
        if lasted > SignedDuration::from_secs(2) {
            hold.leaked_at = None;
            self.lasting.insert((ended.until, ended.id), (ended, key.clone()));
            return record(hold, key);
        }
        record(ended, key)
    }

    fn hold(&self, number: u64, port: u16, from: Timestamp) -> Hold {
        Hold {
            id: number + 1,
            from,
            from_known: true,
            until: None,
            kind: ClaimKind::Listener,
            protocol: if number.is_multiple_of(7) { Protocol::Udp } else { Protocol::Tcp },
            address: IpAddr::from([127, 0, 0, 1]),
            port,
            netns: netns(number / HOLDS_A_JOB % 16),
            holder: Some(Arc::clone(&self.holder)),
            job: Some(Arc::clone(&self.job)),
            test: Some(Arc::clone(&self.test)),
            nat: None,
            leaked_at: None,
            end: None,
            exit: None,
            cgroup: None,
            comeback: None,
        }
    }

    fn conflict(&self, number: u64, port: u16, at: Timestamp) -> Conflict {
        let loser = &self.holder;
        let place = (IpAddr::from([127, 0, 0, 1]), None);
        let reason = "its job goes on".to_owned();
        let blocker = Claim {
            holders: vec![Holder::clone(loser)],
            job: Some(Job::clone(&self.job)),
            ..Claim::without_socket(ClaimKind::Listener, Protocol::Tcp, place, port, netns(0), reason)
        };
        Conflict {
            id: number + 1,
            at,
            last_at: at,
            call: Call::Bind,
            protocol: Protocol::Tcp,
            address: place.0,
            port,
            netns: netns(0),
            errno: Some("EADDRINUSE".to_owned()),
            errno_known: true,
            attempts: 3,
            loser: Loser {
                pid: loser.pid,
                start_time: loser.start_time,
                ppid: loser.ppid,
                uid: loser.uid,
                user: loser.user.clone(),
                comm: loser.comm.clone(),
                exe: loser.exe.clone(),
                cmdline: loser.cmdline.clone(),
                cwd: loser.cwd.clone(),
                unit: loser.unit.clone(),
                container: None,
                ancestry: loser.ancestry.clone(),
                job: Some(Job::clone(&self.job)),
                test: Some(Test::clone(&self.test)),
            },
            blockers: vec![blocker],
            cause: Cause::ConcurrentJob,
            explanation: format!(
                "{port}/tcp was taken: provider.test (pid 4121) of github job coverage-test of envoyproxy/gateway, another job on this host, has it. Cure: bind port 0 and pass on what you get, or give each job a port of its own."
            ),
        }
    }
}

fn record(hold: Hold, job: Option<JobKey>) -> (Record, Option<JobKey>) {
    let key = HoldKey::Socket(hold.id);
    (Record::Hold(Box::new(hold), key), job)
}

fn netns(number: u64) -> Netns {
    let name = (number == 0).then(|| "host".to_owned());
    Netns { inode: 4_026_531_833 + number, name, kept_by: None }
}

fn job(number: u64, started: Timestamp) -> Job {
    Job {
        ci: "github".to_owned(),
        id: format!("github_{number:08x}-1f0c-4b7a-9d3e-{number:012x}"),
        name: Some("coverage-test".to_owned()),
        repository: Some("envoyproxy/gateway".to_owned()),
        run: Some(format!("{}", 9_000_000 + number)),
        url: Some(format!("https://github.com/envoyproxy/gateway/actions/runs/{}", 9_000_000 + number)),
        state: JobState::Running,
        started: Some(started),
        ended: None,
    }
}

fn test(number: u64) -> Test {
    Test { framework: "go".to_owned(), name: format!("TestProvider/case_{}", number % TESTS) }
}

fn holder(number: u64, started: Timestamp) -> Holder {
    let program = number % PROGRAMS;
    Holder {
        start_time: Some(started),
        ppid: Some(4000 + (number % 1000) as u32),
        uid: Some(1001),
        user: Some("runner".to_owned()),
        comm: Some("provider.test".to_owned()),
        exe: Some(format!("/home/runner/work/gateway/bin/b{program:03}/provider.test")),
        cmdline: Some(vec![
            format!("/home/runner/work/gateway/bin/b{program:03}/provider.test"),
            "-test.timeout=10m0s".to_owned(),
            "-test.run=TestProvider".to_owned(),
        ]),
        cwd: Some("/home/runner/work/gateway/internal/provider".to_owned()),
        unit: Some("actions.runner.service".to_owned()),
        cgroup: Some("/system.slice/actions.runner.service".to_owned()),
        // A step's tests have the same parents.
        ancestry: [(4100, "go"), (4000, "bash"), (3900, "Runner.Worker"), (1, "systemd")]
            .map(|(pid, comm)| Ancestor { pid: pid + (number / 64 % 10_000) as u32, comm: comm.to_owned() })
            .into(),
        ..Holder::unknown(4121 + (number % 4_000_000) as u32)
    }
}
