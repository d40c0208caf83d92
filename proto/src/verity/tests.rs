use super::*;
use crate::digest::ImageId;
use crate::testing::noise;
use proptest::prelude::*;

const BYTES: usize = BLOCK as usize;

/// The simplest implementation there is: all levels in memory, the root first.
fn grow(data: &[u8], salted: Salted, salt: &[u8]) -> Vec<u8> {
    let mut levels = Vec::new();
    let mut below = data.to_vec();
    while below.len() > BYTES {
        let salty = |block: &[u8]| match salted {
            Salted::Before => [salt, block].concat(),
            Salted::Behind => [block, salt].concat(),
        };
        let mut level: Vec<u8> = below.chunks(BYTES).flat_map(|block| Sha256::digest(salty(block)).to_vec()).collect();
        level.resize(level.len().next_multiple_of(BYTES), 0);
        levels.push(level.clone());
        below = level;
    }
    levels.into_iter().rev().flatten().collect()
}

fn superblock(blocks: usize, salted: Salted, salt: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(MAGIC).u32(1).u32(salted as u32).bytes(&[7; 16]).bytes(b"sha256").bytes(&[0; 26]);
    out.u32(4096).u32(4096).u64(blocks as u64).bytes(&(salt.len() as u16).to_le_bytes()).bytes(&[0; 6]).bytes(salt);
    let mut block = out.finish();
    block.resize(BYTES, 0);
    block
}

/// What stands in a partition of its own, or behind the data.
pub(crate) fn hash_area(data: &[u8], salt: &[u8]) -> Vec<u8> {
    let salted = Salted::Before;
    [superblock(data.len() / BYTES, salted, salt), grow(data, salted, salt)].concat()
}

fn all(tree: &Tree) -> Vec<Derived> {
    let range = tree.range();
    vec![Derived { tree: tree.clone(), runs: vec![(range.start, range.len() as u32)] }]
}

#[test]
fn levels_lie_as_cryptsetup_lays_them() {
    let tree = |blocks| Tree { data: 0, blocks, at: 1000, salted: Salted::Before, salt: vec![] };
    // As `veritysetup format` says of 23353 data blocks: 186 hash blocks.
    assert_eq!(tree(23_353).levels(), [1003..1186, 1001..1003, 1000..1001]);
    assert_eq!((tree(128).levels().len(), tree(128).range()), (1, 1000..1001));
    assert_eq!(tree(129).levels(), [1001..1003, 1000..1001]);
    assert_eq!((tree(1).levels(), tree(1).range()), (vec![], 1000..1000));
    let tree = Tree { data: 50, ..tree(23_353) };
    assert_eq!(tree.below(1000), Some((1001, 2)));
    assert_eq!(tree.below(1002), Some((1131, 55)));
    assert_eq!(tree.below(1003), Some((50, 128)));
    assert_eq!(tree.below(1185), Some((50 + 182 * 128, 57)));
    assert_eq!((tree.below(999), tree.below(1186), tree.below(u32::MAX)), (None, None, None));
}

#[test]
fn a_tree_behind_its_data_is_found_and_proven() {
    let data = noise(300 * BYTES, 1);
    let image = [data.clone(), hash_area(&data, b"salt"), noise(BYTES, 2)].concat();
    let tree = Tree { data: 0, blocks: 300, at: 301, salted: Salted::Before, salt: b"salt".to_vec() };
    assert_eq!(find(&image), all(&tree));
    assert_eq!(tree.range(), 301..305);
    // Bytes that only look like one.
    let area = hash_area(&noise(300 * BYTES, 3), b"salt");
    assert_eq!(find(&[data, area].concat()), []);
}

#[test]
fn only_blocks_that_derive_are_derived() {
    let data = noise(700 * BYTES, 1);
    let mut image = [data.clone(), hash_area(&data, b"")].concat();
    // Leaf 2 of six, behind superblock and root.
    image[(700 + 1 + 1 + 2) * BYTES + 77] ^= 1;
    // The root, which is made of what is there, is another one now.
    assert_eq!(find(&image)[0].runs, [(702, 2), (705, 3)]);
    // And if the data is another, the leaf over it.
    image[5 * BYTES] ^= 1;
    assert_eq!(find(&image)[0].runs, [(703, 1), (705, 3)]);
}

/// A disk of sectors of 512 bytes with partitions that begin there.
fn disk(blocks: usize, starts: &[u64]) -> Vec<u8> {
    let mut disk = vec![0; blocks * BYTES];
    let mut header = Writer::new();
    header.bytes(b"EFI PART").bytes(&[0; 64]).u64(2).u32(128).u32(128);
    let header = header.finish();
    disk[512..512 + header.len()].copy_from_slice(&header);
    for (index, start) in starts.iter().enumerate() {
        let at = 1024 + index * 128 + 32;
        disk[at..at + 8].copy_from_slice(&(start * 8).to_le_bytes());
    }
    disk
}

