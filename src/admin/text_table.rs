//! Aligned columns for a terminal. Pure.

/// Columns as wide as their widest cell, two spaces apart. A header that starts with `>` aligns its column to the right.
pub(super) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let titles = header
        .iter()
        .map(|title| title.trim_start_matches('>').to_owned())
        .collect();
    let rows: Vec<Vec<String>> = std::iter::once(titles)
        .chain(rows.map(|cells| cells.iter().map(|cell| plain(cell)).collect()))
        .collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            rows.iter()
                .filter_map(|cells| cells.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for cells in &rows {
        let padded = cells.iter().zip(header).zip(&widths).map(|((cell, title), &width)| {
            if title.starts_with('>') {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Without control characters: a server's error message must not move the terminal's cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
