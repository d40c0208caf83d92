//! Goal: one plan a pair, whoever asks and however often; every plan gives its target; what was lost is made again.

use std::fs;

use goldsync_proto::limits::PACK_RAW_MAX;
use goldsync_proto::plan::Step;
use goldsync_proto::wire::Prefer;

use super::*;
use crate::golden::Uploads;
use crate::golden::testing::*;

struct Server {
    store: Arc<Store>,
    uploads: Arc<Uploads>,
    packs: Arc<Packs>,
}

async fn open(folder: &Path) -> Server {
    open_with(folder, quick_only()).await
}

fn quick_only() -> PacksOptions {
    PacksOptions { better: &[], ..Default::default() }
}

async fn open_with(folder: &Path, options: PacksOptions) -> Server {
    let (store, uploads) = open_both(folder).await;
    let packs = Packs::open(store.clone(), options).await.unwrap();
    Server { store, uploads, packs }
}

impl Server {
    /// The quick plan.
    async fn plan(&self, base: Option<ImageId>, target: ImageId) -> Plan {
        self.read(self.packs.prepare(base, target).await.unwrap()).await
    }

    /// What a node gets that would rather spare this.
    async fn sparing(&self, what: Prefer, base: Option<ImageId>, target: ImageId) -> Plan {
        self.read(self.packs.plan(base, target, what).await.unwrap()).await
    }

    async fn read(&self, state: PlanState) -> Plan {
        let PlanState::Ready { name, length } = state else { panic!("not ready though it was waited for") };
        let bytes = self.store.objects().whole(Section { name, length }).await.unwrap();
        Plan::decode(&bytes).unwrap()
    }
}

/// An old image and a new one: moved, changed, grown, with zeros.
fn old_and_new() -> (Vec<u8>, Vec<u8>) {
    let old = [noise(500, 1), vec![0; 20 * BLOCK], noise(30, 2)].concat();
    let mut new = [&old[..100 * BLOCK], &noise(5, 3), &old[100 * BLOCK..], &noise(2, 4), &vec![0; 9 * BLOCK]].concat();
    new[33 * BLOCK + 70..33 * BLOCK + 90].fill(b'!');
    (old, new)
}

#[tokio::test]
async fn a_plan_for_a_known_base_gives_the_target_and_costs_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let server = open(folder.path()).await;
    let (old, new) = old_and_new();
    publish(&server.uploads, &old).await.unwrap();
    publish(&server.uploads, &new).await.unwrap();
    let plan = server.plan(Some(ImageId::of(&old)), ImageId::of(&new)).await;
    assert_eq!((plan.base, plan.target), (Some(ImageId::of(&old)), ImageId::of(&new)));
    assert!(apply(&server.store, &plan, &old).await == new);
    assert!(plan.wire_bytes() < 7 * BLOCK as u64 + 1000, "{} bytes", plan.wire_bytes());
    // Back again, and to itself: nothing that is not in the base.
    let back = server.plan(Some(ImageId::of(&new)), ImageId::of(&old)).await;
    assert!(apply(&server.store, &back, &new).await == old);
    let same = server.plan(Some(ImageId::of(&new)), ImageId::of(&new)).await;
    assert_eq!((same.packs.len(), same.objects.len()), (0, 0));
    assert!(fs::read_dir(folder.path().join("plans")).unwrap().count() == 3);
}

#[tokio::test]
async fn many_requests_at_once_are_one_computation_and_one_plan() {
    let folder = tempfile::tempdir().unwrap();
    let server = open(folder.path()).await;
    let (old, new) = old_and_new();
    publish(&server.uploads, &old).await.unwrap();
    publish(&server.uploads, &new).await.unwrap();
    let (base, target) = (Some(ImageId::of(&old)), ImageId::of(&new));
    let ask = |_| {
        let packs = server.packs.clone();
        tokio::spawn(async move { packs.prepare(base, target).await.unwrap() })
    };
    let answers = futures::future::join_all((0..100).map(ask)).await;
    let first = *answers[0].as_ref().unwrap();
    assert!(matches!(first, PlanState::Ready { .. }));
    assert!(answers.into_iter().all(|answer| answer.unwrap() == first));
    assert_eq!(server.packs.made(), 1);
    assert_eq!(server.packs.plan(base, target, Prefer::Time).await, Ok(first));

    // And none after a restart; the answer is the same bytes.
    drop(server);
    let server = open(folder.path()).await;
    assert_eq!(server.packs.plan(base, target, Prefer::Time).await, Ok(first));
    assert_eq!(server.packs.made(), 0);
}

