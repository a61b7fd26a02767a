//! The two tables: ratios of loops, and figures.

use std::time::Duration;

use crate::common::table::{markdown, median};
use crate::rounds::{Loop, Verdict, middle, minimum};

/// The loops with and without the agent.
pub(crate) fn loops(loops: &[Loop]) -> String {
    let head = [
        "loop",
        "without: min",
        "median",
        "with: min",
        "median",
        "ratio of minima",
        "ratio of medians",
        "single turns",
        "noise",
        "target (limit)",
        "result",
    ];
    let rows = loops.iter().map(|one| {
        let time = |nanoseconds: f64| match nanoseconds {
            short if short < 10_000.0 => format!("{short:.1} ns"),
            long => format!("{:.2} µs", long / 1000.0),
        };
        let ((target, limit), (least, most)) = (one.target(), one.range());
        let result = match one.verdict() {
            Verdict::Met => "ok",
            Verdict::WithinLimit => "MISSED, within the limit",
            Verdict::AboveLimit => "MISSED, ABOVE THE LIMIT",
        };
        [
            one.what().to_owned(),
            time(minimum(&one.without)),
            time(middle(&one.without)),
            time(minimum(&one.with)),
            time(middle(&one.with)),
            format!("{:.3}", one.ratio_of_minima()),
            format!("{:.3}", one.ratio_of_medians()),
            format!("{least:.3}-{most:.3}"),
            format!("{:.3}", one.noise()),
            format!("≤ {target} ({limit:.2})"),
            result.to_owned(),
        ]
    });
    markdown(head, rows)
}

/// A figure of its own.
#[derive(Debug)]
pub(crate) struct Figure {
    what: &'static str,
    median: f64,
    /// The 99th percentile of times, the worst of few others. Absent where there is one figure only.
    bad: Option<f64>,
    unit: &'static str,
    target: Option<Target>,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    pub(crate) fn single(what: &'static str, value: f64, unit: &'static str) -> Figure {
        Figure { what, median: value, bad: None, unit, target: None }
    }

    pub(crate) fn times(what: &'static str, times: &[Duration]) -> Figure {
        let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        // The least time that 99 of 100 do not exceed.
        let rank = (times.len() * 99).div_ceil(100).saturating_sub(1);
        Figure { what, median: median(&times), bad: times.get(rank).copied(), unit: "ms", target: None }
    }

    /// One value of each storm, and the worst of them: the least or the largest.
    pub(crate) fn storms(
        what: &'static str,
        values: &[f64],
        worse: fn(f64, f64) -> f64,
        unit: &'static str,
    ) -> Figure {
        let bad = values.iter().copied().reduce(worse);
        Figure { what, median: median(values), bad, unit, target: None }
    }

    pub(crate) fn at_most(self, limit: f64) -> Figure {
        Figure { target: Some(Target::AtMost(limit)), ..self }
    }

    pub(crate) fn at_least(self, limit: f64) -> Figure {
        Figure { target: Some(Target::AtLeast(limit)), ..self }
    }

    /// Where there is a target. A figure that is no number meets none.
    fn meets(&self) -> Option<bool> {
        let judged = self.bad.unwrap_or(self.median);
        self.target.map(|target| match target {
            Target::AtMost(limit) => judged <= limit,
            Target::AtLeast(limit) => judged >= limit,
        })
    }

    fn cells(&self) -> [String; 5] {
        let number = |value: f64| {
            let digits = if value.fract() == 0.0 || value >= 1000.0 { 0 } else { 2 };
            format!("{value:.digits$} {}", self.unit)
        };
        let target = match self.target {
            None => String::new(),
            Some(Target::AtMost(limit)) => format!("≤ {}", number(limit)),
            Some(Target::AtLeast(limit)) => format!("≥ {}", number(limit)),
        };
        let result = match self.meets() {
            None => "",
            Some(true) => "ok",
            Some(false) => "MISSED",
        };
        let bad = self.bad.map(number).unwrap_or_default();
        [self.what.to_owned(), number(self.median), bad, target, result.to_owned()]
    }
}

/// The figures that are no ratios.
pub(crate) fn figures(figures: &[Figure]) -> String {
    markdown(["measured", "median", "p99 or worst", "target", "result"], figures.iter().map(Figure::cells))
}

/// In one line, what was missed.
pub(crate) fn verdict(loops: &[Loop], figures: &[Figure]) -> String {
    let slow = loops.iter().filter(|one| one.verdict() != Verdict::Met).map(Loop::what);
    let missed = figures.iter().filter(|figure| figure.meets() == Some(false)).map(|figure| figure.what);
    let missed: Vec<&str> = slow.chain(missed).collect();
    match missed.as_slice() {
        [] => "All targets are met.".to_owned(),
        missed => format!("{} MISSED: {}.", missed.len(), missed.join("; ")),
    }
}
