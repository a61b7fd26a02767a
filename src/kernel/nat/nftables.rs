//! The rules of nftables over `NETLINK_NETFILTER` (linux/netfilter/nf_tables.h): of those tables only that have a chain of type
//! `nat` where traffic arrives or leaves. iptables-nft makes its rules here too.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::attributes::{Attributes, attribute, cut_off};
use super::expressions::{self, Budget, Element, Reading, Set, Value, too_many};
use super::fields;
use crate::kernel::netlink::Dumper;
use crate::model::nat::{Backend, Chain, Hook, Table, Traffic};
use crate::model::ranges::RangeSet;

/// `NFNL_SUBSYS_NFTABLES`, the high byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
/// `enum nf_tables_msg_types`.
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_SET: u16 = SUBSYSTEM | 10;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// `struct nfgenmsg`: family, version, resource.
const HEADER_BYTES: usize = 4;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFTA_GEN_ID`; the table is the first attribute of all others.
const GENERATION_ID: u16 = 1;
const TABLE: u16 = 1;
/// `NFTA_CHAIN_*`, `NFTA_HOOK_HOOKNUM`, and the hooks of linux/netfilter.h.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
/// `NFTA_RULE_*`.
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// `NFTA_SET_*`, `NFT_SET_INTERVAL`, `NFT_SET_TIMEOUT` or `NFT_SET_EVAL`, `NFT_SET_CONCAT`.
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_BYTES: u16 = 5;
const INTERVAL: u32 = 4;
const MOVING: u32 = 0x10 | 0x20;
const CONCATENATED: u32 = 0x80;
/// `NFTA_SET_ELEM_LIST_*`, `NFTA_SET_ELEM_*`, `NFT_SET_ELEM_INTERVAL_END`.
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_VALUE: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_USERDATA: u16 = 6;
const ELEMENT_KEY_END: u16 = 10;
const INTERVAL_END: u32 = 1;

/// nftables in the calling thread's namespace.
pub(super) struct Nftables(Dumper);

/// Rules that change while they are read are read again, this often at most.
const ATTEMPTS: usize = 4;

/// What one dump may have, in bytes of messages: more rules than a namespace may have are not worth their memory.
const DUMP_BYTES: usize = 128 * 1024 * 1024;

/// Family (`NFPROTO_*`) and name of a table.
pub type TableKey = (u8, String);

/// How the elements of a set are to be read.
#[derive(Debug, Clone, Copy)]
struct SetShape {
    /// Ranges are told by their edges; where fields are put together each element has its own last key.
    interval: bool,
    /// Several fields put together.
    concatenated: bool,
    /// Packets add to it, or time takes from it, and the generation does not tell.
    moving: bool,
    key_bytes: usize,
}

/// An element as the kernel sends it.
#[derive(Debug)]
struct RawElement {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    value: Option<Value>,
    ends_interval: bool,
    comment: Option<String>,
}

impl Nftables {
    /// With the generation of its rules; `None` where this kernel has no nftables. Errors: no permission.
    pub(super) fn open() -> io::Result<Option<(Self, u32)>> {
        let opened = Dumper::open(NETLINK_NETFILTER).and_then(|dumper| {
            let mut nftables = Nftables(dumper);
            let generation = nftables.generation()?;
            Ok((nftables, generation))
        });
        match opened {
            // No nfnetlink, or none with this subsystem (`nfnetlink_rcv_msg`).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL)) => {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// The number of the rules' generation: each change makes another.
    fn generation(&mut self) -> io::Result<u32> {
        let reply = self.0.ask(GET_GENERATION, &request(0, &[]))?;
        body(&reply)?.1.number(GENERATION_ID).ok_or_else(cut_off)
    }

    /// All tables that send traffic elsewhere, or might, of one generation, and whether they may change without another.
    /// Errors: they change faster than they can be read, or are more than these ways.
    pub(super) fn tables(&mut self, mut generation: u32, ways: usize) -> io::Result<(Vec<Table>, bool)> {
        for _ in 0..ATTEMPTS {
            let mut chains = self.chains()?;
            chains.retain(|_, chains| chains.iter().any(|chain| chain.hook.is_some()));
            let (mut moving, mut budget) = (false, Budget::new(ways));
            let read = |(key, chains)| self.table(&key, chains, &mut budget, &mut moving);
            let tables: io::Result<Vec<Table>> = chains.into_iter().map(read).collect();
            let now = self.generation()?;
            if now == generation {
                return Ok((tables?, moving));
            }
            generation = now;
        }
        Err(io::Error::other("they changed under every attempt to read them"))
    }

    fn chains(&mut self) -> io::Result<BTreeMap<TableKey, Vec<Chain>>> {
        decode_chains(&self.dump(GET_CHAIN, &request(0, &[]))?)
    }

    fn table(
        &mut self,
        key: &TableKey,
        chains: Vec<Chain>,
        budget: &mut Budget,
        moving: &mut bool,
    ) -> io::Result<Table> {
        let (family, name) = key;
        let of_table = request(*family, &[(TABLE, name)]);
        let dumped = Dumped { rules: self.dump(GET_RULE, &of_table)?, sets: self.dump(GET_SET, &of_table)? };
        let mut elements =
            |set: &str| self.dump(GET_ELEMENTS, &request(*family, &[(TABLE, name), (LIST_SET, set)]));
        decode_table(key, chains, &dumped, &mut elements, budget, moving)
    }

    fn dump(&mut self, message_type: u16, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut left = Some(DUMP_BYTES);
        let found = self.0.dump(message_type, request, |found, payload| {
            left = left.and_then(|left| left.checked_sub(payload.len()));
            if left.is_some() {
                found.push(payload.to_vec());
            }
        })?;
        left.map(|_| found).ok_or_else(too_many)
    }
}

/// What dumps of a table gave: messages without their netlink headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dumped {
    /// Of `NFT_MSG_GETRULE`.
    pub rules: Vec<Vec<u8>>,
    /// Of `NFT_MSG_GETSET`.
    pub sets: Vec<Vec<u8>>,
}

/// Decodes the messages of `NFT_MSG_GETCHAIN`: chains by table, without rules. Errors: one is cut off.
pub fn decode_chains(messages: &[Vec<u8>]) -> io::Result<BTreeMap<TableKey, Vec<Chain>>> {
    let mut tables: BTreeMap<TableKey, Vec<Chain>> = BTreeMap::new();
    for message in messages {
        if let Some((table, chain)) = decode_chain(message)? {
            tables.entry(table).or_default().push(chain);
        }
    }
    Ok(tables)
}

/// Decodes the rules of a table into its chains. `elements` gives the messages of `NFT_MSG_GETSETELEM` for a set; `moving` is set where
/// elements may change without another generation. Errors: a message is cut off, or names a set that is not there, or they are more than
/// the budget allows.
pub fn decode_table(
    key: &TableKey,
    mut chains: Vec<Chain>,
    dumped: &Dumped,
    elements: &mut dyn FnMut(&str) -> io::Result<Vec<Vec<u8>>>,
    budget: &mut Budget,
    moving: &mut bool,
) -> io::Result<Table> {
    let (family, name) = key;
    let shapes: io::Result<HashMap<String, SetShape>> =
        dumped.sets.iter().map(|set| decode_set(set)).collect();
    let shapes = shapes?;
    let places: HashMap<String, usize> =
        chains.iter().enumerate().map(|(n, chain)| (chain.name.clone(), n)).collect();
    let mut known: HashMap<String, Set> = HashMap::new();
    let mut sets = |set: &str| {
        if let Some(set) = known.get(set) {
            return Ok(set.clone());
        }
        let shape = *shapes.get(set).ok_or_else(cut_off)?;
        *moving |= shape.moving;
        let found: io::Result<Vec<Vec<RawElement>>> =
            elements(set)?.iter().map(|list| decode_elements(list)).collect();
        let read = Rc::new(elements_of(found?.into_iter().flatten(), shape));
        known.insert(set.to_owned(), read.clone());
        Ok(read)
    };
    let mut reading = Reading { sees: sees(*family), sets: &mut sets, budget };
    for payload in &dumped.rules {
        let (_, rule) = body(payload)?;
        let chain = rule.text(RULE_CHAIN).ok_or_else(cut_off)?;
        let comment = rule.get(RULE_USERDATA).and_then(expressions::comment);
        let read = reading.rules(rule.get(RULE_EXPRESSIONS).unwrap_or_default(), comment)?;
        if let Some(chain) = places.get(&chain).and_then(|place| chains.get_mut(*place)) {
            chain.rules.extend(read);
        }
    }
    Ok(Table { backend: Backend::Nftables, name: name.clone(), chains })
}

fn request(family: u8, names: &[(u16, &str)]) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    for (kind, name) in names {
        bytes.extend(attribute(*kind, &[name.as_bytes(), &[0]].concat()));
    }
    bytes
}

/// Family and attributes of a message.
fn body(payload: &[u8]) -> io::Result<(u8, Attributes<'_>)> {
    let (header, attributes) = payload.split_at_checked(HEADER_BYTES).ok_or_else(cut_off)?;
    Ok((header.first().copied().unwrap_or(0), Attributes::parse(attributes)?))
}

/// A chain of a family that has ports.
fn decode_chain(payload: &[u8]) -> io::Result<Option<(TableKey, Chain)>> {
    let (family, chain) = body(payload)?;
    if ![INET, IPV4, IPV6].contains(&family) {
        return Ok(None);
    }
    let table = chain.text(TABLE).ok_or_else(cut_off)?;
    let name = chain.text(CHAIN_NAME).ok_or_else(cut_off)?;
    let is_nat = chain.text(CHAIN_TYPE).is_some_and(|kind| kind == "nat");
    let hook = match chain.nested(CHAIN_HOOK)?.number(HOOK_NUMBER) {
        Some(PREROUTING) if is_nat => Some(Hook::Prerouting),
        Some(OUTPUT) if is_nat => Some(Hook::Output),
        _ => None,
    };
    Ok(Some(((family, table), Chain { name, hook, rules: Vec::new() })))
}

fn sees(family: u8) -> Traffic {
    match family {
        IPV4 => Traffic { six: RangeSet::none(), ..Traffic::all() },
        IPV6 => Traffic { four: RangeSet::none(), ..Traffic::all() },
        _ => Traffic::all(),
    }
}

fn decode_set(payload: &[u8]) -> io::Result<(String, SetShape)> {
    let (_, set) = body(payload)?;
    let flags = set.number(SET_FLAGS).unwrap_or(0);
    let shape = SetShape {
        interval: flags & INTERVAL != 0 && flags & CONCATENATED == 0,
        concatenated: flags & CONCATENATED != 0,
        moving: flags & MOVING != 0,
        key_bytes: set.number(SET_KEY_BYTES).map_or(0, |bytes| bytes as usize).min(fields::KEY_MAX),
    };
    Ok((set.text(SET_NAME).ok_or_else(cut_off)?, shape))
}

fn decode_elements(payload: &[u8]) -> io::Result<Vec<RawElement>> {
    let (_, list) = body(payload)?;
    list.nested(LIST_ELEMENTS)?.values().map(decode_element).collect()
}

fn decode_element(bytes: &[u8]) -> io::Result<RawElement> {
    let element = Attributes::parse(bytes)?;
    let data = |kind| match element.get(kind).map(expressions::value).transpose()?.flatten() {
        Some(Value::Data(data)) => Ok(Some(data)),
        _ => Ok::<_, io::Error>(None),
    };
    Ok(RawElement {
        // The one for whatever has no other has no key.
        key: data(ELEMENT_KEY)?.unwrap_or_default(),
        key_end: data(ELEMENT_KEY_END)?,
        value: element.get(ELEMENT_VALUE).map(expressions::value).transpose()?.flatten(),
        ends_interval: element.number(ELEMENT_FLAGS).unwrap_or(0) & INTERVAL_END != 0,
        comment: element.get(ELEMENT_USERDATA).and_then(expressions::comment),
    })
}

/// Elements with their first and last key. In a set of intervals a range is two elements: its first key, and the first after it.
fn elements_of(raw: impl Iterator<Item = RawElement>, shape: SetShape) -> Vec<Element> {
    let mut found = Vec::new();
    let mut edges = Vec::new();
    let mut for_the_rest = None;
    for element in raw {
        let RawElement { key, key_end, value, ends_interval, comment } = element;
        if key.is_empty() {
            for_the_rest = Some((value, comment));
        } else if let Some(last) = key_end {
            found.push(Element { keys: (key, last), value, comment });
        } else if shape.interval {
            // What ends a range comes before what begins one at the same key.
            edges.push((key, !ends_interval, value, comment));
        } else {
            found.push(Element { keys: (key.clone(), key), value, comment });
        }
    }
    edges.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
    let mut edges = edges.into_iter().peekable();
    while let Some((first, begins, value, comment)) = edges.next() {
        if begins {
            let last = match edges.peek() {
                Some((next, ..)) => before(next),
                None => vec![u8::MAX; first.len()],
            };
            found.push(Element { keys: (first, last), value, comment });
        }
    }
    // The kernel keeps many of them in no order.
    found.sort_by(|one, other| one.keys.cmp(&other.keys));
    if let Some((value, comment)) = for_the_rest {
        // After all others: what they are for is not for it.
        let rest = if shape.concatenated { vec![whole(shape)] } else { between(&found, shape) };
        found.extend(rest.into_iter().map(|keys| Element {
            keys,
            value: value.clone(),
            comment: comment.clone(),
        }));
    }
    found
}

fn whole(shape: SetShape) -> (Vec<u8>, Vec<u8>) {
    (vec![0; shape.key_bytes], vec![u8::MAX; shape.key_bytes])
}

/// The keys that none of these elements, which ascend, is for.
fn between(elements: &[Element], shape: SetShape) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (first, last) = whole(shape);
    let (mut next, mut rest) = (Some(first), Vec::new());
    for Element { keys: (from, to), .. } in elements {
        let Some(begin) = next.take() else { break };
        if begin < *from {
            rest.push((begin.clone(), before(from)));
        }
        next = if *to == last { None } else { Some(after(to).max(begin)) };
    }
    rest.extend(next.map(|next| (next, last)));
    rest
}

/// The key after this one.
fn after(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (more, carries) = byte.overflowing_add(1);
        *byte = more;
        if !carries {
            break;
        }
    }
    key
}

/// The key before this one.
fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(port: u16, ends_interval: bool) -> RawElement {
        RawElement {
            key: port.to_be_bytes().to_vec(),
            key_end: None,
            value: None,
            ends_interval,
            comment: None,
        }
    }

    fn ranges(raw: Vec<RawElement>, interval: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
        let shape = SetShape { interval, concatenated: false, moving: false, key_bytes: 2 };
        elements_of(raw.into_iter(), shape).into_iter().map(|element| element.keys).collect()
    }

    fn keys(first: u16, last: u16) -> (Vec<u8>, Vec<u8>) {
        (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec())
    }

    #[test]
    fn intervals_are_read_from_their_edges_in_any_order() {
        let edges = vec![edge(8101, true), edge(8000, false), edge(0, true), edge(80, false), edge(81, true)];
        assert_eq!(ranges(edges, true), [keys(80, 80), keys(8000, 8100)]);
        let open = vec![edge(9000, false), edge(100, false), edge(200, false), edge(200, true)];
        assert_eq!(ranges(open, true), [keys(100, 199), keys(200, 8999), keys(9000, 65535)]);
        assert_eq!(ranges(vec![edge(7, false)], false), [keys(7, 7)]);
        let catch_all = RawElement { key: Vec::new(), ..edge(0, false) };
        assert_eq!(ranges(vec![catch_all], true), [keys(0, 65535)]);
        let catch_all = || RawElement { key: Vec::new(), ..edge(0, false) };
        let rest = ranges(vec![catch_all(), edge(80, false), edge(0, false), edge(65535, false)], false);
        assert_eq!(rest[3..], [keys(1, 79), keys(81, 65534)], "it is for what no other is for");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = (decode_chain(&bytes), decode_set(&bytes), decode_elements(&bytes), decode_element(&bytes));
        }
    }

    #[test]
    fn a_key_with_zeros_borrows() {
        assert_eq!(before(&[1, 0, 0]), [0, 255, 255]);
    }
}
