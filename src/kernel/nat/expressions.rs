//! What a rule of nftables says, by its expressions (linux/netfilter/nf_tables.h): they load fields of a packet into registers,
//! compare them, look them up, and end with a verdict. Here the registers hold which field was loaded, and a comparison narrows
//! the traffic that the rule is for. What is not understood narrows nothing, and is told as "only some of it".

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use super::attributes::{Attributes, cut_off, text};
use super::fields::{self, Field, LARGE_WORDS, Loaded, NFPROTO_SIX, SOMETHING, WORD_BYTES, of, word_of};
use super::xtables::{self, Family, Match, Target};
use crate::model::nat::{Destination, Rule, Then, Traffic};
use crate::model::ranges::RangeSet;

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_PAYLOAD_DREG`, and the same of whatever loads something: the register.
const LOAD_REGISTER: u16 = 1;
/// `NFTA_CMP_*`, `enum nft_cmp_ops`.
const CMP_SOURCE: u16 = 1;
const CMP_OPERATION: u16 = 2;
const CMP_DATA: u16 = 3;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const LESS: u32 = 2;
const LESS_OR_EQUAL: u32 = 3;
const GREATER: u32 = 4;
const GREATER_OR_EQUAL: u32 = 5;
/// `NFTA_RANGE_*`; its operations begin as those above.
const RANGE_SOURCE: u16 = 1;
const RANGE_OPERATION: u16 = 2;
const RANGE_FIRST: u16 = 3;
const RANGE_LAST: u16 = 4;
/// `NFTA_BITWISE_*`, `NFT_BITWISE_MASK_XOR`.
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OPERATION: u16 = 6;
const MASK_AND_XOR: u32 = 0;
/// `NFTA_LOOKUP_*`.
const LOOKUP_SET: u16 = 1;
const LOOKUP_SOURCE: u16 = 2;
const LOOKUP_DESTINATION: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
/// `NFTA_IMMEDIATE_DATA`.
const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_NAT_*`, `NFTA_REDIR_REG_PROTO_MIN`.
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDRESS: u16 = 3;
const NAT_PORT: u16 = 5;
const REDIRECT_PORT: u16 = 1;
/// `NFTA_MATCH_*`, the same for targets.
const EXTENSION_NAME: u16 = 1;
const EXTENSION_REVISION: u16 = 2;
const EXTENSION_INFO: u16 = 3;
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
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
/// More alternatives of one rule are told as "some of it": sets have any size.
const ALTERNATIVES: usize = 20_000;

/// What following the rules of one namespace may take, in looks at a way through a rule. A cluster of ten thousand services takes a
/// hundredth of it.
const WORK: usize = 20_000_000;

/// A set or a map: its elements.
pub(super) type Set = Rc<Vec<Element>>;

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
    /// A verdict; none where the rule goes on.
    Verdict(Option<Then>),
    Data(Vec<u8>),
}

/// One way to go through a rule.
#[derive(Debug, Clone)]
struct Alternative {
    traffic: Traffic,
    /// Words that registers were given.
    constants: HashMap<usize, [u8; WORD_BYTES]>,
    comment: Option<String>,
}

/// What reading rules may take: whoever has a namespace of his own writes rules into it as he likes.
#[derive(Debug)]
pub struct Budget {
    work: usize,
    /// Ways through rules that may be kept.
    ways: usize,
}

impl Budget {
    /// Of a namespace of which so many ways through rules may be kept.
    pub fn new(ways: usize) -> Self {
        Budget { work: WORK, ways }
    }

    fn spend(&mut self, work: usize) -> io::Result<()> {
        self.work = self.work.checked_sub(work).ok_or_else(too_many)?;
        Ok(())
    }

    fn keep(&mut self, rules: &[Rule]) -> io::Result<()> {
        self.ways = self.ways.checked_sub(ways(rules)).ok_or_else(too_many)?;
        Ok(())
    }
}

/// In how many ways packets may go through these rules: what it takes to keep them.
pub(super) fn ways(rules: &[Rule]) -> usize {
    rules.iter().map(|rule| rule.traffic.len().max(1)).sum()
}

pub(super) fn too_many() -> io::Error {
    io::Error::other("there are more than can be followed")
}