#[tokio::test]
async fn who_waits_too_long_is_told_to_come_again_and_the_work_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = open_with(folder.path(), PacksOptions { wait: Duration::ZERO, ..quick_only() }).await;
    let bytes = noise(300, 1);
    publish(&server.uploads, &bytes).await.unwrap();
    let target = ImageId::of(&bytes);
    // Somebody else's plan is in the making for as long as this is held.
    let turn = server.packs.turns.acquire().await.unwrap();
    assert_eq!(server.packs.plan(None, target, Prefer::Time).await, Ok(PlanState::Making { retry_ms: 500 }));
    assert_eq!(server.packs.made(), 0);
    drop(turn);
    assert!(matches!(server.packs.prepare(None, target).await, Ok(PlanState::Ready { .. })));
    assert_eq!(server.packs.made(), 1);
}

#[tokio::test]
async fn a_plan_from_a_rotten_file_is_never_served_and_the_next_one_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let server = open_with(folder.path(), PacksOptions { failure_kept: Duration::ZERO, ..quick_only() }).await;
    let (old, new) = old_and_new();
    publish(&server.uploads, &old).await.unwrap();
    publish(&server.uploads, &new).await.unwrap();
    let (base, target) = (Some(ImageId::of(&old)), ImageId::of(&new));
    let path = folder.path().join("cache").join(format!("{target}.img"));
    let mut file = File::options().write(true).open(&path).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(101 * BLOCK as u64)).unwrap();
    file.write_all(b"rot").unwrap();
    let failed = server.packs.prepare(base, target).await.unwrap_err().to_string();
    assert!(failed.contains("carried out, it gives image"), "{failed}");
    assert_eq!(fs::read_dir(folder.path().join("plans")).unwrap().count(), 0);
    let plan = server.plan(base, target).await;
    assert!(apply(&server.store, &plan, &old).await == new);
}

/// A program of which a new version means other addresses: what near copies are for.
fn shifted() -> (Vec<u8>, Vec<u8>) {
    let old = noise(300, 1);
    let mut new = old.clone();
    new.chunks_exact_mut(4).skip(3).step_by(9).for_each(|operand| operand[0] = operand[0].wrapping_add(0x40));
    (old, new)
}

