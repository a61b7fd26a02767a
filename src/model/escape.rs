//! Foreign text made harmless for terminals, logs and labels: names of processes and jobs are chosen by others.

use std::fmt::{self, Write};

/// Shows text with control characters (C0, DEL, C1), line and paragraph separators and bidirectional overrides escaped.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            c if is_harmful(c) => f.write_str(&escape(c)),
            c => f.write_char(c),
        })
    }
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `\n`, `\t`, `\r` as people know them, else `\x1b` or `\u{202e}`.
fn escape(c: char) -> String {
    match c {
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        '\r' => "\\r".to_owned(),
        c if u32::from(c) < 0x100 => format!("\\x{:02x}", u32::from(c)),
        c => c.escape_unicode().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_and_lines_are_safe() {
        let hostile = "a\u{1b}[2J\nb\u{7f}\u{9b}31m\u{202e}c é 日";
        assert_eq!(Escaped(hostile).to_string(), "a\\x1b[2J\\nb\\x7f\\x9b31m\\u{202e}c é 日");
    }
}
