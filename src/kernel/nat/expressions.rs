//! What a rule of nftables says, by its expressions (linux/netfilter/nf_tables.h): they load fields of a packet into registers,
//! compare them, look them up, and end with a verdict. Here the registers hold which field was loaded, and a comparison narrows
//! the traffic that the rule is for. What is not understood narrows nothing, and is told as "only some of it".

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use super::attributes::{Attributes, cut_off, text};
use super::xtables::{self, Family, Match, Target};
use crate::model::nat::{Destination, Rule, Then, Traffic};
use crate::model::ranges::RangeSet;

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`; `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `enum nft_verdicts` and the verdicts of netfilter.
const CONTINUE: i32 = -1;
const BREAK: i32 = -2;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
/// `NFT_META_PROTOCOL`, `NFT_META_NFPROTO`, `NFT_META_L4PROTO`.
const META_PROTOCOL: u32 = 1;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`, `RTN_LOCAL`.
const FIB_ADDRTYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const LOCAL: u128 = 2;
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`, and their types in an Ethernet frame.
const NFPROTO_FOUR: u128 = 2;
const NFPROTO_SIX: u128 = 10;
const ETHERTYPE_FOUR: u128 = 0x0800;
const ETHERTYPE_SIX: u128 = 0x86dd;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;
/// Registers are counted in words of 32 bits: `NFT_REG_1` to `_4` have four of them, `NFT_REG32_00` begins at 8.
const WORD_BYTES: usize = 4;
const FIRST_SMALL_REGISTER: u32 = 8;
const LARGE_WORDS: usize = 4;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, and as much as they load (`IFNAMSIZ`).
const META_INTERFACES: [u32; 2] = [6, 7];
const INTERFACE_BYTES: usize = 16;
/// As much as all registers hold (`NFT_DATA_VALUE_MAXLEN`).
pub(super) const KEY_MAX: usize = 64;
/// More alternatives of one rule are told as "some of it": sets have any size.
const ALTERNATIVES: usize = 20_000;

/// A field of a packet, or what is known of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Protocol,
    Port,
    Four,
    Six,
    NfProto,
    EtherType,
    DestinationType,
    Chance,
    Other,
}

impl Field {
    const fn bits(self) -> u32 {
        match self {
            Field::Protocol | Field::NfProto => 8,
            Field::Port | Field::EtherType => 16,
            Field::Four | Field::DestinationType | Field::Chance | Field::Other => 32,
            Field::Six => 128,
        }
    }
}

/// What a register holds: the first bytes of a field, perhaps under a mask, perhaps with other fields around it: nft compares what lies
/// side by side at once.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    field: Field,
    /// Bytes of other fields before it,
    skipped: usize,
    /// its own,
    bytes: usize,
    /// and all.
    length: usize,
    mask: Option<u128>,
}

const SOMETHING: Loaded = of(Field::Other, WORD_BYTES);

const fn of(field: Field, bytes: usize) -> Loaded {
    Loaded { field, skipped: 0, bytes, length: bytes, mask: None }
}

/// A set or a map.
#[derive(Debug, Clone, Default)]
pub(super) struct Set {
    /// Its elements, or `None` where it is of no interest or could not be read.
    pub(super) elements: Vec<Element>,
}

/// An element of a set.
#[derive(Debug, Clone)]
pub(super) struct Element {
    /// First and last key; of fields put together each is a range of its own.
    pub(super) keys: (Vec<u8>, Vec<u8>),
    /// What a map says for it.
    pub(super) value: Option<Value>,
    /// What is written at it.
    pub(super) comment: Option<String>,
}

/// What a map says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Verdict(Verdict),
    Data(Vec<u8>),
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The rule, or the chain, goes on.
    None,
    Then(Then),
}

/// One way to go through a rule.
#[derive(Debug, Clone)]
struct Alternative {
    traffic: Traffic,
    /// Words that registers were given.
    constants: HashMap<usize, [u8; WORD_BYTES]>,
    comment: Option<String>,
}