impl Server {
    async fn until_better(&self, base: Option<ImageId>, target: ImageId) {
        while self.packs.progress(base, target).smallest.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn better_plans_are_made_beside_the_quick_one_and_all_last() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = shifted();
    let (base, target) = (Some(ImageId::of(&old)), ImageId::of(&new));
    let quick = {
        let server = open(folder.path()).await;
        publish(&server.uploads, &old).await.unwrap();
        publish(&server.uploads, &new).await.unwrap();
        let nothing = Progress { quick: None, thorough: None, smallest: None, under_way: false };
        assert_eq!(server.packs.progress(base, target), nothing);
        let quick = server.plan(base, target).await;
        let made = server.packs.progress(base, target);
        assert!(made.quick.is_some_and(|bytes| bytes > quick.wire_bytes()), "{made:?}");
        assert_eq!(made, Progress { quick: made.quick, ..nothing });
        quick
    };
    // A quick plan that has none beside it when a server starts is taken up, without anybody asking.
    let server = open_with(folder.path(), PacksOptions::default()).await;
    assert!(server.packs.progress(base, target).under_way);
    server.until_better(base, target).await;
    let thorough = server.sparing(Prefer::Time, base, target).await;
    let smallest = server.sparing(Prefer::Bytes, base, target).await;
    let bytes = [&quick, &thorough, &smallest].map(Plan::wire_bytes);
    assert!(bytes[1] * 2 < bytes[0] && bytes[2] < bytes[1], "{bytes:?}");
    for plan in [&quick, &thorough, &smallest] {
        assert!(apply(&server.store, plan, &old).await == new, "who began with the quick one can go on with it");
    }
    assert_eq!((server.packs.made(), server.packs.improved()), (0, 1));

    // They last, and are not made again.
    drop(server);
    let server = open_with(folder.path(), PacksOptions::default()).await;
    assert!(!server.packs.progress(base, target).under_way);
    assert_eq!(server.sparing(Prefer::Time, base, target).await, thorough);
    assert_eq!(server.sparing(Prefer::Bytes, base, target).await, smallest);
    assert_eq!((server.packs.made(), server.packs.improved()), (0, 0));
}

/// A server that makes better plans, and holds both images of [`shifted`].
async fn busy() -> (tempfile::TempDir, Server, Option<ImageId>, ImageId) {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = shifted();
    let server = open_with(folder.path(), PacksOptions::default()).await;
    publish(&server.uploads, &old).await.unwrap();
    publish(&server.uploads, &new).await.unwrap();
    (folder, server, Some(ImageId::of(&old)), ImageId::of(&new))
}

#[tokio::test]
async fn nobody_waits_for_a_better_plan() {
    let (_folder, server, base, target) = busy().await;
    // Another pair's better plan is in the making for as long as this is held.
    let turn = server.packs.better.turn.acquire().await.unwrap();
    let quick = server.plan(base, target).await;
    assert_eq!(server.sparing(Prefer::Bytes, base, target).await, quick);
    assert!(server.packs.progress(base, target).under_way);
    drop(turn);
    server.until_better(base, target).await;
    for what in [Prefer::Time, Prefer::Bytes] {
        assert_ne!(server.sparing(what, base, target).await, quick);
    }
}

#[tokio::test]
async fn a_better_plan_that_fails_leaves_the_quick_one_and_is_not_tried_again() {
    let (folder, server, base, target) = busy().await;
    let turn = server.packs.better.turn.acquire().await.unwrap();
    let quick = server.plan(base, target).await;
    let path = folder.path().join("cache").join(format!("{target}.img"));
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(path).unwrap(), b"rot", 9000).unwrap();
    drop(turn);
    while server.packs.progress(base, target).under_way {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.plan(base, target).await, quick);
    assert!(!server.packs.progress(base, target).under_way);
    assert_eq!((server.packs.made(), server.packs.improved()), (1, 0));
    assert_eq!(fs::read_dir(folder.path().join("plans")).unwrap().count(), 1, "no draft is left");
}

#[tokio::test]
async fn unknown_images_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let server = open(folder.path()).await;
    let bytes = noise(3, 1);
    publish(&server.uploads, &bytes).await.unwrap();
    let (known, other) = (ImageId::of(&bytes), ImageId::of(b"other"));
    assert_eq!(server.packs.plan(Some(other), known, Prefer::Time).await, Err(PlanError::UnknownBase { base: other }));
    assert_eq!(
        server.packs.plan(Some(known), other, Prefer::Time).await,
        Err(PlanError::UnknownTarget { target: other })
    );
    assert_eq!(server.packs.plan(None, other, Prefer::Time).await, Err(PlanError::UnknownTarget { target: other }));
}

