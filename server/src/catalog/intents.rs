//! Changes of the signed metadata that are under way.
//!
//! Metadata is in files and the audit log is in SQL: no transaction holds both. So an intent is written first, the metadata is
//! changed, and the line in the audit log takes the intent's place. A death in between leaves the intent, and `recover` looks
//! whether the change was made.

use std::collections::BTreeMap;

use sqlx::Row;

use super::{Act, Catalog, CatalogError, to_json, unreadable};

/// A change that somebody was about to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Its number.
    pub id: i64,
    /// The operator.
    pub who: String,
    /// As in the audit log.
    pub what: String,
    /// The peer's address.
    pub from: String,
    /// The roles, each with the BLAKE3 of its new text.
    pub roles: BTreeMap<String, String>,
}

impl Catalog {
    /// Writes down that `act` is about to be done; its detail is not known yet.
    pub async fn intend(&self, act: &Act, roles: &BTreeMap<String, String>) -> Result<i64, CatalogError> {
        let mut change = self.begin().await?;
        let row = sqlx::query(
            "insert into intents (id, who, what, peer, roles) \
             values ((select coalesce(max(id), 0) + 1 from intents), $1, $2, $3, $4) returning id",
        )
        .bind(&act.who)
        .bind(act.what)
        .bind(&act.from)
        .bind(to_json(roles)?)
        .fetch_one(&mut *change.tx)
        .await?;
        let id = row.try_get(0)?;
        change.commit().await?;
        Ok(id)
    }

    /// It was done (`act` says what), or it was not: the intent goes.
    pub async fn settle(&self, intent: i64, act: Option<Act>) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        sqlx::query("delete from intents where id = $1").bind(intent).execute(&mut *change.tx).await?;
        if let Some(act) = act {
            change.audit(act).await?;
        }
        change.commit().await
    }

    /// What was under way when the server died, in order.
    pub async fn intents(&self) -> Result<Vec<Intent>, CatalogError> {
        let rows =
            sqlx::query("select id, who, what, peer, roles from intents order by id").fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let (id, roles): (i64, String) = (row.try_get(0)?, row.try_get(4)?);
                let roles = serde_json::from_str(&roles).map_err(|e| unreadable("intent", &id.to_string(), e))?;
                Ok(Intent { id, who: row.try_get(1)?, what: row.try_get(2)?, from: row.try_get(3)?, roles })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::scratch;

    #[tokio::test]
    async fn an_intent_lasts_until_it_is_settled() {
        let (_dir, catalog) = scratch().await;
        let roles = BTreeMap::from([("releases".to_owned(), "abc".to_owned())]);
        let act = Act::new("alice", "trust.submit", "", "here");
        let (one, two) = (catalog.intend(&act, &roles).await.unwrap(), catalog.intend(&act, &roles).await.unwrap());
        let left = catalog.intents().await.unwrap();
        assert_eq!((left.len(), left[0].who.as_str(), &left[0].roles), (2, "alice", &roles));
        catalog.settle(one, None).await.unwrap();
        catalog.settle(two, Some(act.on("releases version 2"))).await.unwrap();
        assert!(catalog.intents().await.unwrap().is_empty());
        let audit = catalog.audit(9).await.unwrap();
        assert_eq!((audit.len(), audit[0].detail.as_str()), (1, "releases version 2"));
    }
}
