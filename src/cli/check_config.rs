//! `sniffer check-config [FILE]`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ANSWERED, Failure, UNANSWERED, printed};
use crate::config::{self, ConfigError, DEFAULT_PATH, Mistake};
use crate::model::answer::SCHEMA;
use crate::model::escape::Escaped;
use crate::report;

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    schema: u32,
    file: &'a Path,
    valid: bool,
    /// Each, in order.
    mistakes: &'a [Mistake],
}

/// Parses and validates a configuration; every mistake is a line on standard error.
pub(super) fn run(file: Option<PathBuf>, json: bool) -> Result<u8, Failure> {
    let path = file.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let tell = |mistakes: &[Mistake]| {
        let (file, valid) = (path.as_path(), mistakes.is_empty());
        printed(report::print_json(&Checked { schema: SCHEMA, file, valid, mistakes }))
    };
    match config::read(&path) {
        Ok(_) if json => tell(&[]).map(|()| ANSWERED),
        Ok(_) => {
            printed(report::print(&format!("{}: valid\n", Escaped(&path.to_string_lossy()))))?;
            Ok(ANSWERED)
        }
        Err(ConfigError::Mistaken { mistakes, .. }) if json => tell(&mistakes).map(|()| UNANSWERED),
        Err(error) => {
            for line in error.lines() {
                report::complain(&line);
            }
            if matches!(error, ConfigError::Unreadable { .. }) {
                report::complain(
                    "name a file that can be read; without any the agent runs with its defaults",
                );
            }
            Ok(UNANSWERED)
        }
    }
}
