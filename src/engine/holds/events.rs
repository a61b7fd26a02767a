//! Holds as events tell them: binds and closes, and the processes behind them.

use std::sync::Arc;

use jiff::Timestamp;

use super::{KeptHold, MAX_DESCRIBED, MAX_OPEN, new};
use crate::engine::Engine;
use crate::engine::binds::Bound;
use crate::engine::ends::Ended;
use crate::judge::hold::{Last, end};
use crate::model::hold::{End, Hold, HoldKey};
use crate::model::process::Holder;
use crate::model::socket::{ClaimKind, Protocol};

impl Engine {
    /// What an agent before this one kept of holds: the last number it gave, those that were open, and when it was last seen to live.
    pub fn restore_holds(&mut self, last_id: u64, kept: Vec<KeptHold>, until: Timestamp) {
        self.conflicts_begin_after(last_id);
        self.holds.restore(last_id, kept, until);
    }

    /// Whether the kernel tells whom its OOM killer chose.
    pub fn set_oom_told(&mut self, told: bool) {
        self.holds.doubtful.are_told(told);
    }

    /// A socket was bound, and perhaps closed since.
    pub(in crate::engine) fn hold_bound(&mut self, cookie: u64, listened: bool) {
        let key = HoldKey::Socket(cookie);
        let Some(bound) = self.binds.bound_of(cookie) else { return };
        if bound.port == 0 || self.holds.open.contains_key(&key) || self.holds.open.len() >= MAX_OPEN {
            return;
        }
        if bound.until.is_some() && !self.holds.takes_brief(bound.by.pid, bound.at) {
            self.counters.left_out();
            return;
        }
        let kind = match bound.protocol {
            Protocol::Tcp if !listened => ClaimKind::Bound,
            _ => ClaimKind::Listener,
        };
        let (bound, until) = (bound.clone(), bound.until);
        let (pid, at, port) = (bound.by.pid, (bound.at, true), bound.port);
        let holder = self.holder_of(&bound);
        let netns = self.ports.netns_of_inode(bound.netns);
        let hold = Hold {
            holder: Some(holder),
            test: bound.by.test.clone(),
            ..new(kind, (bound.protocol, bound.address, port), netns, at)
        };
        self.holds.begin(key.clone(), hold, bound.by.job.clone(), false);
        // One that was closed before it was told was closed by a process that went on.
        if let Some(until) = until {
            self.end_hold(&key, until, pid, true);
        }
    }

    /// A socket was closed, by this process.
    pub(in crate::engine) fn hold_closed(&mut self, cookie: u64, at: Timestamp, closer: u32, listened: bool) {
        let key = HoldKey::Socket(cookie);
        if let Some(open) = self.holds.open.get_mut(&key).filter(|_| listened) {
            open.hold.kind = ClaimKind::Listener;
        }
        self.end_hold(&key, at, closer, false);
    }

    /// Ends a hold that this process had last. `went_on` says that it was alive after it.
    fn end_hold(&mut self, key: &HoldKey, until: Timestamp, last: u32, went_on: bool) {
        let ended = Some(last).filter(|_| !went_on).and_then(|pid| self.ends.of(pid)).cloned();
        self.finish_hold(key, until, ended, Last::Alive, false);
    }

    /// Ends a hold whose last process ended so; else that process's standing is the one given.
    pub(super) fn finish_hold(
        &mut self,
        key: &HoldKey,
        until: Timestamp,
        ended: Option<Ended>,
        otherwise: Last,
        netns_gone: bool,
    ) {
        let standing =
            ended.as_ref().map_or(otherwise, |ended| Last::Ended { exit: ended.exit, by_oom: ended.by_oom });
        let how = end(standing, netns_gone);
        if let Some(hold) = self.holds.finish(key, until, how).filter(|hold| hold.is_lost()) {
            self.counters.lost_listener(hold.end.unwrap_or(End::Unknown));
        }
    }

    /// The process that bound a socket, described once for all that it binds.
    fn holder_of(&mut self, bound: &Bound) -> Arc<Holder> {
        let by = &bound.by;
        let start_time = by.start.and_then(|start| self.clock.at_ticks(start));
        if let Some(known) = self.holds.described.get(&by.pid)
            && known.start_time == start_time
            && known.comm == by.comm
        {
            return Arc::clone(known);
        }
        let holder = Arc::new(self.describe(by.pid, by.start, by.comm.clone(), by.ppid));
        if self.holds.described.len() >= MAX_DESCRIBED {
            self.holds.described.clear();
        }
        self.holds.described.insert(by.pid, Arc::clone(&holder));
        holder
    }

    /// A process as far as events told of it.
    pub(in crate::engine) fn describe(
        &self,
        pid: u32,
        start: Option<u64>,
        comm: Option<String>,
        ppid: Option<u32>,
    ) -> Holder {
        let mut holder = Holder { comm, ppid, ..Holder::unknown(pid) };
        holder.start_time = start.and_then(|start| self.clock.at_ticks(start));
        if let Some(process) = self.processes.remembered(pid, start) {
            holder.comm = holder.comm.or(Some(process.comm)).filter(|comm| !comm.is_empty());
            holder.ppid = holder.ppid.or(Some(process.ppid));
            holder.cmdline = Some(process.cmdline);
            holder.uid = process.told.as_ref().map(|(_, uid)| *uid);
            holder.exe = process.told.map(|(path, _)| path).filter(|path| path.starts_with('/'));
            (holder.unit, holder.container, holder.ancestry) =
                (process.unit, process.container, process.ancestry);
        }
        holder
    }
}
