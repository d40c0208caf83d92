//! Nodes: enrolment, certificates, revocation, and how each last said it was.

use std::collections::{BTreeMap, HashSet};

use goldsync_proto::release::Word;
use goldsync_proto::wire::Report;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Act, Catalog, CatalogError, now, to_json, unreadable};

/// A node as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: Word,
    /// The labels of the token that it came with; they stand over its own.
    pub fixed_labels: BTreeMap<String, String>,
    /// All its labels, as last said.
    pub labels: BTreeMap<String, String>,
    /// When it enrolled.
    pub enrolled_at: String,
    /// When it was revoked.
    pub revoked_at: Option<String>,
    /// The channel, as last said.
    pub channel: Option<Word>,
    /// The agent's version, as last said.
    pub version: Option<String>,
    /// How it was, as last said.
    pub report: Option<Report>,
    /// When that was.
    pub last_seen: Option<String>,
}

/// What a node said, to be stored.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Who.
    pub node: Word,
    /// The channel that it follows.
    pub channel: Word,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub version: String,
    /// How it is.
    pub report: Report,
    /// When it was heard of.
    pub last_seen: String,
}

const COLUMNS: &str = "node, fixed_labels, labels, enrolled_at, revoked_at, channel, version, report, last_seen";

impl NodeRow {
    fn read(row: &AnyRow) -> Result<Self, CatalogError> {
        let node: String = row.try_get(0)?;
        let bad = |why: &dyn ToString| unreadable("node", &node, why.to_string());
        let labels = |column| -> Result<_, CatalogError> {
            serde_json::from_str(&row.try_get::<String, _>(column)?).map_err(|e| bad(&e))
        };
        let channel: Option<String> = row.try_get(5)?;
        let report: Option<String> = row.try_get(7)?;
        Ok(Self {
            fixed_labels: labels(1)?,
            labels: labels(2)?,
            enrolled_at: row.try_get(3)?,
            revoked_at: row.try_get(4)?,
            channel: channel.map(|c| c.parse()).transpose().map_err(|e| bad(&e))?,
            version: row.try_get(6)?,
            // A report of another version's making is not worth failing for: the node says a new one when it connects.
            report: report.and_then(|text| serde_json::from_str(&text).ok()),
            last_seen: row.try_get(8)?,
            node: node.parse().map_err(|e| bad(&e))?,
        })
    }
}

