//! The emulated machine: starts qemu, waits for its end with a limit, and reads its console.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";
/// A run takes two to three minutes, two of them side by side on two processors; a machine that takes longer than this is stuck.
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

/// Boots a kernel and answers with all that the console and qemu said until the machine ended.
#[track_caller]
pub(crate) fn run(kernel: &Path, initramfs: &Path, command_line: &str) -> String {
    let console = kernel.join("console");
    let output = File::create(&console).unwrap();
    // The machine must not outlive the test, even if that is killed. setpriv becomes qemu and keeps its pid.
    let mut machine = Machine(
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", QEMU])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
            // Without KVM, which the machines that CI gets seldom have: the same everywhere. The two emulated processors take
            // turns on one thread: when they really ran at once, one of them could meet the breakpoint behind which a kernel
            // patches its code (`text_poke_bp`, as to attach fexit) after it had been taken away, which no real one does.
            .args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1G"])
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
