//! A static build of this package, since a virtual machine without a system has no libraries: its binary, the holder and
//! test executables, in a target directory of their own (`target/static`). With musl, as what is handed out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// That of scripts/package, which installs it.
const PLATFORM: &str = "x86_64-unknown-linux-musl";

/// Where cargo put each executable.
pub(crate) struct Executables(HashMap<String, PathBuf>);

impl Executables {
    #[track_caller]
    pub(crate) fn path(&self, name: &str) -> &Path {
        self.0.get(name).unwrap_or_else(|| panic!("cargo built no executable {name}: {:?}", self.0))
    }
}

/// Builds `sniffer` and `holder`.
#[track_caller]
pub(crate) fn programs() -> Executables {
    // An example that is asked for among tests would be built as a test.
    Executables(cargo(&["build", "--bin", "sniffer", "--example", "holder"]))
}

/// Builds these, and the tests of these names; `lib` stands for the unit tests.
#[track_caller]
pub(crate) fn build<'a>(tests: impl Iterator<Item = &'a str>) -> Executables {
    let mut selection: Vec<&str> = vec!["test", "--no-run"];
    for test in tests {
        match test {
            "lib" => selection.push("--lib"),
            test => selection.extend(["--test", test]),
        }
    }
    let mut executables = programs();
    executables.0.extend(cargo(&selection));
    executables
}

#[track_caller]
fn cargo(arguments: &[&str]) -> HashMap<String, PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--target", PLATFORM, "--target-dir", "target/static"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // An emulated processor takes seconds for what unoptimised code does in an instant.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        // Everything is copied into the machine's memory.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "the static build failed: cargo {arguments:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    messages.lines().filter_map(|line| executable(&serde_json::from_str(line).unwrap())).collect()
}

/// Name and path, if cargo's message tells of an executable.
fn executable(message: &Value) -> Option<(String, PathBuf)> {
    let path = message["executable"].as_str()?;
    let name = match message["target"]["kind"][0].as_str()? {
        "lib" => "lib",
        _ => message["target"]["name"].as_str()?,
    };
    Some((name.to_owned(), path.into()))
}
