//! One process of the load: this same program, started again. Opens its descriptors, reports, and sleeps until the benchmark
//! is gone: standard input is a pipe from it, and every way to end closes that.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Tells a worker from the benchmark; followed by the number of listeners and of descriptors.
pub(crate) const ARGUMENT: &str = "--worker";

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let mut number = || arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    match hold(number(), number()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The benchmark reads this line where it waits for the report.
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold(listeners: usize, descriptors: usize) -> io::Result<()> {
    // The loopback interface of a new namespace is down, and its address cannot be bound: every address can.
    let listeners: Vec<TcpListener> =
        (0..listeners).map(|_| TcpListener::bind("0.0.0.0:0")).collect::<io::Result<_>>()?;
    let mut line = std::process::id().to_string();
    for listener in &listeners {
        line.push_str(&format!(" {}", listener.local_addr()?.port()));
    }
    line.push('\n');
    // The standard three count too.
    let _held = others(descriptors.saturating_sub(listeners.len() + 3))?;
    // In one write, shorter than PIPE_BUF: the lines of all workers come through one pipe.
    io::stdout().write_all(line.as_bytes())?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Files, pipes and sockets, a third each.
fn others(count: usize) -> io::Result<Vec<OwnedFd>> {
    let program = std::env::current_exe()?;
    let mut held: Vec<OwnedFd> = Vec::with_capacity(count + 4);
    while held.len() < count {
        held.push(File::open("/dev/null")?.into());
        held.push(File::open(&program)?.into());
        let (reader, writer) = io::pipe()?;
        held.extend([OwnedFd::from(reader), OwnedFd::from(writer)]);
        let (one, other) = UnixStream::pair()?;
        held.extend([OwnedFd::from(one), OwnedFd::from(other)]);
    }
    held.truncate(count);
    Ok(held)
}
