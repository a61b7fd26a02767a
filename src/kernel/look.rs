//! One look at the system: sockets of every namespace, who has them open, and the processes behind them.
//!
//! The one-shot verbs take one look; the daemon takes one at every interval and one for every question. What to look
//! for is a [`Plan`] made of values, what was seen is [`Findings`]: the engine knows nothing of how.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::bpf::holders::{BoundFile, OpenFiles};
use super::descriptors::{self, Descriptor, NetnsDescriptors, Scan};
use super::mounts::{self, NetnsMount};
use super::nat::{Makers, Room, Whose};
use super::netns::{self, Inhabitants, NetnsEntry};
use super::process::{self, Glance, Reader};
use super::sock_diag::{self, Depth, DiagQuery};
use super::{Gap, Unreadable, containers, links, oom, probe, surroundings};
use crate::model::container::{Container, Place, Proxy};
use crate::model::nat::Table;
use crate::model::netns::{Netns, NetnsKey, NetnsSelector};
use crate::model::process::{Holder, Process};
use crate::model::ranges::RangeSet;
use crate::model::socket::{ClaimKind, Socket, SocketKey};
use crate::model::surroundings::{LocalAddress, Surroundings};
use crate::model::target::Target;

/// Whether to read the descriptors of every process of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Everywhere {
    /// Never: what the first processes do not have stays unresolved.
    Never,
    /// Where a socket is left without a holder.
    WhenNeeded,
    /// In any case: also finds sockets handed to strangers, and namespaces kept alive by a descriptor only.
    Always,
}

/// What to do where the target seems free: a namespace may be kept alive by nothing but a descriptor, or by a mount that
/// only another mount namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFree {
    /// Read all descriptors and mounts, and look into what they lead to.
    Search,
    /// That was done too short a time ago to do it again: say that it was not done.
    Say,
}

/// How to look for the holders of the sockets that are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Sockets whose holders are known and need no look.
    pub settled: HashSet<SocketKey>,
    /// Who may have each socket open.
    pub candidates: HashMap<SocketKey, Candidates>,
    /// Processes to read first, the most likely ones.
    pub first: Vec<u32>,
    /// Whether to read all.
    pub everywhere: Everywhere,
    /// What to do where the target seems free.
    pub when_free: WhenFree,
    /// Whether connections and TIME_WAIT count, or only listeners and bound sockets.
    pub connections: bool,
    /// Threads that may read descriptors at once.
    pub threads: usize,
}

impl Search {
    /// The search of a program that knows nothing yet: all processes, on all cores.
    pub fn unprepared() -> Self {
        Search {
            settled: HashSet::new(),
            candidates: HashMap::new(),
            first: Vec::new(),
            everywhere: Everywhere::Always,
            when_free: WhenFree::Search,
            connections: true,
            threads: descriptors::all_cores(),
        }
    }
}

/// Who may have a socket open: one readlink for each descriptor tells whether it still does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Those that had it, and those that were made by them since. One whose descriptor it is no more may have it under another
    /// number, and is read whole.
    pub holders: Vec<Descriptor>,
    /// Descendants of those that had it, which were looked at before.
    pub heirs: Vec<Descriptor>,
}

/// Of which sockets to describe the holders for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Describe {
    /// Of none.
    Nobody,
    /// Of these.
    Only(HashSet<SocketKey>),
    /// Of all.
    Everybody,
}

/// What to look for, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sockets to ask the kernel for.
    pub query: DiagQuery,
    /// What somebody asks about, and wants to be told of wherever it is held.
    pub target: Option<Target>,
    /// Only this namespace.
    pub only: Option<NetnsSelector>,
    /// Namespaces with processes; `None` to ask every process anew, for a look that must not miss one.
    pub inhabitants: Option<Inhabitants>,
    /// Namespaces that a descriptor is known to keep alive.
    pub netns_descriptors: NetnsDescriptors,
    /// Namespaces that a mount elsewhere is known to keep alive.
    pub netns_mounts: Vec<NetnsMount>,
    /// Holders.
    pub search: Search,
    /// Whose holders are to be described for people.
    pub describe: Describe,
    /// Processes to describe beside them.
    pub also: Vec<u32>,
    /// Whether to read NAT rules.
    pub nat: bool,
    /// Whether to look which containers are behind rules and proxies.
    pub owners: bool,
    /// Control groups whose kills by the OOM killer are to be counted.
    pub oom_in: Vec<String>,
    /// Whether to ask for what else a bind depends on: the options of sockets, and the surroundings of their namespaces.
    pub for_bind: bool,
}

