//! `sniffer check-config [FILE]`.

use std::path::{Path, PathBuf};

use super::{ANSWERED, Failure, UNANSWERED, printed};
use crate::config::{self, ConfigError, DEFAULT_PATH};
use crate::report;

/// Parses and validates a configuration; every mistake is a line on standard error.
pub(super) fn run(file: Option<PathBuf>) -> Result<u8, Failure> {
    let path = file.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    match config::read(&path) {
        Ok(_) => {
            printed(report::print(&format!("{}: valid\n", show(&path))))?;
            Ok(ANSWERED)
        }
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

fn show(path: &Path) -> String {
    crate::model::escape::Escaped(&path.to_string_lossy()).to_string()
}
