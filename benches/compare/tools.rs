//! The tools, and how each is asked for a port.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::daemon::SNIFFER;

/// A program that can be asked who holds a port.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    /// Which daemon it asks: with sniffer alone.
    pub(crate) daemon: Option<bool>,
}

impl Tool {
    /// The command that asks for a port. `socket` is the daemon's.
    pub(crate) fn ask(&self, port: u16, socket: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.arguments.iter().map(|argument| argument.replace("PORT", &port.to_string())));
        match self.daemon {
            Some(true) => command.env("SNIFFER_SOCKET", socket),
            _ => command.env("SNIFFER_SOCKET", "/nonexistent/sniffer.sock"),
        };
        command
    }

    /// The same, from within a network namespace, so that a tool that sees its own only can see this one.
    pub(crate) fn ask_within(&self, netns: &str, port: u16, socket: &Path) -> Command {
        let asked = self.ask(port, socket);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]).arg(asked.get_program()).args(asked.get_args());
        command.envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// What people type.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} {}",
            self.program.file_name().unwrap_or_default().to_string_lossy(),
            self.arguments.join(" ")
        )
    }
}

/// Those of them that are there.
pub(crate) fn all() -> Vec<Tool> {
    let tool = |name, program: &Path, arguments, daemon| Tool {
        name,
        program: program.to_owned(),
        arguments,
        daemon,
    };
    let who_holds: &[&str] = &["who-holds", "PORT"];
    let mut tools = vec![
        tool("sniffer, daemon", Path::new(SNIFFER), who_holds, Some(true)),
        tool("sniffer, no daemon", Path::new(SNIFFER), who_holds, Some(false)),
    ];
    let of_debian: [(&'static str, &str, &'static [&'static str]); 4] = [
        ("ss", "iproute2", &["-Hatunp", "sport = :PORT"]),
        ("lsof", "lsof", &["-nP", "-i", ":PORT"]),
        ("fuser", "psmisc", &["-v", "-n", "tcp", "PORT"]),
        // It has no filter: its reader greps.
        ("netstat", "net-tools", &["-atunp"]),
    ];
    for (name, package, arguments) in of_debian {
        if Command::new(name).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
            tools.push(tool(name, Path::new(name), arguments, None));
        } else {
            eprintln!("compare: without {name}: install the package {package}");
        }
    }
    let of_cargo: [(&'static str, &'static [&'static str]); 2] =
        [("somo", &["--no-pager", "--no-config", "-p", "PORT"]), ("killport", &["--dry-run", "PORT"])];
    for (name, arguments) in of_cargo {
        match installed(name) {
            Some(program) => tools.push(tool(name, &program, arguments, None)),
            None => eprintln!("compare: without {name}: cargo cannot install it here"),
        }
    }
    tools
}

/// A program from crates.io, below the target directory.
fn installed(name: &str) -> Option<PathBuf> {
    let target = Path::new(SNIFFER).parent()?.parent()?;
    let program = target.join("compared/bin").join(name);
    if !program.exists() {
        eprintln!("compare: installing {name}");
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "--locked", "--quiet", name, "--root"]).arg(target.join("compared"));
        cargo.status().ok().filter(|status| status.success())?;
    }
    Some(program)
}