impl Catalog {
    /// Takes one use of the token, finds a free name near `wish`, and stores the node with its certificate, which
    /// `sign` makes for that name: all of it or nothing. `None`: the token is unknown, used up or expired.
    ///
    /// A machine that comes again with the same token and `key`, because the answer was lost, is the node that it was, and
    /// costs no further use.
    pub async fn enrol<E, T>(
        &self,
        secret: &str,
        key: blake3::Hash,
        wish: &Word,
        own: &BTreeMap<String, String>,
        from: &str,
        sign: impl FnOnce(&Word) -> Result<(blake3::Hash, T), E>,
    ) -> Result<Option<Result<(Word, T), E>>, CatalogError> {
        let mut change = self.begin().await?;
        let key = key.to_hex().to_string();
        if let Some(came) = change.came_before(secret, &key).await? {
            // A revoked node does not come back by the token that it came with.
            return if came.revoked { Ok(None) } else { again(change, came, from, sign).await };
        }
        let Some(token) = change.redeem(secret).await? else { return Ok(None) };
        let stem = stem(wish);
        // A word holds neither `%` nor `_`, so that it stands for itself in a pattern.
        let taken = sqlx::query("select node from nodes where node = $1 or node like $2")
            .bind(wish.as_str())
            .bind(format!("{stem}-%"))
            .fetch_all(&mut *change.tx)
            .await?;
        let taken: Result<HashSet<String>, _> = taken.iter().map(|row| row.try_get(0)).collect();
        let node = free_name(wish, &taken?);
        let (fingerprint, signed) = match sign(&node) {
            Ok(signed) => signed,
            Err(error) => return Ok(Some(Err(error))),
        };
        let mut labels = own.clone();
        labels.extend(token.labels.clone());
        sqlx::query(
            "insert into nodes (node, token, fixed_labels, labels, enrolled_at, key_hash) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(node.as_str())
        .bind(&token.id)
        .bind(to_json(&token.labels)?)
        .bind(to_json(&labels)?)
        .bind(now())
        .bind(&key)
        .execute(&mut *change.tx)
        .await?;
        insert_certificate(&mut change, &node, fingerprint).await?;
        change.audit(Act::new(&node, "node.enrol", format!("{node} with token {}", token.id), from)).await?;
        change.commit().await?;
        Ok(Some(Ok((node, signed))))
    }

    /// Stores a fresh certificate of a node that shows the one `in_use`. That one stays good until it expires, for the
    /// node may not receive the fresh one; of the others only the newest few stay, so that a node that renews without
    /// end does not fill the catalog. `false`: the node was revoked meanwhile.
    pub async fn renew(
        &self,
        node: &Word,
        in_use: blake3::Hash,
        fresh: blake3::Hash,
        act: Act,
    ) -> Result<bool, CatalogError> {
        let mut change = self.begin().await?;
        let good = sqlx::query("select node from nodes where node = $1 and revoked_at is null")
            .bind(node.as_str())
            .fetch_optional(&mut *change.tx)
            .await?;
        if good.is_none() {
            return Ok(false);
        }
        prune_certificates(&mut change, node, in_use.to_hex().as_str()).await?;
        insert_certificate(&mut change, node, fresh).await?;
        change.audit(act).await?;
        change.commit().await?;
        Ok(true)
    }

    /// The node with this certificate, revoked or not.
    pub async fn node_by_certificate(&self, fingerprint: blake3::Hash) -> Result<Option<NodeRow>, CatalogError> {
        let row = sqlx::query(
            "select n.node, n.fixed_labels, n.labels, n.enrolled_at, n.revoked_at, n.channel, n.version, n.report, n.last_seen \
             from nodes n join certificates c on c.node = n.node where c.fingerprint = $1",
        )
        .bind(fingerprint.to_hex().to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(NodeRow::read).transpose()
    }

    /// Every node, by name.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, CatalogError> {
        let sql = sqlx::AssertSqlSafe(format!("select {COLUMNS} from nodes order by node"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        rows.iter().map(NodeRow::read).collect()
    }

    /// Nodes that are not revoked.
    pub async fn count_nodes(&self) -> Result<u64, CatalogError> {
        let count: i64 =
            sqlx::query_scalar("select count(*) from nodes where revoked_at is null").fetch_one(&self.pool).await?;
        Ok(count.unsigned_abs())
    }

    /// How many nodes that are not revoked last said that they follow each channel.
    pub async fn followers(&self) -> Result<BTreeMap<String, u64>, CatalogError> {
        let rows = sqlx::query(
            "select channel, count(*) from nodes where revoked_at is null and channel is not null group by channel",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?.unsigned_abs()))).collect()
    }

    /// Revokes a node for good. `None`: no such node; `Some(false)`: it was revoked already, nothing changed.
    pub async fn revoke(&self, node: &Word, act: Act) -> Result<Option<bool>, CatalogError> {
        let mut change = self.begin().await?;
        let known = sqlx::query("select node from nodes where node = $1")
            .bind(node.as_str())
            .fetch_optional(&mut *change.tx)
            .await?;
        if known.is_none() {
            return Ok(None);
        }
        let changed = sqlx::query("update nodes set revoked_at = $2 where node = $1 and revoked_at is null")
            .bind(node.as_str())
            .bind(now())
            .execute(&mut *change.tx)
            .await?
            .rows_affected();
        if changed > 0 {
            change.audit(act).await?;
        }
        change.commit().await?;
        Ok(Some(changed > 0))
    }

    /// Stores what nodes said, all in one transaction.
    pub async fn heard(&self, said: &[Heard]) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        for one in said {
            sqlx::query(
                "update nodes set channel = $2, labels = $3, version = $4, report = $5, last_seen = $6 where node = $1",
            )
            .bind(one.node.as_str())
            .bind(one.channel.as_str())
            .bind(to_json(&one.labels)?)
            .bind(&one.version)
            .bind(to_json(&one.report)?)
            .bind(&one.last_seen)
            .execute(&mut *change.tx)
            .await?;
        }
        change.commit().await
    }
}

