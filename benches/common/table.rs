//! Drawing, and what is in the middle.

/// The middle value, or the mean of the two in the middle; of nothing no number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle), middle.checked_sub(1).and_then(|low| values.get(low))) {
        (1, Some(value), _) => *value,
        (_, Some(high), Some(low)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

/// A markdown table that is aligned as text, too.
pub(crate) fn markdown<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let lines: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let drawn = |line: &[String; N]| {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}", cells.collect::<String>())
    };
    let rule = format!("|{}", widths.map(|width| format!("{}|", "-".repeat(width + 2))).concat());
    let mut text: Vec<String> = lines.iter().map(drawn).collect();
    text.insert(1, rule);
    text.join("\n")
}
