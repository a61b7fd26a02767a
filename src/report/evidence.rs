//! The evidence of a job, to keep beside its log: as text, and as one HTML file that needs nothing else.

use std::fmt::Write;

use jiff::tz::TimeZone;

use super::{conflicts, history, words};
use crate::judge::ending;
use crate::model::escape::Escaped;
use crate::model::hold::Hold;
use crate::model::report::JobReport;

/// As text.
pub fn evidence(report: &JobReport, zone: &TimeZone) -> String {
    let mut text = String::new();
    let (job, now) = (&report.job, report.as_of);
    let _ = writeln!(text, "Job {} ({} {})", words::job(job), Escaped(&job.ci), Escaped(&job.id));
    let _ = writeln!(text, "{}, on host {}", words::job_state(job, now, zone), Escaped(&report.host));
    let _ = writeln!(text, "Written {}", now.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z"));
    if let Some(url) = &job.url {
        let _ = writeln!(text, "{}", Escaped(url));
    }
    text.push('\n');
    for sentence in &report.summary {
        let _ = writeln!(text, "{}", Escaped(sentence));
    }
    for gap in &report.incomplete {
        let _ = writeln!(text, "Not seen: {}", Escaped(gap));
    }
    for (title, holds) in
        [("Leaked", &report.leaks), ("Lost listeners", &report.lost), ("Every port it held", &report.holds)]
    {
        if !holds.is_empty() {
            heading(&mut text, title);
            for hold in holds {
                history::tell(&mut text, hold, now, zone);
            }
        }
    }
    if !report.conflicts.is_empty() {
        heading(&mut text, "Port conflicts");
        for conflict in &report.conflicts {
            conflicts::tell(&mut text, conflict, now, zone);
        }
    }
    text
}

fn heading(text: &mut String, title: &str) {
    let apart = if text.ends_with("\n\n") { "" } else { "\n" };
    let _ = writeln!(text, "{apart}== {title}\n");
}

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; } code { font-size: .9em; overflow-wrap: anywhere; } .said { font-weight: 600; } div { overflow-x: auto; }
";

/// As one HTML file: its style is in it, and it has no script.
pub fn evidence_html(report: &JobReport, zone: &TimeZone) -> String {
    let job = &report.job;
    let title = format!("Ports of {}", words::job(job));
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    let _ = writeln!(page, "<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>", html(&title));
    let _ = writeln!(page, "<h1>{}</h1>", html(&title));
    let at = report.as_of.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string();
    let _ = writeln!(
        page,
        "<p>{} <code>{}</code>, {}, on host {}. Written {}.</p>",
        html(&job.ci),
        html(&job.id),
        html(&words::job_state(job, report.as_of, zone)),
        html(&report.host),
        html(&at)
    );
    // Nobody is led anywhere but to a web page.
    if let Some(url) =
        job.url.as_deref().filter(|url| url.starts_with("https://") || url.starts_with("http://"))
    {
        let _ = writeln!(page, "<p><a rel=\"noreferrer noopener\" href=\"{0}\">{0}</a></p>", html(url));
    }
    page += "<ul>\n";
    for sentence in &report.summary {
        let _ = writeln!(page, "<li class=\"said\">{}</li>", html(sentence));
    }
    for gap in &report.incomplete {
        let _ = writeln!(page, "<li>Not seen: {}</li>", html(gap));
    }
    page += "</ul>\n";
    if !report.conflicts.is_empty() {
        refusals(&mut page, report, zone);
    }
    for (title, holds) in
        [("Leaked", &report.leaks), ("Lost listeners", &report.lost), ("Every port it held", &report.holds)]
    {
        if !holds.is_empty() {
            table(&mut page, title, holds, report, zone);
        }
    }
    page + "</body>\n</html>\n"
}