/// The answer to an enrolment, once more: a certificate for the same key, under the same name.
async fn again<E, T>(
    mut change: super::Change<'_>,
    came: super::tokens::Came,
    from: &str,
    sign: impl FnOnce(&Word) -> Result<(blake3::Hash, T), E>,
) -> Result<Option<Result<(Word, T), E>>, CatalogError> {
    let (fingerprint, signed) = match sign(&came.node) {
        Ok(signed) => signed,
        Err(error) => return Ok(Some(Err(error))),
    };
    prune_certificates(&mut change, &came.node, "").await?;
    insert_certificate(&mut change, &came.node, fingerprint).await?;
    let detail = format!("{} again, with token {} and the same key", came.node, came.token);
    change.audit(Act::new(&came.node, "node.enrol", detail, from)).await?;
    change.commit().await?;
    Ok(Some(Ok((came.node, signed))))
}

/// Of a node's certificates only the newest few stay good, and the one in use.
async fn prune_certificates(change: &mut super::Change<'_>, node: &Word, in_use: &str) -> Result<(), CatalogError> {
    sqlx::query(
        "delete from certificates where node = $1 and fingerprint <> $2 and fingerprint not in \
         (select fingerprint from certificates where node = $1 order by seq desc limit 3)",
    )
    .bind(node.as_str())
    .bind(in_use)
    .execute(&mut *change.tx)
    .await?;
    Ok(())
}

async fn insert_certificate(
    change: &mut super::Change<'_>,
    node: &Word,
    fingerprint: blake3::Hash,
) -> Result<(), CatalogError> {
    // Ordered by count, not by the clock, which may step back or give the same time twice.
    sqlx::query(
        "insert into certificates (fingerprint, node, issued_at, seq) \
         select $1, $2, $3, coalesce(max(seq), 0) + 1 from certificates where node = $2",
    )
    .bind(fingerprint.to_hex().to_string())
    .bind(node.as_str())
    .bind(now())
    .execute(&mut *change.tx)
    .await?;
    Ok(())
}

/// `web`, or `web-2`, `web-3`, ... A name once given is never given again, not even after a revocation: the audit
/// log would then tell of two machines as if they were one.
fn free_name(wish: &Word, taken: &HashSet<String>) -> Word {
    if !taken.contains(wish.as_str()) {
        return wish.clone();
    }
    let stem = stem(wish);
    let numbered = (2_u32..).map(|n| format!("{stem}-{n}")).find(|name| !taken.contains(name));
    // A word with a number behind it is a word.
    numbered.and_then(|name| name.parse().ok()).unwrap_or_else(|| wish.clone())
}

