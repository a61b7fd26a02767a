//! The tables of iptables by its own interface, which nftables does not show (linux/netfilter_ipv4/ip_tables.h and its twin for
//! IPv6): one blob of entries a family. To ask for a table makes it and its hooks, so only those are asked for that the namespace
//! has already.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::attributes::text;
use super::xtables::{self, Family, Match, Target, half, word};
use crate::kernel::sockopt;
use crate::model::nat::{Backend, Chain, Hook, Rule, Table, Then, Traffic, number};
use crate::model::ranges::RangeSet;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, the same for IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// The table.
const NAME: &str = "nat";
/// Length of a table's name, with its NUL.
const NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, where each of five hooks enters, underflows, number of entries, size.
const INFO_BYTES: usize = 84;
const HOOK_ENTRIES: usize = 36;
const SIZE: usize = 80;
/// `struct ipt_get_entries`: name, size, and the entries at the next multiple of 8.
const ENTRIES: usize = 40;
/// A larger table is not read: it has more rules than can be followed.
const SIZE_MAX: usize = 64 * 1024 * 1024;
/// `struct xt_entry_match` and `xt_entry_target`: size, name, revision.
const EXTENSION_HEADER: usize = 32;
const EXTENSION_NAME: std::ops::Range<usize> = 2..31;
/// `XT_RETURN`.
const RETURN: i32 = -5;
/// `IPT_INV_DSTIP`, `IPT_INV_PROTO`.
const INVERTED_DESTINATION: u8 = 0x10;
const INVERTED_PROTOCOL: u8 = 0x40;

/// Where things lie in an entry of a family.
pub struct Layout {
    family: Family,
    level: i32,
    pub(super) names: &'static str,
    address_bytes: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    goto: u8,
    /// Offset of the target, and of the next entry.
    offsets: usize,
    elements: usize,
}

/// IPv4: `struct ipt_entry`.
pub const FOUR: Layout = Layout {
    family: Family::Four,
    level: 0,
    names: "ip_tables_names",
    address_bytes: 4,
    protocol: 80,
    flags: 82,
    inverted: 83,
    goto: 2,
    offsets: 88,
    elements: 112,
};
/// IPv6: `struct ip6t_entry`.
pub const SIX: Layout = Layout {
    family: Family::Six,
    level: 41,
    names: "ip6_tables_names",
    address_bytes: 16,
    protocol: 128,
    flags: 131,
    inverted: 132,
    goto: 4,
    offsets: 140,
    elements: 168,
};

/// The tables of the calling thread's namespace. Errors: no permission, or a table that is not as it should be.
pub(super) fn tables() -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for layout in [FOUR, SIX] {
        let names = match fs::read_to_string(format!("/proc/thread-self/net/{}", layout.names)) {
            // This kernel has none, or it is not loaded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            names => names?,
        };
        if names.lines().any(|name| name == NAME) {
            tables.push(layout.read()?);
        }
    }
    Ok(tables)
}

impl Layout {
    fn read(&self) -> io::Result<Table> {
        let family = match self.family {
            Family::Four => AddressFamily::INET,
            Family::Six => AddressFamily::INET6,
        };
        // It is not bound, so it takes no port.
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let mut info = [0; INFO_BYTES];
        named(&mut info);
        sockopt::get(socket.as_fd(), self.level, GET_INFO, &mut info)?;
        let size = word(&info, SIZE).and_then(|size| usize::try_from(size).ok());
        let size = size.filter(|size| *size <= SIZE_MAX).ok_or_else(odd)?;
        let mut entries = vec![0; ENTRIES + size];
        named(&mut entries);
        let told = u32::try_from(size).map_err(|_| odd())?;
        entries.get_mut(NAME_BYTES..NAME_BYTES + 4).ok_or_else(odd)?.copy_from_slice(&told.to_ne_bytes());
        // Replaced meanwhile by one of another size: EAGAIN, and the next look reads it.
        sockopt::get(socket.as_fd(), self.level, GET_ENTRIES, &mut entries)?;
        self.decode(&info, entries.get(ENTRIES..).ok_or_else(odd)?).ok_or_else(odd)
    }

    /// Decodes a table: `struct ipt_getinfo`, and the entries of `struct ipt_get_entries`. `None` where something in it does not fit.
    pub fn decode(&self, info: &[u8], entries: &[u8]) -> Option<Table> {
        // Chains of its own begin where a hook enters, chains of users behind an entry that names them.
        let mut starts: BTreeMap<usize, (String, Option<Hook>)> = BTreeMap::new();
        let hooks = [("PREROUTING", Some(Hook::Prerouting)), ("OUTPUT", Some(Hook::Output))];
        for (at, (name, hook)) in [0, 3].into_iter().zip(hooks) {
            let entry = usize::try_from(word(info, HOOK_ENTRIES + 4 * at)?).ok()?;
            starts.insert(entry, (name.to_owned(), hook));
        }
        for (at, name) in [(1, "INPUT"), (4, "POSTROUTING")] {
            let entry = usize::try_from(word(info, HOOK_ENTRIES + 4 * at)?).ok()?;
            starts.entry(entry).or_insert_with(|| (name.to_owned(), None));
        }
        let mut whole = Vec::new();
        let mut at = 0;
        while at < entries.len() {
            let entry = self.entry(entries, at)?;
            if entry.name == "ERROR" {
                starts.insert(entry.next, (text(entry.target), None));
            }
            at = entry.next;
            whole.push(entry);
        }
        let mut chains: Vec<Chain> = Vec::new();
        for entry in whole {
            if let Some((name, hook)) = starts.get(&entry.at) {
                chains.push(Chain { name: name.clone(), hook: *hook, rules: Vec::new() });
            }
            let does = self.rule(&entry, &starts)?;
            if let (Some(chain), Does::Something(rule)) = (chains.last_mut(), does) {
                chain.rules.push(rule);
            }
        }
        Some(Table { backend: Backend::Iptables, name: NAME.to_owned(), chains })
    }

