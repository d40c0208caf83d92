//! Any bytes are a copy of U-Boot's environment or none; with the right checksum, what is read is written and read alike.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The format as the agent has it; its package would bring a network stack along.
#[path = "../../agent/src/boot/formats/uboot_env.rs"]
#[allow(missing_docs, reason = "a target uses what it tests")]
mod uboot_env;

use uboot_env::{Copy, UbootEnvError, newer};

fuzz_target!(|input: &[u8]| {
    for of_two in [false, true] {
        let mut bytes = input.to_vec();
        // The fuzzer need not find a checksum: the refusal says which one it would be.
        if let Err(UbootEnvError::Checksum { computed, .. }) = Copy::read(&bytes, of_two) {
            bytes[..4].copy_from_slice(&computed.to_le_bytes());
        }
        let Ok(mut copy) = Copy::read(&bytes, of_two) else { continue };
        let written = copy.write(bytes.len()).expect("it came from as many bytes");
        assert_eq!(Copy::read(&written, of_two).as_ref(), Ok(&copy));
        copy.variables.set("goldsync_slot", "b");
        let Ok(written) = copy.write(bytes.len()) else { continue };
        let read = Copy::read(&written, of_two).expect("it was just written");
        assert_eq!(read.variables.get("goldsync_slot"), Some(&b"b"[..]));
    }
    if let [first, second, ..] = input
        && first != second
    {
        assert_ne!(newer(*first, *second), newer(*second, *first), "one of two is newer");
        assert_eq!(newer(*first, first.wrapping_add(1)), 1, "the next one is newer");
    }
});