#[tokio::test]
async fn a_plan_whose_objects_were_lost_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = old_and_new();
    let (base, target) = (Some(ImageId::of(&old)), ImageId::of(&new));
    let first = {
        let server = open(folder.path()).await;
        publish(&server.uploads, &old).await.unwrap();
        publish(&server.uploads, &new).await.unwrap();
        let first = server.plan(base, target).await;
        fs::remove_file(object_path(&server.store, first.objects[0])).unwrap();
        first
    };
    let server = open(folder.path()).await;
    assert_eq!(server.plan(base, target).await, first);
    assert_eq!(server.packs.made(), 1);
    assert!(apply(&server.store, &first, &old).await == new);
    drop(server);
    // A record that is torn, and drafts that a kill left, are nobody's loss either.
    let plans = folder.path().join("plans");
    fs::write(plans.join(file_name((base, target), Grade::Quick)), "{\"format\":1").unwrap();
    fs::write(plans.join("packs.77-7.tmp"), b"half").unwrap();
    let server = open(folder.path()).await;
    assert_eq!(fs::read_dir(&plans).unwrap().count(), 0);
    assert_eq!(server.plan(base, target).await, first);
}

#[tokio::test]
async fn a_failure_is_answered_from_memory_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(300, 1);
    let target = ImageId::of(&bytes);
    for (failure_kept, tried_again) in [(Duration::MAX, false), (Duration::ZERO, true)] {
        publish(&open(folder.path()).await.uploads, &bytes).await.unwrap();
        let server = open_with(folder.path(), PacksOptions { failure_kept, ..quick_only() }).await;
        let layout = object_path(&server.store, server.store.image(target).unwrap().layout.name);
        let aside = folder.path().join("aside");
        fs::rename(&layout, &aside).unwrap();
        // Nothing is in memory yet.
        let store = open_store(folder.path()).await;
        let packs = Packs::open(store, PacksOptions { failure_kept, ..quick_only() }).await.unwrap();
        let failed = packs.prepare(None, target).await.unwrap_err();
        assert!(matches!(&failed, PlanError::Failed { .. }), "{failed}");
        fs::rename(&aside, &layout).unwrap();
        assert_eq!(packs.prepare(None, target).await.is_ok(), tried_again);
    }
}

#[tokio::test]
async fn plans_and_their_objects_are_not_swept() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = old_and_new();
    let (base, target) = (Some(ImageId::of(&old)), ImageId::of(&new));
    let server = open(folder.path()).await;
    publish(&server.uploads, &old).await.unwrap();
    publish(&server.uploads, &new).await.unwrap();
    let first = server.plan(base, target).await;
    let stray = server.store.objects().put("stray").await.unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
    for shelf in list(&folder.path().join("objects")).unwrap() {
        for path in list(&shelf).unwrap() {
            File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
    }
    drop(server);
    let server = open(folder.path()).await;
    assert!(matches!(server.store.objects().len(stray.name).await, Err(StoreError::NotFound { .. })));
    assert_eq!(server.plan(base, target).await, first);
    assert_eq!(server.packs.made(), 0);
    assert!(apply(&server.store, &first, &old).await == new);
    server.store.forget_whole(target).unwrap();
    assert!(server.store.materialise(target).await.unwrap().map().unwrap()[..] == new);
}

#[tokio::test]
async fn a_cold_plan_points_at_the_segments_and_stores_nothing_anew() {
    let folder = tempfile::tempdir().unwrap();
    let server = open(folder.path()).await;
    let (old, new) = old_and_new();
    publish(&server.uploads, &old).await.unwrap();
    publish(&server.uploads, &new).await.unwrap();
    for bytes in [&old, &new] {
        let image = ImageId::of(bytes);
        let stored = server.store.stored();
        let plan = server.plan(None, image).await;
        assert_eq!(plan.base, None);
        assert!(apply(&server.store, &plan, &[]).await == *bytes);
        if bytes == &new {
            // Some of its blocks are stored after what they were before, which a node that holds nothing has not.
            assert!(server.store.stored() < stored + 10 * BLOCK as u64);
            continue;
        }
        assert_eq!(plan.objects, server.store.layout(image).await.unwrap().segments());
        let PlanState::Ready { length, .. } = server.packs.plan(None, image, Prefer::Time).await.unwrap() else {
            panic!()
        };
        assert_eq!(server.store.stored(), stored + length);
    }
    // Zeros only: nothing to fetch.
    let zeros = vec![0; 700 * BLOCK];
    publish(&server.uploads, &zeros).await.unwrap();
    let plan = server.plan(None, ImageId::of(&zeros)).await;
    assert_eq!((&plan.steps[..], plan.packs.len()), (&[Step::Zero { count: 700 }][..], 0));
}

