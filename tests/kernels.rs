//! On older kernels: Debian's 5.10, 6.1 and 6.12 boot in an emulated machine, and tests that need nothing but the `sniffer`
//! and the `holder` run there as root.
//!
//! The machine's whole system is an initramfs: busybox, kernel modules, and a static build of this package. It says on its
//! console what it does; the console is what is judged here, and is kept in `target/kernels/VERSION/console`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

#[path = "kernels/executables.rs"]
mod executables;
#[path = "kernels/initramfs.rs"]
mod initramfs;
#[path = "kernels/machine.rs"]
mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use executables::Executables;
use initramfs::Initramfs;

/// What happens on each kernel.
const BOOTS: &[Boot] = &[Boot {
    command_line: "",
    runs: &[
        Run { executable: "live", arguments: &[] },
        Run { executable: "can_bind", arguments: &["--include-ignored"] },
        Run { executable: "lib", arguments: &["kernel::", "--include-ignored", "--test-threads=1"] },
        Run {
            executable: "events",
            // Tens of thousands of binds take minutes in an emulated machine.
            arguments: &[
                "refusals::",
                "successes::",
                "--skip",
                "two_threads_whose_numbers",
                "--skip",
                "loops_that_bind_and_close",
                "--include-ignored",
                "--test-threads=2",
            ],
        },
    ],
}];

/// One start of the machine. It costs seconds, so runs share one unless they need another command line.
struct Boot {
    /// Added to the kernel's command line. A `NAME=VALUE` that is no parameter of the kernel is a variable for the tests.
    command_line: &'static str,
    runs: &'static [Run],
}

/// One run of a test executable.
struct Run {
    /// The name of an integration test, or `lib` for the unit tests.
    executable: &'static str,
    /// For the test executable: filters, `--include-ignored`.
    arguments: &'static [&'static str],
}

/// The static build, made by whichever test comes first. Each machine takes one of our processors, so they run side by side.
static EXECUTABLES: OnceLock<Executables> = OnceLock::new();

#[test]
#[ignore = "needs root, qemu and Debian's kernels (scripts/kernels fetches them)"]
fn the_tests_pass_on_linux_5_10() {
    pass_on("5.10");
}

#[test]
#[ignore = "needs root, qemu and Debian's kernels (scripts/kernels fetches them)"]
fn the_tests_pass_on_linux_6_1() {
    pass_on("6.1");
}

#[test]
#[ignore = "needs root, qemu and Debian's kernels (scripts/kernels fetches them)"]
fn the_tests_pass_on_linux_6_12() {
    pass_on("6.12");
}

#[track_caller]
fn pass_on(version: &str) {
    let kernel = kernels().join(version);
    assert!(
        kernel.join("vmlinuz").is_file() && kernels().join("busybox").is_file(),
        "there is no kernel {version} to boot in {}: run scripts/kernels",
        kernel.display()
    );
    machine::needs_qemu();
    let executables = EXECUTABLES.get_or_init(|| {
        executables::build(BOOTS.iter().flat_map(|boot| boot.runs).map(|run| run.executable))
    });
    for boot in BOOTS {
        let initramfs = kernel.join("initramfs");
        fs::write(&initramfs, contents(&kernel, executables, boot.runs)).unwrap();
        let console = machine::run(&kernel, &initramfs, boot.command_line);
        let wrong = complaints(&console, version, boot.runs);
        assert!(
            wrong.is_empty(),
            "Linux {version}: {}\n--- the console\n{console}\n--- end of the console of Linux {version}: {0}",
            wrong.join("; ")
        );
    }
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels")
}

/// Everything the machine has. Programs lie where they lie here, since the tests have those paths compiled in.
fn contents(kernel: &Path, executables: &Executables, runs: &[Run]) -> Vec<u8> {
    let mut root = Initramfs::default();
    root.copy("/bin/busybox", &kernels().join("busybox"));
    root.file("/init", 0o755, include_bytes!("kernels/init"));
    root.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    root.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    for module in fs::read_dir(kernel.join("modules")).unwrap() {
        let module = module.unwrap().path();
        root.copy(Path::new("/modules").join(module.file_name().unwrap()), &module);
    }
    for name in ["sniffer", "holder"] {
        root.copy(executables.path(name), executables.path(name));
    }
    let mut script = format!("cd '{}'\n", env!("CARGO_MANIFEST_DIR"));
    for (number, run) in runs.iter().enumerate() {
        let executable = executables.path(run.executable);
        root.copy(executable, executable);
        script += &format!("run {number} '{}'", executable.display());
        for argument in run.arguments {
            script += &format!(" '{argument}'");
        }
        script += "\n";
    }
    root.directory(env!("CARGO_MANIFEST_DIR"));
    root.file("/runs", 0o644, script.as_bytes());
    root.finish()
}

/// Why this console is not that of a machine on which everything passed.
fn complaints(console: &str, version: &str, runs: &[Run]) -> Vec<String> {
    let mut wrong = Vec::new();
    if !console.lines().any(|line| line.starts_with(&format!("@@ kernel {version}."))) {
        wrong.push("this kernel did not come up".to_owned());
    }
    for (number, run) in runs.iter().enumerate() {
        if let Err(why) = passed(console, number) {
            wrong.push(format!("{} {:?} {why}", run.executable, run.arguments));
        }
    }
    for line in console.lines().filter(|line| line.starts_with("@@ module")) {
        wrong.push(line.to_owned());
    }
    wrong
}

/// Whether a run began, ended with success, and ran something: a filter that fits no test succeeds as well.
fn passed(console: &str, number: usize) -> Result<(), String> {
    let (_, after) = console.split_once(&format!("@@ begin {number}\n")).ok_or("was not begun")?;
    let (output, after) = after.split_once(&format!("@@ end {number} code ")).ok_or("did not end")?;
    match after.lines().next() {
        Some("0") => {}
        code => return Err(format!("failed (exit code {})", code.unwrap_or("unknown"))),
    }
    let result = output.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    match result.and_then(|result| result.split_once(" passed")) {
        None => Err("gave no result".to_owned()),
        Some(("0", _)) => Err("ran no test".to_owned()),
        Some(_) => Ok(()),
    }
}

#[test]
fn only_a_run_that_began_and_ended_well_and_ran_something_has_passed() {
    let good = "@@ begin 0\ntest result: ok. 2 passed; 0 failed\n\n@@ end 0 code 0\n@@ begin 1\n";
    assert_eq!(passed(good, 0), Ok(()));
    assert_eq!(passed(good, 1), Err("did not end".to_owned()));
    assert_eq!(passed(good, 2), Err("was not begun".to_owned()));
    assert_eq!(passed(&good.replace("code 0", "code 101"), 0), Err("failed (exit code 101)".to_owned()));
    assert_eq!(passed(&good.replace("2 passed", "0 passed"), 0), Err("ran no test".to_owned()));
    assert_eq!(passed(&good.replace("test result", ""), 0), Err("gave no result".to_owned()));
    assert_eq!(complaints("@@ kernel 6.1.0-1\n", "6.1", &[]), [""; 0]);
    assert_eq!(complaints("@@ kernel 6.12.3\n", "6.1", &[]), ["this kernel did not come up"]);
}
