//! fast_rsync's answers, for tests: what it finds has to be found here too.
//!
//! It compares a signature with a buffer and writes librsync's delta. Of that, only the commands to copy count: each says that a
//! golden block lies at a local offset.

use crate::limits::BLOCK;
use crate::signature::ROLLING_ENTRY;

const HEAD: usize = 12;

/// The entries of the section `rolling` of some blocks.
pub(super) fn sign(blocks: &[u8]) -> Vec<[u8; ROLLING_ENTRY]> {
    let options = fast_rsync::SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: 4 };
    let signature = fast_rsync::Signature::calculate(blocks, options).into_serialized();
    signature[HEAD..].as_chunks().0.to_vec()
}

/// Which blocks lie at which offsets: one for each content, and none that begins within another that was found.
pub(super) fn found(entries: &[[u8; ROLLING_ENTRY]], local: &[u8]) -> Vec<(u32, usize)> {
    let head = [0x7273_0136, BLOCK as u32, 4].map(u32::to_be_bytes);
    let signature = [head.as_flattened(), entries.as_flattened()].concat();
    let signature = fast_rsync::Signature::deserialize(signature).unwrap();
    let mut delta = Vec::new();
    fast_rsync::diff(&signature.index(), local, &mut delta).unwrap();
    copies(&delta[4..])
}

fn copies(mut delta: &[u8]) -> Vec<(u32, usize)> {
    let (mut found, mut local) = (Vec::new(), 0);
    while let Some((command, rest)) = delta.split_first() {
        delta = rest;
        let mut number = |bytes: usize| {
            let (number, rest) = delta.split_at(bytes);
            delta = rest;
            number.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let literal = match command {
            0 => break,
            1..=0x40 => usize::from(*command),
            0x41..=0x44 => number(1 << (command - 0x41)),
            _ => {
                let golden = number(1 << ((command - 0x45) / 4));
                let len = number(1 << ((command - 0x45) % 4));
                found.extend(
                    (0..len / BLOCK as usize)
                        .map(|step| ((golden / BLOCK as usize + step) as u32, local + step * BLOCK as usize)),
                );
                local += len;
                continue;
            }
        };
        delta = &delta[literal..];
        local += literal;
    }
    found
}