#[tokio::test]
async fn a_cold_plan_of_scattered_survivors_is_packed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let server = open_with(folder.path(), PacksOptions { failure_kept: Duration::ZERO, ..quick_only() }).await;
    let old = noise(4000, 1);
    publish(&server.uploads, &old).await.unwrap();
    // One block in ten of the first part, one whole frame of the rest, one block of both parts twice.
    let mut new: Vec<u8> = old.chunks(10 * BLOCK).take(300).flat_map(|blocks| &blocks[..BLOCK]).copied().collect();
    new.extend_from_slice(&old[12 * 256 * BLOCK..13 * 256 * BLOCK]);
    new.extend_from_slice(&old[50 * BLOCK..51 * BLOCK]);
    new.extend_from_slice(&noise(2, 2));
    let added = publish(&server.uploads, &new).await.unwrap().added;
    assert!(added < 200_000, "{added}");
    // What rotted in the cache is found out before it is packed.
    let path = folder.path().join("cache").join(format!("{}.img", ImageId::of(&new)));
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(path).unwrap(), b"rot", 9000).unwrap();
    let rotten = server.packs.prepare(None, ImageId::of(&new)).await.unwrap_err().to_string();
    assert!(rotten.contains("block 2 of cache/"), "{rotten}");
    let plan = server.plan(None, ImageId::of(&new)).await;
    assert!(apply(&server.store, &plan, &[]).await == new);
    assert_eq!(plan.wire_bytes(), (300 + 256 + 2) * BLOCK as u64);
    assert!(plan.packs.iter().all(|pack| pack.raw_len as usize <= PACK_RAW_MAX));
    // First use goes up, so that a node can fetch ahead.
    let mut seen = 0;
    for step in &plan.steps {
        if let Step::Patch { pack, .. } = step {
            assert!(*pack <= seen, "pack {pack} is used before pack {seen}");
            seen = seen.max(pack + 1);
        }
    }
}

#[tokio::test]
async fn a_cold_plan_follows_an_image_that_was_stored_anew() {
    let folder = tempfile::tempdir().unwrap();
    let server = open(folder.path()).await;
    let bytes = noise(700, 1);
    let image = ImageId::of(&bytes);
    publish(&server.uploads, &bytes).await.unwrap();
    let first = server.plan(None, image).await;
    let segment = object_path(&server.store, first.objects[0]);
    File::options().write(true).open(&segment).unwrap().write_all(b"rot").unwrap();
    assert!(publish(&server.uploads, &bytes).await.unwrap().healed);
    server.packs.forget_moved().await.unwrap();
    assert!(apply(&server.store, &server.plan(None, image).await, &[]).await == bytes);
    assert_eq!(server.packs.made(), 2);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
    #[test]
    fn whatever_is_published_reads_back_and_every_plan_gives_its_target(
        images in proptest::collection::vec(proptest::collection::vec((0_usize..40, 1_usize..20, 0_u8..5), 1..12), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let server = open(folder.path()).await;
            let images: Vec<Vec<u8>> = images.iter().map(|cuts| image_of(cuts)).collect();
            for bytes in &images {
                publish(&server.uploads, bytes).await.unwrap();
            }
            for (at, bytes) in images.iter().enumerate() {
                let image = ImageId::of(bytes);
                server.store.forget_whole(image).unwrap();
                let all = (0, (bytes.len() / BLOCK) as u32);
                assert!(read_runs(&server.store, image, &[all]).await.unwrap() == *bytes);
                let cold = server.plan(None, image).await;
                assert!(apply(&server.store, &cold, &[]).await == *bytes);
                let base = &images[(at + 1) % images.len()];
                let plan = server.plan(Some(ImageId::of(base)), image).await;
                assert!(apply(&server.store, &plan, base).await == *bytes);
            }
        });
    }
}
