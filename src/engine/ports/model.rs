//! The table against a plain list of sockets: looks that arrive late and in any order, at some ports or listeners only, and some at
//! a namespace that cannot be read.

use proptest::prelude::*;

use super::fixtures::{at, findings, listener};
use super::*;
use crate::model::socket::SocketState;

/// What happens on a host, and when the agent looks. Each step takes a second.
#[derive(Debug, Clone)]
enum Step {
    /// A socket takes this port; it listens, or is only bound.
    Opens(u16, bool),
    /// The socket that is so many places down the list of those that are open.
    Closes(usize),
    /// A look that arrives so many steps later.
    Looks { query: DiagQuery, is_readable: bool, late: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let ports = prop_oneof![Just(None), (1u16..6, 0u16..3).prop_map(|(from, more)| Some(from..=from + more))];
    let depth = prop_oneof![Just(Depth::Listeners), Just(Depth::Everything)];
    let looks =
        (ports, depth, prop::bool::weighted(0.9), 0usize..6).prop_map(|(ports, depth, is_readable, late)| {
            Step::Looks { query: DiagQuery { ports, depth }, is_readable, late }
        });
    prop_oneof![
        (1u16..6, any::<bool>()).prop_map(|(port, listens)| Step::Opens(port, listens)),
        (0usize..8).prop_map(Step::Closes),
        looks,
    ]
}

/// What is known of the host, and what the agent was told so far.
#[derive(Default)]
struct World {
    /// All sockets there ever were; the kernel gives a cookie once.
    sockets: Vec<(Socket, bool)>,
    /// Looks under way, with the step at which they arrive.
    under_way: Vec<(usize, Findings)>,
    arrived: Vec<Findings>,
    table: PortTable,
}

impl World {
    fn take(&mut self, now: usize, step: Step) {
        match step {
            Step::Opens(port, listens) => {
                let mut socket = listener(self.sockets.len() as u64 + 1, port);
                if !listens {
                    socket.state = SocketState::BoundInactive;
                }
                self.sockets.push((socket, true));
            }
            Step::Closes(which) => {
                if let Some((_, is_open)) = self.sockets.iter_mut().filter(|(_, is_open)| *is_open).nth(which)
                {
                    *is_open = false;
                }
            }
            Step::Looks { query, is_readable, late } => {
                let look = self.look(now, query, is_readable);
                self.under_way.push((now + late, look));
            }
        }
        let (due, later) = std::mem::take(&mut self.under_way).into_iter().partition(|(due, _)| *due <= now);
        self.under_way = later;
        for (_, look) in due {
            self.arrives(look);
        }
    }

    fn look(&self, now: usize, query: DiagQuery, is_readable: bool) -> Findings {
        let open = self.sockets.iter().filter(|(_, is_open)| *is_open).map(|(socket, _)| socket.clone());
        let seen = open.filter(|socket| covers(&query, socket)).collect();
        let mut look = findings(now as i64, is_readable.then_some(seen));
        look.query = query;
        look
    }

    /// Takes over a look, and compares: of each socket the newest look counts that was at its port and kind.
    fn arrives(&mut self, look: Findings) {
        self.table.apply(&look);
        self.arrived.push(look);
        for (socket, _) in &self.sockets {
            let about = self.arrived.iter().filter(|look| covers(&look.query, socket));
            let newest = about
                .filter_map(|look| Some((look.taken_at, look.namespaces.first()?.sockets.as_ref()?)))
                .max_by_key(|(taken_at, _)| *taken_at);
            let is_there = newest.is_some_and(|(_, seen)| seen.iter().any(|one| one.key == socket.key));
            assert_eq!(self.table.get(&socket.key).is_some(), is_there, "{socket:?}");
        }
    }
}

proptest! {
    #[test]
    fn of_each_socket_the_newest_look_counts_and_a_complete_one_makes_the_table_the_kernels(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::default();
        let all = steps.len();
        for (now, step) in steps.into_iter().enumerate() {
            world.take(now, step);
        }
        for (_, late) in std::mem::take(&mut world.under_way) {
            world.arrives(late);
        }
        let complete = DiagQuery { ports: None, depth: Depth::Everything };
        let last = world.look(all, complete, true);
        world.arrives(last);
        let open = world.sockets.iter().filter(|(_, is_open)| *is_open).count();
        prop_assert_eq!(world.table.entries().count(), open);
    }

    #[test]
    fn holders_are_certain_only_when_a_look_that_began_after_every_event_read_them(
        events in prop::collection::vec((0i64..20, 0usize..3), 0..8),
        taken in 0i64..20,
    ) {
        let mut table = PortTable::default();
        let mut look = findings(0, Some(vec![listener(1, 80)]));
        look.holders.insert(listener(1, 80).key, vec![Descriptor { pid: 10, fd: 3 }]);
        table.apply(&look);
        let mut last = 0;
        for (second, kind) in events {
            match kind {
                0 => table.forked(10, 11, at(last.max(second))),
                1 => drop(table.unsettle(10, at(last.max(second)))),
                _ => table.unsettle_all(at(last.max(second))),
            }
            last = last.max(second) + 1;
        }
        look.taken_at = at(taken);
        table.apply(&look);
        let entry = table.get(&listener(1, 80).key).unwrap();
        prop_assert_eq!(entry.settled, last == 0 || taken > last - 1);
        prop_assert!(entry.holders.contains(&Descriptor { pid: 10, fd: 3 }), "a holder is never forgotten");
    }
}
