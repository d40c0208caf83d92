//! Any entries of the sections `rolling` and `blocks`, searched for in any bytes, give candidates inside those bytes; a block
//! that is there is found; and both kernels find the same.
#![no_main]

use goldsync_proto::limits::BLOCK;
use goldsync_proto::scan::aligned::BlockIndex;
use goldsync_proto::scan::rolling::{Rolling, Wanted};
use goldsync_proto::signature::{BlockHashes, block_hash};
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
    let hidden = &local[usize::from(shift)..][..BLOCK as usize];
    let options = fast_rsync::SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: 4 };
    let signature = fast_rsync::Signature::calculate(hidden, options).into_serialized();
    let entry = signature[12..20].try_into().expect("one entry");
    // A sum that is wanted with other contents besides may be given up before the right one comes.
    let others = entries.as_chunks::<8>().0.iter().filter(|other| other[..4] != signature[12..16]);
    let mut wanted: Vec<_> = (0..).zip(others).map(|(block, entry)| Wanted { block, entry: *entry, hash: 1 }).collect();
    let number = wanted.len() as u32;
    wanted.push(Wanted { block: number, entry, hash: block_hash(hidden) });

    let found = |rolling: Rolling| {
        let mut found = Vec::new();
        rolling.search(&local, |block, offset| found.push((block, offset)));
        found
    };
    let ours = found(Rolling::new(wanted.iter().copied()));
    assert_eq!(found(Rolling::new(wanted).portable()), ours);
    let [(block, offset)] = ours[..] else { panic!("{ours:?}") };
    assert!(block == number && local[offset..][..BLOCK as usize] == *hidden, "{ours:?}");
});
