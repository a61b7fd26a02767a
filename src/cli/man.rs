//! The manual page: every verb from the tree of the command line, and what that does not say (man(7), groff_man(7)).

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::{Cli, help};

/// Of `sniffer` as a whole.
const DESCRIPTION: [&str; 3] = [
    "sniffer says who holds a port: in every network namespace, with every process that has the socket open, for which CI job and test, \
     since when, and what to do. Its agent (sniffer daemon) watches for listeners that outlive their job, and for binds that are \
     refused, remembers both, and tells Prometheus and whoever is to be alerted.",
    "The same commands ask the agent where one runs and look for themselves where none does. As root they see everything; without \
     privileges they show what this user may see, and say what is missing and why. Nothing ever looks up a name in DNS.",
    "TARGET is 8081, 8081/udp, 127.0.0.1:8081, [::1]:8081/tcp or 8000-8100; a bare port means TCP and UDP on every address. TIME is a \
     span back from now (90s, 2h, 7d), a time of day (14:03) or RFC 3339.",
];

const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "Answered: held, would succeed, free, nothing leaked."),
    ("1", "Answered the other way: nobody holds it, would fail, timed out, leaks exist."),
    ("2", "Wrong usage, or it could not be answered; why, and what to do, is on standard error."),
    (
        "3",
        "sniffer run --fail-on-leak: the command passed and left a held port behind. Else run exits as its command does.",
    ),
];

const FILES: [(&str, &str); 5] = [
    (
        "/etc/sniffer/config.toml",
        "Configuration; every key is optional. sniffer check-config names its mistakes.",
    ),
    ("/run/sniffer/sniffer.sock", "Where the agent answers: HTTP with JSON over a Unix socket."),
    (
        "/var/lib/sniffer/history.db",
        "What the agent remembers; sqlite3(1) reads it too (views holds and conflicts).",
    ),
    ("/var/lib/sniffer/state.json", "What a restart of the agent must not forget."),
    (
        "/usr/share/sniffer/integrations/",
        "Hooks of CI systems, rules of Prometheus, a dashboard for Grafana.",
    ),
];

const ENVIRONMENT: [(&str, &str); 5] = [
    ("SNIFFER_SOCKET", "Where commands find the agent, instead of control.socket."),
    ("SNIFFER_LOG", "The agent's log filter: error, warn, info, debug."),
    ("SNIFFER_JOB_ID", "Makes a process part of the job that sniffer job start declared."),
    ("DOCKER_HOST", "Engine that is asked for names of containers where no agent runs."),
    ("NO_COLOR", "No colours, as where standard output is no terminal."),
];

/// The page, in roff.
pub(super) fn page() -> std::io::Result<String> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let title = Man::new(command.clone()).section("8").manual("System administration");
    title.render_title(&mut page)?;
    title.render_name_section(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    let mut above = Roff::new();
    above.control("SH", ["SYNOPSIS"]).text([bold("sniffer"), roman(" "), italic("COMMAND"), roman(" […]")]);
    above.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        above.control("PP", []).text([roman(paragraph)]);
    }
    above.control("SH", ["COMMANDS"]);
    page += &body(&above.render());
    for verb in command.get_subcommands() {
        page += &section(verb)?;
    }
    let mut below = Roff::new();
    listed(&mut below, "EXIT STATUS", &EXIT_STATUS);
    listed(&mut below, "FILES", &FILES);
    listed(&mut below, "ENVIRONMENT", &ENVIRONMENT);
    below.control("SH", ["EXAMPLES"]);
    examples(&mut below, help::SNIFFER);
    below.control("SH", ["SEE ALSO"]).text([
        bold("ss"),
        roman("(8), "),
        bold("lsof"),
        roman("(8), "),
        bold("network_namespaces"),
        roman("(7), /usr/share/doc/sniffer/"),
    ]);
    Ok(page + &body(&below.render()))
}

/// A verb with the verbs below it.
fn section(verb: &Command) -> std::io::Result<String> {
    let mut verb = verb.clone();
    let usage = verb.render_usage().to_string();
    let text = |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string).unwrap_or_default();
    // Arguments of a request are not escaped by roff.
    let heading = format!(".SS \"{}\"\n", usage.trim_start_matches("Usage: ").replace('-', "\\-"));
    let mut head = Roff::new();
    head.text([roman(text(verb.get_about()) + ".")]);
    let mut options = Vec::new();
    Man::new(verb.clone()).render_options_section(&mut options)?;
    let mut tail = Roff::new();
    let after = text(verb.get_after_help());
    for note in after.lines().take_while(|line| !line.is_empty() && *line != "Examples:") {
        tail.control("PP", []).text([roman(note)]);
    }
    tail.control("PP", []).text([roman("Examples:")]);
    examples(&mut tail, &after);
    let mut section =
        heading + &body(&head.render()) + &body(&String::from_utf8_lossy(&options)) + &body(&tail.render());
    for below in verb.get_subcommands() {
        section += &self::section(below)?;
    }
    Ok(section)
}

/// As they are typed: no line is filled.
fn examples(roff: &mut Roff, help: &str) {
    roff.control("RS", ["4"]).control("nf", []);
    for example in help::examples(help).into_iter().flatten() {
        roff.text([roman(example)]);
    }
    roff.control("fi", []).control("RE", []);
}

fn listed(roff: &mut Roff, heading: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [heading]);
    for (name, what) in entries {
        roff.control("TP", []).text([bold(*name)]).text([roman(*what)]);
    }
}

/// Without what the renderers put before each part, which the page has once, and without their headings of options.
fn body(part: &str) -> String {
    let once = |line: &&str| !line.starts_with(".ie ") && !line.starts_with(".el ") && *line != ".SH OPTIONS";
    part.lines().filter(once).map(|line| format!("{line}\n")).collect()
}
