//! The keys that a configuration may have, and the nearest one to a key that it may not.

use toml::Table;

/// Every key, with its section. Labels are free.
const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "server",
            "channel",
            "labels",
            "state",
            "slots",
            "activation",
            "health",
            "restart",
            "schedule",
            "budget",
            "limits",
        ],
    ),
    ("slots", &["a", "b", "size"]),
    (
        "activation",
        &[
            "backend",
            "tries",
            "cmdline",
            "link",
            "command",
            "time_limit",
            "takes_effect",
            "grubenv",
            "esp",
            "efivars",
            "kernel",
            "initrd",
            "kernel_from",
            "uki",
            "options",
            "env_config",
            "single",
            "entry_a",
            "entry_b",
            "target",
            "fstype",
            "verity",
        ],
    ),
    ("health", &["commands", "time_limit", "units", "boot_complete", "server", "deadline", "every", "steady"]),
    ("restart", &["how", "command", "keep", "verity", "time_limit", "windows", "time_zone", "inhibitors", "sessions"]),
    ("budget", &["update", "link"]),
    ("schedule", &["cron", "splay", "time_zone"]),
    ("limits", &["threads", "scan_budget", "prefer", "silence", "slowest"]),
];

/// The first key of `table` that is not known, and what to write instead.
pub(super) fn first_unknown(table: &Table) -> Option<(String, String)> {
    KEYS.iter().find_map(|(section, known)| {
        let found = if section.is_empty() { Some(table) } else { table.get(*section).and_then(|part| part.as_table()) };
        let stray = found?.keys().find(|key| !known.contains(&key.as_str()))?;
        Some((full(section, stray), hint(section, stray, known)))
    })
}

fn full(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

fn hint(section: &str, stray: &str, known: &[&str]) -> String {
    let near = |key: &str| distance(stray, key) <= 1 + key.len() / 3;
    // The section's own keys first, then those of others: `size` at the top is most likely `slots.size`.
    let here = known.iter().map(|key| (full(section, key), *key));
    let elsewhere = KEYS.iter().flat_map(|(other, keys)| keys.iter().map(|key| (full(other, key), *key)));
    let candidates: Vec<_> = here.chain(elsewhere).filter(|(_, key)| near(key)).collect();
    match candidates.iter().min_by_key(|(_, key)| distance(stray, key)) {
        Some((name, _)) => format!("did you mean `{name}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Letters to insert, drop or replace to get from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_a_pencil() {
        for (from, to, expected) in
            [("", "abc", 3), ("chanel", "channel", 1), ("slot", "slots", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(from, to), distance(to, from)), (expected, expected), "{from} {to}");
        }
    }
}
