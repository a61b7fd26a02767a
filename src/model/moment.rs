//! A moment as users write it: RFC 3339, a time of today (`14:03`), or a span back from now (`90s`, `2h`, `7d`).

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Reads a moment of the past. A time of day that is still to come today was yesterday's.
/// Errors: a sentence with what would be right.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    let text = text.trim();
    span(text)
        .and_then(|ago| now.checked_sub(ago).ok())
        .or_else(|| text.parse().ok())
        .or_else(|| time_of_day(text, now, zone))
        .ok_or_else(|| {
            format!("'{text}' is no moment: write 90s, 15m, 2h or 7d ago, 14:03, or 2026-11-21T14:03:00Z")
        })
}

/// A number and a unit; a day has 24 hours.
fn span(text: &str) -> Option<SignedDuration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: i64 = number.parse().ok().filter(|number| *number >= 0)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    Some(SignedDuration::from_secs(number.checked_mul(unit)?))
}

fn time_of_day(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let time: Time = Time::strptime("%H:%M:%S", text).or_else(|_| Time::strptime("%H:%M", text)).ok()?;
    let today = now.to_zoned(zone.clone()).date();
    let at = today.to_datetime(time).to_zoned(zone.clone()).ok()?.timestamp();
    if at <= now {
        return Some(at);
    }
    let yesterday = today.yesterday().ok()?;
    Some(yesterday.to_datetime(time).to_zoned(zone.clone()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let now = "2026-11-21T14:10:00Z".parse().unwrap();
        parse(text, now, &TimeZone::UTC).map(|at| at.to_string())
    }

    #[test]
    fn spans_times_and_dates_are_read() {
        for (text, at) in [
            ("90s", "2026-11-21T14:08:30Z"),
            ("2h", "2026-11-21T12:10:00Z"),
            ("7d", "2026-11-14T14:10:00Z"),
            ("14:03", "2026-11-21T14:03:00Z"),
            ("14:03:07", "2026-11-21T14:03:07Z"),
            ("23:59", "2026-11-20T23:59:00Z"),
            ("2026-11-21T10:00:00+02:00", "2026-11-21T08:00:00Z"),
        ] {
            assert_eq!(read(text), Ok(at.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_what_would_be() {
        for text in
            ["", "s", "-5s", "abc", "25:00", "99999999999999999999s", "9223372036854775807d", "5w", "é"]
        {
            assert!(read(text).unwrap_err().contains("is no moment"), "{text}");
        }
    }
}
