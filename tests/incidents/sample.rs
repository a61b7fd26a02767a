//! Real output with values of the story in the place of those that differ each time: pids, moments, spans, ports, directories. So a
//! snapshot stays the same, and reads as on the day of the incident.

/// The values of a story, in the order in which they are printed. There must be as many moments and spans as the text has.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample<'a> {
    /// Words that are replaced wherever they stand: directories, names of namespaces, of this host.
    pub(crate) words: &'a [(&'a str, &'a str)],
    /// Ports, where a number stands alone or behind an address.
    pub(crate) ports: &'a [(u16, &'a str)],
    /// Processes, by their first mention: one that is named again has the same number again.
    pub(crate) pids: &'a [&'a str],
    /// Times of day, one for each that is printed.
    pub(crate) moments: &'a [&'a str],
    /// Spans of time, one for each that is printed.
    pub(crate) spans: &'a [&'a str],
}

impl Sample<'_> {
    /// The text with these values.
    #[track_caller]
    pub(crate) fn of(&self, text: &str) -> String {
        let text = text.lines().filter(|line| !depends_on_this_host(line)).map(begun_by_systemd);
        let mut text: String = text.map(|line| line + "\n").collect();
        for (word, sample) in self.words {
            text = text.replace(word, sample);
        }
        let mut reading = Reading { sample: self, pids: Vec::new(), moments: 0, spans: 0 };
        let mut told = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, from) = rest.split_at(at);
            told += before;
            let end = from.find(|c: char| !(c.is_ascii_alphanumeric() || ":.".contains(c)));
            let (token, after) = from.split_at(end.unwrap_or(from.len()));
            let (token, dots) = token.split_at(token.trim_end_matches([':', '.']).len());
            if token.len() == 4 && after.starts_with('-') && after.get(3..4) == Some("-") {
                // The day, which is told of what was not today; a run over midnight tells it too.
                told += if told.ends_with("Written ") { "2026-11-21 " } else { "" };
                rest = after[6..].trim_start();
                continue;
            }
            told += &reading.token(&told, token, after);
            told += dots;
            rest = after;
        }
        told += rest;
        let used = (reading.pids.len(), reading.moments, reading.spans);
        let given = (self.pids.len(), self.moments.len(), self.spans.len());
        assert_eq!(used, given, "pids, moments and spans of:\n{text}");
        told
    }
}

struct Reading<'a> {
    sample: &'a Sample<'a>,
    pids: Vec<String>,
    moments: usize,
    spans: usize,
}

impl Reading<'_> {
    #[track_caller]
    fn token(&mut self, before: &str, token: &str, after: &str) -> String {
        let in_word = before.ends_with(|c: char| c.is_alphanumeric() || "_-".contains(c));
        if !in_word && is_moment(token) {
            self.moments += 1;
            return value(self.sample.moments, self.moments, token);
        }
        if !in_word && is_span(token) {
            self.spans += 1;
            return value(self.sample.spans, self.spans, token);
        }
        let is_number = token.bytes().all(|byte| byte.is_ascii_digit());
        let named = ["pid ", "kill ", "process "].iter().any(|word| before.ends_with(word));
        // A descriptor's number depends on what its process was left by the test's.
        if before.ends_with("fd ") {
            return "3".to_owned();
        }
        if is_number && (named || (before.ends_with('(') && after.starts_with(')'))) {
            return self.pid(token);
        }
        let port = self.sample.ports.iter().find(|(port, _)| {
            token.strip_suffix(&port.to_string()).is_some_and(|rest| rest.is_empty() || rest.ends_with(':'))
        });
        match port {
            Some((port, sample)) => token.replace(&port.to_string(), sample),
            None => token.to_owned(),
        }
    }

    #[track_caller]
    fn pid(&mut self, token: &str) -> String {
        if token == "1" {
            return token.to_owned();
        }
        let known = self.pids.iter().position(|pid| pid == token);
        let nth = known.unwrap_or_else(|| {
            self.pids.push(token.to_owned());
            self.pids.len() - 1
        });
        value(self.sample.pids, nth + 1, token)
    }
}

#[track_caller]
fn value(samples: &[&str], nth: usize, token: &str) -> String {
    (*samples.get(nth - 1).unwrap_or_else(|| panic!("no sample for number {nth}, {token}"))).to_owned()
}

/// `14:03:07`
fn is_moment(token: &str) -> bool {
    token.len() == 8
        && token.split(':').filter(|part| part.len() == 2 && part.parse::<u8>().is_ok()).count() == 3
}

/// `4s`, `12ms`, `4.2s`, `8m31s`
fn is_span(token: &str) -> bool {
    let units = token.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    units.starts_with(['m', 's', 'h', 'd'])
        && units.chars().all(|c| c.is_ascii_digit() || "mshd".contains(c))
        && token.ends_with(['m', 's', 'h', 'd'])
}

/// What the tests themselves run in: a unit, if any, and cargo, which makes whatever they start a test of theirs.
fn depends_on_this_host(line: &str) -> bool {
    line.starts_with("  unit  ") || line == "  test       cargo incidents"
}

/// What started the test is nobody's concern: on a CI host that is the service manager.
fn begun_by_systemd(line: &str) -> String {
    let test = ") → ";
    match (line.starts_with("  started by"), line.find("incidents-")) {
        (true, Some(at)) => {
            let rest = line[at..].split_once(test).map(|(_, rest)| rest);
            format!("  started by systemd (1){}", rest.map(|rest| format!(" → {rest}")).unwrap_or_default())
        }
        _ => line.to_owned(),
    }
}

#[test]
fn values_are_replaced_by_what_they_are() {
    let sample = Sample {
        words: &[("/tmp/x", "/home/runner")],
        ports: &[(20_001, "8081")],
        pids: &["4121", "4130"],
        moments: &["14:03:07", "14:03:11"],
        spans: &["9s", "4.2s"],
    };
    let text = "06:01:02 (1m3s ago) a (pid 77, fd 5) in /tmp/x has 127.0.0.1:20001 and 20001/tcp; kill 78, pid 77\n  unit       x.service\n  started by bash (1) → incidents-0f (5) → b (78)\nlost at 2026-11-21 23:59:59: it came back 1.0s later, the 3rd time, exit 98.\n";
    assert_eq!(
        sample.of(text),
        "14:03:07 (9s ago) a (pid 4121, fd 3) in /home/runner has 127.0.0.1:8081 and 8081/tcp; kill 4130, pid 4121\n  started by systemd (1) → b (4130)\nlost at 14:03:11: it came back 4.2s later, the 3rd time, exit 98.\n"
    );
}
