//! Values of a TOML document with their places, and every mistake collected instead of the first.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Mistake;

/// Collects mistakes while a document is read.
#[derive(Debug)]
pub(super) struct Mistakes<'a> {
    text: &'a str,
    found: Vec<Mistake>,
}

/// Line and column, both from 1, of a byte offset; the column counts characters.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

impl<'a> Mistakes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Mistakes { text, found: Vec::new() }
    }

    pub(super) fn add(&mut self, span: Range<usize>, key: impl Into<String>, what: impl Into<String>) {
        let (line, column) = place(self.text, span.start);
        // Text of the file is quoted in messages: it must not bring control characters to a terminal.
        let what: String = what
            .into()
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect();
        self.found.push(Mistake { line, column, key: key.into(), what });
    }

    /// All of them in the order of the file; empty when there are none.
    pub(super) fn finish(mut self) -> Vec<Mistake> {
        self.found.sort_by_key(|mistake| (mistake.line, mistake.column));
        self.found
    }
}

/// A table that is being read: keys that were asked for are known, the others are mistakes.
pub(super) struct Table<'t, 'a> {
    path: String,
    span: Range<usize>,
    table: Option<&'t DeTable<'a>>,
    known: Vec<&'static str>,
}

impl<'t, 'a> Table<'t, 'a> {
    pub(super) fn root(table: &'t Spanned<DeTable<'a>>) -> Self {
        Table { path: String::new(), span: table.span(), table: Some(table.get_ref()), known: Vec::new() }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// A table below this one; an absent one reads as empty.
    pub(super) fn table(&mut self, key: &'static str, mistakes: &mut Mistakes<'_>) -> Table<'t, 'a> {
        let path = self.full(key);
        let value = self.get(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            mistakes.add(value.span(), path.clone(), format!("wants a table, got {}", kind(value)));
        }
        Table { path, span: value.map_or(0..0, Spanned::span), table, known: Vec::new() }
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str, mistakes: &mut Mistakes<'_>) -> Vec<Table<'t, 'a>> {
        let path = self.full(key);
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            mistakes.add(value.span(), path, format!("wants [[{key}]], got {}", kind(value)));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push(Table {
                    path: path.clone(),
                    span: item.span(),
                    table: Some(table),
                    known: Vec::new(),
                }),
                None => mistakes.add(item.span(), path.clone(), format!("wants a table, got {}", kind(item))),
            }
        }
        tables
    }

    /// A string, read by `read`, which answers with what is wrong.
    pub(super) fn string<T>(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let path = self.full(key);
        let value = self.get(key)?;
        let result = match value.get_ref().as_str() {
            Some(text) => read(text),
            None => Err(format!("wants a string, got {}", kind(value))),
        };
        result.map_err(|what| mistakes.add(value.span(), path, what)).ok()
    }

    /// A string that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.must_have(key, mistakes);
        self.string(key, mistakes, read)
    }

    fn must_have(&self, key: &'static str, mistakes: &mut Mistakes<'_>) {
        if self.table.is_some_and(|table| !table.iter().any(|(name, _)| name.get_ref() == key)) {
            mistakes.add(self.span.clone(), self.full(key), "is missing");
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, mistakes: &mut Mistakes<'_>) -> Option<bool> {
        let path = self.full(key);
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            mistakes.add(value.span(), path, format!("wants true or false, got {}", kind(value)));
        }
        found
    }

    /// A whole number within bounds.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let path = self.full(key);
        let value = self.get(key)?;
        let what = match value.get_ref().as_integer() {
            Some(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) if bounds.contains(&number) => return Some(number),
                _ => format!("{} lies outside of {} to {}", number.as_str(), bounds.start(), bounds.end()),
            },
            None => format!("wants a whole number, got {}", kind(value)),
        };
        mistakes.add(value.span(), path, what);
        None
    }

    /// A list of strings, each read by `read`.
    pub(super) fn strings(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
        read: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Vec<String>> {
        let path = self.full(key);
        let value = self.get(key)?;
        let Some(items) = value.get_ref().as_array() else {
            mistakes.add(value.span(), path, format!("wants a list of strings, got {}", kind(value)));
            return None;
        };
        let mut strings = Vec::new();
        for item in items.iter() {
            let result = match item.get_ref().as_str() {
                Some(text) => read(text).map(|()| strings.push(text.to_owned())),
                None => Err(format!("wants a list of strings, got {} in it", kind(item))),
            };
            if let Err(what) = result {
                mistakes.add(item.span(), path.clone(), what);
            }
        }
        Some(strings)
    }

    /// A list of strings that must be there and hold at least one.
    pub(super) fn some_strings(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
        read: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Vec<String>> {
        self.must_have(key, mistakes);
        let empty = self
            .table
            .and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key))
            .filter(|(_, value)| value.get_ref().as_array().is_some_and(|items| items.is_empty()));
        if let Some((_, value)) = empty {
            mistakes.add(value.span(), self.full(key), "wants at least one entry");
        }
        self.strings(key, mistakes, read)
    }

    /// Says which keys of this table nobody asked for.
    pub(super) fn finish_here(&mut self, mistakes: &mut Mistakes<'_>) {
        let known: BTreeSet<&str> = self.known.iter().copied().collect();
        for (name, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let key = name.get_ref().as_ref();
            if !known.contains(key) {
                let what = match known.iter().find(|candidate| distance(candidate, key) <= 2) {
                    Some(close) => format!("unknown key; did you mean '{close}'?"),
                    None => format!("unknown key; known ones are {}", self.known.join(", ")),
                };
                mistakes.add(name.span(), self.full(key), what);
            }
        }
    }
}

fn kind(value: &Spanned<DeValue<'_>>) -> String {
    let word = value.get_ref().type_str();
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}

/// Edit distance, for "did you mean". Keys are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (above, to) in row.iter().skip(1).zip(&b) {
            left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

/// `250ms`, `30s`, `5m`, `2h`, `7d`. Zero is a duration, a bare number is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no duration; write a number with ms, s, m, h or d, as in \"30s\"");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// `256MiB`, `10MB`, `4096`: a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("'{text}' is no size; write a number with KiB, MiB, GiB, kB, MB or GB, as in \"256MiB\"");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = match unit.trim_start() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(bytes).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "s", "5", "1.5s", "-1s", "5 s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(size("256MiB"), Ok(268_435_456));
        assert_eq!(size("10 MB"), Ok(10_000_000));
        assert!(size("MiB").is_err() && size("1TiB").is_err());
    }

    #[test]
    fn close_keys_are_close() {
        assert_eq!(distance("events", "evnts"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("grace", "grace"), 0);
    }
}
