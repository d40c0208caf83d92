//! Releases, channels and promotions: the index over what is signed.

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Word};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Act, Catalog, CatalogError, now, unreadable};
use crate::api::types::Promotion;

/// A release to be taken.
#[derive(Clone, Debug)]
pub struct NewRelease<'a> {
    /// What was signed.
    pub manifest: &'a Manifest,
    /// The same, exactly as signed.
    pub text: &'a str,
    /// Bytes that it added to the store.
    pub added: u64,
}

/// Whether a release is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is.
    New,
    /// The same release with the same image was there; nothing changed.
    Already,
}

/// A release as stored.
#[derive(Clone, Debug)]
pub struct ReleaseRow {
    /// What was signed.
    pub manifest: Manifest,
    /// Who published it.
    pub published_by: String,
    /// When the server took it.
    pub published_at: String,
    /// Bytes that it added to the store.
    pub added: u64,
}

impl ReleaseRow {
    fn read(row: &AnyRow) -> Result<Self, CatalogError> {
        let manifest: String = row.try_get(0)?;
        Ok(Self {
            manifest: serde_json::from_str(&manifest).map_err(|e| unreadable("release", &manifest, e))?,
            published_by: row.try_get(1)?,
            published_at: row.try_get(2)?,
            added: row.try_get::<i64, _>(3)?.unsigned_abs(),
        })
    }
}

impl Catalog {
    /// The image of a release, if it is published.
    pub async fn image_of(&self, release: &ReleaseRef) -> Result<Option<ImageId>, CatalogError> {
        Ok(self.release(release).await?.map(|row| row.manifest.image))
    }

    /// Refuses a release that is published with another image.
    pub async fn check_release(&self, manifest: &Manifest) -> Result<Taken, CatalogError> {
        let held = match self.image_of(&manifest.release).await? {
            None => match self.pruned_image(&manifest.release).await? {
                // The same bytes may come back under their name; other bytes may not.
                Some(image) if image == manifest.image => None,
                pruned => pruned,
            },
            held => held,
        };
        match held {
            None => Ok(Taken::New),
            Some(image) if image == manifest.image => Ok(Taken::Already),
            Some(image) => Err(CatalogError::Taken {
                release: manifest.release.to_string(),
                stored: image.to_string(),
                offered: manifest.image.to_string(),
            }),
        }
    }

    /// The image that a pruned release had.
    async fn pruned_image(&self, release: &ReleaseRef) -> Result<Option<ImageId>, CatalogError> {
        let image: Option<String> = sqlx::query_scalar("select image from pruned where name = $1 and version = $2")
            .bind(release.name.as_str())
            .bind(release.version.as_str())
            .fetch_optional(&self.pool)
            .await?;
        let read = |image: String| image.parse().map_err(|e| unreadable("pruned release", &release.to_string(), e));
        image.map(read).transpose()
    }

    /// The images of all pruned releases.
    pub async fn pruned_images(&self) -> Result<Vec<ImageId>, CatalogError> {
        let images: Vec<String> = sqlx::query_scalar("select distinct image from pruned").fetch_all(&self.pool).await?;
        images.iter().map(|image| image.parse().map_err(|e| unreadable("pruned release", image, e))).collect()
    }

