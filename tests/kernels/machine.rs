//! The emulated machine: starts qemu, waits for its end with a limit, and reads its console.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";
/// A run takes less than a minute on two idle processors; a machine that takes longer than this is stuck.
const LIMIT: Duration = Duration::from_secs(420);
/// Between two looks at whether it has ended.
const STEP: Duration = Duration::from_millis(100);
/// A kernel that fails ends the machine, instead of waiting for somebody to read why.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 oops=panic";

#[track_caller]
pub(crate) fn needs_qemu() {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    assert!(
        version.is_ok_and(|status| status.success()),
        "{QEMU} does not run: install qemu-system-x86, or run scripts/kernels"
    );
}

/// A kernel patches its code behind a breakpoint (`text_poke_bp`), as it does to attach fexit. With several emulated processors one
/// of them may meet that breakpoint after it has been taken away, which no real one does: `inet_bind+0x5`, seen once in ten starts.
const EMULATORS_FAULT: &str = "Oops: int3: 0000";
/// Such a machine is started again, so often at most.
const STARTS: usize = 3;

/// Boots a kernel and answers with all that the console and qemu said until the machine ended.
#[track_caller]
pub(crate) fn run(kernel: &Path, initramfs: &Path, command_line: &str) -> String {
    let mut said = String::new();
    for _ in 0..STARTS {
        said = start(kernel, initramfs, command_line);
        if !said.contains(EMULATORS_FAULT) {
            break;
        }
    }
    said
}

#[track_caller]
fn start(kernel: &Path, initramfs: &Path, command_line: &str) -> String {
    let console = kernel.join("console");
    let output = File::create(&console).unwrap();
    // The machine must not outlive the test, even if that is killed. setpriv becomes qemu and keeps its pid.
    let mut machine = Machine(
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", QEMU])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
            // Without KVM, which the machines that CI gets seldom have: the same everywhere.
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"])
            .arg("-kernel")
            .arg(kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &format!("{COMMAND_LINE} {command_line}")])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("setpriv does not run: install util-linux, or run scripts/kernels"),
    );
    let ended = machine.ends_within(LIMIT);
    drop(machine);
    let said = String::from_utf8_lossy(&fs::read(&console).unwrap()).replace('\r', "");
    match ended {
        true => said,
        false => format!("{said}\nqemu was ended after {} s", LIMIT.as_secs()),
    }
}

/// Ends with its owner.
struct Machine(Child);

impl Machine {
    fn ends_within(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.0.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(STEP);
        }
        true
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
