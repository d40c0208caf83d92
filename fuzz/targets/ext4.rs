//! Any bytes are a file system or none, found out in bounded time; what inodes say to own lies where they say.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The reader as the operator's tool has it; its package would bring a server along.
#[path = "../../server/src/ctl/bench/ext4/mod.rs"]
#[allow(dead_code, reason = "a target uses what it tests")]
mod ext4;

const IMAGE: usize = 64 << 10;

fuzz_target!(|input: &[u8]| {
    // Seeds end where their zeros begin.
    let mut image = input.to_vec();
    image.resize(IMAGE, 0);
    let Ok(map) = ext4::Map::read(&image) else { return };
    let mut blocks = 0;
    for inode in &map.inodes {
        assert!(image.get(inode.record.clone()).is_some_and(|record| record.len() >= 128));
        assert!(inode.path.len() <= 3 * 1024 + 3 && map.head(&image, inode).len() as u64 <= map.block_size);
        blocks += inode.extents.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
    }
    // Each is paid for from what the image holds.
    assert!(blocks <= IMAGE as u64 / map.block_size + 1024);
    for block in 0..2 * IMAGE as u32 / 4096 {
        let owner = map.owner(block);
        assert_eq!(map.inode(owner).is_some(), matches!(owner, ext4::Owner::Inode(_)));
    }
});
