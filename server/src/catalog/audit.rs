//! The audit log: who did what, when, from where. Lines are added, never changed or removed.

use sqlx::Row;

use super::{Catalog, CatalogError, Change, now};
use crate::api::types::AuditEntry;

/// Something that was done, before the log stamps it.
#[derive(Clone, Debug)]
pub struct Act {
    /// The operator, node, or `server`.
    pub who: String,
    /// `release.publish`, `node.revoke`, ...
    pub what: &'static str,
    /// On what, with its values.
    pub detail: String,
    /// The peer's address.
    pub from: String,
}

impl Act {
    /// An act.
    pub fn new(who: impl ToString, what: &'static str, detail: impl ToString, from: impl ToString) -> Self {
        Self { who: who.to_string(), what, detail: detail.to_string(), from: from.to_string() }
    }

    /// The same act by the same peer on something that is known only now.
    pub fn on(mut self, detail: impl ToString) -> Self {
        self.detail = detail.to_string();
        self
    }
}

impl Change<'_> {
    /// Writes the act into the same transaction as the change that it describes.
    pub(super) async fn audit(&mut self, act: Act) -> Result<(), CatalogError> {
        sqlx::query(
            "insert into audit (id, at, who, what, detail, peer) \
             values ((select coalesce(max(id), 0) + 1 from audit), $1, $2, $3, $4, $5)",
        )
        .bind(now())
        .bind(act.who)
        .bind(act.what)
        .bind(act.detail)
        .bind(act.from)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}

impl Catalog {
    /// Writes an act that changes nothing in the catalog itself.
    pub async fn record(&self, act: Act) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        change.audit(act).await?;
        change.commit().await
    }

    /// The newest `limit` entries, newest first.
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, CatalogError> {
        let rows = sqlx::query("select at, who, what, detail, peer from audit order by id desc limit $1")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(AuditEntry {
                    at: row.try_get(0)?,
                    who: row.try_get(1)?,
                    what: row.try_get(2)?,
                    detail: row.try_get(3)?,
                    from: row.try_get(4)?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::scratch;

    #[tokio::test]
    async fn the_newest_entries_come_first_and_no_more_than_asked_for() {
        let (_dir, catalog) = scratch().await;
        for detail in ["one", "two", "three"] {
            catalog.record(Act::new("alice", "test.act", detail, "127.0.0.1:9")).await.unwrap();
        }
        let entries = catalog.audit(2).await.unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (e.who.as_str(), e.what.as_str(), e.detail.as_str())).collect();
        assert_eq!(seen, [("alice", "test.act", "three"), ("alice", "test.act", "two")]);
        assert_eq!(entries[0].from, "127.0.0.1:9");
    }
}