/// Reads rules of one table.
pub(super) struct Reading<'a> {
    /// What a table of this family sees of the traffic.
    pub(super) sees: Traffic,
    /// The sets of the table.
    pub(super) sets: &'a mut dyn FnMut(&str) -> io::Result<Rc<Set>>,
}

struct State {
    registers: HashMap<usize, Loaded>,
    alternatives: Vec<Alternative>,
    rules: Vec<Rule>,
    comment: Option<String>,
}

/// A verdict within `NFTA_DATA_VERDICT`.
pub(super) fn verdict(bytes: &[u8]) -> io::Result<Verdict> {
    let attributes = Attributes::parse(bytes)?;
    let chain = || attributes.text(VERDICT_CHAIN).ok_or_else(cut_off);
    let code = attributes.number(VERDICT_CODE).ok_or_else(cut_off)?.cast_signed();
    Ok(match code {
        CONTINUE | BREAK => Verdict::None,
        JUMP => Verdict::Then(Then::Jump(chain()?)),
        GOTO => Verdict::Then(Then::Goto(chain()?)),
        RETURN => Verdict::Then(Then::Return),
        _ => Verdict::Then(Then::End),
    })
}

/// Data of an element or of an expression.
pub(super) fn value(bytes: &[u8]) -> io::Result<Option<Value>> {
    let data = Attributes::parse(bytes)?;
    match (data.get(DATA_VERDICT), data.get(DATA_VALUE)) {
        (Some(bytes), _) => Ok(Some(Value::Verdict(verdict(bytes)?))),
        (None, value) => Ok(value.map(|value| Value::Data(value.to_vec()))),
    }
}

/// What is written at a rule or an element: `NFTNL_UDATA_RULE_COMMENT`, in a format of user space (kind, length, value).
pub(super) fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value)).filter(|comment| !comment.is_empty());
        }
        userdata = next;
    }
    None
}