impl Plan {
    /// A look for sockets and their holders in every namespace that is there, and for nothing else.
    pub fn new(query: DiagQuery, search: Search) -> Self {
        Plan {
            query,
            target: None,
            only: None,
            inhabitants: None,
            netns_descriptors: NetnsDescriptors::new(),
            netns_mounts: Vec::new(),
            search,
            describe: Describe::Nobody,
            also: Vec::new(),
            nat: false,
            owners: false,
            oom_in: Vec::new(),
            for_bind: false,
        }
    }
}

/// What was seen in one namespace.
#[derive(Debug, Clone)]
pub struct NetnsFound {
    /// Identity.
    pub key: NetnsKey,
    /// What documents show of it.
    pub shown: Netns,
    /// Its sockets, or `None` where they could not be read,
    pub sockets: Option<Vec<Socket>>,
    /// and when that began,
    pub read_from: Timestamp,
    /// and ended: one that is opened or closed between the two may be among them or not.
    pub read_until: Timestamp,
    /// What else a bind depends on, where that was asked: all of it, or the settings about ports.
    pub surroundings: Option<Surroundings>,
    /// Rules that send traffic elsewhere, where that was asked and could be read.
    pub nat: Option<NatFound>,
}

/// Rules that send traffic elsewhere, in one namespace.
#[derive(Debug, Clone, Default)]
pub struct NatFound {
    /// The rules; the same as before as long as nothing changed.
    pub tables: Arc<Vec<Table>>,
    /// The namespace's own addresses, where there are rules and they could be read.
    pub addresses: Option<Vec<IpAddr>>,
}

/// What a look saw.
#[derive(Debug, Clone)]
pub struct Findings {
    /// When the kernel was asked: nothing later is in here.
    pub taken_at: Timestamp,
    /// What was asked.
    pub query: DiagQuery,
    /// Whether every known namespace was asked, or only one.
    pub all_netns: bool,
    /// Namespaces, this program's own first.
    pub namespaces: Vec<NetnsFound>,
    /// Paths of the cgroups that sockets were created in.
    pub cgroups: HashMap<u64, String>,
    /// Holders of every socket that was searched for; an empty list means that nobody was found.
    pub holders: HashMap<SocketKey, Vec<Descriptor>>,
    /// Whether all processes were read, so that an empty list of holders means nobody.
    pub read_everywhere: bool,
    /// Processes whose descriptors were read.
    pub processes_read: usize,
    /// Namespaces that descriptors refer to; only after reading everywhere.
    pub netns_descriptors: Option<NetnsDescriptors>,
    /// Namespaces that only other mount namespaces have mounted; only after reading everywhere.
    pub netns_mounts: Option<Vec<NetnsMount>>,
    /// Processes met as holders by reading.
    pub processes: Vec<Process>,
    /// Holders, described for people, where that was asked for.
    pub described: HashMap<Descriptor, Holder>,
    /// Kills by the OOM killer so far, in the control groups that were asked for.
    pub oom_kills: HashMap<String, u64>,
    /// The processes that were to be described beside them.
    pub also: HashMap<u32, Holder>,
    /// Containers as their engines list them, where a claim leads to one.
    pub containers: Vec<Container>,
    /// Where containers live, where a claim leads to an address.
    pub places: Vec<Place>,
    /// What could not be seen.
    pub gaps: Vec<Gap>,
}

