//! What a history of releases costs in the store, measured on real images: those of the folder `GOLDSYNC_HISTORY`, in the
//! order of their names, each a later release than the one before.
//!
//! ```sh
//! GOLDSYNC_HISTORY=DIR cargo nextest run -p goldsync-server --run-ignored only history --no-capture
//! ```

use goldsync_proto::digest::ImageId;
use goldsync_proto::plan::Plan;
use goldsync_proto::release::Section;

use super::testing::*;
use crate::packs::{Packs, PacksOptions, PlanState};

/// Goal: the store grows by at most 1.2 times what a node one release behind fetches. Method: publish one after the other,
/// and hold the growth against the plan from the release before.
#[tokio::test]
#[ignore = "it needs real images in the folder GOLDSYNC_HISTORY"]
async fn a_history_costs_one_image_and_its_changes() {
    let images = std::env::var_os("GOLDSYNC_HISTORY").expect("GOLDSYNC_HISTORY");
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let other = tempfile::tempdir().unwrap();
    let (first, mut grown, mut deltas) = (std::cell::Cell::new(0), 0, 0);
    let mut before: Option<ImageId> = None;
    for path in crate::store::files::list(images.as_ref()).unwrap() {
        let bytes = std::fs::read(&path).unwrap();
        let (image, began) = (ImageId::of(&bytes), std::time::Instant::now());
        let stored = store.stored();
        publish(&uploads, &bytes).await.unwrap();
        let (took, growth) = (began.elapsed(), store.stored() - stored);
        let record = store.image(image).unwrap();
        let sections = record.sections.subtrees.length + record.sections.blocks.length + record.sections.rolling.length;
        let layout = record.layout.length;
        let Some(base) = before.replace(image) else {
            first.set(growth);
            println!("{}: first {growth}, sections {sections}, layout {layout}, {took:?}", path.display());
            continue;
        };
        let delta = delta(&store, base, image).await;
        grown += growth;
        deltas += delta;
        println!("{}: grown {growth} (sections {sections}, layout {layout}), delta {delta}, {took:?}", path.display());
    }
    drop(other);
    println!("first {}, grown {grown}, deltas {deltas}: {:.3}", first.get(), grown as f64 / deltas as f64);
    assert!(grown * 10 <= deltas * 12);
}

/// What a node that runs the base fetches: the plan and its packs.
async fn delta(store: &std::sync::Arc<crate::store::Store>, base: ImageId, target: ImageId) -> u64 {
    let packs = Packs::open(store.clone(), PacksOptions { better: &[], ..PacksOptions::default() }).await.unwrap();
    let PlanState::Ready { name, length } = packs.prepare(Some(base), target).await.unwrap() else { panic!("waited") };
    let plan = Plan::decode(&store.objects().whole(Section { name, length }).await.unwrap()).unwrap();
    length + plan.wire_bytes()
}