    fn entry<'a>(&self, entries: &'a [u8], at: usize) -> Option<Entry<'a>> {
        let rest = entries.get(at..)?;
        let target = usize::from(half(rest, self.offsets)?);
        let length = usize::from(half(rest, self.offsets + 2)?);
        if target < self.elements || length < target + EXTENSION_HEADER {
            return None;
        }
        let bytes = rest.get(..length)?;
        let (name, revision, target_bytes) = extension(bytes.get(target..)?)?;
        let matches = bytes.get(self.elements..target)?;
        Some(Entry { at, next: at + length, head: bytes, matches, name, revision, target: target_bytes })
    }

    /// `None` where something in the entry does not fit.
    fn rule(&self, entry: &Entry<'_>, starts: &BTreeMap<usize, (String, Option<Hook>)>) -> Option<Does> {
        let mut traffic = self.head(entry.head)?;
        let mut comment = None;
        let mut rest = entry.matches;
        while !rest.is_empty() {
            let size = usize::from(half(rest, 0)?);
            let (name, revision, bytes) = extension(rest.get(..size)?)?;
            match xtables::decode_match(&name, revision, self.family, bytes) {
                Match::Narrows(by) => traffic = traffic.and(&by),
                Match::Comment(text) => comment = Some(text),
            }
            rest = rest.get(size..)?;
        }
        let then = match entry.name.as_str() {
            "" => match word(entry.target, 0)?.cast_signed() {
                RETURN => Then::Return,
                verdict if verdict < 0 => Then::End,
                verdict => {
                    let place = usize::try_from(verdict).ok()?;
                    // A rule without a target jumps to the next one.
                    if place == entry.next {
                        return Some(Does::Nothing);
                    }
                    let name = starts.get(&place)?.0.clone();
                    if entry.head.get(self.flags)? & self.goto != 0 {
                        Then::Goto(name)
                    } else {
                        Then::Jump(name)
                    }
                }
            },
            name => match xtables::decode_target(name, entry.revision, self.family, entry.target) {
                Target::Send(destination) => Then::Send(destination),
                Target::Ends => Then::End,
                Target::Continues => return Some(Does::Nothing),
            },
        };
        Some(Does::Something(Rule { traffic: vec![traffic], comment, then }))
    }

    /// `struct ipt_ip`: addresses, masks, interfaces, protocol.
    fn head(&self, bytes: &[u8]) -> Option<Traffic> {
        let size = self.address_bytes;
        let inverted = *bytes.get(self.inverted)?;
        let at = |place: usize| xtables::address(self.family, bytes, place * size).map(number);
        let bits = u32::try_from(size).ok()? * 8;
        let (destination, mask) = (at(1)?, at(3)?);
        let set = xtables::network(destination, mask, bits, inverted & INVERTED_DESTINATION != 0);
        let interfaces = bytes.get(4 * size..4 * size + 32)?;
        let protocol = half(bytes, self.protocol)?;
        let protocols = if protocol == 0 { RangeSet::all() } else { RangeSet::one(protocol) };
        let mut traffic = Traffic {
            protocols: if inverted & INVERTED_PROTOCOL != 0 { protocols.inverse() } else { protocols },
            share: xtables::some_if(at(2)? != 0 || interfaces.iter().any(|byte| *byte != 0) || set.is_none()),
            ..Traffic::all()
        };
        let set = set.unwrap_or_else(RangeSet::all);
        (traffic.four, traffic.six) = match self.family {
            Family::Four => (set, RangeSet::none()),
            Family::Six => (RangeSet::none(), set),
        };
        Some(traffic)
    }
}

/// What an entry does with packets.
enum Does {
    /// They go on as if it were not there.
    Nothing,
    Something(Rule),
}

/// One entry of the blob.
struct Entry<'a> {
    at: usize,
    next: usize,
    head: &'a [u8],
    matches: &'a [u8],
    name: String,
    revision: u32,
    target: &'a [u8],
}

/// Name, revision and content of a match or a target.
fn extension(bytes: &[u8]) -> Option<(String, u32, &[u8])> {
    let size = usize::from(half(bytes, 0)?);
    let content = bytes.get(EXTENSION_HEADER..size)?;
    let revision = *bytes.get(EXTENSION_HEADER - 1)?;
    Some((text(bytes.get(EXTENSION_NAME)?), revision.into(), content))
}

fn named(bytes: &mut [u8]) {
    bytes.iter_mut().zip(NAME.as_bytes()).for_each(|(to, from)| *to = *from);
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel sent a table of iptables that cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_is_cut_off_is_no_table() {
        assert!(FOUR.decode(&[0; INFO_BYTES], &[0; 200]).is_none(), "an entry without length would loop");
        assert!(FOUR.decode(&[0; 10], &[]).is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_loop(mut info in proptest::collection::vec(proptest::num::u8::ANY, 0..90), mut entries in proptest::collection::vec(proptest::num::u8::ANY, 0..600), target in 100..200u16, length in 100..300u16) {
            for layout in [FOUR, SIX] {
                layout.decode(&info, &entries);
                // As far as the offsets are right.
                info.resize(INFO_BYTES, 0);
                if entries.len() > layout.offsets + 4 {
                    entries[layout.offsets..layout.offsets + 2].copy_from_slice(&target.to_ne_bytes());
                    entries[layout.offsets + 2..layout.offsets + 4].copy_from_slice(&length.to_ne_bytes());
                }
                layout.decode(&info, &entries);
            }
        }
    }
}
