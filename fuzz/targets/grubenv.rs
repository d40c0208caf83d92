//! Any 1024 bytes after GRUB's first line are a block; setting variables in it loses nobody else's.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The format as the agent has it; its package would bring a network stack along.
#[path = "../../agent/src/boot/formats/grubenv.rs"]
#[allow(missing_docs, reason = "a target uses what it tests")]
mod grubenv;

fuzz_target!(|input: &[u8]| {
    let _ = grubenv::Block::read(input);
    let mut bytes = b"# GRUB Environment Block\n".to_vec();
    bytes.extend_from_slice(input);
    bytes.resize(grubenv::SIZE, b'#');
    let block = grubenv::Block::read(&bytes).expect("it begins as it must");
    assert_eq!(grubenv::Block::read(&block.write().expect("it came from as many bytes")), Ok(block.clone()));
    let mut set = block.clone();
    set.set_first(&[("goldsync_slot", "b"), ("goldsync_tries", "3")]);
    let Ok(first) = set.write() else { return };
    let read = grubenv::Block::read(&first).expect("it was just written");
    assert_eq!(read, set);
    assert_eq!(read.get("goldsync_tries").as_deref(), Some(&b"3"[..]));
    set.set_first(&[("goldsync_slot", "a"), ("goldsync_tries", "-")]);
    let second = set.write().expect("it is as long as before");
    assert_eq!(first[64..], second[64..], "only the first sector changes");
});
