//! Tables for people: aligned columns, two spaces apart, no frames.
//!
//! On a terminal a table that is too wide gives way in its *soft* columns, the widest first, and what was cut ends in
//! `…`; a last column that *wraps* goes on below itself, or hangs below its row. Off a terminal nothing is cut or wrapped, so that a pipe gets
//! every word on one line. Cells come from nodes and servers too: control characters are replaced, so that no node's
//! error text can drive the operator's terminal.

/// The least that a soft column is cut to.
const SOFT_MIN: usize = 8;
/// The least that a column is wrapped to; if there is less room, its text hangs below the row.
const WRAP_MIN: usize = 40;
/// How far it hangs in.
const HANG: usize = 4;

/// How a column behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Left-aligned, never cut.
    Left,
    /// Right-aligned, never cut; for numbers.
    Right,
    /// Left-aligned, cut when there is no room.
    Soft,
    /// Left-aligned, goes on in further lines when there is no room; for the last column only.
    Wrap,
}

/// A table with its head.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Column)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(columns: impl IntoIterator<Item = (&'static str, Column)>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, cells too many are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| plain(&cell)).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether there is anything below the head.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, for a terminal `width` characters wide; `None` cuts nothing.
    pub fn render(&self, width: Option<usize>) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let head: Vec<String> = self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            self.render_row(row, &widths, &mut text);
        }
        text
    }

    fn render_row(&self, row: &[String], widths: &[usize], text: &mut String) {
        let (mut line, mut below) = (String::new(), Vec::new());
        for ((cell, (_, column)), width) in row.iter().zip(&self.columns).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            match column {
                Column::Right => line.push_str(&format!("{cell:>width$}")),
                Column::Left => line.push_str(&format!("{cell:<width$}")),
                Column::Soft => line.push_str(&format!("{:<width$}", cut(cell, *width))),
                Column::Wrap if *width < WRAP_MIN && cell.chars().count() > *width => {
                    let room = (line.chars().count() + width).saturating_sub(HANG).max(WRAP_MIN);
                    below = wrap(cell, room).iter().map(|part| format!("{:HANG$}{part}", "")).collect();
                }
                Column::Wrap => {
                    let indent = " ".repeat(line.chars().count());
                    let mut parts = wrap(cell, *width).into_iter();
                    line.push_str(&parts.next().unwrap_or_default());
                    below = parts.map(|part| format!("{indent}{part}")).collect();
                }
            }
        }
        for line in std::iter::once(line).chain(below) {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let natural = |(index, (title, _)): (usize, &(&str, Column))| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            cells.chain(std::iter::once(title.chars().count())).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = self.columns.iter().enumerate().map(natural).collect();
        let Some(limit) = limit else { return widths };
        let gaps = 2 * widths.len().saturating_sub(1);
        let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(limit);
        for (width, (_, column)) in widths.iter_mut().zip(&self.columns) {
            if *column == Column::Wrap {
                let narrow = width.saturating_sub(over);
                over -= *width - narrow;
                *width = narrow;
            }
        }
        while over > 0 {
            let soft = widths.iter_mut().zip(&self.columns).filter(|(_, (_, column))| *column == Column::Soft);
            match soft.map(|(width, _)| width).max_by_key(|width| **width) {
                Some(widest) if *widest > SOFT_MIN => *widest -= 1,
                _ => break,
            }
            over -= 1;
        }
        widths
    }
}

/// `text` in lines of at most `width` characters, broken between words where there are any.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split(' ') {
        let gap = usize::from(!line.is_empty());
        if line.chars().count() + gap + word.chars().count() <= width {
            line.push_str(if gap == 1 { " " } else { "" });
            line.push_str(word);
            continue;
        }
        if gap == 1 {
            lines.push(std::mem::take(&mut line));
        }
        // A word longer than a line, a hash say, is broken where the line ends.
        for character in word.chars() {
            if line.chars().count() >= width.max(1) {
                lines.push(std::mem::take(&mut line));
            }
            line.push(character);
        }
    }
    lines.push(line);
    lines
}

/// `text` in at most `width` characters.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// `text` on one line and without anything that a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_steering(c) { ' ' } else { c }).collect()
}

/// Characters that change the order or the visibility of others.
fn is_steering(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([("NODE", Column::Left), ("BYTES", Column::Right), ("ERROR", Column::Soft)]);
        table.row(["web-1".into(), "7".into(), String::new()]);
        table.row(["database-1".into(), "12345".into(), "the standby slot is too small by far".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_tails() {
        let expected = "\
NODE        BYTES  ERROR
web-1           7
database-1  12345  the standby slot is too small by far
";
        assert_eq!(sample().render(None), expected);
        assert_eq!(sample().render(Some(80)), expected);
    }

    #[test]
    fn a_narrow_terminal_cuts_soft_columns_only() {
        let text = sample().render(Some(40));
        assert_eq!(text.lines().last(), Some("database-1  12345  the standby slot is …"));
        assert_eq!(text.lines().map(|line| line.chars().count()).max(), Some(40));
        let text = sample().render(Some(10));
        assert_eq!(text.lines().last(), Some("database-1  12345  the sta…"));
    }

    #[test]
    fn missing_cells_are_empty_and_no_rows_are_a_head() {
        let mut table = Table::new([("A", Column::Left), ("B", Column::Right)]);
        assert!(table.is_empty());
        assert_eq!(table.render(Some(80)), "A  B\n");
        table.row(["x".into()]);
        table.row(["x".into(), "y".into(), "z".into()]);
        assert_eq!(table.render(Some(80)), "A  B\nx\nx  y\n");
    }

    #[test]
    fn a_cell_cannot_drive_the_terminal() {
        let mut table = Table::new([("A", Column::Left)]);
        table.row(["\u{1b}[2Jgone\nnew\u{202e}line\u{7}".into()]);
        assert_eq!(table.render(None), "A\n [2Jgone new line\n");
    }

    #[test]
    fn a_last_column_that_wraps_goes_on_below_itself() {
        let mut table = Table::new([("WHO", Column::Left), ("DETAIL", Column::Wrap)]);
        let hash = "0123456789abcdef".repeat(3);
        table.row(["ann".into(), format!("web:2026.11.21 image {hash} ok")]);
        table.row(["bob".into(), "short".into()]);
        let beside = format!(
            "WHO  DETAIL\nann  web:2026.11.21 image\n     {}\n     {} ok\nbob  short\n",
            &hash[..45],
            &hash[45..]
        );
        assert_eq!(table.render(Some(50)), beside);
        let hanging = format!(
            "WHO  DETAIL\nann\n    web:2026.11.21 image\n    {}\n    {} ok\nbob  short\n",
            &hash[..40],
            &hash[40..]
        );
        assert_eq!(table.render(Some(44)), hanging);
        assert_eq!(table.render(None).lines().count(), 3);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("a  b", 5), ["a  b"]);
    }

    proptest::proptest! {
        #[test]
        fn wrapping_keeps_every_character_and_the_width(text in "[a-zé ]{0,80}", width in 1_usize..30) {
            let lines = wrap(&text, width);
            let flat = |text: &str| text.replace(' ', "");
            proptest::prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            proptest::prop_assert_eq!(flat(&lines.concat()), flat(&text));
        }
    }

    #[test]
    fn cutting_counts_characters() {
        assert_eq!(cut("grün", 4), "grün");
        assert_eq!(cut("grüner", 4), "grü…");
    }
}
