//! Text and JSON for people and scripts: the only place that prints.
//!
//! Every foreign string goes through [`Escaped`] on its way into text.

mod can_bind;
mod conflicts;
mod evidence;
mod findings;
mod history;
mod job;
mod reap;
mod run;
mod story;
mod table;
mod words;

use std::io::{self, Write};

use serde::Serialize;

pub use can_bind::can_bind;
pub use conflicts::conflicts;
pub use evidence::{evidence, evidence_html};
pub use findings::{Check, checks};
pub use history::history;
pub use job::{annotations, ended, jobs, started, summary};
pub use reap::reap;
pub use run::run;
pub use story::story;
pub use table::{leaks, list};

use crate::model::escape::Escaped;

/// Prints text to standard output; without colour where that is no terminal or NO_COLOR is set.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints one JSON document to standard output, in one line.
pub fn print_json_line(document: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(document)?;
    bytes.push(b'\n');
    print_bytes(&bytes)
}

/// Prints bytes to standard output as they are: completions, manual pages.
pub fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Prints one JSON document to standard output.
pub fn print_json(document: &impl Serialize) -> io::Result<()> {
    // At once: standard output hands on each line by itself.
    let mut bytes = serde_json::to_vec_pretty(document)?;
    bytes.push(b'\n');
    print_bytes(&bytes)
}

/// Says something to the user on standard error, in lines that are harmless already.
pub fn complain_at_length(text: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Says something to the user on standard error, in one line.
pub fn complain(message: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "sniffer: {}", Escaped(message));
}