fn refusals(page: &mut String, report: &JobReport, zone: &TimeZone) {
    *page += "<h2>Port conflicts</h2>\n<div><table>\n<tr><th scope=\"col\">when</th><th scope=\"col\">port</th><th scope=\"col\">refused</th><th scope=\"col\">had by</th><th scope=\"col\">why</th></tr>\n";
    for conflict in &report.conflicts {
        let loser = &conflict.loser;
        let refused = format!("{} (pid {})", loser.comm.as_deref().unwrap_or("a process"), loser.pid);
        let blocker = conflict.blockers.first().and_then(|claim| {
            let holder = claim.holders.first()?;
            let job = claim.job.as_ref().map(|job| format!(" of {}", words::job(job))).unwrap_or_default();
            Some(format!("{} (pid {}){job}", holder.comm.as_deref().unwrap_or("a process"), holder.pid))
        });
        let times =
            if conflict.attempts > 1 { format!(", {} times", conflict.attempts) } else { String::new() };
        row(
            page,
            &[
                &words::moment(conflict.at, report.as_of, zone),
                &format!("{} {}{times}", conflict.protocol, words::address(conflict.address, conflict.port)),
                &refused,
                blocker.as_deref().unwrap_or("nobody that was found"),
                &conflict.explanation,
            ],
        );
    }
    *page += "</table></div>\n";
}

fn table(page: &mut String, title: &str, holds: &[Hold], report: &JobReport, zone: &TimeZone) {
    let _ = writeln!(page, "<h2>{}</h2>\n<div><table>", html(title));
    *page += "<tr><th scope=\"col\">from</th><th scope=\"col\">until</th><th scope=\"col\">port</th><th scope=\"col\">by</th><th scope=\"col\">command</th><th scope=\"col\">test</th><th scope=\"col\">end</th></tr>\n";
    for hold in holds {
        let holder = hold.holder.as_ref();
        let by = holder
            .map(|holder| format!("{} (pid {})", holder.comm.as_deref().unwrap_or("a process"), holder.pid));
        let command = holder.and_then(|holder| holder.cmdline.as_deref()).map(|line| line.join(" "));
        let end = ending::words(hold).unwrap_or_else(|| "it goes on".to_owned());
        let leaked = if hold.leaked_at.is_some() { "leaked; " } else { "" };
        row(
            page,
            &[
                &words::moment(hold.from, report.as_of, zone),
                &hold.until.map(|until| words::moment(until, report.as_of, zone)).unwrap_or_default(),
                &format!("{} {}", hold.protocol, words::address(hold.address, hold.port)),
                by.as_deref().unwrap_or_default(),
                command.as_deref().unwrap_or_default(),
                hold.test.as_ref().map(|test| test.name.as_str()).unwrap_or_default(),
                &format!("{leaked}{end}"),
            ],
        );
    }
    *page += "</table></div>\n";
}

fn row(page: &mut String, cells: &[&str]) {
    *page += "<tr>";
    for cell in cells {
        let _ = write!(page, "<td>{}</td>", html(cell));
    }
    *page += "</tr>\n";
}

/// Foreign text for the inside of an element or of a quoted attribute: control characters are made visible, and nothing is markup.
fn html(text: &str) -> String {
    let mut safe = String::new();
    for c in Escaped(text).to_string().chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::evidence::report;
    use crate::model::claim::fixtures::github;
    use crate::model::hold::End;
    use crate::model::hold::fixtures::{at, hold};
    use crate::model::job::JobState;
    use crate::model::process::Holder;

    fn hostile() -> JobReport {
        let mut job = github(JobState::Ended, "\"><script>alert(1)</script>");
        job.url = Some("javascript:alert(1)".to_owned());
        let holder = Holder {
            comm: Some("<img src=x>".to_owned()),
            cmdline: Some(vec!["a\u{202e}b".to_owned(), "\u{1b}]0;".to_owned()]),
            ..Holder::unknown(7)
        };
        let lost = Hold {
            until: Some(at(9)),
            end: Some(End::OomKilled),
            leaked_at: Some(at(5)),
            holder: Some(holder.into()),
            ..hold(1, 7)
        };
        report(job, vec![lost], vec![], vec!["<b>".to_owned()], ("ci-1".to_owned(), at(60)))
    }

    #[test]
    fn foreign_names_are_text_in_the_file() {
        let page = evidence_html(&hostile(), &TimeZone::UTC);
        for never in ["<script", "<img", "javascript:", "\u{202e}", "\u{1b}", "<b>", "http"] {
            assert!(!page.contains(never), "{never}: {page}");
        }
        assert!(page.contains("&lt;img src=x&gt;") && page.contains("\\u{202e}"));
        insta::assert_snapshot!(page.split_once("</style>").unwrap().1);
    }

    #[test]
    fn the_same_is_told_as_text() {
        insta::assert_snapshot!(evidence(&hostile(), &TimeZone::UTC));
    }
}
