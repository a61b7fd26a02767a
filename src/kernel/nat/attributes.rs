//! Attributes of netlink (`struct nlattr` of linux/netlink.h). What is cut off is an error here and not an end: a rule that is
//! read in part would be a port that seems free.

use std::io;

/// Its top two bits say that it holds attributes, and in which order its bytes are.
const TYPE_BITS: u16 = 0x3fff;
const HEADER_BYTES: usize = 4;

/// The attributes of one message, or within one attribute.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Errors: an attribute that is shorter than its header or longer than what holds it.
    pub(super) fn parse(mut bytes: &'a [u8]) -> io::Result<Self> {
        let mut found = Vec::with_capacity(8);
        while !bytes.is_empty() {
            let (kind, value, rest) = split(bytes).ok_or_else(cut_off)?;
            found.push((kind & TYPE_BITS, value));
            bytes = rest;
        }
        Ok(Attributes(found))
    }

    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }

    /// The values of all attributes, whatever their type: a list.
    pub(super) fn values(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.0.iter().map(|(_, value)| *value)
    }

    /// Attributes within an attribute; none where it is missing.
    pub(super) fn nested(&self, kind: u16) -> io::Result<Self> {
        Attributes::parse(self.get(kind).unwrap_or_default())
    }

    /// A number of 32 bits in network byte order.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// Text that ends with a NUL; what is not UTF-8 is replaced visibly.
    pub(super) fn text(&self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }
}

/// Text up to its first NUL.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// An attribute with its padding. One longer than an attribute can be is cut short, and then refused by whoever reads it.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..HEADER_BYTES)?.try_into().ok()?);
    let value = bytes.get(HEADER_BYTES..length)?;
    // The last one may lack its padding.
    Some((kind, value, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

pub(super) fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an attribute is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_an_error() {
        let whole = [attribute(1, b"abc"), attribute(0x8002, &attribute(7, &[0, 0, 1, 0]))].concat();
        let parsed = Attributes::parse(&whole).unwrap();
        assert_eq!(parsed.text(1).as_deref(), Some("abc"));
        assert_eq!(parsed.nested(2).unwrap().number(7), Some(256));
        assert!(parsed.nested(9).unwrap().values().next().is_none());
        for cut in (1..whole.len()).filter(|cut| ![7, 8].contains(cut)) {
            assert!(Attributes::parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }
}
