//! What looks and events make of the table.

use super::fixtures::{NETNS, at, findings, listener};
use super::*;
use crate::model::socket::SocketState;

fn ports(table: &PortTable) -> Vec<u16> {
    let mut ports: Vec<u16> = table.entries().map(|entry| entry.socket.port).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn since_is_known_only_for_sockets_that_were_seen_to_appear() {
    let mut table = PortTable::default();
    table.apply(&findings(0, Some(vec![listener(1, 80)])));
    table.apply(&findings(2, Some(vec![listener(1, 80), listener(2, 81)])));
    let since = |port| table.entries().find(|entry| entry.socket.port == port).unwrap().since;
    assert_eq!((since(80), since(81)), (None, Some(at(2))));
}

#[test]
fn a_socket_that_a_look_would_have_seen_and_did_not_is_gone() {
    let mut table = PortTable::default();
    table.apply(&findings(0, Some(vec![listener(1, 80), listener(2, 90)])));
    let mut narrow = findings(1, Some(vec![]));
    narrow.query = DiagQuery { ports: Some(90..=90), depth: Depth::Listeners };
    table.apply(&narrow);
    assert_eq!(ports(&table), [80]);
}

#[test]
fn an_unreadable_namespace_loses_nothing_and_a_vanished_one_everything() {
    let mut table = PortTable::default();
    table.apply(&findings(0, Some(vec![listener(1, 80)])));
    table.apply(&findings(1, None));
    assert_eq!(ports(&table), [80]);
    let mut without = findings(2, None);
    without.namespaces.clear();
    table.apply(&without);
    assert_eq!(ports(&table), [0u16; 0]);
}

#[test]
fn an_older_look_says_nothing_against_a_newer_one() {
    let mut table = PortTable::default();
    table.apply(&findings(5, Some(vec![listener(1, 80)])));
    table.apply(&findings(4, Some(vec![])));
    assert_eq!(ports(&table), [80]);
}

#[test]
fn an_overtaken_look_brings_back_no_socket_that_the_newer_one_did_not_see() {
    let mut table = PortTable::default();
    table.apply(&findings(5, Some(vec![])));
    table.apply(&findings(4, Some(vec![listener(1, 80)])));
    assert_eq!(ports(&table), [0u16; 0]);
}

/// A look at many namespaces begins, another reads this one and ends, a socket is bound here, the first look arrives here.
#[test]
fn a_look_that_began_earlier_and_read_later_is_the_newer_one() {
    let mut long = findings(1, Some(vec![listener(1, 80)]));
    (long.namespaces[0].read_from, long.namespaces[0].read_until) = (at(4), at(5));
    let short = findings(3, Some(vec![]));
    for looks in [[&long, &short], [&short, &long]] {
        let mut table = PortTable::default();
        looks.into_iter().for_each(|look| table.apply(look));
        assert_eq!(ports(&table), [80]);
    }
}

#[test]
fn of_two_readings_at_the_same_time_the_one_that_saw_a_socket_is_believed() {
    let mut table = PortTable::default();
    let mut long = findings(1, Some(vec![listener(1, 80)]));
    long.namespaces[0].read_until = at(5);
    table.apply(&findings(3, Some(vec![])));
    table.apply(&long);
    table.apply(&findings(4, Some(vec![])));
    assert_eq!(ports(&table), [80]);
    table.apply(&findings(5, Some(vec![])));
    assert_eq!(ports(&table), [0u16; 0]);
}

#[test]
fn a_forked_child_is_a_possible_holder_until_looked_at() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let mut first = findings(0, Some(vec![listener(1, 80)]));
    first.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    table.apply(&first);
    assert!(table.get(&key).unwrap().settled);
    table.forked(10, 11, at(1));
    let entry = table.get(&key).unwrap();
    assert_eq!((entry.holders.len(), entry.settled), (2, false));
    assert!(!table.unsettle(99, at(1)));
}

#[test]
fn a_port_without_a_holder_is_settled_only_by_reading_everywhere() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let mut look = findings(0, Some(vec![listener(1, 80)]));
    look.holders.insert(key, vec![]);
    table.apply(&look);
    assert!(!table.get(&key).unwrap().settled);
    look.read_everywhere = true;
    table.apply(&look);
    assert!(table.get(&key).unwrap().settled);
}

#[test]
fn an_older_look_still_brings_what_a_newer_one_did_not_ask_for() {
    let mut table = PortTable::default();
    let mut newer = findings(5, Some(vec![listener(1, 80)]));
    newer.query.ports = Some(80..=80);
    table.apply(&newer);
    let mut older = findings(4, Some(vec![listener(2, 90)]));
    older.query.ports = Some(90..=90);
    table.apply(&older);
    assert_eq!(ports(&table), [80, 90]);
}

