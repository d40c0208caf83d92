//! Whatever two images are, the plan made from the one to the other gives the other, also after travelling.
#![no_main]

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::make::{Effort, Image, Near, gather_bytes, pair};
use goldsync_proto::pack::{decompress, hash16};
use goldsync_proto::plan::{Plan, PlanError, Step};
use goldsync_proto::signature::{BlockHashes, sign_blocks};
use libfuzzer_sys::fuzz_target;

const EFFORT: Effort = Effort { level: 1, pack: 4 * BLOCK as usize, prefix: 1 << 16, ..Effort::SMALLEST };

fuzz_target!(|input: &[u8]| {
    let Some((&seed, script)) = input.split_first() else { return };
    let base: Vec<u8> = (0..8_u32).flat_map(|block| [seed ^ (block as u8 & 6); BLOCK as usize]).collect();
    // The target: pieces of the base at any offset, zeros, and bytes of the script.
    let mut target = Vec::new();
    for (at, op) in script.as_chunks::<3>().0.iter().enumerate().take(40) {
        let from = usize::from(u16::from_le_bytes([op[0], op[1]])) % base.len();
        let end = (from + usize::from(op[2]) * 64).min(base.len());
        match op[2] & 3 {
            0 => target.extend_from_slice(&base[from & !4095..end.next_multiple_of(4096)]),
            1 => target.extend_from_slice(&base[from..end]),
            2 => target.resize(target.len().next_multiple_of(4096) + 4096, 0),
            _ => target.extend_from_slice(&script[at * 3..]),
        }
    }
    target.resize(target.len().next_multiple_of(4096).max(4096), seed);

    let (base_hashes, target_hashes) = (sign_blocks(&base), sign_blocks(&target));
    let mut object = Vec::new();
    let near = if seed & 1 == 0 { Near::Delta } else { Near::Patch };
    let effort = Effort { near, ..EFFORT };
    let plan = pair(image(&base, &base_hashes), image(&target, &target_hashes), effort, |wire| {
        object.extend_from_slice(wire);
        Ok::<_, PlanError>(())
    })
    .expect("small images make small plans");
    let plan = Plan::decode(&plan.encode().expect("a plan of the server's")).expect("reads back");
    assert!(apply(&plan, &base, &object) == target, "the plan gives other bytes");
});

fn image<'a>(bytes: &'a [u8], hashes: &'a [u8]) -> Image<'a> {
    let geometry = Geometry::new(bytes.len() as u64).expect("whole blocks");
    Image { id: ImageId::of(bytes), geometry, bytes, hashes: BlockHashes::new(hashes), derived: &[] }
}

fn apply(plan: &Plan, base: &[u8], object: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for step in &plan.steps {
        match *step {
            Step::Copy { from, count, .. } => out.extend(gather_bytes(base, [(from, count)])),
            Step::Zero { count } => out.resize(out.len() + count as usize * BLOCK as usize, 0),
            Step::Patch { pack, from, count } => {
                let pack = &plan.packs[pack as usize];
                let wire = &object[pack.offset as usize..][..pack.wire_len as usize];
                assert_eq!(hash16(wire), pack.wire_hash);
                let prefix = gather_bytes(base, pack.prefix.iter().copied());
                let raw = decompress(pack.codec, wire, pack.raw_len as usize, &prefix).expect("a good pack");
                assert_eq!(hash16(&raw), pack.raw_hash);
                out.extend(gather_bytes(&raw, [(from, count)]));
            }
            other => panic!("no server makes {other:?}"),
        }
    }
    out
}
