//! A real browser, driven by `driver.mjs`: a command is a line of JSON, and so is its answer.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// Chromium with one page. Ends with its input.
pub(crate) struct Browser {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Browser {
    /// Starts it. Errors: what is missing, and how to get it.
    pub(crate) fn start() -> Result<Browser, String> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let package = here.join("target/playwright/node_modules/playwright-core");
        if !package.exists() {
            return Err(format!("{} is missing: scripts/test puts it there", package.display()));
        }
        let mut child = Command::new("node")
            .arg(here.join("tests/page/driver.mjs"))
            .env("PLAYWRIGHT_CORE", package)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("node: {error}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("node has no output")?);
        Ok(Browser { child, input, output: BufReader::new(output).lines() })
    }

    /// Does something. Errors: it did not happen, and why.
    pub(crate) fn ask(&mut self, command: Value) -> Result<Value, String> {
        let input = self.input.as_mut().ok_or("it has ended")?;
        writeln!(input, "{command}").map_err(|error| error.to_string())?;
        let line = self.output.next().ok_or("the driver ended")?.map_err(|error| error.to_string())?;
        let mut answer: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
        match answer.get("error") {
            Some(why) => Err(format!("{command}: {why}")),
            None => Ok(answer.get_mut("ok").map(Value::take).unwrap_or_default()),
        }
    }

    /// Opens a view of a page.
    pub(crate) fn open(&mut self, address: &str, route: &str) -> Result<(), String> {
        let url = format!("http://{address}/#/{route}");
        // Another route of the same page is no other page: it is begun anew.
        self.ask(json!({"do": "open", "url": url})).map(drop)
    }

    /// A picture, to look at when something goes wrong.
    #[allow(dead_code, reason = "for those who look into a failure")]
    pub(crate) fn picture(&mut self, path: &Path) -> Result<PathBuf, String> {
        self.ask(json!({"do": "screenshot", "path": path})).map(|_| path.to_owned())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
