//! Whatever looks like a superblock, or like a partition table, what is found is a tree that the image can have, and what is
//! said to derive does.
#![no_main]

use std::sync::LazyLock;

use goldsync_proto::block::Geometry;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::make::gather_bytes;
use goldsync_proto::verity::{Salted, Tree, find};
use libfuzzer_sys::fuzz_target;

const DATA: u32 = 130;

/// 130 blocks of data with a tree behind it, so that the fuzzer need not guess a hash.
static SEALED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let tree = Tree { data: 0, blocks: DATA, at: DATA + 1, salted: Salted::Before, salt: b"salt".to_vec() };
    let mut image: Vec<u8> = (0..DATA).flat_map(|block| [block as u8; BLOCK as usize]).collect();
    let mut superblock = b"verity\0\0\x01\0\0\0\x01\0\0\0".to_vec();
    superblock.extend([7; 16]);
    superblock.extend(b"sha256");
    superblock.resize(64, 0);
    [BLOCK as u32, BLOCK as u32, DATA, 0, 4, 0].iter().for_each(|word| superblock.extend(word.to_le_bytes()));
    superblock.extend(b"salt");
    image.extend(superblock);
    image.resize(tree.range().end as usize * BLOCK as usize, 0);
    for block in tree.levels().into_iter().flatten() {
        let made = tree.derive(&gather_bytes(&image, tree.below(block)));
        image[block as usize * BLOCK as usize..][..BLOCK as usize].copy_from_slice(&made);
    }
    assert_eq!(find(&image).len(), 1, "a sound tree is found");
    image
});

fuzz_target!(|input: &[u8]| {
    let mut image = input.to_vec();
    image.resize(image.len().next_multiple_of(BLOCK as usize), 0);
    holds(&image);
    // Over the superblock, and over a partition table at the beginning.
    for at in [DATA as usize * BLOCK as usize, 0] {
        let mut image = SEALED.clone();
        let end = (at + input.len()).min(image.len());
        image[at..end].copy_from_slice(&input[..end - at]);
        holds(&image);
    }
});

fn holds(image: &[u8]) {
    let Ok(geometry) = Geometry::new(image.len() as u64) else { return };
    for found in find(image) {
        assert_eq!(found.tree.check(geometry), Ok(()));
        for block in found.runs.iter().flat_map(|(first, count)| *first..first + count) {
            let below = found.tree.below(block).expect("a block of the tree");
            assert_eq!(found.tree.derive(&gather_bytes(image, [below])), gather_bytes(image, [(block, 1)]));
        }
    }
}