/// Takes a look. Fails only where not even this program's own namespace can be named.
pub fn look(plan: &Plan, reader: &Reader) -> Result<Findings, Unreadable> {
    let own = netns::own()?;
    let taken_at = reader.clock.now();
    let mut gaps = Vec::new();
    // Into its own namespace this program needs no way.
    let at_home = plan.only.as_ref().is_some_and(|only| is_own(only, own));
    let mut mounts = if at_home { Vec::new() } else { own_mounts(&mut gaps) };
    mounts.extend(plan.netns_mounts.iter().cloned());
    let inhabitants = match &plan.inhabitants {
        Some(known) => known.clone(),
        None if at_home => Inhabitants::new(),
        None => inhabitants(&mut gaps),
    };
    let mut look = Look {
        plan,
        reader,
        own,
        inhabitants,
        mounts,
        bound: Vec::new(),
        bound_from: None,
        namespaces: Vec::new(),
        gaps,
    };
    look.find_bound();
    look.visit(&look.entries(&plan.netns_descriptors)?);
    let mut found = Holders::default();
    look.search(&mut found);
    if let Some(descriptors) = &found.netns_descriptors {
        let seen: HashSet<NetnsKey> = look.namespaces.iter().map(|netns| netns.key).collect();
        look.mounts.extend(found.netns_mounts.iter().flatten().cloned());
        let mut fresh = look.entries(descriptors)?;
        fresh.retain(|entry| !seen.contains(&entry.key));
        if !fresh.is_empty() {
            look.visit(&fresh);
            look.search(&mut found);
        }
    } else if plan.search.when_free == WhenFree::Say && look.seems_free() {
        look.gaps.push(Gap::HiddenNetns);
    }
    Ok(look.finish(taken_at, found))
}

/// What was read in one namespace.
struct Visited {
    sockets: Vec<Socket>,
    read_from: Timestamp,
    read_until: Timestamp,
    surroundings: Option<Surroundings>,
    nat: Option<io::Result<NatFound>>,
}

struct Look<'a> {
    plan: &'a Plan,
    reader: &'a Reader,
    own: NetnsKey,
    inhabitants: Inhabitants,
    mounts: Vec<NetnsMount>,
    /// Bound TCP sockets by their open files, where sock_diag does not list them.
    bound: Vec<BoundFile>,
    /// When those began to be looked for.
    bound_from: Option<Timestamp>,
    namespaces: Vec<NetnsFound>,
    gaps: Vec<Gap>,
}

#[derive(Default)]
struct Holders {
    by_socket: HashMap<SocketKey, Vec<Descriptor>>,
    met: HashSet<u32>,
    netns_descriptors: Option<NetnsDescriptors>,
    netns_mounts: Option<Vec<NetnsMount>>,
    processes_read: usize,
}

