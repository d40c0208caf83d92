//! Any bytes, taken for a literal frame or a pack with any prefix, end in exactly as many bytes as promised or an error.
#![no_main]

use goldsync_proto::pack::{Codec, FRAME_HEAD, decompress, frame_head, read_frame, write_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(raw) = read_frame(input) {
        let head: [u8; FRAME_HEAD] = input[..FRAME_HEAD].try_into().expect("a frame that was read has a head");
        assert_eq!(frame_head(head).expect("and a good one").raw_len, raw.len());
        assert_eq!(read_frame(&write_frame(&raw, 1)).as_ref(), Ok(&raw));
    }
    let Some((&split, rest)) = input.split_first() else { return };
    let (prefix, wire) = rest.split_at(rest.len() * usize::from(split & 15) / 16);
    let raw_len = 4096 << (split >> 4 & 3);
    for codec in [Codec::Raw, Codec::Zstd, Codec::Delta, Codec::Patch] {
        if let Ok(raw) = decompress(codec, wire, raw_len, prefix) {
            assert_eq!(raw.len(), raw_len);
        }
    }
});