#[test]
fn a_tree_in_a_partition_of_its_own_is_found_by_the_table() {
    let mut disk = disk(1000, &[40, 400, 500, 900]);
    let (root, other) = (noise(300 * BYTES, 1), noise(290 * BYTES, 2));
    let put = |disk: &mut [u8], at: usize, bytes: &[u8]| disk[at * BYTES..][..bytes.len()].copy_from_slice(bytes);
    let told = |disk: &[u8]| {
        let found = find(disk);
        found.iter().map(|found| (found.tree.data, found.tree.at, found.count())).collect::<Vec<_>>()
    };
    put(&mut disk, 40, &root);
    put(&mut disk, 400, &hash_area(&root, b"one"));
    put(&mut disk, 500, &other);
    put(&mut disk, 900, &hash_area(&other, b"two"));
    assert_eq!(told(&disk), [(40, 401, 4), (500, 901, 4)]);
    // The same twice, as a disk with two sets of partitions has it at first: each has its own.
    put(&mut disk, 500, &root);
    put(&mut disk, 900, &hash_area(&root, b"one"));
    assert_eq!(told(&disk), [(40, 401, 4), (500, 901, 4)]);
}

#[test]
fn a_tree_within_the_data_of_another_travels() {
    let inner = noise(200 * BYTES, 1);
    let data = [noise(BYTES, 2), inner.clone(), hash_area(&inner, b"in"), noise(100 * BYTES, 3)].concat();
    let image = [data.clone(), hash_area(&data, b"out")].concat();
    let found = find(&image);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].tree.salt, b"out");
}

#[test]
fn what_is_not_of_our_kind_is_none() {
    let good = superblock(300, Salted::Before, b"salt");
    assert!(Tree::read(5, &good).is_some());
    let refuse = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(Tree::read(5, &bad), None, "{at}");
    };
    refuse(0, b"x");
    refuse(8, &[2]);
    refuse(12, &[2]);
    refuse(32, b"sha512");
    refuse(38, b"-");
    refuse(64, &1024_u32.to_le_bytes());
    refuse(68, &512_u32.to_le_bytes());
    refuse(72, &1_u64.to_le_bytes());
    refuse(72, &u64::MAX.to_le_bytes());
    refuse(80, &257_u16.to_le_bytes());
    assert_eq!(Tree::read(u32::MAX, &good), None);
    assert_eq!(Tree::read(5, &good[..300]), None);
}

#[test]
fn a_tree_that_an_image_cannot_have_is_refused() {
    let geometry = Geometry::new(400 * BLOCK).unwrap();
    let good = Tree { data: 10, blocks: 300, at: 396, salted: Salted::Before, salt: vec![1; 256] };
    assert_eq!(good.check(geometry), Ok(()));
    let refuse = |change: fn(&mut Tree), why: &str| {
        let mut tree = good.clone();
        change(&mut tree);
        let refused = tree.check(geometry).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    };
    refuse(|tree| tree.at = 397, "outside");
    refuse(|tree| tree.at = u32::MAX, "outside");
    refuse(|tree| tree.data = 101, "outside");
    refuse(|tree| tree.blocks = u32::MAX, "outside");
    refuse(|tree| tree.blocks = 1, "less than two");
    refuse(|tree| tree.salt.push(0), "salt");
    refuse(|tree| tree.at = 306, "itself");
}

