//! A real shell at a terminal of its own (script(1)): keys go in, and what it then runs comes out.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use crate::common::{SNIFFER, eventually, run};

pub(crate) struct Shell {
    shell: Child,
    keys: Option<ChildStdin>,
    seen: Arc<Mutex<String>>,
    /// Its home, with the completions.
    _home: TempDir,
}

impl Shell {
    pub(crate) fn bash() -> Shell {
        let setup = "source ./sniffer.bash; sniffer() { printf '<%s %s>\\n' ran \"$*\"; }; PS1=; bind 'set bell-style none'";
        Shell::start("bash --norc --noprofile -i", setup, "sniffer.bash", "bash")
    }

    pub(crate) fn zsh() -> Shell {
        let setup = "PS1=; unsetopt beep; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; sniffer() { printf '<%s %s>\\n' ran \"$*\"; }";
        Shell::start("zsh -f -i", setup, "_sniffer", "zsh")
    }

    pub(crate) fn fish() -> Shell {
        let setup = "function fish_prompt; end; source ./sniffer.fish; function sniffer; printf '<%s %s>\\n' ran \"$argv\"; end";
        Shell::start("fish --no-config -i", setup, "sniffer.fish", "fish")
    }

    #[track_caller]
    fn start(command: &str, setup: &str, file: &str, name: &str) -> Shell {
        let home = tempfile::tempdir().unwrap();
        let (code, text, _) = run(Command::new(SNIFFER).args(["completions", name]));
        assert_eq!(code, 0);
        fs::write(home.path().join(file), text).unwrap();
        let mut shell = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", command, "/dev/null"])
            .current_dir(home.path())
            .env("HOME", home.path())
            .env("TERM", "dumb")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script of util-linux runs");
        let mut output = shell.stdout.take().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let mut shell = Shell { keys: shell.stdin.take(), shell, seen: Arc::clone(&seen), _home: home };
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        // The shell's own words, and not the echo of what was typed.
        shell.types(&format!("{setup}; echo '<re''ady>'\n"));
        shell.says("<ready>", name);
        shell
    }

    fn types(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn says(&self, words: &str, why: &str) {
        let seen = eventually("an answer of the shell", || {
            let seen = self.seen.lock().unwrap().clone();
            seen.contains('>')
                .then_some(seen)
                .filter(|seen| seen.contains("<ready>") || seen.contains("<ran "))
        });
        assert!(seen.contains(words), "{why}: {seen:?}");
        self.seen.lock().unwrap().clear();
    }

    /// Types each with a tab and return, and demands that the shell then runs that.
    #[track_caller]
    pub(crate) fn completes(mut self, typed: &[(&str, &str)]) {
        for (typed, becomes) in typed {
            self.types(&format!("{typed}\t"));
            self.types("\n");
            self.says(&format!("<ran {becomes}>"), typed);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Without its terminal it ends.
        drop(self.keys.take());
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
