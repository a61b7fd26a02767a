//! What a command left behind, for people: on standard error, since standard output is the command's.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::model::escape::Escaped;
use crate::model::run::{Leftover, Run};

/// Lines about a command that has left something behind; empty where it has not.
pub fn run(run: &Run, now: Timestamp, zone: &TimeZone) -> String {
    let mut text = String::new();
    for gap in &run.incomplete {
        let _ = writeln!(text, "sniffer: not seen: {}", Escaped(gap));
    }
    if run.left.is_empty() {
        return text;
    }
    let ports: usize = run.left.iter().map(|left| left.ports.len()).sum();
    let _ = writeln!(
        text,
        "sniffer: {}{} left {} and {} behind:",
        run.name.as_ref().map(|name| format!("test {}: ", Escaped(name))).unwrap_or_default(),
        words::command(&run.command),
        counted(run.left.len(), "process", "processes"),
        counted(ports, "held port", "held ports")
    );
    for left in &run.left {
        tell(&mut text, left, now, zone);
    }
    let cure = match run.left.iter().all(|left| left.ended.is_some()) {
        true => "",
        false => "Add --reap to have them ended. ",
    };
    let _ = writeln!(
        text,
        "sniffer: {cure}Better stop them where the command cleans up (a trap, a fixture, t.Cleanup), also when it fails."
    );
    text
}

fn tell(text: &mut String, left: &Leftover, now: Timestamp, zone: &TimeZone) {
    let holder = &left.process;
    let since = holder.start_time.map(|start| format!(", started {}", words::moment(start, now, zone)));
    let ended = left.ended.map(|ended| format!("  [{ended}]"));
    let _ = writeln!(
        text,
        "  {}, pid {}{}{}",
        words::comm(holder),
        holder.pid,
        since.unwrap_or_default(),
        ended.unwrap_or_default()
    );
    if let Some(cmdline) = &holder.cmdline {
        let _ = writeln!(text, "    command  {}", words::command(cmdline));
    }
    for port in &left.ports {
        let place = words::address(port.address, port.port);
        let netns = words::foreign_netns(&port.netns);
        let _ = writeln!(text, "    holds    {} {place}  {}{netns}", port.protocol, Escaped(&port.state));
    }
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::claim::fixtures::holder;
    use crate::model::netns::Netns;
    use crate::model::run::LeftPort;
    use crate::model::socket::Protocol;

    fn left(ports: Vec<LeftPort>) -> Run {
        let process = crate::model::process::Holder {
            cmdline: Some(vec!["redis-server".to_owned(), "a\nb".to_owned()]),
            ..holder(77, "redis\u{1b}[2J")
        };
        Run {
            schema: 1,
            command: vec!["make".to_owned(), "test".to_owned()],
            name: None,
            code: Some(0),
            signal: None,
            incomplete: Vec::new(),
            left: vec![Leftover { process, ports, ended: None }],
        }
    }

    #[test]
    fn what_is_left_is_told_with_its_ports_and_harmlessly() {
        let port = LeftPort {
            protocol: Protocol::Tcp,
            address: [127, 0, 0, 1].into(),
            port: 6379,
            state: "LISTEN".to_owned(),
            netns: Netns { inode: 1, name: Some("host".to_owned()), kept_by: None },
        };
        let now = Timestamp::UNIX_EPOCH;
        insta::assert_snapshot!(run(&left(vec![port]), now, &TimeZone::UTC), @r"
        sniffer: make test left 1 process and 1 held port behind:
          redis\x1b[2J, pid 77
            command  redis-server 'a\nb'
            holds    tcp 127.0.0.1:6379  LISTEN
        sniffer: Add --reap to have them ended. Better stop them where the command cleans up (a trap, a fixture, t.Cleanup), also when it fails.
        ");
        let named = run(&Run { name: Some("Test\nX".to_owned()), ..left(vec![]) }, now, &TimeZone::UTC);
        assert!(
            named.starts_with("sniffer: test Test\\nX: make test left 1 process and 0 held ports behind:")
        );
        assert_eq!(run(&Run { left: vec![], ..left(vec![]) }, now, &TimeZone::UTC), "");
        assert!(!left(vec![]).leaked());
    }
}
