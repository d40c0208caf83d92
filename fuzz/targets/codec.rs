//! Any bytes, read by any sequence of the reader's methods, end in values or an error; and a varint has one form only.
#![no_main]

use goldsync_proto::codec::{Reader, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The first half says what to read, the second is read.
    let (script, bytes) = input.split_at(input.len() / 2);
    let mut reader = Reader::new(bytes);
    for &step in script {
        let before = reader.left();
        let max = 1_u64 << (step & 63);
        let read = match step >> 6 {
            0 => reader.bytes("bytes", usize::from(step)).map(|taken| assert_eq!(taken.len(), usize::from(step))),
            1 => reader.count("count", max as usize, usize::from(step & 7)).map(|count| assert!(count as u64 <= max)),
            2 => reader.signed("signed", max >> 1).map(|value| assert!(value.unsigned_abs() <= max)),
            _ => reader.varint("varint", u64::MAX).map(|value| {
                let mut writer = Writer::new();
                writer.varint(value);
                let taken = &bytes[bytes.len() - before..bytes.len() - reader.left()];
                assert_eq!(writer.finish(), taken, "two forms of {value}");
            }),
        };
        assert!(reader.left() <= before);
        if read.is_err() {
            return;
        }
    }
    let left = reader.left();
    assert_eq!(reader.end("input").is_ok(), left == 0);
});