impl Reading<'_> {
    /// What a rule does, as rules without expressions; none where it does nothing that matters here.
    pub(super) fn rules(&mut self, expressions: &[u8], comment: Option<String>) -> io::Result<Vec<Rule>> {
        let alternative =
            Alternative { traffic: self.sees.clone(), constants: HashMap::new(), comment: None };
        let mut state =
            State { registers: HashMap::new(), alternatives: vec![alternative], rules: Vec::new(), comment };
        for expression in Attributes::parse(expressions)?.values() {
            let expression = Attributes::parse(expression)?;
            let name = expression.text(EXPRESSION_NAME).ok_or_else(cut_off)?;
            self.follow(&mut state, &name, expression.get(EXPRESSION_DATA).unwrap_or_default())?;
        }
        Ok(state.rules)
    }

    fn follow(&mut self, state: &mut State, name: &str, data: &[u8]) -> io::Result<()> {
        let attributes = || Attributes::parse(data);
        match name {
            "payload" => state.load(&attributes()?, 1, payload),
            "meta" => state.load(&attributes()?, 1, |attributes, _| meta(attributes)),
            "fib" => state.load(&attributes()?, 1, |attributes, _| fib(attributes)),
            "bitwise" => state.mask(&attributes()?)?,
            "cmp" => state.compare(&attributes()?)?,
            "range" => state.range(&attributes()?)?,
            "immediate" => state.immediate(&attributes()?)?,
            "lookup" => self.look_up(state, &attributes()?)?,
            "match" => state.matches(&attributes()?),
            "target" => state.target(&attributes()?),
            "nat" => state.nat(&attributes()?),
            "redir" => state.redirect(&attributes()?),
            "counter" | "log" | "last" | "notrack" | "masq" => {}
            // They load something else.
            "numgen" => state.load(&attributes()?, 1, |_, _| of(Field::Chance, WORD_BYTES)),
            "ct" | "rt" | "socket" | "hash" | "exthdr" | "osf" | "xfrm" | "tunnel" => {
                state.registers.clear();
            }
            _ => {
                state.registers.clear();
                state.narrow(&xtables::unknown());
            }
        }
        Ok(())
    }

    /// Looks fields up: in a set, which narrows, or in a map, which also gives a verdict or words for registers.
    fn look_up(&mut self, state: &mut State, attributes: &Attributes<'_>) -> io::Result<()> {
        let name = attributes.text(1).ok_or_else(cut_off)?;
        let inverted = attributes.number(5).unwrap_or(0) & INVERTED != 0;
        let destination = attributes.number(3);
        let fields = state.fields_from(attributes.number(2));
        if destination.is_none() && fields.iter().all(|loaded| loaded.field == Field::Other) {
            state.narrow(&xtables::unknown());
            return Ok(());
        }
        let set = (self.sets)(&name)?;
        if destination.is_none()
            && let [loaded] = fields.as_slice()
        {
            // One field of a set: all elements together are one set of numbers.
            let is_its = |element: &&Element| element.keys.0.len().div_ceil(WORD_BYTES) == loaded.words();
            let numbers = set.elements.iter().map(|element| {
                let (first, last) = &Some(element).filter(is_its)?.keys;
                loaded.numbers(first, last)
            });
            let traffic = numbers.collect::<Option<Vec<RangeSet>>>().map(|sets| {
                let numbers: RangeSet =
                    sets.iter().flat_map(|set| set.ranges().collect::<Vec<_>>()).collect();
                loaded.narrowed(if inverted { numbers.inverse() } else { numbers })
            });
            let traffic = traffic.filter(|_| !inverted || loaded.is_alone());
            state.narrow(&traffic.unwrap_or_else(xtables::unknown));
            return Ok(());
        }
        let many = set.elements.len() * state.alternatives.len() > ALTERNATIVES;
        if many && destination == Some(0) {
            // Its verdicts cannot be left out: one may lead to a rule that sends.
            return Err(io::Error::other("a map of verdicts is too large to be followed"));
        }
        if inverted || many {
            state.narrow(&xtables::unknown());
            return Ok(());
        }
        state.branch(&fields, &set, destination);
        Ok(())
    }
}

