//! Any bytes, as they travel or once unpacked, end in a plan or an error; a plan that was read keeps its promises, and
//! is written and read alike.
#![no_main]

use goldsync_proto::limits::{BLOCK, IMAGE_MAX, PACK_RAW_MAX, PREFIX_MAX};
use goldsync_proto::plan::{Plan, Step};
use goldsync_proto::verity::Tree;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(plan) = Plan::decode(input) {
        promises(&plan);
    }
    // The fuzzer cannot guess its way through zstd, so it is also given the inside.
    let mut wire = (input.len() as u32).to_le_bytes().to_vec();
    wire.extend_from_slice(&zstd::bulk::compress(input, 1).expect("a compressed input"));
    if let Ok(plan) = Plan::decode(&wire) {
        promises(&plan);
        let again = plan.encode().expect("a plan that was read can be written");
        assert_eq!(Plan::decode(&again).as_ref(), Ok(&plan));
    }
});

fn promises(plan: &Plan) {
    let made: u64 = plan.steps.iter().map(|step| u64::from(step.count())).sum();
    assert_eq!(made * BLOCK, plan.geometry.size(), "the steps cover the target");
    let mut next = 0;
    for step in &plan.steps {
        let first = next;
        next += step.count();
        match *step {
            Step::Patch { pack, from, count } => {
                let raw = u64::from(plan.packs[pack as usize].raw_len);
                assert!((u64::from(from) + u64::from(count)) * BLOCK <= raw, "{step:?} in {raw} bytes");
            }
            Step::Copy { from, count, .. } => assert!((u64::from(from) + u64::from(count)) * BLOCK <= IMAGE_MAX),
            Step::CopyBytes { from, count, .. } => assert!(from + u64::from(count) * BLOCK <= IMAGE_MAX),
            Step::Zero { .. } => {}
            Step::Derive { count } => {
                for block in [first, first + count - 1] {
                    let of = |tree: &&Tree| tree.below(block).is_some();
                    let tree = plan.trees.iter().find(of).expect("a tree's block");
                    let (below, count) = tree.below(block).expect("a tree's block");
                    assert!(plan.geometry.holds(below, count), "{tree:?}");
                }
            }
            Step::Keep { .. } | Step::Fetch { .. } => panic!("{step:?} does not travel"),
        }
    }
    for pack in &plan.packs {
        assert!((pack.object as usize) < plan.objects.len());
        assert!(pack.wire_len <= pack.raw_len && pack.raw_len as usize <= PACK_RAW_MAX);
        let prefix: u64 = pack.prefix.iter().map(|(_, count)| u64::from(*count) * BLOCK).sum();
        assert!(prefix <= PREFIX_MAX as u64);
        assert!(pack.offset.checked_add(u64::from(pack.wire_len)).is_some());
    }
}
