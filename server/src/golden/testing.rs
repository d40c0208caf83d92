//! What the tests of `golden` and `packs` share: images made of noise, a publisher, and the plainest executor of plans.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use goldsync_proto::block::Run;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::make::gather_bytes;
use goldsync_proto::pack::{decompress, hash16, read_frame};
use goldsync_proto::plan::{Plan, Step};

use crate::api::types::Uploaded;
use crate::golden::prepare::{Prepared, UploadFrame};
use crate::golden::{UploadError, Uploads};
use crate::store::{Store, StoreError, StoreOptions};

pub(crate) const BLOCK: usize = 4096;

/// Blocks that nothing compresses.
pub(crate) fn noise(blocks: usize, seed: u64) -> Vec<u8> {
    noise_bytes(blocks * BLOCK, seed)
}

/// The same, of any length.
pub(crate) fn noise_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(crate) async fn open_store(folder: &Path) -> Arc<Store> {
    Store::open(folder, StoreOptions::default()).await.unwrap()
}

pub(crate) async fn open_both(folder: &Path) -> (Arc<Store>, Arc<Uploads>) {
    let store = open_store(folder).await;
    let uploads = Uploads::open(store.clone()).await.unwrap();
    (store, uploads)
}

/// An image on the publisher's disk.
pub(crate) fn prepared(bytes: &[u8]) -> Prepared {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Prepared::open(file.path()).unwrap()
}

/// The frames that a server asks for.
pub(crate) async fn asked_frames(uploads: &Arc<Uploads>, bytes: &[u8]) -> Vec<UploadFrame> {
    let image = prepared(bytes);
    let signature = image.sign(|_| ()).unwrap();
    uploads.begin(signature.image, bytes.len() as u64).await.unwrap();
    let missing = uploads.index(signature.image, signature.blocks.into()).await.unwrap();
    image.frames(&missing.runs, 3).collect::<Result<_, _>>().unwrap()
}

pub(crate) async fn publish(uploads: &Arc<Uploads>, bytes: &[u8]) -> Result<Uploaded, UploadError> {
    let image = ImageId::of(bytes);
    for frame in asked_frames(uploads, bytes).await {
        uploads.frame(image, frame.first, frame.bytes.into()).await?;
    }
    uploads.complete(image).await
}

/// The bytes of some runs, by way of literal frames.
pub(crate) async fn read_runs(store: &Arc<Store>, image: ImageId, runs: &[Run]) -> Result<Vec<u8>, StoreError> {
    let mut blocks = store.blocks(image, runs.to_vec()).await?;
    let mut raw = Vec::new();
    while let Some(frame) = blocks.frames.next().await {
        let piece = read_frame(&frame?).unwrap();
        assert!(piece.len() <= 1 << 20);
        raw.extend(piece);
    }
    assert_eq!(raw.len() as u64, blocks.count * BLOCK as u64);
    Ok(raw)
}

/// Carries a plan out, with every hash held.
pub(crate) async fn apply(store: &Arc<Store>, plan: &Plan, base: &[u8]) -> Vec<u8> {
    let mut objects: HashMap<Digest, Bytes> = HashMap::new();
    for name in &plan.objects {
        let length = store.objects().len(*name).await.unwrap();
        objects.insert(*name, store.objects().read(*name, 0..length).await.unwrap());
    }
    let unpack = |pack: &goldsync_proto::plan::Pack| {
        let object = &objects[&plan.objects[pack.object as usize]];
        let wire = &object[pack.offset as usize..][..pack.wire_len as usize];
        assert_eq!(hash16(wire), pack.wire_hash);
        let prefix = gather_bytes(base, pack.prefix.iter().copied());
        let raw = decompress(pack.codec, wire, pack.raw_len as usize, &prefix).unwrap();
        assert_eq!(hash16(&raw), pack.raw_hash);
        raw
    };
    let raw: Vec<Vec<u8>> = plan.packs.iter().map(unpack).collect();
    let mut out = Vec::new();
    for step in &plan.steps {
        match *step {
            Step::Copy { from, count, .. } => out.extend(gather_bytes(base, [(from, count)])),
            Step::Zero { count } => out.resize(out.len() + count as usize * BLOCK, 0),
            Step::Patch { pack, from, count } => out.extend(gather_bytes(&raw[pack as usize], [(from, count)])),
            other => panic!("no server makes {other:?}"),
        }
    }
    out
}

/// Runs of blocks from a small pool, so that images share much, with each other and within themselves.
pub(crate) fn image_of(cuts: &[(usize, usize, u8)]) -> Vec<u8> {
    let pool = noise(60, 1);
    let mut bytes = Vec::new();
    for (from, len, kind) in cuts {
        match kind {
            0 => bytes.resize(bytes.len() + len * BLOCK, 0),
            1 => bytes.extend(noise(*len, *from as u64 + 2)),
            _ => bytes.extend_from_slice(&pool[from * BLOCK..(from + len) * BLOCK]),
        }
    }
    bytes
}

/// The path of an object.
pub(crate) fn object_path(store: &Store, name: Digest) -> std::path::PathBuf {
    let hex = name.to_string();
    store.folder().join("objects").join(&hex[..2]).join(&hex)
}
