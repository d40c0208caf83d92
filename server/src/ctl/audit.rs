//! `goldsync audit`: who did what, when, and from where.

use super::fail::Outcome;
use super::table::{Column, Table};
use super::{Desk, screen, show};
use crate::api::types::AuditEntry;
use crate::cli::Audit;

/// `goldsync audit`
pub async fn run(desk: &Desk, args: &Audit) -> Outcome {
    let entries = desk.client.audit(args.limit).await?;
    if args.json.json {
        return screen::print_json(&entries);
    }
    screen::print_table(&table(&entries), "nothing was done yet")
}

fn table(entries: &[AuditEntry]) -> Table {
    let mut table = Table::new([
        ("AT (UTC)", Column::Left),
        ("WHO", Column::Left),
        ("FROM", Column::Left),
        ("WHAT", Column::Left),
        ("DETAIL", Column::Wrap),
    ]);
    for entry in entries {
        let AuditEntry { at, who, what, detail, from } = entry.clone();
        table.row([show::time(&at), who, from, what, detail]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_whole_in_eighty_columns() {
        let entry = AuditEntry {
            at: "2026-11-21T09:00:00Z".into(),
            who: "ann".into(),
            what: "release.publish".into(),
            detail: format!("web:1 image {}", "ab".repeat(32)),
            from: "192.0.2.7:51234".into(),
        };
        let text = table(&[entry]).render(Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.split_whitespace().collect::<String>().contains(&"ab".repeat(32)), "{text}");
    }
}