impl State {
    /// A field comes into a register.
    fn load(
        &mut self,
        attributes: &Attributes<'_>,
        register: u16,
        what: impl Fn(&Attributes<'_>, &Traffic) -> Loaded,
    ) {
        // What is written from a register changes the packet or its marks, and loads nothing.
        let Some(word) = attributes.number(register).and_then(word_of) else { return };
        // All alternatives are of one family where one of them is.
        let traffic = self.alternatives.first().map_or_else(Traffic::all, |first| first.traffic.clone());
        let loaded = what(attributes, &traffic);
        // Of something else it is not known how long it is: as long as a large register.
        let words =
            if loaded.field == Field::Other { loaded.words().max(LARGE_WORDS) } else { loaded.words() };
        self.registers.retain(|at, before| *at >= word + words || at + before.words() <= word);
        for alternative in &mut self.alternatives {
            alternative.constants.retain(|at, _| !(word..word + words).contains(at));
        }
        self.registers.insert(word, loaded);
    }

    fn loaded(&self, register: Option<u32>) -> Loaded {
        register.and_then(word_of).and_then(|word| self.registers.get(&word)).copied().unwrap_or(SOMETHING)
    }

    /// The fields that lie one after the other from a register on.
    fn fields_from(&self, register: Option<u32>) -> Vec<Loaded> {
        let mut fields = Vec::new();
        let mut next = register.and_then(word_of);
        while let Some((word, loaded)) = next.and_then(|word| Some((word, self.registers.get(&word)?))) {
            fields.push(*loaded);
            next = Some(word + loaded.words());
        }
        if fields.is_empty() { vec![SOMETHING] } else { fields }
    }

    fn narrow(&mut self, by: &Traffic) {
        for alternative in &mut self.alternatives {
            alternative.traffic = alternative.traffic.and(by);
        }
        self.alternatives.retain(|alternative| !alternative.traffic.is_none());
    }

    fn mask(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        let (source, target) = (self.loaded(attributes.number(1)), attributes.number(2).and_then(word_of));
        let plain = attributes.number(6).unwrap_or(0) == 0 && source.mask.is_none();
        let mask = value(attributes.get(4).unwrap_or_default())?;
        let changed = value(attributes.get(5).unwrap_or_default())?;
        let unchanged = matches!(&changed, Some(Value::Data(xor)) if xor.iter().all(|byte| *byte == 0));
        let masked = match mask {
            Some(Value::Data(mask)) if plain && unchanged => {
                source.number(&mask).map(|mask| Loaded { mask: Some(mask), ..source })
            }
            _ => None,
        };
        if let Some(word) = target {
            self.registers.insert(word, masked.unwrap_or(Loaded { field: Field::Other, ..source }));
        }
        Ok(())
    }

    fn compare(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        let loaded = self.loaded(attributes.number(1));
        let Some(Value::Data(data)) = value(attributes.get(3).unwrap_or_default())? else {
            return Err(cut_off());
        };
        let same = loaded.numbers(&data, &data);
        let edge = same.as_ref().and_then(|same| same.ranges().next());
        let from = |first: Option<u128>| {
            first.map_or_else(RangeSet::none, |first| RangeSet::range(first..=u128::MAX))
        };
        let numbers = match (attributes.number(2), edge) {
            (Some(0), _) => same,
            // Of a field among others only equality says something, of one under a mask also its opposite.
            _ if !loaded.is_alone() => None,
            (Some(1), _) => same.map(|same| same.inverse()),
            _ if loaded.mask.is_some() => None,
            (Some(2), Some(edge)) => Some(from(Some(*edge.start())).inverse()),
            (Some(3), Some(edge)) => Some(from(edge.end().checked_add(1)).inverse()),
            (Some(4), Some(edge)) => Some(from(edge.end().checked_add(1))),
            (Some(5), Some(edge)) => Some(from(Some(*edge.start()))),
            _ => None,
        };
        self.narrow(&numbers.map_or_else(xtables::unknown, |numbers| loaded.narrowed(numbers)));
        Ok(())
    }

    fn range(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        let loaded = self.loaded(attributes.number(1));
        let edge = |kind| value(attributes.get(kind).unwrap_or_default());
        let (Some(Value::Data(first)), Some(Value::Data(last))) = (edge(3)?, edge(4)?) else {
            return Err(cut_off());
        };
        let numbers = loaded.numbers(&first, &last).filter(|_| loaded.mask.is_none() && loaded.is_alone());
        let inverted = attributes.number(2) == Some(1);
        let numbers = numbers.map(|numbers| if inverted { numbers.inverse() } else { numbers });
        self.narrow(&numbers.map_or_else(xtables::unknown, |numbers| loaded.narrowed(numbers)));
        Ok(())
    }

    fn immediate(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        match value(attributes.get(2).unwrap_or_default())? {
            Some(Value::Verdict(Verdict::Then(then))) => self.ends(&then),
            Some(Value::Data(data)) => {
                if let Some(word) = attributes.number(1).and_then(word_of) {
                    self.alternatives.iter_mut().for_each(|alternative| alternative.set(word, &data));
                }
            }
            Some(Value::Verdict(Verdict::None)) | None => {}
        }
        Ok(())
    }

    /// Each element of a map, or of a set of several fields, is a way of its own.
    fn branch(&mut self, fields: &[Loaded], set: &Set, destination: Option<u32>) {
        let mut branches = Vec::new();
        for element in &set.elements {
            let narrowed = element_traffic(fields, element);
            for alternative in &self.alternatives {
                let traffic = alternative.traffic.and(&narrowed);
                if !traffic.is_none() {
                    let comment = element.comment.clone().or_else(|| alternative.comment.clone());
                    branches.push((Alternative { traffic, comment, ..alternative.clone() }, &element.value));
                }
            }
        }
        let word = destination.and_then(word_of);
        match destination {
            // A map of verdicts: what no element is for goes on.
            Some(0) => {
                for (alternative, value) in branches {
                    if let Some(Value::Verdict(Verdict::Then(then))) = value {
                        self.rules.push(alternative.rule(then.clone(), self.comment.as_ref()));
                    }
                }
                self.narrow(&xtables::unknown());
            }
            _ => {
                self.alternatives = branches
                    .into_iter()
                    .map(|(mut alternative, value)| {
                        if let (Some(word), Some(Value::Data(data))) = (word, value) {
                            alternative.set(word, data);
                        }
                        alternative
                    })
                    .collect();
            }
        }
    }

    fn matches(&mut self, attributes: &Attributes<'_>) {
        let name = attributes.text(1).unwrap_or_default();
        let (revision, info) = (attributes.number(2).unwrap_or(0), attributes.get(3).unwrap_or_default());
        match xtables::decode_match(&name, revision, self.family(), info) {
            Match::Narrows(traffic) => self.narrow(&traffic),
            Match::Comment(comment) => self.comment = Some(comment),
        }
    }

    fn target(&mut self, attributes: &Attributes<'_>) {
        let name = attributes.text(1).unwrap_or_default();
        let (revision, info) = (attributes.number(2).unwrap_or(0), attributes.get(3).unwrap_or_default());
        match xtables::decode_target(&name, revision, self.family(), info) {
            Target::Send(destination) => self.ends(&Then::Send(destination)),
            Target::Ends => self.ends(&Then::End),
            Target::Continues => {}
        }
    }

    /// iptables has a table for each family.
    fn family(&self) -> Family {
        let four = self.alternatives.iter().any(|alternative| !alternative.traffic.four.is_none());
        if four { Family::Four } else { Family::Six }
    }

    fn nat(&mut self, attributes: &Attributes<'_>) {
        if attributes.number(1) != Some(DNAT) {
            return self.ends(&Then::End);
        }
        let six = attributes.number(2) == u32::try_from(NFPROTO_SIX).ok();
        let (address, port) =
            (attributes.number(3).and_then(word_of), attributes.number(5).and_then(word_of));
        self.end_each(|alternative| {
            let address = address.and_then(|word| match six {
                true => {
                    let words: Option<Vec<[u8; WORD_BYTES]>> =
                        (word..word + 4).map(|word| alternative.constants.get(&word).copied()).collect();
                    <[u8; 16]>::try_from(words?.concat()).ok().map(IpAddr::from)
                }
                false => alternative.constants.get(&word).copied().map(IpAddr::from),
            });
            Then::Send(Destination { address, port: port.and_then(|word| alternative.port(word)) })
        });
    }

    fn redirect(&mut self, attributes: &Attributes<'_>) {
        let port = attributes.number(1).and_then(word_of);
        self.end_each(|alternative| {
            Then::Send(Destination { address: None, port: port.and_then(|word| alternative.port(word)) })
        });
    }

    fn end_each(&mut self, then: impl Fn(&Alternative) -> Then) {
        for alternative in std::mem::take(&mut self.alternatives) {
            self.rules.push(alternative.rule(then(&alternative), self.comment.as_ref()));
        }
    }

    /// All ways end alike: one rule.
    fn ends(&mut self, then: &Then) {
        let alternatives = std::mem::take(&mut self.alternatives);
        let Some(first) = alternatives.first() else { return };
        let comment = first.comment.clone().or_else(|| self.comment.clone());
        let traffic = alternatives.into_iter().map(|alternative| alternative.traffic).collect();
        self.rules.push(Rule { traffic, comment, then: then.clone() });
    }
}

impl Alternative {
    fn rule(&self, then: Then, comment: Option<&String>) -> Rule {
        Rule {
            traffic: vec![self.traffic.clone()],
            comment: self.comment.as_ref().or(comment).cloned(),
            then,
        }
    }

