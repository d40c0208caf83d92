//! Operators, known by the hash of their bearer token.

use sqlx::Row;

use super::{Act, Catalog, CatalogError, now, unreadable};

/// Someone who may use the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The name in the audit log.
    pub name: String,
    /// BLAKE3 of the bearer token.
    pub token_hash: blake3::Hash,
}

impl Catalog {
    /// Adds an operator.
    pub async fn add_operator(&self, operator: &Operator, act: Act) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        sqlx::query("insert into operators (name, token_hash, created_at) values ($1, $2, $3)")
            .bind(&operator.name)
            .bind(operator.token_hash.to_hex().to_string())
            .bind(now())
            .execute(&mut *change.tx)
            .await?;
        change.audit(act).await?;
        change.commit().await
    }

    /// All of them; there are few.
    pub async fn operators(&self) -> Result<Vec<Operator>, CatalogError> {
        let rows = sqlx::query("select name, token_hash from operators order by name").fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let (name, hash): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                let token_hash = blake3::Hash::from_hex(&hash).map_err(|e| unreadable("operator", &name, e))?;
                Ok(Operator { name, token_hash })
            })
            .collect()
    }

    /// The operator with this bearer token. Every stored hash is compared, each in constant time, so that the time
    /// taken tells nothing about any of them.
    pub async fn operator_by_token(&self, token: &str) -> Result<Option<String>, CatalogError> {
        let hash = blake3::hash(token.as_bytes());
        let operators = self.operators().await?;
        Ok(operators
            .into_iter()
            .fold(None, |found, each| if each.token_hash == hash { Some(each.name) } else { found }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::scratch;

    #[tokio::test]
    async fn an_operator_is_found_by_token_and_by_nothing_else() {
        let (_dir, catalog) = scratch().await;
        for name in ["alice", "bob"] {
            let operator = Operator { name: name.into(), token_hash: blake3::hash(format!("t-{name}").as_bytes()) };
            catalog.add_operator(&operator, Act::new("server", "operator.add", name, "local")).await.unwrap();
        }
        assert_eq!(catalog.operator_by_token("t-alice").await.unwrap().as_deref(), Some("alice"));
        assert_eq!(catalog.operator_by_token("t-bob").await.unwrap().as_deref(), Some("bob"));
        for wrong in ["", "t-carol", "t-alice "] {
            assert_eq!(catalog.operator_by_token(wrong).await.unwrap(), None, "{wrong:?}");
        }
        let double = Operator { name: "alice".into(), token_hash: blake3::hash(b"other") };
        assert!(catalog.add_operator(&double, Act::new("x", "operator.add", "alice", "local")).await.is_err());
        assert_eq!(catalog.audit(10).await.unwrap().len(), 2, "what failed is not in the log");
    }
}
