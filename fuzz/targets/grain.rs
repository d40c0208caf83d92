//! Any masks end in masks or an error, and what is searched for at any offset is found there or where it lies earlier.
#![no_main]

use goldsync_proto::grain::{GrainHash, read_masks, select, write_masks};
use goldsync_proto::limits::{BLOCK, GRAIN};
use goldsync_proto::scan::grains::Grains;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[seed, width, shift, blocks], rest)) = input.split_first_chunk::<4>() else { return };
    let blocks = usize::from(blocks) + 1;
    if let Ok(masks) = read_masks(rest, blocks) {
        assert_eq!(masks.len(), blocks);
        assert_eq!(read_masks(&write_masks(&masks), blocks).expect("our own masks"), masks);
    }
    let Ok(hash) = GrainHash::new(seed.into(), width) else { return };
    let local: Vec<u8> =
        rest.iter().copied().chain([1, 2, 3]).cycle().take(usize::from(shift) * 40 + BLOCK as usize).collect();
    let hidden = &local[usize::from(shift) * 39..][..GRAIN as usize];
    let wanted = hash.of(hidden);
    let grains = Grains::new(hash, [(7, wanted)]);
    let mut found = Vec::new();
    grains.search(&local, |owner, offset| found.push((owner, offset)));
    if wanted == hash.zero() {
        assert!(found.is_empty());
    } else {
        let [(7, offset)] = found[..] else { panic!("{found:?}") };
        assert_eq!(hash.of(&local[offset..][..GRAIN as usize]), wanted);
    }
    let block = &local[..BLOCK as usize];
    assert_eq!(select(block, &[seed]).len(), seed.count_ones() as usize * GRAIN as usize);
});
