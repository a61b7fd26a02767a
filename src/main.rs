//! The `sniffer` command: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sniffer::cli::run()
}