#[test]
fn a_question_about_one_port_says_nothing_of_the_age_of_others() {
    let mut table = PortTable::default();
    let mut question = findings(0, Some(vec![]));
    question.query.ports = Some(3..=3);
    table.apply(&question);
    table.apply(&findings(2, Some(vec![listener(1, 80)])));
    assert_eq!(table.entries().next().unwrap().since, None);
}

#[test]
fn a_look_does_not_undo_what_an_event_told_after_it_began() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let mut look = findings(0, Some(vec![listener(1, 80)]));
    look.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    table.apply(&look);
    table.forked(10, 11, at(3));
    look.taken_at = at(2);
    table.apply(&look);
    let entry = table.get(&key).unwrap();
    assert_eq!((entry.holders.len(), entry.settled), (2, false));
}

#[test]
fn children_that_ended_hold_nothing_and_whoever_had_it_last_is_kept_until_a_look() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let mut first = findings(0, Some(vec![listener(1, 80)]));
    first.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    table.apply(&first);
    // Forks as builds make them: faster than any look.
    for child in 11..1000 {
        table.forked(10, child, at(1));
        assert!(table.exited(child, at(1)));
    }
    let holders = |table: &PortTable| table.get(&key).unwrap().holders.clone();
    assert_eq!((holders(&table).len(), table.by_pid.len()), (1, 1));
    assert!(table.exited(10, at(2)));
    assert_eq!(
        (holders(&table), table.get(&key).unwrap().settled),
        (vec![Descriptor { pid: 10, fd: 3 }], false)
    );
    table.apply(&findings(3, Some(vec![])));
    assert_eq!(table.by_pid.len(), 0);
}

#[test]
fn what_the_kernel_keeps_without_a_file_has_no_holder_and_no_heir() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let connection = Socket { state: SocketState::Established, ..listener(1, 80) };
    let mut first = findings(0, Some(vec![connection.clone()]));
    first.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    table.apply(&first);
    let time_wait = Socket { state: SocketState::TimeWait, inode: 0, ..connection };
    table.apply(&findings(1, Some(vec![time_wait])));
    table.forked(10, 11, at(2));
    assert!(table.get(&key).unwrap().holders.is_empty());
}

#[test]
fn an_older_look_gives_no_holder_to_what_the_kernel_keeps_without_a_file() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let connection = Socket { state: SocketState::Established, ..listener(1, 80) };
    let time_wait = Socket { state: SocketState::TimeWait, inode: 0, ..connection.clone() };
    table.apply(&findings(5, Some(vec![time_wait])));
    let mut older = findings(4, Some(vec![connection]));
    older.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    table.apply(&older);
    assert!(table.get(&key).unwrap().holders.is_empty());
}

#[test]
fn a_process_that_has_the_pid_of_one_that_ended_inherits_nothing_of_it() {
    let mut table = PortTable::default();
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let mut first = findings(0, Some(vec![listener(1, 80), listener(2, 81)]));
    first.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    first.holders.insert(SocketKey { cookie: 2, ..key }, vec![Descriptor { pid: 20, fd: 4 }]);
    table.apply(&first);
    assert!(table.exited(10, at(1)));
    table.forked(20, 10, at(2));
    assert!(table.get(&key).unwrap().holders.is_empty());
    assert_eq!(table.by_pid[&10].len(), 1);
}

#[test]
fn a_look_that_comes_in_late_brings_back_no_process_that_ended_meanwhile() {
    use crate::config::Settings;
    use crate::engine::{Engine, Watching};
    use crate::kernel::clock::BootClock;
    use crate::kernel::proc_events::ProcessEvent;

    let mut engine = Engine::new(Settings::default().policy(), BootClock::read(), Watching::Continuously);
    let key = SocketKey { netns: NETNS, cookie: 1 };
    let mut look = findings(1, Some(vec![listener(1, 80)]));
    look.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }]);
    engine.findings(&look);
    engine.event(ProcessEvent::Forked { parent: 10, child: 11 }, None, at(2));
    look.taken_at = at(3);
    look.holders.insert(key, vec![Descriptor { pid: 10, fd: 3 }, Descriptor { pid: 11, fd: 3 }]);
    engine.event(ProcessEvent::Exited { pid: 11, exit: None }, None, at(4));
    engine.findings(&look);
    assert_eq!(engine.ports.get(&key).unwrap().holders, [Descriptor { pid: 10, fd: 3 }]);
}