    fn set(&mut self, word: usize, data: &[u8]) {
        for (n, chunk) in data.chunks(WORD_BYTES).enumerate() {
            let mut bytes = [0; WORD_BYTES];
            bytes.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.constants.insert(word + n, bytes);
        }
    }

    fn port(&self, word: usize) -> Option<u16> {
        let [high, low, ..] = *self.constants.get(&word)?;
        Some(u16::from_be_bytes([high, low]))
    }
}

impl Loaded {
    /// Bytes of this field as a number; what was not loaded of it is zero.
    fn number(&self, bytes: &[u8]) -> Option<u128> {
        let own = bytes.get(self.skipped..self.skipped + self.bytes)?;
        let number = own.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        // The kernel keeps this one in its own byte order.
        if self.field == Field::DestinationType {
            return Some(u32::from_ne_bytes(own.try_into().ok()?).into());
        }
        number.checked_shl(self.missing_bits()?)
    }

    fn words(&self) -> usize {
        self.length.div_ceil(WORD_BYTES).max(1)
    }

    /// Whether nothing else was loaded beside it.
    fn is_alone(&self) -> bool {
        self.bytes == self.length
    }

    /// Traffic whose field is one of these numbers; what is beside it is not looked at.
    fn narrowed(&self, numbers: RangeSet) -> Traffic {
        let traffic = narrowed(self.field, numbers);
        Traffic { share: traffic.share.max(xtables::some_if(!self.is_alone())), ..traffic }
    }