    /// Takes releases out for good: all of them or none. What stays is that their names are taken.
    pub async fn prune(&self, releases: &[ReleaseRef], act: &Act) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        for release in releases {
            let (name, version) = (release.name.as_str(), release.version.as_str());
            let moved = sqlx::query(
                "insert into pruned (name, version, image, pruned_by, pruned_at) \
                 select name, version, image, $3, $4 from releases where name = $1 and version = $2 \
                 on conflict (name, version) do update set pruned_by = excluded.pruned_by, pruned_at = excluded.pruned_at",
            );
            moved.bind(name).bind(version).bind(&act.who).bind(now()).execute(&mut *change.tx).await?;
            let gone = sqlx::query("delete from releases where name = $1 and version = $2");
            if gone.bind(name).bind(version).execute(&mut *change.tx).await?.rows_affected() > 0 {
                change.audit(act.clone().on(release)).await?;
            }
        }
        change.commit().await
    }

    /// Stores a release. The same again changes nothing.
    pub async fn add_release(&self, new: NewRelease<'_>, act: Act) -> Result<Taken, CatalogError> {
        let mut change = self.begin().await?;
        // Holding the one writer's lock: nobody else can take the name between the check and the insert.
        if self.check_release(new.manifest).await? == Taken::Already {
            return Ok(Taken::Already);
        }
        let release = &new.manifest.release;
        sqlx::query(
            "insert into releases (name, version, image, manifest, published_by, published_at, added) \
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(release.name.as_str())
        .bind(release.version.as_str())
        .bind(new.manifest.image.to_string())
        .bind(new.text)
        .bind(&act.who)
        .bind(now())
        .bind(i64::try_from(new.added).unwrap_or(i64::MAX))
        .execute(&mut *change.tx)
        .await?;
        change.audit(act).await?;
        change.commit().await?;
        Ok(Taken::New)
    }

    /// One release.
    pub async fn release(&self, release: &ReleaseRef) -> Result<Option<ReleaseRow>, CatalogError> {
        let row = sqlx::query(
            "select manifest, published_by, published_at, added from releases where name = $1 and version = $2",
        )
        .bind(release.name.as_str())
        .bind(release.version.as_str())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(ReleaseRow::read).transpose()
    }

    /// All releases, newest first.
    pub async fn releases(&self) -> Result<Vec<ReleaseRow>, CatalogError> {
        let rows = sqlx::query(
            "select manifest, published_by, published_at, added from releases order by published_at desc, name, version",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(ReleaseRow::read).collect()
    }

    /// How many.
    pub async fn count_releases(&self) -> Result<u64, CatalogError> {
        let count: i64 = sqlx::query_scalar("select count(*) from releases").fetch_one(&self.pool).await?;
        Ok(count.unsigned_abs())
    }

    /// Points a channel at a release, and remembers it.
    pub async fn promote(&self, pointer: &Pointer, text: &str, act: Act) -> Result<(), CatalogError> {
        let mut change = self.begin().await?;
        let (channel, release, image) =
            (pointer.channel.as_str(), pointer.release.to_string(), pointer.image.to_string());
        sqlx::query(
            "insert into channels (channel, release, image, pointer) values ($1, $2, $3, $4) \
             on conflict (channel) do update set release = excluded.release, image = excluded.image, \
             pointer = excluded.pointer",
        )
        .bind(channel)
        .bind(&release)
        .bind(&image)
        .bind(text)
        .execute(&mut *change.tx)
        .await?;
        sqlx::query(
            "insert into promotions (id, channel, release, image, by_whom, at) \
             values ((select coalesce(max(id), 0) + 1 from promotions), $1, $2, $3, $4, $5)",
        )
        .bind(channel)
        .bind(&release)
        .bind(&image)
        .bind(&act.who)
        .bind(now())
        .execute(&mut *change.tx)
        .await?;
        change.audit(act).await?;
        change.commit().await
    }

    /// Where every channel points that was ever promoted to, by name.
    pub async fn pointers(&self) -> Result<Vec<Pointer>, CatalogError> {
        let rows = sqlx::query("select channel, pointer from channels order by channel").fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let (channel, pointer): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                serde_json::from_str(&pointer).map_err(|e| unreadable("channel", &channel, e))
            })
            .collect()
    }

    /// A channel's promotions, newest first.
    pub async fn history(&self, channel: &Word) -> Result<Vec<Promotion>, CatalogError> {
        let rows =
            sqlx::query("select release, image, by_whom, at from promotions where channel = $1 order by id desc")
                .bind(channel.as_str())
                .fetch_all(&self.pool)
                .await?;
        rows.iter()
            .map(|row| {
                let (release, image): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                Ok(Promotion {
                    image: image.parse().map_err(|e| unreadable("promotion", &release, e))?,
                    release: release.parse().map_err(|e| unreadable("promotion", &release, e))?,
                    by: row.try_get(2)?,
                    at: row.try_get(3)?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::catalog::tests::scratch;
    use goldsync_proto::digest::Digest;
    use goldsync_proto::release::{Section, Sections};

    impl Catalog {
        /// What is left when the server dies before the catalog hears of what was signed.
        pub async fn forget_everything_signed(&self) -> Result<(), CatalogError> {
            for table in ["promotions", "channels", "releases"] {
                sqlx::query(sqlx::AssertSqlSafe(format!("delete from {table}"))).execute(&self.pool).await?;
            }
            Ok(())
        }
    }

    pub fn manifest(release: &str, bytes: &[u8]) -> Manifest {
        let section = |length| Section { name: Digest::of(b"section"), length };
        Manifest {
            format: 1,
            release: release.parse().unwrap(),
            image: ImageId::of(bytes),
            size: 4096,
            sections: Sections { subtrees: section(32), blocks: section(8), rolling: section(8) },
            file_system: None,
            verity: None,
            minimum_agent: None,
            labels: Default::default(),
            published_at: "2026-11-21T00:00:00Z".into(),
        }
    }

    async fn publish(catalog: &Catalog, manifest: &Manifest) -> Result<Taken, CatalogError> {
        let text = serde_json::to_string(manifest).unwrap();
        let new = NewRelease { manifest, text: &text, added: 77 };
        catalog.add_release(new, Act::new("alice", "release.publish", &manifest.release, "here")).await
    }

    #[tokio::test]
    async fn a_release_never_changes() {
        let (_dir, catalog) = scratch().await;
        assert_eq!(publish(&catalog, &manifest("web:1", b"a")).await.unwrap(), Taken::New);
        assert_eq!(publish(&catalog, &manifest("web:1", b"a")).await.unwrap(), Taken::Already);
        let error = publish(&catalog, &manifest("web:1", b"b")).await.unwrap_err().to_string();
        let (old, new) = (ImageId::of(b"a").to_string(), ImageId::of(b"b").to_string());
        assert!(error.contains("web:1") && error.contains(&old) && error.contains(&new), "{error}");
        assert_eq!(publish(&catalog, &manifest("web:2", b"b")).await.unwrap(), Taken::New);
        assert_eq!(catalog.count_releases().await.unwrap(), 2);
        let row = catalog.release(&"web:1".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((row.manifest.image, row.added, row.published_by.as_str()), (ImageId::of(b"a"), 77, "alice"));
        assert_eq!(catalog.audit(10).await.unwrap().len(), 2, "a no-op is not an act");
    }

    #[tokio::test]
    async fn a_channel_remembers_every_promotion() {
        let (_dir, catalog) = scratch().await;
        for (release, who) in [("web:1", "alice"), ("web:2", "bob"), ("web:1", "alice")] {
            let pointer = Pointer {
                format: 1,
                channel: "dev".parse().unwrap(),
                release: release.parse().unwrap(),
                image: ImageId::of(release.as_bytes()),
                promoted_at: now(),
                promoted_by: who.into(),
            };
            let text = serde_json::to_string(&pointer).unwrap();
            catalog.promote(&pointer, &text, Act::new(who, "channel.promote", release, "here")).await.unwrap();
        }
        let pointers = catalog.pointers().await.unwrap();
        assert_eq!(pointers.len(), 1);
        assert_eq!(pointers[0].release.to_string(), "web:1");
        let history = catalog.history(&"dev".parse().unwrap()).await.unwrap();
        let seen: Vec<_> = history.iter().map(|p| (p.release.to_string(), p.by.clone())).collect();
        let expected = [("web:1", "alice"), ("web:2", "bob"), ("web:1", "alice")];
        assert_eq!(seen, expected.map(|(r, b)| (r.to_owned(), b.to_owned())));
        assert!(catalog.history(&"qa".parse().unwrap()).await.unwrap().is_empty());
    }
}
