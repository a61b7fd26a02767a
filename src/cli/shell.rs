//! `sniffer completions SHELL` and `sniffer man`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{ANSWERED, Cli, Failure, man, printed};
use crate::report;

/// Completions of a shell.
pub(super) fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sniffer", &mut bytes);
    printed(report::print_bytes(&bytes))?;
    Ok(ANSWERED)
}

/// One manual page with every verb.
pub(super) fn manual() -> Result<u8, Failure> {
    let page = man::page().map_err(|error| format!("cannot make the manual page: {error}"))?;
    printed(report::print(&page))?;
    Ok(ANSWERED)
}
