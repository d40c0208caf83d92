//! The known keys, and the nearest one to a key that is not known.

use toml::{Table, Value};

use super::Config;

/// The first key of `table` that does not exist, with its tables, and the known key that looks most like it.
pub fn unknown(table: &Table) -> Option<(String, String)> {
    let known = known();
    let key = first_unknown(table, &known, "")?;
    let nearest = nearest(&key, &known);
    Some((key, nearest))
}

/// All keys and tables, as `table.key`. The defaults have every one of them.
fn known() -> Vec<String> {
    fn walk(table: &Table, prefix: &str, into: &mut Vec<String>) {
        for (key, value) in table {
            let path = format!("{prefix}{key}");
            if let Value::Table(inner) = value {
                walk(inner, &format!("{path}."), into);
            }
            into.push(path);
        }
    }
    let mut keys = Vec::new();
    // The defaults are plain values; if they could not be written the tests of `config` would say so.
    walk(&Table::try_from(Config::default()).unwrap_or_default(), "", &mut keys);
    keys
}

fn first_unknown(table: &Table, known: &[String], prefix: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let path = format!("{prefix}{key}");
        match value {
            _ if !known.contains(&path) => Some(path),
            Value::Table(inner) => first_unknown(inner, known, &format!("{path}.")),
            _ => None,
        }
    })
}

/// By edit distance; a key that is right but stands in the wrong table is right there.
fn nearest(key: &str, known: &[String]) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |candidate: &&String| distance(key, candidate).min(1 + self::distance(&last(key), &last(candidate)));
    known.iter().min_by_key(distance).cloned().unwrap_or_default()
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        row[0] = left;
        for (cell, y) in row[1..].iter_mut().zip(&b) {
            left = (diagonal + usize::from(x != *y)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, left);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_edits() {
        for (a, b, edits) in [("", "", 0), ("abc", "", 3), ("lisen", "listen", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn tables_and_keys_are_known() {
        let known = known();
        for key in ["data", "nodes", "nodes.keep_alive", "orders.lifetime"] {
            assert!(known.iter().any(|k| k == key), "{key}");
        }
    }
}