/// A word may have 64 bytes; ten are kept for the number.
fn stem(wish: &Word) -> &str {
    wish.as_str().get(..54).unwrap_or(wish.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::scratch;
    use crate::catalog::{NewToken, stamp};
    use chrono::{TimeDelta, Utc};

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    async fn token(catalog: &Catalog, secret: &str, uses: u32, valid_s: i64) {
        let token = NewToken {
            id: format!("id-{secret}"),
            secret_hash: blake3::hash(secret.as_bytes()),
            labels: labels(&[("site", "north")]),
            uses,
            expires_at: stamp(Utc::now() + TimeDelta::seconds(valid_s)),
        };
        catalog.add_token(&token, Act::new("alice", "token.create", &token.id, "here")).await.unwrap();
    }

    async fn enrol(catalog: &Catalog, secret: &str, wish: &str) -> Option<String> {
        // Each call another machine, with a key of its own.
        static KEYS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let key = KEYS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let sign = |node: &Word| Ok::<_, String>((blake3::hash(node.as_str().as_bytes()), ()));
        enrol_with(catalog, secret, blake3::hash(&key.to_le_bytes()), wish, sign).await
    }

    async fn enrol_with(
        catalog: &Catalog,
        secret: &str,
        key: blake3::Hash,
        wish: &str,
        sign: impl FnOnce(&Word) -> Result<(blake3::Hash, ()), String>,
    ) -> Option<String> {
        let own = labels(&[("role", "web"), ("site", "south")]);
        let enrolled = catalog.enrol(secret, key, &wish.parse().unwrap(), &own, "127.0.0.1:5", sign).await.unwrap();
        enrolled.map(|result| result.unwrap().0.to_string())
    }

    #[tokio::test]
    async fn who_asks_again_with_the_same_key_is_the_same_node() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "one", 1, 60).await;
        token(&catalog, "other", 1, 60).await;
        token(&catalog, "late", 1, 60).await;
        let (mine, thine) = (blake3::hash(b"mine"), blake3::hash(b"thine"));
        let signed = |n: u8| move |_: &Word| Ok((blake3::hash(&[n]), ()));
        for n in 0..9 {
            assert_eq!(enrol_with(&catalog, "one", mine, "web", signed(n)).await.as_deref(), Some("web"));
        }
        let known = async |n: u8| catalog.node_by_certificate(blake3::hash(&[n])).await.unwrap().is_some();
        assert!(known(8).await && !known(0).await, "the newest is good, and they do not pile up");
        assert_eq!(catalog.nodes().await.unwrap().len(), 1);
        // Another machine, another token, a token that is over, a node that was revoked.
        assert_eq!(enrol_with(&catalog, "one", thine, "web", signed(20)).await, None);
        assert_eq!(enrol_with(&catalog, "other", mine, "web", signed(21)).await.as_deref(), Some("web-2"));
        assert_eq!(enrol_with(&catalog, "late", mine, "db", signed(22)).await.as_deref(), Some("db"));
        sqlx::query("update tokens set expires_at = '2026-01-01T00:00:00.000Z' where id = 'id-late'")
            .execute(&catalog.pool)
            .await
            .unwrap();
        assert_eq!(enrol_with(&catalog, "late", mine, "db", signed(23)).await, None);
        let web = "web".parse().unwrap();
        catalog.revoke(&web, Act::new("alice", "node.revoke", "web", "here")).await.unwrap();
        assert_eq!(enrol_with(&catalog, "one", mine, "web", signed(24)).await, None);
    }

    #[tokio::test]
    async fn a_token_is_good_for_its_uses_and_its_time() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "two", 2, 60).await;
        token(&catalog, "late", 5, -1).await;
        assert_eq!(catalog.token_labels("two").await.unwrap(), Some(labels(&[("site", "north")])));
        assert_eq!(enrol(&catalog, "two", "web").await.as_deref(), Some("web"));
        assert_eq!(enrol(&catalog, "two", "web").await.as_deref(), Some("web-2"));
        assert_eq!(enrol(&catalog, "two", "web").await, None);
        assert_eq!(enrol(&catalog, "late", "web").await, None);
        assert_eq!(enrol(&catalog, "guess", "web").await, None);
        // Used up, it still lasts: for those who came with it.
        assert!(catalog.token_labels("two").await.unwrap().is_some());
        for over in ["guess", "late"] {
            assert_eq!(catalog.token_labels(over).await.unwrap(), None);
        }
        let acts: Vec<_> = catalog.audit(10).await.unwrap().into_iter().map(|e| e.what).collect();
        assert_eq!(acts, ["node.enrol", "node.enrol", "token.create", "token.create"]);
    }

    #[tokio::test]
    async fn the_tokens_labels_stand_over_the_nodes_own() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "one", 1, 60).await;
        enrol(&catalog, "one", "web").await.unwrap();
        let node = catalog.node_by_certificate(blake3::hash(b"web")).await.unwrap().unwrap();
        assert_eq!(node.labels, labels(&[("role", "web"), ("site", "north")]));
        assert_eq!(node.fixed_labels, labels(&[("site", "north")]));
        assert_eq!(catalog.node_by_certificate(blake3::hash(b"other")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_made_costs_no_use_of_the_token() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "one", 1, 60).await;
        let wish = "web".parse().unwrap();
        let failed = catalog
            .enrol("one", blake3::hash(b"key"), &wish, &BTreeMap::new(), "x", |_| {
                Err::<(blake3::Hash, ()), _>("bad request")
            })
            .await
            .unwrap();
        assert_eq!(failed, Some(Err("bad request")));
        assert_eq!(enrol(&catalog, "one", "web").await.as_deref(), Some("web"));
    }

    #[tokio::test]
    async fn a_revocation_is_final_and_recorded_once() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "one", 1, 60).await;
        enrol(&catalog, "one", "web").await.unwrap();
        let act = || Act::new("alice", "node.revoke", "web", "here");
        let (web, none) = ("web".parse().unwrap(), "none".parse().unwrap());
        assert_eq!(catalog.count_nodes().await.unwrap(), 1);
        assert_eq!(catalog.revoke(&none, act()).await.unwrap(), None);
        assert_eq!(catalog.revoke(&web, act()).await.unwrap(), Some(true));
        assert_eq!(catalog.revoke(&web, act()).await.unwrap(), Some(false));
        assert!(catalog.node_by_certificate(blake3::hash(b"web")).await.unwrap().unwrap().revoked_at.is_some());
        assert_eq!(catalog.count_nodes().await.unwrap(), 0);
        let revocations = catalog.audit(10).await.unwrap().into_iter().filter(|e| e.what == "node.revoke").count();
        assert_eq!(revocations, 1);
    }

    #[tokio::test]
    async fn what_a_node_said_is_kept() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "one", 1, 60).await;
        enrol(&catalog, "one", "web").await.unwrap();
        let said = Heard {
            node: "web".parse().unwrap(),
            channel: "production".parse().unwrap(),
            labels: labels(&[("role", "db")]),
            version: "0.1.0".into(),
            report: Report { error: Some("disk full".into()), ..Report::default() },
            last_seen: now(),
        };
        catalog.heard(std::slice::from_ref(&said)).await.unwrap();
        let node = catalog.nodes().await.unwrap().remove(0);
        assert_eq!(node.report, Some(said.report));
        assert_eq!(node.last_seen, Some(said.last_seen));
        assert_eq!(node.channel.unwrap().as_str(), "production");
        assert_eq!(catalog.followers().await.unwrap(), BTreeMap::from([("production".into(), 1)]));
    }

    #[tokio::test]
    async fn the_certificate_in_use_stays_good_and_idle_ones_do_not_pile_up() {
        let (_dir, catalog) = scratch().await;
        token(&catalog, "one", 1, 60).await;
        enrol(&catalog, "one", "web").await.unwrap();
        let (web, in_use) = ("web".parse().unwrap(), blake3::hash(b"web"));
        let fresh = |n: usize| blake3::hash(&n.to_le_bytes());
        for n in 0..20 {
            let act = Act::new("web", "node.renew", "web", "here");
            assert!(catalog.renew(&web, in_use, fresh(n), act).await.unwrap());
        }
        let mut known = 0;
        for n in 0..20 {
            known += usize::from(catalog.node_by_certificate(fresh(n)).await.unwrap().is_some());
        }
        assert!((1..=4).contains(&known), "{known}");
        assert!(catalog.node_by_certificate(in_use).await.unwrap().is_some());
        assert!(catalog.node_by_certificate(fresh(19)).await.unwrap().is_some());
        catalog.revoke(&web, Act::new("alice", "node.revoke", "web", "here")).await.unwrap();
        let late = Act::new("web", "node.renew", "web", "here");
        assert!(!catalog.renew(&web, in_use, fresh(21), late).await.unwrap());
    }

    #[test]
    fn a_long_name_still_gets_its_number() {
        let wish: Word = "a".repeat(64).parse().unwrap();
        let taken = [wish.to_string()].into();
        assert_eq!(free_name(&wish, &taken).as_str(), format!("{}-2", "a".repeat(54)));
    }
}
