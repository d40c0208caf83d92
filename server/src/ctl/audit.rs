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
        ("DETAIL", Column::Soft),
    ]);
    for entry in entries {
        let AuditEntry { at, who, what, detail, from } = entry.clone();
        table.row([show::time(&at), who, from, what, detail]);
    }
    table
}