#[test]
fn a_tree_reads_back_from_json() {
    let tree = Tree { data: 10, blocks: 300, at: 396, salted: Salted::Behind, salt: vec![0, 0xab, 255] };
    let text = serde_json::to_string(&tree).unwrap();
    assert!(text.contains("\"00abff\""), "{text}");
    assert_eq!(serde_json::from_str::<Tree>(&text).unwrap(), tree);
    for bad in ["00abf", "00abfx", "+1", "é"] {
        assert!(serde_json::from_str::<Tree>(&text.replace("00abff", bad)).is_err(), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_derives_is_what_others_grow(
        blocks in 2_usize..600,
        salt in proptest::collection::vec(any::<u8>(), 0..256),
        before: bool,
        pad in 0_usize..3,
    ) {
        let salted = if before { Salted::Before } else { Salted::Behind };
        let data = noise(blocks * BYTES, blocks as u64);
        let pad = noise(pad * BYTES, 9);
        let area = [superblock(blocks, salted, &salt), grow(&data, salted, &salt)].concat();
        let image = [pad.clone(), data, area].concat();
        let data = (pad.len() / BYTES) as u32;
        let tree = Tree { data, blocks: blocks as u32, at: data + blocks as u32 + 1, salted, salt };
        prop_assert_eq!(tree.range().end as usize * BYTES, image.len());
        prop_assert_eq!(find(&image), all(&tree));
    }

    #[test]
    fn any_bytes_end_in_a_tree_or_none(bytes: Vec<u8>, at: u32, data: u32, blocks: u32, block: u32) {
        let _ = Tree::read(at, &bytes);
        let _ = find(&bytes);
        let tree = Tree { data, blocks, at, salted: Salted::Before, salt: bytes };
        let _ = (tree.below(block), tree.range());
    }

    #[test]
    fn a_superblock_with_flipped_bytes_is_a_tree_that_fits_or_none(at in 0_usize..350, flip in 1_u8..) {
        let data = noise(200 * BYTES, 1);
        let mut image = [data.clone(), hash_area(&data, b"salt")].concat();
        image[200 * BYTES + at] ^= flip;
        let geometry = Geometry::new(image.len() as u64).unwrap();
        for found in find(&image) {
            prop_assert_eq!(found.tree.check(geometry), Ok(()));
        }
    }

    #[test]
    fn a_table_with_flipped_bytes_gives_starts_inside(at in 512_usize..1400, flip in 1_u8..) {
        let mut disk = disk(500, &[40, 400]);
        disk[at] ^= flip;
        prop_assert!(find::partitions(&disk).iter().all(|start| *start < 500));
    }
}

fn sealed_image(blocks: usize) -> (Vec<u8>, Vec<u8>, Sealed) {
    let data = noise(blocks * BYTES, 5);
    let (area, sealed) = seal(&data, ImageId::of(&data)).unwrap();
    (data, area, sealed)
}

#[test]
fn what_is_sealed_is_found_and_says_the_same() {
    for blocks in [2, 127, 128, 129, 130 * 128] {
        let (data, area, sealed) = sealed_image(blocks);
        assert_eq!(area[BYTES..], grow(&data, Salted::Before, &sealed.salt));
        let image = [data, area].concat();
        let found = find(&image);
        assert_eq!(Sealed::of(&image, &found), Some(sealed.clone()), "{blocks}");
        let tree = sealed.check(Geometry::new(image.len() as u64).unwrap()).unwrap();
        assert_eq!((tree, sealed.hash_start()), (found[0].tree.clone(), blocks as u64 + 1));
    }
    assert_eq!(sealed_image(130), sealed_image(130), "sealing again makes the same");
    assert!(seal(&noise(BYTES, 1), ImageId::of(b"")).is_err());
    assert!(seal(&[0; 5000], ImageId::of(b"")).is_err());
}

#[test]
fn only_one_whole_tree_over_the_image_s_start_seals_it() {
    let (data, area, _) = sealed_image(300);
    let of = |image: &[u8]| Sealed::of(image, &find(image));
    // A leaf that is not what it should be, and data that is not.
    let mut image = [data.clone(), area.clone()].concat();
    let end = image.len() - BYTES;
    image[end] ^= 1;
    assert_eq!(of(&image), None);
    let mut image = [data.clone(), area.clone()].concat();
    image[7] ^= 1;
    assert_eq!(of(&image), None);
    // Data that begins elsewhere; two trees; none.
    assert_eq!(of(&[noise(BYTES, 9), data.clone(), area.clone()].concat()), None);
    assert_eq!(of(&[data.clone(), area.clone(), data.clone(), area.clone()].concat()), None);
    assert_eq!(of(&data), None);
    // What lies behind it is its own affair; an image inside the data is data.
    assert!(of(&[data.clone(), area.clone(), noise(3 * BYTES, 8)].concat()).is_some());
    let outer = [data, area].concat();
    let (area, sealed) = seal(&outer, ImageId::of(&outer)).unwrap();
    assert_eq!(of(&[outer, area].concat()), Some(sealed));
}

#[test]
fn what_a_manifest_says_is_held_against_the_image() {
    let (data, area, good) = sealed_image(300);
    let geometry = Geometry::new((data.len() + area.len()) as u64).unwrap();
    assert!(good.check(geometry).is_ok());
    let refuse = |change: fn(&mut Sealed), word: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = bad.check(geometry).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    };
    refuse(|sealed| sealed.version = 2, "hash type");
    refuse(|sealed| sealed.algorithm = "sha512".into(), "SHA-256");
    refuse(|sealed| sealed.data_block_size = 512, "4096");
    refuse(|sealed| sealed.hash_block_size = 0, "4096");
    refuse(|sealed| sealed.data_blocks = 301, "itself");
    refuse(|sealed| sealed.data_blocks = 1, "two blocks");
    refuse(|sealed| sealed.data_blocks = u64::MAX, "outside");
    refuse(|sealed| sealed.hash_offset += 1, "outside");
    refuse(|sealed| sealed.hash_offset += 4096, "outside");
    refuse(|sealed| sealed.hash_offset = u64::MAX - 4095, "outside");
    refuse(|sealed| sealed.hash_offset = 0, "itself");
    refuse(|sealed| sealed.salt = vec![0; 257], "256");
    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<Sealed>(&text).unwrap(), good);
    let hash = good.root_hash.to_string();
    for bad in [&hash[1..], "", &"+".repeat(64)] {
        assert!(bad.parse::<RootHash>().is_err());
        assert!(serde_json::from_str::<Sealed>(&text.replace(&hash, bad)).is_err());
    }
}
