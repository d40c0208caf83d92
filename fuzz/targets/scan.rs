//! Any entries of the sections `rolling` and `blocks`, searched for in any bytes, give candidates inside those bytes; and
//! a block that is there is found.
#![no_main]

use goldsync_proto::limits::BLOCK;
use goldsync_proto::scan::aligned::BlockIndex;
use goldsync_proto::scan::rolling::Rolling;
use goldsync_proto::signature::BlockHashes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[entries, shift], rest)) = input.split_first_chunk::<2>() else { return };
    let (entries, seed) = rest.split_at(rest.len().min(usize::from(entries) * 8));

    let hashes = BlockHashes::new(entries);
    let index = BlockIndex::new(hashes, 0..hashes.len() + 9);
    for (block, hash) in (0..).zip(hashes.iter()) {
        assert!(index.find(hash).contains(&block));
    }
    assert_eq!(index.len(), hashes.len() as usize);

    let local: Vec<u8> =
        seed.iter().copied().chain([1, 2]).cycle().take(usize::from(shift) + 3 * BLOCK as usize).collect();
    let mut wanted: Vec<(u32, [u8; 8])> = (0..).zip(entries.as_chunks::<8>().0.iter().copied()).collect();
    let hidden = &local[usize::from(shift)..][..BLOCK as usize];
    let options = fast_rsync::SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: 4 };
    let signature = fast_rsync::Signature::calculate(hidden, options).into_serialized();
    let number = wanted.len() as u32;
    wanted.push((number, signature[12..20].try_into().expect("one entry")));

    let rolling = Rolling::new(&wanted).expect("entries of our own length");
    let found = rolling.index().search(&local);
    for found in &found {
        assert!(found.offset + BLOCK as usize <= local.len() && found.block <= number, "{found:?}");
    }
    // The parse is greedy: a match that begins earlier may stand in the way. With nothing else wanted, there is none but
    // the block's own repetition.
    if number == 0 {
        assert!(!found.is_empty(), "a block at offset {shift} was not found");
    }
});