impl Look<'_> {
    fn entries(&self, descriptors: &NetnsDescriptors) -> Result<Vec<NetnsEntry>, Unreadable> {
        let mut entries = netns::merge(self.own, &self.inhabitants, &self.mounts, descriptors);
        if let Some(only) = &self.plan.only {
            let inode = match only {
                NetnsSelector::Pid(pid) => Some(netns::of_process(*pid)?),
                NetnsSelector::Inode(inode) => Some(*inode),
                NetnsSelector::Name(_) => None,
            };
            entries.retain(|entry| match only {
                NetnsSelector::Name(name) => entry.shown.name.as_ref() == Some(name),
                _ => Some(entry.key.inode) == inode,
            });
        }
        Ok(entries)
    }

    fn visit(&mut self, entries: &[NetnsEntry]) {
        let makers = self.plan.nat.then(Makers::probe);
        let room = Room::default();
        let (found, gaps) = netns::visit(entries, |entry| {
            let read_from = self.bound_from.unwrap_or_else(|| self.reader.clock.now());
            let mut sockets = sock_diag::dump(entry.key, &self.plan.query)?;
            self.add_bound(entry.key, &mut sockets);
            let read_until = self.reader.clock.now();
            // Without its name an interface is shown by nothing; the socket counts all the same.
            let _ = links::name_interfaces(&mut sockets);
            if self.plan.for_bind {
                self.tell_options(&mut sockets);
            }
            let surroundings = self.surroundings(entry);
            let addresses = surroundings.as_ref().and_then(|here| here.addresses.as_deref());
            let nat = makers.map(|makers| self.nat(makers, &room, entry, addresses));
            Ok(Visited { sockets, read_from, read_until, nat, surroundings })
        });
        self.gaps.extend(gaps);
        let mut read: HashMap<NetnsKey, Visited> = found.into_iter().collect();
        let unread: HashSet<u64> = self.gaps.iter().filter_map(netns_of_gap).collect();
        for entry in entries {
            let visited = read.remove(&entry.key);
            // Neither read nor refused: it ended meanwhile.
            if visited.is_none() && !unread.contains(&entry.key.inode) {
                continue;
            }
            let now = self.reader.clock.now();
            let (read_from, read_until) =
                visited.as_ref().map_or((now, now), |visited| (visited.read_from, visited.read_until));
            let (sockets, surroundings, nat) = match visited {
                Some(visited) => (Some(visited.sockets), visited.surroundings, visited.nat),
                None => (None, None, None),
            };
            let nat = nat.and_then(|nat| {
                let why = |error: io::Error| match error.kind() {
                    io::ErrorKind::PermissionDenied => "no permission: run as root".to_owned(),
                    _ => error.to_string(),
                };
                nat.map_err(|error| self.gaps.push(Gap::Nat(entry.key.inode, why(error)))).ok()
            });
            let (key, shown) = (entry.key, entry.shown.clone());
            self.namespaces.push(NetnsFound {
                key,
                shown,
                sockets,
                read_from,
                read_until,
                surroundings,
                nat,
            });
        }
    }

    /// Where sock_diag does not list bound sockets, their open files tell of them. Before the sockets are asked for: one that
    /// begins to listen meanwhile is in either.
    fn find_bound(&mut self) {
        if self.plan.query.depth != Depth::Everything || sock_diag::lists_bound_sockets() {
            return;
        }
        self.bound_from = Some(self.reader.clock.now());
        match self.reader.open_files.get().map(OpenFiles::bound) {
            Some(Ok(bound)) => self.bound = bound,
            _ => self.gaps.push(Gap::BoundSockets),
        }
    }

    /// Adds the bound sockets of a namespace. One whose file is closed meanwhile is none any more.
    fn add_bound(&self, netns: NetnsKey, sockets: &mut Vec<Socket>) {
        let mut known: HashSet<u32> = sockets.iter().map(|socket| socket.inode).collect();
        for bound in self.bound.iter().filter(|bound| bound.netns == netns.inode) {
            let socket = bound.socket(netns);
            let asked = self.plan.query.ports.as_ref().is_none_or(|ports| ports.contains(&socket.port));
            let is_open = || descriptors::refers_to(bound.held, socket.inode) == Ok(true);
            if asked && is_open() && known.insert(socket.inode) {
                sockets.push(socket);
            }
        }
    }

    /// What is asked of the calling thread's namespace beside its sockets. Who asks about a port asks about one namespace's settings.
    fn surroundings(&self, entry: &NetnsEntry) -> Option<Surroundings> {
        let asked_about = entry.key == self.own || self.plan.only.is_some();
        if self.plan.for_bind {
            let mapped = |target: &Target| matches!(target.address, Some(IpAddr::V6(six)) if six.to_ipv4_mapped().is_some());
            let narrow = self.plan.target.as_ref().is_some_and(mapped) && probe::mapped_wildcard_is_narrow();
            return Some(Surroundings { mapped_wildcard_is_narrow: narrow, ..surroundings::read() });
        }
        (self.plan.target.is_some() && asked_about).then(surroundings::settings)
    }

    /// The rules of the calling thread's namespace, whose addresses may have been read already.
    fn nat(
        &self,
        makers: Makers,
        room: &Room,
        entry: &NetnsEntry,
        addresses: Option<&[LocalAddress]>,
    ) -> io::Result<NatFound> {
        let tables =
            self.reader.nat.read(makers, room, if entry.own { Whose::Own } else { Whose::Others })?;
        let read = || surroundings::addresses().ok();
        let addresses =
            (!tables.is_empty()).then(|| addresses.map(<[LocalAddress]>::to_vec).or_else(read)).flatten();
        let addresses = addresses.map(|addresses| addresses.iter().map(|local| local.address).collect());
        Ok(NatFound { tables, addresses })
    }

    /// Fills in the options of sockets, where the kernel's programs can tell them.
    fn tell_options(&self, sockets: &mut [Socket]) {
        if sockets.is_empty() {
            return;
        }
        let Some(Ok(options)) = self.reader.open_files.get().map(OpenFiles::options) else { return };
        for socket in sockets {
            socket.tell_options(options.get(&socket.key.cookie).copied());
        }
    }

    /// Whether a port was asked for that nothing takes so far, where a namespace not yet known could matter.
    fn seems_free(&self) -> bool {
        let Some(target) = &self.plan.target else { return false };
        let elsewhere = self.plan.only.is_none() || self.namespaces.is_empty();
        let mut sockets = self.namespaces.iter().flat_map(|netns| netns.sockets.iter().flatten());
        elsewhere && !sockets.any(|socket| target.matches(socket))
    }

    /// The sockets that still want a holder, by inode.
    fn wanted(&self, found: &Holders) -> HashMap<u32, SocketKey> {
        let search = &self.plan.search;
        self.namespaces
            .iter()
            .flat_map(|netns| netns.sockets.iter().flatten())
            .filter(|socket| socket.inode != 0 && !search.settled.contains(&socket.key))
            .filter(|socket| {
                search.connections || matches!(socket.kind(), ClaimKind::Listener | ClaimKind::Bound)
            })
            .filter(|socket| !found.by_socket.contains_key(&socket.key))
            .map(|socket| (socket.inode, socket.key))
            .collect()
    }

    fn search(&mut self, found: &mut Holders) {
        let search = &self.plan.search;
        let mut wanted = self.wanted(found);
        if search.everywhere != Everywhere::Always {
            self.verify(&mut wanted, found);
            if !wanted.is_empty() && !search.first.is_empty() {
                let scan = self.scan(&search.first, &wanted);
                take(scan, &mut wanted, found);
            }
        }
        let all = match search.everywhere {
            Everywhere::Never => false,
            Everywhere::WhenNeeded => {
                !wanted.is_empty() || (search.when_free == WhenFree::Search && self.seems_free())
            }
            Everywhere::Always => found.netns_descriptors.is_none() || !wanted.is_empty(),
        };
        if all {
            match process::pids() {
                Ok(pids) => {
                    let (scan, mounts) = std::thread::scope(|scope| {
                        let mounts = scope.spawn(|| mounts::elsewhere(&pids));
                        (self.scan_all(&pids, &wanted), mounts.join())
                    });
                    self.gaps.retain(|gap| !gap.is_of_descriptors());
                    self.gaps.extend(scan.gaps());
                    found.netns_descriptors = Some(scan.netns.clone());
                    match mounts.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                        Ok(mounts) => found.netns_mounts = Some(mounts),
                        Err(gap) => self.gaps.push(gap),
                    }
                    found.processes_read = scan.read;
                    let mut sockets =
                        self.namespaces.iter_mut().flat_map(|netns| netns.sockets.iter_mut().flatten());
                    sockets.by_ref().filter(|socket| socket.options.is_none()).for_each(|socket| {
                        socket.tell_options(scan.options.get(&socket.inode).copied());
                    });
                    take(scan, &mut wanted, found);
                }
                Err(error) => self.gaps.push(Gap::Processes(format!("{error:?}"))),
            }
        }
        for key in wanted.into_values() {
            found.by_socket.insert(key, Vec::new());
        }
    }

    /// Asks the candidates of each socket whether they still have it open.
    fn verify(&self, wanted: &mut HashMap<u32, SocketKey>, found: &mut Holders) {
        let mut verified: HashMap<u32, Vec<Descriptor>> = HashMap::new();
        // Those to read whole.
        let mut elsewhere: BTreeSet<u32> = BTreeSet::new();
        for (inode, key) in &*wanted {
            let Some(candidates) = self.plan.search.candidates.get(key) else { continue };
            let has_it = |held: &&Descriptor| descriptors::refers_to(**held, *inode) == Ok(true);
            let (holding, moved): (Vec<&Descriptor>, Vec<&Descriptor>) =
                candidates.holders.iter().partition(has_it);
            elsewhere.extend(moved.into_iter().map(|held| held.pid));
            let heirs = candidates.heirs.iter().filter(has_it);
            verified.insert(*inode, holding.into_iter().chain(heirs).copied().collect());
        }
        if !elsewhere.is_empty() {
            let pids: Vec<u32> = elsewhere.into_iter().collect();
            for (inode, holders) in self.scan(&pids, wanted).sockets {
                let known = verified.entry(inode).or_default();
                let others = holders.into_iter().filter(|held| known.iter().all(|one| one.pid != held.pid));
                let others: Vec<Descriptor> = others.collect();
                known.extend(others);
            }
        }
        wanted.retain(|inode, key| {
            let holders = verified.remove(inode).filter(|holders| !holders.is_empty());
            holders.map(|holders| found.by_socket.insert(*key, holders)).is_none()
        });
    }

    /// All processes: by the kernel's own walk where it was loaded, else by /proc.
    fn scan_all(&self, pids: &[u32], wanted: &HashMap<u32, SocketKey>) -> Scan {
        let inodes: HashSet<u32> = wanted.keys().copied().collect();
        let walked = self.reader.open_files.get().map(|files| files.scan(&inodes, pids.len()));
        match walked {
            Some(Ok(scan)) => scan,
            _ => self.scan(pids, wanted),
        }
    }

    fn scan(&self, pids: &[u32], wanted: &HashMap<u32, SocketKey>) -> Scan {
        descriptors::scan(pids, Some(&wanted.keys().copied().collect()), self.plan.search.threads)
    }

    /// The containers that claims may lead to, and where those live that an address leads to.
    fn containers(
        &mut self,
        holders: &[&Holder],
        by_socket: &HashMap<SocketKey, Vec<Descriptor>>,
    ) -> (Vec<Container>, Vec<Place>) {
        let is_proxy = |holder: &&Holder| holder.comm.as_deref().and_then(Proxy::named).is_some();
        let asked = self.plan.query.ports.clone().unwrap_or(0..=u16::MAX);
        let asked = RangeSet::range((*asked.start()).into()..=(*asked.end()).into());
        let mut tables =
            self.namespaces.iter().flat_map(|netns| &netns.nat).flat_map(|nat| nat.tables.iter());
        let leads_on = holders.iter().any(is_proxy) || tables.any(|table| table.may_send(&asked));
        if !self.plan.owners || !(leads_on || holders.iter().any(|holder| holder.container.is_some())) {
            return (Vec::new(), Vec::new());
        }
        let (containers, silent) = self.reader.engines.containers();
        self.gaps.extend(silent.into_iter().map(Gap::Containers));
        let listens_in = |pid: u32| -> HashSet<u64> {
            let own = by_socket.iter().filter(|(_, held)| held.iter().any(|held| held.pid == pid));
            own.map(|(key, _)| key.netns.inode).collect()
        };
        let forwarders: Vec<(u32, u64)> = holders
            .iter()
            .filter_map(|holder| {
                Some((holder.pid, containers::forwards_to(holder, || listens_in(holder.pid))?))
            })
            .collect();
        (containers, if leads_on { self.places(&forwarders) } else { Vec::new() })
    }

    fn places(&self, forwarders: &[(u32, u64)]) -> Vec<Place> {
        // A look at home has asked for neither.
        let asked =
            self.inhabitants.is_empty().then(|| (inhabitants(&mut Vec::new()), own_mounts(&mut Vec::new())));
        let (inhabitants, mounts) =
            asked.as_ref().map_or((&self.inhabitants, &self.mounts), |(all, mounts)| (all, mounts));
        let entries = netns::merge(self.own, inhabitants, mounts, &self.plan.netns_descriptors);
        containers::places(entries, inhabitants, mounts, forwarders)
    }

    fn finish(mut self, taken_at: Timestamp, found: Holders) -> Findings {
        let reader = self.reader;
        let ids = self.namespaces.iter().flat_map(|netns| netns.sockets.iter().flatten());
        let cgroups = reader.cgroups.resolve(ids.filter_map(|socket| socket.cgroup_id));
        let wanted = |key: &SocketKey| match &self.plan.describe {
            Describe::Nobody => false,
            Describe::Only(keys) => keys.contains(key),
            Describe::Everybody => true,
        };
        let shown = found.by_socket.iter().filter(|(key, _)| wanted(key)).flat_map(|(_, holders)| holders);
        let mut by_pid: HashMap<u32, Holder> = HashMap::new();
        let described = shown
            .map(|held| {
                let holder = by_pid.entry(held.pid).or_insert_with(|| reader.describe(held.pid, None));
                (*held, Holder { fd: Some(held.fd), ..holder.clone() })
            })
            .collect();
        let holders: Vec<&Holder> = by_pid.values().collect();
        let (containers, places) = self.containers(&holders, &found.by_socket);
        Findings {
            taken_at,
            query: self.plan.query.clone(),
            all_netns: self.plan.only.is_none(),
            namespaces: self.namespaces,
            cgroups,
            read_everywhere: found.netns_descriptors.is_some(),
            processes_read: found.processes_read,
            netns_mounts: found.netns_mounts,
            netns_descriptors: found.netns_descriptors,
            processes: found.met.iter().filter_map(|pid| reader.read(*pid).ok()).collect(),
            holders: found.by_socket,
            described,
            oom_kills: self
                .plan
                .oom_in
                .iter()
                .filter_map(|path| Some((path.clone(), oom::kills(path)?)))
                .collect(),
            also: self.plan.also.iter().map(|pid| (*pid, reader.describe(*pid, None))).collect(),
            containers,
            places,
            gaps: self.gaps,
        }
    }
}

