//! `goldsync publish`: from a file on this machine to a release that nodes can trust.
//!
//! ```text
//! open ──▶ known already? ──▶ hash ──▶ the same bytes? ──▶ send ──▶ compare ──▶ sign ──▶ visible
//! ```
//! A release that is published already is not signed again, but sent as far as the server lacks it: so a damaged store heals.
//! What is cheap and can fail comes first: the arguments, the key, the server, and only then 20 GiB of hashing. The
//! server's sections are compared with our own before anything is signed, so that what is signed is what was read here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{Manifest, RELEASES_ROLE, ReleaseRef, check_labels};
use goldsync_proto::signature::Signature;
use goldsync_proto::verity::{RootHash, Sealed};
use serde::Serialize;

use super::fail::{Code, Failure, Outcome};
use super::image::Image;
use super::progress::{Manner, Stage};
use super::{Desk, screen, show, sign, upload};
use crate::api::types;
use crate::cli::{self, label_map};

/// What a publish came to.
#[derive(Debug, Serialize)]
pub struct Published {
    /// Which.
    pub release: ReleaseRef,
    /// Its image.
    pub image: ImageId,
    /// Bytes in it.
    pub size: u64,
    /// What it looks like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// What stands for all of its data, if it carries a dm-verity hash tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_hash: Option<RootHash>,
    /// The same bytes were there under that name; the release was not changed.
    pub already_published: bool,
    /// Something of the image was damaged on the server, and is stored anew.
    pub healed: bool,
    /// Blocks that the server lacked.
    pub blocks_sent: u64,
    /// Bytes that they took on the way.
    pub bytes_sent: u64,
    /// Bytes by which the server's store grew.
    pub stored: u64,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// `goldsync publish`
pub async fn run(desk: &Desk, args: &cli::Publish) -> Outcome {
    let published = publish(desk, args).await?;
    if args.json.json { screen::print_json(&published) } else { screen::print(&text(&published)) }
}

/// Publishes, and says what it came to.
pub async fn publish(desk: &Desk, args: &cli::Publish) -> Outcome<Published> {
    let began = Instant::now();
    let release = ReleaseRef { name: args.name.clone(), version: args.version.clone() };
    let labels = label_map(&args.labels)?;
    check_labels(&labels).map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
    let image = Image::open(&args.image)?;
    let file_system = image.file_system()?.map(str::to_owned);
    refuse_to_seal(args, file_system.as_deref())?;
    let signer = sign::signer(desk, RELEASES_ROLE)?;
    let known = desk.client.release(&release).await?;
    let manner = Manner::fitting(args.quiet);
    manner.note(&introduction(&release, &image, file_system.as_deref()));

    let image = Arc::new(if args.verity { seal(image).await? } else { image });
    let (signature, sealed) = hash(manner, &image).await?;
    let root_hash = sealed.as_ref().map(|sealed| sealed.root_hash);
    let size = image.geometry().size();
    let done = |sent: upload::Sent, uploaded: &types::Uploaded, already_published| Published {
        release: release.clone(),
        image: signature.image,
        size,
        file_system: file_system.clone(),
        root_hash,
        already_published,
        healed: uploaded.healed,
        blocks_sent: sent.blocks,
        bytes_sent: sent.bytes,
        stored: if already_published && !uploaded.healed { 0 } else { uploaded.added },
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    if let Some(known) = known {
        same_bytes(&known, &signature)?;
        say_what_differs(manner, &known, &labels, args.minimum_agent.as_deref());
        // No work if the server holds the image whole; what is damaged there is sent again.
        let (sent, uploaded) = upload::run(desk, manner, &image, &signature).await?;
        compare(&uploaded, &signature)?;
        return Ok(done(sent, &uploaded, true));
    }

    let (sent, uploaded) = upload::run(desk, manner, &image, &signature).await?;
    compare(&uploaded, &signature)?;
    let manifest = Manifest {
        format: 1,
        release: release.clone(),
        image: signature.image,
        size,
        sections: signature.sections(),
        file_system: file_system.clone(),
        verity: sealed,
        minimum_agent: args.minimum_agent.clone(),
        labels,
        published_at: show::rfc3339(Utc::now()),
    };
    desk.interrupted.leaves("the image is on the server; whether the release is visible, `goldsync release list` says");
    if sign::release(desk, &signer, &manifest).await? {
        return Ok(done(sent, &uploaded, false));
    }
    // Somebody published under this name while we were hashing.
    let known = desk.client.release(&release).await?.ok_or_else(|| signed_but_hidden(&release))?;
    same_bytes(&known, &signature)?;
    Ok(done(sent, &uploaded, true))
}

/// A tree behind a whole disk would take the place of the second copy of its partition table.
fn refuse_to_seal(args: &cli::Publish, file_system: Option<&str>) -> Outcome {
    match file_system {
        Some(table @ ("gpt" | "mbr")) if args.verity => {
            let message = format!("{} is a whole disk ({table}), which --verity cannot seal", args.image.display());
            Err(Failure::new(Code::Usage, message)
                .remedy("seal its partitions when it is made (`veritysetup format`), or publish the file system alone"))
        }
        _ => Ok(()),
    }
}

/// Makes the hash tree that `--verity` asks for.
async fn seal(mut image: Image) -> Outcome<Image> {
    let work = tokio::task::spawn_blocking(move || image.seal().map(|_| image));
    work.await.map_err(|error| Failure::new(Code::Failed, format!("the sealing broke off: {error}")))?
}

/// The signature, and what the image's hash tree says, if it carries one.
async fn hash(manner: Manner, image: &Arc<Image>) -> Outcome<(Signature, Option<Sealed>)> {
    let stage = Arc::new(Stage::begin(manner, "hash", image.geometry().size()));
    let _given_up = ClearOnDrop(stage.clone());
    let image = image.clone();
    let work = tokio::task::spawn_blocking(move || {
        let signature = image.sign(&stage)?;
        stage.end();
        Ok((signature, image.sealed()?))
    });
    work.await.map_err(|error| Failure::new(Code::Failed, format!("the hashing broke off: {error}")))?
}

/// Takes the bar away when nobody waits for the hashing any more; its thread ends with the process.
struct ClearOnDrop(Arc<Stage>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// A name and version stand for the same bytes for ever.
fn same_bytes(known: &types::Release, signature: &Signature) -> Outcome {
    let manifest = &known.manifest;
    if manifest.image == signature.image {
        return Ok(());
    }
    let message = format!(
        "{} is published already, with other bytes: image {} there (by {}, {}), {} here",
        manifest.release,
        manifest.image,
        known.published_by,
        show::time(&known.published_at),
        signature.image
    );
    Err(Failure::new(Code::Failed, message).remedy("a release never changes: publish this image under another version"))
}

/// Labels and the like of a release cannot be changed either; whoever tries should hear of it.
fn say_what_differs(manner: Manner, known: &types::Release, labels: &BTreeMap<String, String>, minimum: Option<&str>) {
    let manifest = &known.manifest;
    let given = !labels.is_empty() || minimum.is_some();
    if given && (manifest.labels != *labels || manifest.minimum_agent.as_deref() != minimum) {
        manner.note(
            "  note     its labels or minimum agent differ from those given now, and stay as they were published",
        );
    }
}

/// What the server made of the bytes that it stored must be what we made of those that we read.
fn compare(uploaded: &types::Uploaded, signature: &Signature) -> Outcome {
    let (theirs, ours) = (uploaded.sections, signature.sections());
    for (section, theirs, ours) in [
        ("subtrees", theirs.subtrees, ours.subtrees),
        ("blocks", theirs.blocks, ours.blocks),
        ("rolling", theirs.rolling, ours.rolling),
    ] {
        if theirs != ours {
            let message = format!(
                "the server's section {section} is {} ({} bytes), ours is {} ({} bytes); nothing was signed",
                theirs.name, theirs.length, ours.name, ours.length
            );
            return Err(Failure::new(Code::NotTrusted, message)
                .remedy("tool and server must be of the same version; otherwise the server's store is damaged"));
        }
    }
    Ok(())
}

fn signed_but_hidden(release: &ReleaseRef) -> Failure {
    Failure::new(
        Code::NotTrusted,
        format!("{release} is in the signed list of releases, but the server does not show it"),
    )
    .remedy("look at `goldsync audit` and the server's log")
}

fn introduction(release: &ReleaseRef, image: &Image, file_system: Option<&str>) -> String {
    let geometry = image.geometry();
    let kind = file_system.unwrap_or("unknown content");
    format!("{release}: {} of {kind}, {} blocks", show::bytes(geometry.size()), geometry.blocks())
}

fn healed_text(published: &Published) -> String {
    let sent = show::bytes(published.blocks_sent * goldsync_proto::limits::BLOCK);
    format!(
        "\n  healed   the server's copy was damaged: {sent} of blocks were sent and stored anew, and it is whole again"
    )
}

fn text(published: &Published) -> String {
    let Published { release, image, .. } = published;
    if published.already_published {
        let healed = if published.healed { healed_text(published) } else { String::new() };
        return format!("already published: {release} is image {image}{healed}");
    }
    let raw = published.blocks_sent * goldsync_proto::limits::BLOCK;
    let held = published.size.saturating_sub(raw);
    let sealed = published.root_hash.map(|root| format!("\n  verity   root hash {root}")).unwrap_or_default();
    format!(
        "published {release}\n  image    {image}{sealed}\n  sent     {} for {} of new blocks; {} were there, repeated or zero\n  \
         stored   {} more\n  took     {}\nnext: goldsync promote {release} CHANNEL",
        show::bytes(published.bytes_sent),
        show::bytes(raw),
        show::bytes(held),
        show::bytes(published.stored),
        show::span(std::time::Duration::from_millis(published.elapsed_ms)),
    )
}
