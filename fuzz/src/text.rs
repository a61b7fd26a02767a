//! What people write: targets, namespaces, moments, the configuration. And what is shown of it.

use jiff::tz::TimeZone;
use sniffer::model::escape::Escaped;
use sniffer::model::moment;
use sniffer::model::netns::NetnsSelector;
use sniffer::model::target::Target;

/// Whether it may be shown in one line of a terminal.
fn is_harmless(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// A target, a namespace, a moment.
pub fn targets(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<Target>() {
        Ok(target) => {
            assert!(*target.ports.start() > 0 && target.ports.start() <= target.ports.end());
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        Err(error) => assert!(is_harmless(&error.to_string()), "{error}"),
    }
    if let Ok(selector) = text.parse::<NetnsSelector>() {
        assert_eq!(selector.to_string().parse(), Ok(selector));
    }
    let now = "2026-11-21T14:10:00Z".parse().unwrap();
    let _ = moment::parse(&text, now, &TimeZone::UTC);
    let shown = Escaped(&text).to_string();
    assert!(is_harmless(&shown), "{shown:?}");
    assert_eq!(Escaped(&shown).to_string(), shown, "what is harmless stays as it is");
}

/// A configuration: settings, or mistakes with their places.
pub fn config(bytes: &[u8]) {
    if let Err(mistakes) = sniffer::config::parse(bytes) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
        assert!(!mistakes.is_empty(), "it is refused for a reason");
        for mistake in mistakes {
            assert!((1..=lines).contains(&mistake.line) && mistake.column >= 1, "{mistake:?}");
            assert!(!mistake.what.is_empty());
        }
    }
}
