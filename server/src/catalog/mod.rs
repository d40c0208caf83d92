//! The catalog: releases, channels, promotions, tokens, nodes, operators, orders and the audit log, in SQL.
//!
//! ```text
//! trust (signed metadata)  what nodes believe; the catalog is its index for people
//! catalog                  what the server knows besides: who enrolled, who did what when, how nodes last said they were
//! ```
//! SQLite in WAL mode inside the data folder. The statements are portable (`Any` driver, `$1`, only text and bigint),
//! so that PostgreSQL can take its place when several servers share a fleet.
//!
//! Every change goes through [`Catalog::begin`], one at a time, and takes the write lock before it reads: SQLite has one
//! writer anyway, and a transaction that reads before it writes would otherwise fail when another one got in between. A
//! change and its line in the audit log are one transaction: there is no change that nobody did.

mod audit;
mod intents;
mod nodes;
mod operators;
mod orders;
mod releases;
mod tokens;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, Executor, Transaction};
use tokio::sync::{Mutex, MutexGuard};

pub use audit::Act;
pub use intents::Intent;
pub use nodes::{Heard, NodeRow};
pub use operators::Operator;
pub use releases::{NewRelease, ReleaseRow, Taken};
pub use tokens::{NewToken, Redeemed};

/// Connections to the database: readers beside the one writer.
const CONNECTIONS: u32 = 4;

/// The catalog's file in the data folder.
pub const FILE: &str = "catalog.sqlite";

/// Why the catalog could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The file cannot be made or opened.
    #[error("catalog: {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The database's fault, or the disk's.
    #[error("catalog: {0}")]
    Sql(#[from] sqlx::Error),
    /// The database is not in the form that this version knows.
    #[error("catalog: {0}; it was written by a newer goldsync, or by hand")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row that this version cannot read.
    #[error("catalog: {what} {key:?} cannot be read: {why}")]
    Row {
        /// What kind.
        what: &'static str,
        /// Which.
        key: String,
        /// Why.
        why: String,
    },
    /// The release exists with another image.
    #[error(
        "{release} is published already with image {stored}, not {offered}: a release never changes; choose another version"
    )]
    Taken {
        /// Which.
        release: String,
        /// The image that it has.
        stored: String,
        /// The image that was offered.
        offered: String,
    },
}

/// The catalog. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Catalog {
    pool: AnyPool,
    writer: Mutex<()>,
}

/// A change that is not visible before [`Change::commit`].
pub(crate) struct Change<'a> {
    tx: Transaction<'static, Any>,
    _writer: MutexGuard<'a, ()>,
}

impl Change<'_> {
    async fn commit(self) -> Result<(), CatalogError> {
        Ok(self.tx.commit().await?)
    }
}

impl Catalog {
    /// Opens the catalog in `folder`, makes it if it is not there, and brings it to the present form.
    pub async fn open(folder: &Path) -> Result<Self, CatalogError> {
        sqlx::any::install_default_drivers();
        let file = folder.join(FILE);
        // Made here, because SQLite would make it readable for all; its log files take this one's mode.
        let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&file);
        made.map_err(|error| CatalogError::File { path: file.clone(), error })?;
        let url = format!("sqlite://{}?mode=rw", escape(&file));
        let options: AnyConnectOptions = url.parse()?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    // FULL: a promotion or a revocation that was answered must outlive a power cut.
                    connection
                        .execute(
                            "pragma journal_mode = wal; pragma synchronous = full; pragma foreign_keys = on; \
                             pragma busy_timeout = 5000;",
                        )
                        .await?;
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool, writer: Mutex::new(()) })
    }

    /// Waits for what is under way and closes the files.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn begin(&self) -> Result<Change<'_>, CatalogError> {
        let writer = self.writer.lock().await;
        // A change that was dropped is rolled back a moment after its guard is gone. Who asks for the write lock first
        // waits for that; who reads first and then writes is told at once that the database is locked.
        Ok(Change { tx: self.pool.begin_with("begin immediate").await?, _writer: writer })
    }
}

/// A path as part of a URL.
fn escape(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(byte);
    let mut url = String::new();
    for byte in std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()) {
        if plain(byte) { url.push(char::from(*byte)) } else { url.push_str(&format!("%{byte:02X}")) }
    }
    url
}

/// A time as it is stored: of equal length, so that it sorts as text.
pub fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The present.
pub fn now() -> String {
    stamp(Utc::now())
}

#[cfg(test)]
pub(crate) use releases::tests as release_tests;

fn unreadable(what: &'static str, key: &str, why: impl ToString) -> CatalogError {
    CatalogError::Row { what, key: key.to_owned(), why: why.to_string() }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, CatalogError> {
    serde_json::to_string(value).map_err(|error| unreadable("value", "", error))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub async fn scratch() -> (tempfile::TempDir, Catalog) {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).await.unwrap();
        (dir, catalog)
    }

    #[tokio::test]
    async fn a_change_waits_for_one_that_is_not_yet_rolled_back() {
        let (_dir, catalog) = scratch().await;
        let mut given_up = catalog.begin().await.unwrap();
        given_up.audit(Act::new("alice", "test", "given up", "here")).await.unwrap();
        // As when it is dropped on a busy machine: its guard is gone, and the database still locked.
        let Change { tx: not_yet, _writer } = given_up;
        drop(_writer);
        let later = async move {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            not_yet.rollback().await.unwrap();
        };
        let kept = async {
            let mut change = catalog.begin().await.unwrap();
            sqlx::query("select count(*) from audit").fetch_one(&mut *change.tx).await.unwrap();
            change.audit(Act::new("alice", "test", "kept", "here")).await.unwrap();
            change.commit().await.unwrap();
        };
        tokio::join!(later, kept);
        let told: Vec<_> = catalog.audit(9).await.unwrap().into_iter().map(|entry| entry.detail).collect();
        assert_eq!(told, ["kept"]);
    }

    #[tokio::test]
    async fn a_catalog_is_made_once_and_opened_again() {
        let dir = tempfile::Builder::new().prefix("odd %name? #1").tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).await.unwrap();
        let act = Act::new("alice", "test", "first", "here");
        catalog.record(act).await.unwrap();
        catalog.close().await;
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.path().join(FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let again = Catalog::open(dir.path()).await.unwrap();
        assert_eq!(again.audit(10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn sqlite_keeps_a_write_ahead_log_and_foreign_keys() {
        let (_dir, catalog) = scratch().await;
        let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&catalog.pool).await.unwrap();
        assert_eq!(mode, "wal");
        let stray = sqlx::query("insert into certificates (fingerprint, node, issued_at) values ('f', 'nobody', '')")
            .execute(&catalog.pool)
            .await;
        assert!(stray.is_err());
    }

    #[test]
    fn times_are_of_equal_length() {
        let at = |ms| stamp(DateTime::from_timestamp_millis(ms).unwrap());
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1), "1970-01-01T00:00:00.001Z");
    }
}
