//! Curves as SVG: four panels, drawn without a library, since lines and numbers are all there is.

use std::fmt::Write;

/// Panels beside each other, then below.
const COLUMNS: usize = 2;
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
/// Of a panel's drawing: left, top, right, bottom.
const MARGINS: [f64; 4] = [60.0, 40.0, 130.0, 45.0];
/// Told apart also by who sees no red or green (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#000000", "#999999"];

/// One curve.
#[derive(Debug)]
pub(crate) struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(crate) fn of(name: &'static str, points: impl Iterator<Item = (f64, f64)>) -> Line {
        Line { name, points: points.collect() }
    }
}

/// One drawing. The horizontal axis is logarithmic.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    /// Whether the vertical axis is, too; else it begins at 0.
    pub(crate) logarithmic: bool,
    pub(crate) lines: Vec<Line>,
}

/// A line of numbers: where one lies on it, from 0 to 1.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, logarithmic: bool) -> Axis {
        let (low, high) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if logarithmic {
            Axis { low: low.max(0.1), high: high.max(low * 1.01), logarithmic }
        } else {
            Axis { low: 0.0, high: (high * 1.1).max(1.0), logarithmic }
        }
    }

    fn at(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round numbers to write beside it.
    fn marks(&self) -> Vec<f64> {
        if self.logarithmic {
            (-1..7)
                .map(|power| 10_f64.powi(power))
                .filter(|mark| (self.low..=self.high).contains(mark))
                .collect()
        } else {
            let rough = self.high / 4.0;
            let power = 10_f64.powf(rough.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(rough);
            (0..=4).map(|nth| f64::from(nth) * step).filter(|mark| *mark <= self.high).collect()
        }
    }
}

/// The picture of these panels.
pub(crate) fn svg(panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(COLUMNS);
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * rows as f64);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (nth, panel) in panels.iter().enumerate() {
        let (x, y) = ((nth % COLUMNS) as f64 * WIDTH, (nth / COLUMNS) as f64 * HEIGHT);
        let _ = writeln!(text, "<g transform=\"translate({x},{y})\">\n{}</g>", drawn(panel));
    }
    text + "</svg>\n"
}

fn drawn(panel: &Panel) -> String {
    let [left, top, right, bottom] = MARGINS;
    let (width, height) = (WIDTH - left - right, HEIGHT - top - bottom);
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let across = Axis::over(points().map(|(x, _)| *x), true);
    let up = Axis::over(points().map(|(_, y)| *y), panel.logarithmic);
    let place = |(x, y): (f64, f64)| (left + across.at(x) * width, top + height - up.at(y) * height);
    let mut text = format!("<text x=\"{left}\" y=\"20\" font-weight=\"bold\">{}</text>\n", panel.title);
    let _ = writeln!(text, "<path d=\"M{left},{top}v{height}h{width}\" fill=\"none\" stroke=\"#444\"/>");
    for mark in up.marks() {
        let (_, y) = place((across.low, mark));
        let _ = writeln!(
            text,
            "<path d=\"M{left},{y:.1}h{width}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    let mut at: Vec<f64> = points().map(|(x, _)| *x).collect();
    at.sort_by(f64::total_cmp);
    at.dedup();
    for mark in at {
        let (x, _) = place((mark, up.low));
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>",
            top + height + 16.0
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        left + width / 2.0,
        HEIGHT - 10.0,
        panel.x,
        left - 6.0,
        top - 8.0,
        panel.y
    );
    let mut names: Vec<(f64, &str, &str)> = Vec::new();
    for (line, colour) in panel.lines.iter().zip(COLOURS.iter().cycle()) {
        let placed: Vec<(f64, f64)> = line.points.iter().map(|point| place(*point)).collect();
        let path: Vec<String> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in &placed {
            let _ = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>");
        }
        names.extend(placed.last().map(|(_, y)| (*y, line.name, *colour)));
    }
    // Names stand at the ends of their lines, one below the other where ends are close.
    names.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut lowest = 0.0_f64;
    for (y, name, colour) in names {
        lowest = (lowest + 13.0).max(y + 4.0);
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{lowest:.1}\" fill=\"{colour}\">{name}</text>",
            left + width + 8.0
        );
    }
    text
}
