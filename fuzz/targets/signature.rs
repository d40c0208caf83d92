//! Any bytes, taken for an image, have a signature whose sections prove themselves; any bytes, taken for a section, are
//! a section or nothing, and a sketch or none.
#![no_main]

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{BLOCK, REGION};
use goldsync_proto::signature::{BlockHashes, Signature, block_hash, read_subtrees};
use goldsync_proto::sketch::{self, Likeness};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [size, claimed @ ..] = input else { return };
    // A section from outside: it must hash to the image id that is asked for, and be as long as the size says.
    let geometry = Geometry::new(u64::from(*size % 5) * REGION + BLOCK).expect("a size on the grid");
    if let Some(regions) = read_subtrees(geometry, ImageId(Digest([*size; 32])), claimed) {
        assert_eq!(regions.len() * 32, claimed.len());
    }
    let hashes = BlockHashes::new(claimed);
    assert_eq!(hashes.len() as usize, claimed.len() / 8);
    assert_eq!(hashes.get(hashes.len()), None);

    let wanted = Geometry::new((claimed.len() as u64 / 4 + 1) * BLOCK).expect("a size on the grid");
    for wanted in [wanted, geometry] {
        if let Some(samples) = sketch::read(wanted, claimed) {
            assert_eq!(sketch::write(&samples), claimed);
            let itself = Likeness::between(&samples, &samples);
            assert_eq!(itself.equal, itself.of);
        }
    }

    // An image made of the input, repeated to more than one region at times.
    let blocks = usize::from(*size) + 1;
    let image: Vec<u8> = claimed.iter().copied().chain([7]).cycle().take(blocks * BLOCK as usize).collect();
    let geometry = Geometry::new(image.len() as u64).expect("a size on the grid");
    let signature = Signature::of(geometry, &image).expect("a whole image");
    assert_eq!(signature.image, ImageId::of(&image));
    assert!(read_subtrees(geometry, signature.image, &signature.subtrees).is_some());
    let last = BlockHashes::new(&signature.blocks).get(geometry.blocks() - 1);
    assert_eq!(last, Some(block_hash(&image[image.len() - BLOCK as usize..])));
    assert_eq!(signature.blocks.len(), signature.rolling.len());

    let mut forged = signature.subtrees.clone();
    forged[usize::from(*size) % signature.subtrees.len()] ^= 1;
    assert!(read_subtrees(geometry, signature.image, &forged).is_none());
});
