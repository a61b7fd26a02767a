//! A loop that binds, beside questions without end. A program of its own, so that no other test's agent is at work: a walk over open
//! files that loses its processor to others has a file in its hands for longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Daemon, Tree, alone, run};

#[test]
#[ignore = "needs root"]
fn no_port_stays_taken_because_somebody_looks_at_it() {
    let daemon = Daemon::start("");
    let asker = Tree::holder(&["free:tcp:127.0.0.1:0"]);
    let port = asker.it().port();
    const ENOUGH: usize = 10;
    const ROUNDS: usize = 100;
    const BINDS: i128 = 5000;
    let (done, questions) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                daemon.who_holds(port);
                run(alone().args(["who-holds", &port.to_string()]));
                questions.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Bound, listened on and closed, again and again: one open file more would refuse the next bind.
        let churn =
            [format!("churn:{BINDS}:tcp:127.0.0.1:{port}"), format!("retry:{BINDS}:udp:127.0.0.1:{port}")];
        for _ in 0..ROUNDS {
            let held = Tree::holder(&churn.each_ref().map(String::as_str));
            let outcome = (held.it().said("bound"), held.it().said("refused-times"));
            if questions.load(Ordering::Relaxed) >= ENOUGH || outcome.1 != [0, 0] {
                done.store(true, Ordering::Relaxed);
                assert_eq!(outcome, (vec![BINDS; 2], vec![0; 2]));
                return;
            }
        }
        done.store(true, Ordering::Relaxed);
        panic!("nobody answers: {questions:?}");
    });
}
