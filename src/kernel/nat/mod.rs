//! Rules that send the traffic of ports elsewhere, in the calling thread's network namespace: nftables, iptables, IPVS.
//!
//! They are read again only where the generation of nftables' rules has changed. Nothing here makes the kernel load a module or make a
//! table: what is not there is not asked for.

mod attributes;
mod expressions;
mod fields;
mod ipvs;
mod legacy;
mod nftables;
mod xtables;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use nftables::Nftables;

pub use expressions::Budget;
pub use ipvs::parse as decode_ipvs;
pub use legacy::{FOUR, Layout, SIX};
pub use nftables::{Dumped, TableKey, decode_chains, decode_table};

use super::sockopt;
use crate::model::nat::Table;

/// Namespaces whose tables are kept; more than any real host has.
const KEPT: usize = 16_384;
/// Ways through rules that a look reads of all namespaces: some 500 bytes each. A cluster of ten thousand services has half of them.
const WAYS: usize = 200_000;
/// And of another namespace than the program's own, in which a job may write rules as it likes.
const WAYS_ELSEWHERE: usize = 20_000;

/// What is left to be read in one look: a job may make namespaces, and rules in them, without end. The program's own is read first.
#[derive(Debug)]
pub struct Room(AtomicUsize);

/// A namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The one that the program runs in.
    Own,
    /// Another.
    Others,
}

impl Default for Room {
    fn default() -> Self {
        Room(AtomicUsize::new(WAYS))
    }
}

impl Room {
    /// For one namespace.
    fn left(&self, whose: Whose) -> usize {
        let most = if whose == Whose::Own { WAYS } else { WAYS_ELSEWHERE };
        self.0.load(Ordering::Relaxed).min(most)
    }

    fn take(&self, tables: &[Table], whose: Whose) -> io::Result<()> {
        let ways = ways_of(tables);
        let rest = |left: usize| left.checked_sub(ways).filter(|_| ways <= self.left(whose));
        let took = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        took.map(drop).map_err(|_| expressions::too_many())
    }
}

fn ways_of(tables: &[Table]) -> usize {
    let chains = tables.iter().flat_map(|table| &table.chains);
    chains.map(|chain| expressions::ways(&chain.rules)).sum()
}

/// What there is to be asked on this host: the same in all namespaces.
#[derive(Debug, Clone, Copy)]
pub struct Makers {
    nftables: bool,
    iptables: bool,
    ipvs: bool,
}

impl Makers {
    /// Looks which are there.
    pub fn probe() -> Self {
        let has = |file: &str| Path::new("/proc/thread-self/net").join(file).exists();
        Makers {
            nftables: has_nftables(),
            iptables: has(legacy::FOUR.names) || has(legacy::SIX.names),
            ipvs: has(ipvs::FILE),
        }
    }
}

/// Tables as they were read last, by the cookie of their namespace, which is never used again. Where the kernel has no such cookie
/// (before Linux 5.14) nothing is kept.
#[derive(Debug, Default)]
pub struct NatTables(Mutex<HashMap<u64, Kept>>);

#[derive(Debug, Clone)]
struct Kept {
    generation: Option<u32>,
    /// Those of iptables and IPVS, which have no generation.
    others: Vec<Table>,
    all: Arc<Vec<Table>>,
}

impl NatTables {
    /// Reads the tables of the calling thread's namespace. They are the same `Arc` as long as nothing changed.
    /// Errors: no permission (`CAP_NET_ADMIN`), or something that cannot be read, or no room is left: then nothing is known.
    pub fn read(&self, makers: Makers, room: &Room, whose: Whose) -> io::Result<Arc<Vec<Table>>> {
        let cookie = sockopt::netns_cookie().ok();
        let (mut nftables, generation) = match makers.nftables.then(Nftables::open).transpose()?.flatten() {
            Some((nftables, generation)) => (Some(nftables), Some(generation)),
            None => (None, None),
        };
        let mut others = if makers.iptables { legacy::tables()? } else { Vec::new() };
        others.extend(if makers.ipvs { ipvs::table()? } else { None });
        let kept = cookie.and_then(|cookie| self.lock().get(&cookie).cloned());
        if let Some(kept) = kept.filter(|kept| kept.generation == generation && kept.others == others) {
            room.take(&kept.all, whose)?;
            return Ok(kept.all);
        }
        let read = nftables
            .as_mut()
            .zip(generation)
            .map(|(nftables, generation)| nftables.tables(generation, room.left(whose)));
        let (mut all, moving) = read.transpose()?.unwrap_or_default();
        all.extend(others.iter().cloned());
        room.take(&all, whose)?;
        let all = Arc::new(all);
        if let Some(cookie) = cookie.filter(|_| !moving) {
            let mut tables = self.lock();
            // Those of namespaces that ended are still in there.
            let ways: usize = tables.values().map(|kept| ways_of(&kept.all)).sum();
            if tables.len() >= KEPT || ways > WAYS {
                tables.clear();
            }
            tables.insert(cookie, Kept { generation, others, all: all.clone() });
        }
        Ok(all)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this kernel has nftables already: where it is a module, a question would load it. Where nothing says what is built in, it is
/// asked.
fn has_nftables() -> bool {
    static BUILT_IN: LazyLock<bool> = LazyLock::new(|| {
        let release = rustix::system::uname();
        let path =
            Path::new("/lib/modules").join(&*release.release().to_string_lossy()).join("modules.builtin");
        fs::read_to_string(path).map_or(true, |list| list.contains("/nf_tables.ko"))
    });
    Path::new("/sys/module/nf_tables").exists() || *BUILT_IN
}