fn is_own(selector: &NetnsSelector, own: NetnsKey) -> bool {
    match selector {
        NetnsSelector::Inode(inode) => *inode == own.inode,
        NetnsSelector::Name(name) => name == netns::OWN_NAME,
        NetnsSelector::Pid(_) => false,
    }
}

fn own_mounts(gaps: &mut Vec<Gap>) -> Vec<NetnsMount> {
    mounts::own().unwrap_or_else(|gap| {
        gaps.push(gap);
        Vec::new()
    })
}

/// Asks every process for its namespace. Those that refuse are a gap.
fn inhabitants(gaps: &mut Vec<Gap>) -> Inhabitants {
    let pids = process::pids().unwrap_or_else(|error| {
        gaps.push(Gap::Processes(format!("{error:?}")));
        Vec::new()
    });
    let (by_process, denied) = netns::of_processes(&pids);
    gaps.extend((denied > 0).then_some(Gap::ProcessNetns(denied)));
    let mut inhabitants = Inhabitants::new();
    for (pid, inode) in by_process {
        netns::add_inhabitant(&mut inhabitants, inode, pid);
    }
    inhabitants
}

fn netns_of_gap(gap: &Gap) -> Option<u64> {
    match gap {
        Gap::EnterNetns(inode, _) | Gap::ReadNetns(inode, _) => Some(*inode),
        _ => None,
    }
}

