//! The plan of `sniffer reap`, and what became of it.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::model::escape::Escaped;
use crate::model::reap::{Doomed, Reap};

/// The plan as text.
pub fn reap(reap: &Reap, now: Timestamp, zone: &TimeZone) -> String {
    let mut text = String::new();
    if reap.processes.is_empty() {
        return "There is nothing to end.\n".to_owned();
    }
    for doomed in &reap.processes {
        tell(&mut text, doomed, reap.acted, now, zone);
    }
    if !reap.acted && reap.processes.iter().any(|doomed| doomed.spared.is_none()) {
        text += "\nNothing was done. With --yes: SIGTERM, and SIGKILL after 5s.\n";
    }
    text
}

fn tell(text: &mut String, doomed: &Doomed, acted: bool, now: Timestamp, zone: &TimeZone) {
    let comm = Escaped(doomed.comm.as_deref().unwrap_or("a process"));
    let user = doomed.user.as_ref().map(|user| format!(", user {}", Escaped(user)));
    let since = doomed.start_time.map(|start| format!(", started {}", words::moment(start, now, zone)));
    let fate = match (&doomed.spared, doomed.outcome) {
        (Some(why), _) => format!("is left alone: {}", Escaped(why)),
        (None, Some(outcome)) => outcome.to_owned(),
        (None, None) if acted => "was not reached".to_owned(),
        (None, None) => "would be ended".to_owned(),
    };
    let _ = writeln!(
        text,
        "{comm}, pid {}{}{}: {fate}",
        doomed.pid,
        user.unwrap_or_default(),
        since.unwrap_or_default()
    );
    if let Some(cmdline) = &doomed.cmdline {
        let _ = writeln!(text, "  command  {}", words::command(cmdline));
    }
    for held in &doomed.holds {
        let place = words::address(held.address, held.port);
        let netns = words::foreign_netns(&held.netns);
        let _ = writeln!(text, "  holds    {} {place}{netns}, {}", held.protocol, Escaped(&held.reason));
    }
}