/// Reads rules of one table.
pub(super) struct Reading<'a> {
    /// What a table of this family sees of the traffic.
    pub(super) sees: Traffic,
    /// The sets of the table.
    pub(super) sets: &'a mut dyn FnMut(&str) -> io::Result<Set>,
    /// What that may take.
    pub(super) budget: &'a mut Budget,
}

struct State {
    registers: HashMap<usize, Loaded>,
    alternatives: Vec<Alternative>,
    rules: Vec<Rule>,
    comment: Option<String>,
}

/// A verdict within `NFTA_DATA_VERDICT`; none where the rule goes on.
fn verdict(bytes: &[u8]) -> io::Result<Option<Then>> {
    let attributes = Attributes::parse(bytes)?;
    let chain = || attributes.text(VERDICT_CHAIN).ok_or_else(cut_off);
    Ok(Some(match attributes.number(VERDICT_CODE).ok_or_else(cut_off)?.cast_signed() {
        CONTINUE | BREAK => return Ok(None),
        JUMP => Then::Jump(chain()?),
        GOTO => Then::Goto(chain()?),
        RETURN => Then::Return,
        _ => Then::End,
    }))
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
            self.budget.spend(1 + state.alternatives.len())?;
            self.follow(&mut state, &name, expression.get(EXPRESSION_DATA).unwrap_or_default())?;
        }
        self.budget.keep(&state.rules)?;
        Ok(state.rules)
    }

    fn follow(&mut self, state: &mut State, name: &str, data: &[u8]) -> io::Result<()> {
        let attributes = || Attributes::parse(data);
        match name {
            "payload" => state.load(&attributes()?, fields::payload),
            "meta" => state.load(&attributes()?, |attributes, _| fields::meta(attributes)),
            "fib" => state.load(&attributes()?, |attributes, _| fields::fib(attributes)),
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
            "numgen" => state.load(&attributes()?, |_, _| of(Field::Chance, WORD_BYTES)),
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
        let name = attributes.text(LOOKUP_SET).ok_or_else(cut_off)?;
        let inverted = attributes.number(LOOKUP_FLAGS).unwrap_or(0) & INVERTED != 0;
        let destination = attributes.number(LOOKUP_DESTINATION);
        let fields = state.fields_from(attributes.number(LOOKUP_SOURCE));
        if destination.is_none() && fields.iter().all(|loaded| loaded.field == Field::Other) {
            state.narrow(&xtables::unknown());
            return Ok(());
        }
        let set = (self.sets)(&name)?;
        self.budget.spend(set.len())?;
        match (destination, fields.as_slice()) {
            // One field of a set: all elements together are one set of numbers.
            (None, [loaded]) => state.narrow(&among(loaded, &set, inverted)),
            _ if set.len() * state.alternatives.len() > ALTERNATIVES => match destination {
                // Verdicts cannot be left out: one may lead to a rule that sends.
                Some(VERDICT_REGISTER) => {
                    return Err(too_many());
                }
                _ => state.narrow(&xtables::unknown()),
            },
            _ if inverted => state.narrow(&xtables::unknown()),
            // Whoever has several maps of verdicts in one rule has as many ways as they have elements.
            _ if ways(&state.rules) > ALTERNATIVES => return Err(too_many()),
            _ => state.branch(&fields, &set, destination),
        }
        Ok(())
    }
}

/// Traffic whose field is in a set, or in none of its elements.
fn among(loaded: &Loaded, set: &[Element], inverted: bool) -> Traffic {
    if inverted && !loaded.is_alone() {
        return xtables::unknown();
    }
    let is_its = |element: &&Element| element.keys.0.len().div_ceil(WORD_BYTES) == loaded.words();
    let numbers = set.iter().map(|element| {
        let (first, last) = &Some(element).filter(is_its)?.keys;
        loaded.numbers(first, last)
    });
    let Some(numbers) = numbers.collect::<Option<Vec<RangeSet>>>() else { return xtables::unknown() };
    let all: RangeSet = numbers.iter().flat_map(RangeSet::ranges).collect();
    loaded.narrowed(if inverted { all.inverse() } else { all })
}

