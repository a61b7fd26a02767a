//! Holds whose sockets' ends nobody told: looks find them.

use std::net::IpAddr;
use std::time::Duration;

use super::super::ports::fixtures::{NETNS, findings, listener};
use super::super::{Engine, Watching};
use crate::config::Settings;
use crate::kernel::clock::BootClock;
use crate::kernel::look::Findings;
use crate::kernel::sock_diag::{Depth, DiagQuery};
use crate::model::bind::{Bind, BindEvent, BindFlags, Outcome};
use crate::model::socket::{ClaimKind, Protocol, Socket, SocketState};

const COOKIE: u64 = 1;

fn engine() -> Engine {
    Engine::new(Settings::default().policy(), BootClock::read(), Watching::Continuously)
}

fn engine_that_was_told_of(protocol: Protocol) -> Engine {
    let mut engine = engine();
    let bind = Bind {
        at: Duration::ZERO,
        pid: 7,
        tid: 7,
        protocol,
        address: IpAddr::from([127, 0, 0, 1]),
        port: 80,
        asked_port: 80,
    };
    engine.bind_event(BindEvent {
        outcome: Outcome::Bound { until: None, listened: false },
        netns: NETNS.inode,
        cookie: COOKIE,
        ifindex: None,
        flags: BindFlags::default(),
        bind,
        by: None,
    });
    engine
}

fn look(engine: &mut Engine, second: i64, depth: Depth, sockets: Vec<Socket>) {
    let query = DiagQuery { ports: None, depth };
    let findings = Findings { query, ..findings(second, Some(sockets)) };
    engine.findings(&findings);
    engine.follow_holds(&findings);
}

fn bound() -> Socket {
    Socket { state: SocketState::BoundInactive, ..listener(COOKIE, 80) }
}

fn kind(engine: &Engine) -> Option<ClaimKind> {
    engine.holds.of_socket(COOKIE).map(|hold| hold.kind)
}

#[test]
fn a_listener_that_is_not_listed_is_in_doubt_until_everything_is_looked_at() {
    let mut engine = engine_that_was_told_of(Protocol::Tcp);
    look(&mut engine, 1, Depth::Listeners, vec![listener(COOKIE, 80)]);
    assert_eq!((kind(&engine), engine.wants_everything()), (Some(ClaimKind::Listener), false));
    look(&mut engine, 2, Depth::Listeners, vec![]);
    assert_eq!((kind(&engine), engine.wants_everything()), (Some(ClaimKind::Listener), true));
    look(&mut engine, 3, Depth::Everything, vec![]);
    assert_eq!((kind(&engine), engine.wants_everything()), (None, false));
}

#[test]
fn a_listener_that_listens_no_more_and_is_bound_still_goes_on() {
    let mut engine = engine_that_was_told_of(Protocol::Tcp);
    look(&mut engine, 1, Depth::Listeners, vec![listener(COOKIE, 80)]);
    look(&mut engine, 2, Depth::Listeners, vec![]);
    look(&mut engine, 3, Depth::Everything, vec![bound()]);
    look(&mut engine, 4, Depth::Listeners, vec![]);
    assert_eq!((kind(&engine), engine.wants_everything()), (Some(ClaimKind::Bound), false));
}

#[test]
fn a_udp_socket_that_is_not_listed_is_gone() {
    let mut engine = engine_that_was_told_of(Protocol::Udp);
    let udp = Socket { protocol: Protocol::Udp, state: SocketState::Close, ..listener(COOKIE, 80) };
    look(&mut engine, 1, Depth::Listeners, vec![udp]);
    assert_eq!(kind(&engine), Some(ClaimKind::Listener));
    look(&mut engine, 2, Depth::Listeners, vec![]);
    assert_eq!((kind(&engine), engine.wants_everything()), (None, false));
}

#[test]
fn what_was_bound_and_not_listed_waits_for_a_look_into_everything() {
    let mut engine = engine_that_was_told_of(Protocol::Tcp);
    look(&mut engine, 1, Depth::Listeners, vec![]);
    assert_eq!((kind(&engine), engine.wants_everything()), (Some(ClaimKind::Bound), false));
    look(&mut engine, 2, Depth::Everything, vec![]);
    assert_eq!(kind(&engine), None);
}

#[test]
fn a_bound_socket_that_nobody_told_of_is_looked_at_twice() {
    let mut engine = engine();
    look(&mut engine, 1, Depth::Everything, vec![bound()]);
    assert_eq!((kind(&engine), engine.wants_everything()), (Some(ClaimKind::Bound), true));
    look(&mut engine, 2, Depth::Everything, vec![bound()]);
    assert_eq!((kind(&engine), engine.wants_everything()), (Some(ClaimKind::Bound), false));
}

#[test]
fn what_only_a_question_saw_a_while_ago_is_no_hold() {
    let mut engine = engine();
    engine.findings(&findings(1, Some(vec![bound()])));
    look(&mut engine, 2, Depth::Listeners, vec![]);
    assert_eq!((kind(&engine), engine.wants_everything()), (None, false));
}
