//! Enrolment tokens: stored hashed, used a limited number of times, expired by the clock.

use std::collections::BTreeMap;

use goldsync_proto::release::Word;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Act, Catalog, CatalogError, Change, now, to_json, unreadable};

/// A token to be stored.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Not secret.
    pub id: String,
    /// BLAKE3 of the secret.
    pub secret_hash: blake3::Hash,
    /// Labels for the nodes that come with it.
    pub labels: BTreeMap<String, String>,
    /// How many may come.
    pub uses: u32,
    /// Until when, as by [`super::stamp`].
    pub expires_at: String,
}

/// What a good token gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redeemed {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A node that enrolled before with the same token and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Came {
    /// Its name.
    pub node: Word,
    /// The token's id.
    pub token: String,
    /// Whether it was revoked since.
    pub revoked: bool,
}

impl Catalog {
    /// Stores a token.
    pub async fn add_token(&self, token: &NewToken, act: Act) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        sqlx::query(
            "insert into tokens (id, secret_hash, labels, uses_left, created_by, created_at, expires_at) \
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&token.id)
        .bind(token.secret_hash.to_hex().to_string())
        .bind(to_json(&token.labels)?)
        .bind(i64::from(token.uses))
        .bind(&act.who)
        .bind(now())
        .bind(&token.expires_at)
        .execute(&mut *change.tx)
        .await?;
        change.audit(act).await?;
        change.commit().await
    }

    /// The labels of a token that lasts, used up or not. For a cheap refusal before any work is done; whether the token
    /// is taken, [`Catalog::enrol`] decides.
    pub async fn token_labels(&self, secret: &str) -> Result<Option<BTreeMap<String, String>>, CatalogError> {
        let row = lasting(secret).fetch_optional(&self.pool).await?;
        row.as_ref().map(|row| read(row).map(|token| token.labels)).transpose()
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

fn lasting(secret: &str) -> Query<'static> {
    sqlx::query("select id, labels from tokens where secret_hash = $1 and expires_at > $2")
        .bind(blake3::hash(secret.as_bytes()).to_hex().to_string())
        .bind(now())
}

impl Change<'_> {
    /// The node that came with this token and this key before; `None` if there is none, or the token is over. A machine
    /// asks again when the answer did not reach it: only it has the key.
    pub(super) async fn came_before(&mut self, secret: &str, key: &str) -> Result<Option<Came>, CatalogError> {
        let Some(row) = lasting(secret).fetch_optional(&mut *self.tx).await? else { return Ok(None) };
        let token = read(&row)?.id;
        let row = sqlx::query("select node, revoked_at from nodes where token = $1 and key_hash = $2")
            .bind(&token)
            .bind(key)
            .fetch_optional(&mut *self.tx)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (node, revoked): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let node = node.parse().map_err(|error| unreadable("node", &node, error))?;
        Ok(Some(Came { node, token, revoked: revoked.is_some() }))
    }

    /// Takes one use of a token; `None` if it is unknown, used up or expired. One statement, so that two machines
    /// cannot both take the last use.
    pub(super) async fn redeem(&mut self, secret: &str) -> Result<Option<Redeemed>, CatalogError> {
        let row = sqlx::query(
            "update tokens set uses_left = uses_left - 1 \
             where secret_hash = $1 and uses_left > 0 and expires_at > $2 returning id, labels",
        )
        .bind(blake3::hash(secret.as_bytes()).to_hex().to_string())
        .bind(now())
        .fetch_optional(&mut *self.tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        read(&row).map(Some)
    }
}

fn read(row: &AnyRow) -> Result<Redeemed, CatalogError> {
    let (id, labels): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let labels = serde_json::from_str(&labels).map_err(|e| unreadable("token", &id, e))?;
    Ok(Redeemed { id, labels })
}