impl State {
    /// A field comes into a register.
    fn load(&mut self, attributes: &Attributes<'_>, what: impl Fn(&Attributes<'_>, &Traffic) -> Loaded) {
        // What is written from a register changes the packet or its marks, and loads nothing.
        let Some(word) = attributes.number(LOAD_REGISTER).and_then(word_of) else { return };
        // All alternatives are of one family where one of them is.
        let traffic = self.alternatives.first().map_or_else(Traffic::all, |first| first.traffic.clone());
        let loaded = what(attributes, &traffic);
        self.put(word, loaded);
    }

    fn put(&mut self, word: usize, loaded: Loaded) {
        // Of something else it is not known how long it is: as long as a large register.
        let other = loaded.field == Field::Other;
        self.overwrite(word, if other { loaded.words().max(LARGE_WORDS) } else { loaded.words() });
        self.registers.insert(word, loaded);
    }

    /// Forgets what these words held: a field that is no longer there must narrow nothing.
    fn overwrite(&mut self, word: usize, words: usize) {
        self.registers.retain(|at, before| *at >= word + words || at + before.words() <= word);
        for alternative in &mut self.alternatives {
            alternative.constants.retain(|at, _| !(word..word + words).contains(at));
        }
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
        let source = self.loaded(attributes.number(BITWISE_SOURCE));
        let masks = attributes.number(BITWISE_OPERATION).unwrap_or(MASK_AND_XOR) == MASK_AND_XOR;
        let mask = value(attributes.get(BITWISE_MASK).unwrap_or_default())?;
        let changed = value(attributes.get(BITWISE_XOR).unwrap_or_default())?;
        let unchanged = matches!(&changed, Some(Value::Data(xor)) if xor.iter().all(|byte| *byte == 0));
        let masked = match mask {
            Some(Value::Data(mask)) if masks && unchanged => source.masked(&mask),
            _ => None,
        };
        if let Some(word) = attributes.number(BITWISE_DESTINATION).and_then(word_of) {
            self.put(word, masked.unwrap_or(of(Field::Other, source.length)));
        }
        Ok(())
    }

    fn compare(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        let loaded = self.loaded(attributes.number(CMP_SOURCE));
        let Some(Value::Data(data)) = value(attributes.get(CMP_DATA).unwrap_or_default())? else {
            return Err(cut_off());
        };
        let same = loaded.numbers(&data, &data);
        let edge = same.as_ref().and_then(|same| same.ranges().next());
        let from = |first: Option<u128>| {
            first.map_or_else(RangeSet::none, |first| RangeSet::range(first..=u128::MAX))
        };
        let numbers = match (attributes.number(CMP_OPERATION), edge) {
            (Some(EQUAL), _) => same,
            // Of a field among others only equality says something, of one under a mask also its opposite.
            _ if !loaded.is_alone() => None,
            (Some(NOT_EQUAL), _) => same.map(|same| same.inverse()),
            _ if loaded.mask.is_some() => None,
            (Some(LESS), Some(edge)) => Some(from(Some(*edge.start())).inverse()),
            (Some(LESS_OR_EQUAL), Some(edge)) => Some(from(edge.end().checked_add(1)).inverse()),
            (Some(GREATER), Some(edge)) => Some(from(edge.end().checked_add(1))),
            (Some(GREATER_OR_EQUAL), Some(edge)) => Some(from(Some(*edge.start()))),
            _ => None,
        };
        self.narrow(&numbers.map_or_else(xtables::unknown, |numbers| loaded.narrowed(numbers)));
        Ok(())
    }

    fn range(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        let loaded = self.loaded(attributes.number(RANGE_SOURCE));
        let edge = |kind| value(attributes.get(kind).unwrap_or_default());
        let (Some(Value::Data(first)), Some(Value::Data(last))) = (edge(RANGE_FIRST)?, edge(RANGE_LAST)?)
        else {
            return Err(cut_off());
        };
        let numbers = loaded.numbers(&first, &last).filter(|_| loaded.mask.is_none() && loaded.is_alone());
        let inverted = attributes.number(RANGE_OPERATION) == Some(NOT_EQUAL);
        let numbers = numbers.map(|numbers| if inverted { numbers.inverse() } else { numbers });
        self.narrow(&numbers.map_or_else(xtables::unknown, |numbers| loaded.narrowed(numbers)));
        Ok(())
    }

    fn immediate(&mut self, attributes: &Attributes<'_>) -> io::Result<()> {
        match value(attributes.get(IMMEDIATE_DATA).unwrap_or_default())? {
            Some(Value::Verdict(Some(then))) => self.ends(&then),
            Some(Value::Data(data)) => {
                if let Some(word) = attributes.number(LOAD_REGISTER).and_then(word_of) {
                    self.overwrite(word, data.len().div_ceil(WORD_BYTES));
                    self.alternatives.iter_mut().for_each(|alternative| alternative.set(word, &data));
                }
            }
            Some(Value::Verdict(None)) | None => {}
        }
        Ok(())
    }

    /// Each element of a map, or of a set of several fields, is a way of its own.
    fn branch(&mut self, fields: &[Loaded], set: &[Element], destination: Option<u32>) {
        let mut branches = Vec::new();
        for element in set {
            let narrowed = element_traffic(fields, element);
            for alternative in &self.alternatives {
                let traffic = alternative.traffic.and(&narrowed);
                if !traffic.is_none() {
                    let comment = element.comment.clone().or_else(|| alternative.comment.clone());
                    branches.push((Alternative { traffic, comment, ..alternative.clone() }, &element.value));
                }
            }
        }
        if destination == Some(VERDICT_REGISTER) {
            for (alternative, value) in branches {
                if let Some(Value::Verdict(Some(then))) = value {
                    self.rules.push(alternative.rule(then.clone(), self.comment.as_ref()));
                }
            }
            // What no element is for goes on.
            return self.narrow(&xtables::unknown());
        }
        let word = destination.and_then(word_of);
        if let Some(word) = word {
            let longest = set.iter().map(|element| element.value.as_ref().map_or(0, Value::words)).max();
            self.overwrite(word, longest.unwrap_or(0));
        }
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

    fn matches(&mut self, attributes: &Attributes<'_>) {
        let (name, revision, info) = extension(attributes);
        match xtables::decode_match(&name, revision, self.family(), info) {
            Match::Narrows(traffic) => self.narrow(&traffic),
            Match::Comment(comment) => self.comment = Some(comment),
        }
    }

    fn target(&mut self, attributes: &Attributes<'_>) {
        let (name, revision, info) = extension(attributes);
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
        if attributes.number(NAT_TYPE) != Some(DNAT) {
            return self.ends(&Then::End);
        }
        let six = attributes.number(NAT_FAMILY) == u32::try_from(NFPROTO_SIX).ok();
        let (address, port) =
            (attributes.number(NAT_ADDRESS).and_then(word_of), attributes.number(NAT_PORT).and_then(word_of));
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
        let port = attributes.number(REDIRECT_PORT).and_then(word_of);
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

impl Value {
    /// Words of registers that it fills.
    fn words(&self) -> usize {
        match self {
            Value::Data(data) => data.len().div_ceil(WORD_BYTES),
            Value::Verdict(_) => 0,
        }
    }
}

/// Name, revision and content of a match or a target of iptables.
fn extension<'a>(attributes: &Attributes<'a>) -> (String, u32, &'a [u8]) {
    (
        attributes.text(EXTENSION_NAME).unwrap_or_default(),
        attributes.number(EXTENSION_REVISION).unwrap_or(0),
        attributes.get(EXTENSION_INFO).unwrap_or_default(),
    )
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attributes::attribute;
    use super::super::fields::TRANSPORT_HEADER;
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
        let mut sets = |_: &str| Ok(Set::default());
        let budget = &mut Budget::new(1000);
        Reading { sees: Traffic::all(), sets: &mut sets, budget }.rules(expressions, None)
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
            let set: Set = Rc::new(elements.collect());
            let mut sets = |_: &str| Ok(set.clone());
            let expressions = [destination_port(1), odd.clone(), odd, expression("redir", &[number(1, 1)])].concat();
            let budget = &mut Budget::new(1000);
            let _ = Reading { sees: Traffic::all(), sets: &mut sets, budget }.rules(&expressions, None);
        }
    }
}
