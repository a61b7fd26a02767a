//! Figures, targets, and the table of both.

use std::time::Duration;

use crate::common::{self, table::median};

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Less than so many of a unit, at worst.
    Below(f64, &'static str),
    /// So many times faster at the least, in the median.
    Factor(f64),
}

/// Whether a target counts in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worth {
    /// It does.
    Judged,
    /// It is meant for the full load, and this one is smaller.
    NotAtThisLoad,
}

impl Worth {
    pub(crate) fn at_load(full: bool) -> Worth {
        if full { Worth::Judged } else { Worth::NotAtThisLoad }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: &'static str,
    median: f64,
    /// Absent where there is one figure only.
    worst: Option<f64>,
    unit: &'static str,
    target: Option<(Target, Worth)>,
}

impl Row {
    pub(crate) fn single(what: &'static str, value: f64, unit: &'static str) -> Row {
        Row { what, median: value, worst: None, unit, target: None }
    }

    pub(crate) fn times(what: &'static str, times: &[Duration]) -> Row {
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        let worst = times.iter().copied().fold(0.0, f64::max);
        Row { what, median: median(&times), worst: Some(worst), unit: "ms", target: None }
    }

    /// How many times faster the second is than the first; at worst, of those measured in the same turn.
    pub(crate) fn ratios(what: &'static str, slow: &[Duration], fast: &[Duration]) -> Row {
        let of = |times: &[Duration]| median(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>());
        let pairs = slow.iter().zip(fast).map(|(slow, fast)| slow.as_secs_f64() / fast.as_secs_f64());
        let worst = pairs.fold(f64::INFINITY, f64::min);
        Row { what, median: of(slow) / of(fast), worst: Some(worst), unit: "×", target: None }
    }

    pub(crate) fn target(self, target: Target, worth: Worth) -> Row {
        Row { target: Some((target, worth)), ..self }
    }

    pub(crate) fn is_missed(&self) -> bool {
        match self.target {
            None | Some((_, Worth::NotAtThisLoad)) => false,
            Some((target, Worth::Judged)) => !self.meets(target),
        }
    }

    /// A figure that is no number meets nothing.
    fn meets(&self, target: Target) -> bool {
        match target {
            Target::Below(limit, _) => self.worst.unwrap_or(self.median) < limit,
            Target::Factor(factor) => self.median >= factor,
        }
    }

    fn cells(&self) -> [String; 5] {
        let number = |value: f64| format!("{value:.*} {}", if value < 10.0 { 2 } else { 1 }, self.unit);
        let target = match self.target {
            None => String::new(),
            Some((Target::Below(limit, unit), _)) => format!("< {limit} {unit}"),
            Some((Target::Factor(factor), _)) => format!("≥ {factor} ×"),
        };
        let verdict = match (self.target, self.is_missed()) {
            (None, _) => "",
            (Some((_, Worth::NotAtThisLoad)), _) => "not judged at this load",
            (_, true) => "MISSED",
            (_, false) => "ok",
        };
        let worst = self.worst.map(number).unwrap_or_default();
        [self.what.to_owned(), number(self.median), worst, target, verdict.to_owned()]
    }
}

/// The table of these lines.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let head = ["measured", "median", "worst", "target", "result"];
    common::table::markdown(head, rows.iter().map(Row::cells))
}