fn take(scan: Scan, wanted: &mut HashMap<u32, SocketKey>, found: &mut Holders) {
    for (inode, holders) in scan.sockets {
        if let Some(key) = wanted.remove(&inode) {
            found.met.extend(holders.iter().map(|descriptor| descriptor.pid));
            found.by_socket.insert(key, holders);
        }
    }
}

/// The processes of the host, for a program that knows some of them already.
#[derive(Debug, Clone, Default)]
pub struct ProcessList {
    /// When it was taken: it says nothing about what happened later.
    pub taken_at: Timestamp,
    /// Every pid that is alive.
    pub alive: HashSet<u32>,
    /// Those that were not known before, read.
    pub fresh: Vec<Process>,
    /// The namespace each lives in: a process may change it at any time (unshare(2)).
    pub netns: Vec<(u32, u64)>,
    /// What could not be seen.
    pub gaps: Vec<Gap>,
    /// Whether these are all of the host: in a container only its own are seen.
    pub of_host: bool,
}

/// Lists the processes, and reads those that are not known, or not any more what they were: a pid that was reused, a
/// program that was replaced. Errors are gaps: an unreadable list is empty.
pub fn processes(reader: &Reader, known: &HashMap<u32, Glance>) -> ProcessList {
    let taken_at = reader.clock.now();
    let pids = match process::pids() {
        Ok(pids) => pids,
        Err(error) => {
            return ProcessList {
                gaps: vec![Gap::Processes(format!("{error:?}"))],
                ..ProcessList::default()
            };
        }
    };
    let look_at = |pid: u32| {
        let same = |known: &Glance| process::glance(pid).map(|glance| glance == *known);
        match known.get(&pid).map_or(Ok(false), same) {
            Ok(true) => Some((pid, None)),
            Ok(false) => match reader.read(pid) {
                Ok(process) => Some((pid, Some(process))),
                Err(Unreadable::Vanished) => None,
                // Closed to this user (hidepid): it lives, and that is all there is to know.
                Err(_) => Some((pid, None)),
            },
            Err(Unreadable::Vanished) => None,
            Err(_) => Some((pid, None)),
        }
    };
    let (alive, fresh): (HashSet<u32>, Vec<Option<Process>>) =
        process::of_each(&pids, look_at).into_iter().unzip();
    let fresh: Vec<Process> = fresh.into_iter().flatten().collect();
    let read: HashMap<u32, u64> =
        fresh.iter().filter_map(|process| Some((process.id.pid, process.netns?))).collect();
    let pids: Vec<u32> = alive.iter().copied().filter(|pid| !read.contains_key(pid)).collect();
    let (mut netns, closed_netns) = netns::of_processes(&pids);
    netns.extend(read);
    let mut gaps = Vec::new();
    gaps.extend((closed_netns > 0).then_some(Gap::ProcessNetns(closed_netns)));
    ProcessList { taken_at, alive, fresh, netns, gaps, of_host: netns::in_first_pid_namespace() }
}
