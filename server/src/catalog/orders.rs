//! The numbers of fleet orders: ascending and never reused, so that a late answer cannot be taken for another order's.

use super::{Act, Catalog, CatalogError, now};

impl Catalog {
    /// The next number, with what it was ordered for.
    pub async fn add_order(&self, channel: &str, selector: &str, act: Act) -> Result<u64, CatalogError> {
        let mut change = self.begin().await?;
        let id: i64 =
            sqlx::query_scalar("select coalesce(max(id), 0) + 1 from orders").fetch_one(&mut *change.tx).await?;
        sqlx::query("insert into orders (id, channel, selector, by_whom, at) values ($1, $2, $3, $4, $5)")
            .bind(id)
            .bind(channel)
            .bind(selector)
            .bind(&act.who)
            .bind(now())
            .execute(&mut *change.tx)
            .await?;
        let detail = format!("order {id}: {}", act.detail);
        change.audit(act.on(detail)).await?;
        change.commit().await?;
        Ok(id.unsigned_abs())
    }
}
