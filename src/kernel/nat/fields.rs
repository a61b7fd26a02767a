//! What the registers of nftables hold: fields of a packet, as expressions load them (linux/netfilter/nf_tables.h), and what traffic is
//! left when one of them is compared.

use super::attributes::Attributes;
use super::xtables;
use crate::model::nat::Traffic;
use crate::model::ranges::RangeSet;

/// `NFTA_PAYLOAD_BASE`, `_OFFSET`, `_LEN`; `NFTA_META_KEY`; `NFTA_FIB_RESULT`, `_FLAGS`.
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const META_KEY: u16 = 2;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
/// `NFT_META_PROTOCOL`, `NFT_META_NFPROTO`, `NFT_META_L4PROTO`.
const META_PROTOCOL: u32 = 1;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`, `RTN_LOCAL`.
const FIB_ADDRTYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const LOCAL: u128 = 2;
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`, and their types in an Ethernet frame.
const NFPROTO_FOUR: u128 = 2;
pub(super) const NFPROTO_SIX: u128 = 10;
const ETHERTYPE_FOUR: u128 = 0x0800;
const ETHERTYPE_SIX: u128 = 0x86dd;
/// Registers are counted in words of 32 bits: `NFT_REG_1` to `_4` have four of them, `NFT_REG32_00` begins at 8.
pub(super) const WORD_BYTES: usize = 4;
const FIRST_SMALL_REGISTER: u32 = 8;
pub(super) const LARGE_WORDS: usize = 4;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, and as much as they load (`IFNAMSIZ`).
const META_INTERFACES: [u32; 2] = [6, 7];
const INTERFACE_BYTES: usize = 16;
/// As much as all registers hold (`NFT_DATA_VALUE_MAXLEN`).
pub(super) const KEY_MAX: usize = 64;
/// A field of a packet, or what is known of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
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
pub(super) struct Loaded {
    pub(super) field: Field,
    /// Bytes of other fields before it,
    skipped: usize,
    /// its own,
    bytes: usize,
    /// and all.
    pub(super) length: usize,
    pub(super) mask: Option<u128>,
}

pub(super) const SOMETHING: Loaded = of(Field::Other, WORD_BYTES);

pub(super) const fn of(field: Field, bytes: usize) -> Loaded {
    Loaded { field, skipped: 0, bytes, length: bytes, mask: None }
}

impl Loaded {
    /// Bytes of this field as a number; what was not loaded of it is zero.
    pub(super) fn number(&self, bytes: &[u8]) -> Option<u128> {
        let own = bytes.get(self.skipped..self.skipped + self.bytes)?;
        let number = own.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        // The kernel keeps this one in its own byte order.
        if self.field == Field::DestinationType {
            return Some(u32::from_ne_bytes(own.try_into().ok()?).into());
        }
        number.checked_shl(self.missing_bits()?)
    }

    /// The same under a mask; none where it is under one already.
    pub(super) fn masked(self, mask: &[u8]) -> Option<Loaded> {
        let mask = self.number(mask).filter(|_| self.mask.is_none())?;
        Some(Loaded { mask: Some(mask), ..self })
    }

    /// Words of registers that it fills.
    pub(super) fn words(&self) -> usize {
        self.length.div_ceil(WORD_BYTES).max(1)
    }

    /// Whether nothing else was loaded beside it.
    pub(super) fn is_alone(&self) -> bool {
        self.bytes == self.length
    }

    /// Traffic whose field is one of these numbers; what is beside it is not looked at.
    pub(super) fn narrowed(&self, numbers: RangeSet) -> Traffic {
        let traffic = narrowed(self.field, numbers);
        Traffic { share: traffic.share.max(xtables::some_if(!self.is_alone())), ..traffic }
    }

    fn missing_bits(&self) -> Option<u32> {
        self.field.bits().checked_sub(u32::try_from(self.bytes).ok()? * 8)
    }

    /// The numbers of this field from one key to another.
    pub(super) fn numbers(&self, first: &[u8], last: &[u8]) -> Option<RangeSet> {
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
pub(super) fn word_of(register: u32) -> Option<usize> {
    let word = match register {
        0 => return None,
        1..FIRST_SMALL_REGISTER => (register - 1) * 4,
        _ => register - FIRST_SMALL_REGISTER,
    };
    usize::try_from(word).ok()
}

pub(super) fn payload(attributes: &Attributes<'_>, traffic: &Traffic) -> Loaded {
    let number = |kind| attributes.number(kind).and_then(|number| usize::try_from(number).ok());
    let (first, length) =
        (number(PAYLOAD_OFFSET).unwrap_or(usize::MAX), number(PAYLOAD_LENGTH).unwrap_or(0).min(KEY_MAX));
    let (is_four, is_six) = (traffic.six.is_none(), traffic.four.is_none());
    // Where the fields lie in their headers (RFC 791, 8200, 768, 9293).
    let fields: &[(Field, usize)] = match attributes.number(PAYLOAD_BASE) {
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

pub(super) fn meta(attributes: &Attributes<'_>) -> Loaded {
    match attributes.number(META_KEY) {
        Some(META_PROTOCOL) => of(Field::EtherType, 2),
        Some(META_NFPROTO) => of(Field::NfProto, 1),
        Some(META_L4PROTO) => of(Field::Protocol, 1),
        Some(key) if META_INTERFACES.contains(&key) => of(Field::Other, INTERFACE_BYTES),
        _ => SOMETHING,
    }
}

pub(super) fn fib(attributes: &Attributes<'_>) -> Loaded {
    let of_destination = attributes.number(FIB_RESULT) == Some(FIB_ADDRTYPE)
        && attributes.number(FIB_FLAGS) == Some(FIB_DESTINATION);
    Loaded { field: if of_destination { Field::DestinationType } else { Field::Other }, ..SOMETHING }
}