    fn missing_bits(&self) -> Option<u32> {
        self.field.bits().checked_sub(u32::try_from(self.bytes).ok()? * 8)
    }

    /// The numbers of this field from one key to another.
    fn numbers(&self, first: &[u8], last: &[u8]) -> Option<RangeSet> {
        match self.field {
            Field::Other => return None,
            // Every number has its turn.
            Field::Chance => return Some(RangeSet::all()),
            _ if !self.is_alone() && first != last => return None,
            _ => {}
        }
        let (first, last) = (self.number(first)?, self.number(last)?);
        match self.mask {
            Some(mask) => xtables::network(first, mask, self.field.bits(), false).filter(|_| first == last),
            None => {
                let rest = 1u128.checked_shl(self.missing_bits()?)? - 1;
                Some(RangeSet::range(first..=last | rest))
            }
        }
    }
}

fn element_traffic(fields: &[Loaded], element: &Element) -> Traffic {
    let mut traffic = Traffic::all();
    let mut at = 0;
    for loaded in fields {
        let key = |key: &[u8]| key.get(at..at + loaded.length).map(<[u8]>::to_vec);
        let numbers = key(&element.keys.0)
            .zip(key(&element.keys.1))
            .and_then(|(first, last)| loaded.numbers(&first, &last));
        traffic = traffic.and(&numbers.map_or_else(xtables::unknown, |numbers| loaded.narrowed(numbers)));
        at += loaded.length.next_multiple_of(WORD_BYTES);
    }
    // The key has other fields than those that are known to be there.
    if element.keys.0.len().next_multiple_of(WORD_BYTES) == at { traffic } else { xtables::unknown() }
}

/// Traffic whose field is one of these numbers.
fn narrowed(field: Field, numbers: RangeSet) -> Traffic {
    let if_has = |number| if numbers.contains(number) { RangeSet::all() } else { RangeSet::none() };
    let all = Traffic::all();
    match field {
        Field::Protocol => Traffic { protocols: numbers, ..all },
        Field::Port => Traffic { ports: numbers, ..all },
        Field::Four => Traffic { four: numbers, six: RangeSet::none(), ..all },
        Field::Six => Traffic { six: numbers, four: RangeSet::none(), ..all },
        Field::NfProto => Traffic { four: if_has(NFPROTO_FOUR), six: if_has(NFPROTO_SIX), ..all },
        Field::EtherType => Traffic { four: if_has(ETHERTYPE_FOUR), six: if_has(ETHERTYPE_SIX), ..all },
        Field::DestinationType => Traffic { four: if_has(LOCAL), six: if_has(LOCAL), ..all },
        Field::Chance => xtables::by_chance(),
        Field::Other => xtables::unknown(),
    }
}

/// The word of a register; none for the one of verdicts.
fn word_of(register: u32) -> Option<usize> {
    let word = match register {
        0 => return None,
        1..FIRST_SMALL_REGISTER => (register - 1) * 4,
        _ => register - FIRST_SMALL_REGISTER,
    };
    usize::try_from(word).ok()
}

fn payload(attributes: &Attributes<'_>, traffic: &Traffic) -> Loaded {
    let number = |kind| attributes.number(kind).and_then(|number| usize::try_from(number).ok());
    let (first, length) = (number(3).unwrap_or(usize::MAX), number(4).unwrap_or(0).min(KEY_MAX));
    let (is_four, is_six) = (traffic.six.is_none(), traffic.four.is_none());
    // Where the fields lie in their headers (RFC 791, 8200, 768, 9293).
    let fields: &[(Field, usize)] = match attributes.number(2) {
        Some(TRANSPORT_HEADER) => &[(Field::Port, 2)],
        Some(NETWORK_HEADER) if is_four => &[(Field::Four, 16), (Field::Protocol, 9)],
        Some(NETWORK_HEADER) if is_six => &[(Field::Six, 24), (Field::Protocol, 6)],
        _ => &[],
    };
    let within = |(field, at): &(Field, usize)| {
        let bytes = usize::try_from(field.bits() / 8).ok()?;
        let skipped = at.checked_sub(first)?;
        let own = length.checked_sub(skipped)?.min(bytes);
        // Of an address its beginning may be enough.
        let enough = own == bytes || (own > 0 && matches!(field, Field::Four | Field::Six));
        enough.then_some(Loaded { field: *field, skipped, bytes: own, length, mask: None })
    };
    fields.iter().find_map(within).unwrap_or(of(Field::Other, length))
}

fn meta(attributes: &Attributes<'_>) -> Loaded {
    match attributes.number(2) {
        Some(META_PROTOCOL) => of(Field::EtherType, 2),
        Some(META_NFPROTO) => of(Field::NfProto, 1),
        Some(META_L4PROTO) => of(Field::Protocol, 1),
        Some(key) if META_INTERFACES.contains(&key) => of(Field::Other, INTERFACE_BYTES),
        _ => SOMETHING,
    }
}

fn fib(attributes: &Attributes<'_>) -> Loaded {
    let of_destination =
        attributes.number(2) == Some(FIB_ADDRTYPE) && attributes.number(3) == Some(FIB_DESTINATION);
    Loaded { field: if of_destination { Field::DestinationType } else { Field::Other }, ..SOMETHING }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attributes::tests::attribute;
    use super::*;
    use crate::model::nat::Share;

    fn number(kind: u16, number: u32) -> Vec<u8> {
        attribute(kind, &number.to_be_bytes())
    }

    fn data(kind: u16, value: &[u8]) -> Vec<u8> {
        attribute(kind, &attribute(DATA_VALUE, value))
    }

    fn expression(name: &str, content: &[Vec<u8>]) -> Vec<u8> {
        let name = attribute(EXPRESSION_NAME, &[name.as_bytes(), &[0]].concat());
        attribute(1, &[name, attribute(EXPRESSION_DATA, &content.concat())].concat())
    }

    /// `th dport` into the first register, and a comparison with it.
    fn destination_port(port: u16) -> Vec<u8> {
        let load =
            expression("payload", &[number(1, 1), number(2, TRANSPORT_HEADER), number(3, 2), number(4, 2)]);
        [load, expression("cmp", &[number(1, 1), number(2, 0), data(3, &port.to_be_bytes())])].concat()
    }

    fn read(expressions: &[u8]) -> io::Result<Vec<Rule>> {
        let mut sets = |_: &str| Ok(Rc::new(Set::default()));
        Reading { sees: Traffic::all(), sets: &mut sets }.rules(expressions, None)
    }

    #[test]
    fn what_is_not_known_hides_no_rule() {
        let redirect = || expression("redir", &[]);
        let plain = read(&[destination_port(8080), redirect()].concat()).unwrap();
        assert_eq!(plain[0].traffic[0], Traffic { ports: RangeSet::one(8080u16), ..Traffic::all() });
        let odd = [destination_port(8080), expression("quantum", &[number(1, 1)]), redirect()].concat();
        let traffic = &read(&odd).unwrap()[0].traffic[0];
        assert_eq!((&traffic.ports, traffic.share), (&RangeSet::one(8080u16), Share::Some));
        // A comparison with what an unknown expression left in the register is about anything.
        let compare = expression("cmp", &[number(1, 1), number(2, 0), data(3, &[0, 1])]);
        let loaded = [destination_port(8080), expression("quantum", &[]), compare, redirect()].concat();
        assert_eq!(read(&loaded).unwrap()[0].traffic[0].ports, RangeSet::one(8080u16));
    }

    #[test]
    fn of_fields_compared_at_once_the_destination_counts() {
        let load =
            expression("payload", &[number(1, 1), number(2, TRANSPORT_HEADER), number(3, 0), number(4, 4)]);
        let compare = |operation| {
            expression("cmp", &[number(1, 1), number(2, operation), data(3, &[0, 7, 0x1f, 0x90])])
        };
        let of = |operation| {
            let rules = read(&[load.clone(), compare(operation), expression("redir", &[])].concat()).unwrap();
            (rules[0].traffic[0].ports.clone(), rules[0].traffic[0].share)
        };
        assert_eq!(of(0), (RangeSet::one(8080u16), Share::Some));
        assert_eq!(of(1), (RangeSet::all(), Share::Some), "that they differ says nothing of one of them");
    }

    #[test]
    fn a_rule_that_is_cut_off_is_an_error() {
        let whole = [destination_port(8080), expression("redir", &[])].concat();
        let cuts = (1..whole.len()).filter(|cut| read(&whole[..*cut]).is_ok()).count();
        assert!(cuts <= 2, "only between two expressions a rule may end: {cuts}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = (verdict(&bytes), value(&bytes), comment(&bytes));
        }

        #[test]
        fn no_numbers_panic(
            name in 0..13usize,
            numbers in proptest::collection::vec((1..9u16, prop_oneof![0..40u32, any::<u32>()]), 0..9),
            bytes in proptest::collection::vec(any::<u8>(), 0..70),
            keys in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..20), proptest::collection::vec(any::<u8>(), 0..20)), 0..4),
        ) {
            let names = ["payload", "meta", "fib", "bitwise", "cmp", "range", "immediate", "lookup", "match", "target", "nat", "redir", "numgen"];
            let mut content: Vec<Vec<u8>> = numbers.iter().map(|(kind, value)| number(*kind, *value)).collect();
            content.extend((1..6).map(|kind| data(kind, &bytes)));
            let odd = expression(names[name], &content);
            let elements = keys.into_iter().map(|keys| Element { keys, value: Some(Value::Data(bytes.clone())), comment: None });
            let set = Rc::new(Set { elements: elements.collect() });
            let mut sets = |_: &str| Ok(set.clone());
            let expressions = [destination_port(1), odd.clone(), odd, expression("redir", &[number(1, 1)])].concat();
            let _ = Reading { sees: Traffic::all(), sets: &mut sets }.rules(&expressions, None);
        }
    }
}
