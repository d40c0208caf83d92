use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::cut::SECTOR;
use super::fault::{On, What};
use super::tree::{Id, Node, ROOT};
use super::*;
use crate::disk::skip;
use crate::seed::Seed;

fn name(name: &str) -> std::ffi::OsString {
    name.into()
}

fn create(folder: Id, what: &str, id: Id) -> Op {
    Op::Create { folder, name: name(what), id, node: Node::File(Vec::new()) }
}

fn write(id: Id, at: u64, bytes: &[u8]) -> Op {
    Op::Write { id, at, bytes: bytes.into() }
}

fn rename(folder: Id, from: &str, to: &str) -> Op {
    Op::Rename { folder, name: name(from), to: folder, new: name(to) }
}

fn grown(base: &Tree, ops: &[Op]) -> Tree {
    let mut tree = base.clone();
    ops.iter().for_each(|op| tree.apply(op));
    tree
}

fn file(tree: &Tree, path: &str) -> Option<Vec<u8>> {
    tree.read(Path::new(path)).map(<[u8]>::to_vec)
}

/// What a name may lead to after a cut behind `ops`, over many fates.
fn found(base: &Tree, ops: &[Op], laws: &Laws, path: &str) -> std::collections::HashSet<Option<Vec<u8>>> {
    Fate::all(200).map(|fate| file(&cut::after(base, ops, laws, fate), path)).collect()
}

fn posix() -> Laws {
    Laws::default()
}

fn fat() -> Laws {
    Laws { fat: vec![PathBuf::new()], ..Laws::default() }
}

/// A file `f` that holds `old`, at rest.
fn holding(old: &[u8]) -> Tree {
    grown(&Tree::default(), &[create(ROOT, "f", 2), write(2, 0, old)])
}

const fn sync(id: Id) -> Op {
    Op::Sync { id }
}

const NAMES: Op = Op::SyncFolder { id: ROOT };

#[test]
fn what_is_replaced_with_care_is_old_or_new() {
    let base = holding(b"old");
    let ops = [create(ROOT, "f.new", 3), write(3, 0, b"new!"), sync(3), rename(ROOT, "f.new", "f"), NAMES];
    for at in 0..=ops.len() {
        let all = found(&base, &ops[..at], &posix(), "f");
        let (old, new) = (Some(b"old".to_vec()), Some(b"new!".to_vec()));
        let expected = match at {
            0..=3 => vec![old],
            4 => vec![old, new],
            _ => vec![new],
        };
        assert_eq!(all, expected.into_iter().collect(), "at {at}");
    }
}

#[test]
fn what_is_replaced_without_care_may_be_neither() {
    let base = holding(b"old");
    let ops = [create(ROOT, "f.new", 3), write(3, 0, b"new!"), rename(ROOT, "f.new", "f"), NAMES];
    let all = found(&base, &ops, &posix(), "f");
    assert!(all.contains(&Some(vec![])) && all.contains(&Some(vec![0; 4])) && all.contains(&Some(b"new!".to_vec())));
    let in_place = found(&base, &[write(2, 0, &[1; 2 * SECTOR])], &posix(), "f");
    let half = [vec![1; SECTOR], vec![0; SECTOR]].concat();
    assert!(in_place.contains(&Some(half)), "torn by the sector");
}

#[test]
fn a_name_lasts_when_its_folder_is_synced_and_not_before() {
    let ops = [create(ROOT, "f", 2), write(2, 0, b"x"), sync(2)];
    assert!(found(&Tree::default(), &ops, &posix(), "f").contains(&None));
    let ops = [&ops[..], &[NAMES]].concat();
    assert_eq!(found(&Tree::default(), &ops, &posix(), "f"), [Some(b"x".to_vec())].into());
}

#[test]
fn on_fat_a_rename_is_three_steps_in_any_order() {
    let base = holding(b"old");
    let prepared = [create(ROOT, "g", 3), write(3, 0, b"new!"), sync(3), NAMES];
    let ops = [&prepared[..], &[rename(ROOT, "g", "f")]].concat();
    let all = found(&base, &ops, &fat(), "f");
    assert!(all.contains(&Some(b"old".to_vec())) && all.contains(&Some(b"new!".to_vec())));
    let both: Vec<_> = Fate::all(200)
        .map(|fate| cut::after(&base, &ops, &fat(), fate))
        .map(|tree| (file(&tree, "f"), file(&tree, "g")))
        .collect();
    assert!(both.contains(&(Some(b"new!".to_vec()), Some(b"new!".to_vec()))), "under both names");
    assert!(both.contains(&(Some(b"old".to_vec()), None)), "and under none");
    // The folder's sync alone does not lead the entry to the bytes; the file's does.
    let folder = [&ops[..], &[NAMES]].concat();
    assert!(found(&base, &folder, &fat(), "f").contains(&Some(b"old".to_vec())));
    let whole = [&ops[..], &[sync(3), NAMES]].concat();
    assert_eq!(found(&base, &whole, &fat(), "f"), [Some(b"new!".to_vec())].into());
    assert_eq!(found(&base, &whole, &fat(), "g"), [None].into());
    // To a name that was free: it may be there without bytes.
    let fresh = [&prepared[..], &[rename(ROOT, "g", "h"), NAMES]].concat();
    assert!(found(&base, &fresh, &fat(), "h").contains(&Some(vec![])));
}

/// Any operations on a few files and names.
#[test]
fn a_variable_is_its_last_write_whole_and_at_once() {
    let base = holding(b"old");
    let laws = Laws { variables: vec![PathBuf::new()], ..Laws::default() };
    let cut = Op::Resize { id: 2, len: 0 };
    let gone = Op::Remove { folder: ROOT, name: name("f") };
    let ops = [create(ROOT, "g", 3), cut, write(3, 0, b"g!"), write(2, 0, b"n"), gone];
    let value = |text: &str| Some(text.as_bytes().to_vec());
    let expected = [
        (value("old"), None),
        (value("old"), None),
        (value("old"), None),
        (value("old"), value("g!")),
        (value("n"), value("g!")),
        (None, value("g!")),
    ];
    for (at, expected) in expected.into_iter().enumerate() {
        let [f, g] = ["f", "g"].map(|path| found(&base, &ops[..at], &laws, path));
        assert_eq!((f, g), ([expected.0].into(), [expected.1].into()), "at {at}");
    }
}

fn any_ops() -> impl Strategy<Value = Vec<Op>> {
    let one = |id: Id| {
        let name_of = move |n: u8| name(&format!("n{n}"));
        prop_oneof![
            (0_u64..3000, 1_usize..2000, any::<u8>()).prop_map(move |(at, len, byte)| write(id, at, &vec![byte; len])),
            (0_u64..3000, 1_u64..2000).prop_map(move |(at, len)| Op::Punch { id, at, len }),
            (0_u64..4000).prop_map(move |len| Op::Resize { id, len }),
            (0_u8..4).prop_map(move |n| Op::Remove { folder: ROOT, name: name_of(n) }),
            (0_u8..4, 0_u8..4).prop_map(move |(a, b)| Op::Rename {
                folder: ROOT,
                name: name_of(a),
                to: ROOT,
                new: name_of(b)
            }),
            Just(sync(id)),
            Just(NAMES),
        ]
    };
    let many = proptest::collection::vec((2_u64..5).prop_flat_map(one), 0..40);
    many.prop_map(|ops| [(2..5).map(|id| create(ROOT, &format!("n{id}"), id)).collect(), ops].concat())
}

proptest! {
    #[test]
    fn a_killed_process_loses_nothing_and_a_synced_disk_neither(ops in any_ops(), seed: u64) {
        let (base, live) = (Tree::default(), grown(&Tree::default(), &ops));
        prop_assert_eq!(cut::after(&base, &ops, &posix(), Fate::Kept).digest(), live.digest());
        let synced = [&ops[..], &(2..5).map(sync).collect::<Vec<_>>(), &[NAMES]].concat();
        for laws in [posix(), fat()] {
            for fate in [Fate::Lost, Fate::Chance(seed)] {
                prop_assert_eq!(cut::after(&base, &synced, &laws, fate).digest(), live.digest());
            }
        }
    }

    #[test]
    fn the_same_seed_finds_the_same_disk(ops in any_ops(), seed: u64) {
        let cut = || cut::after(&Tree::default(), &ops, &fat(), Fate::Chance(seed)).digest();
        prop_assert_eq!(cut(), cut());
    }

    #[test]
    fn every_sector_is_one_that_was_there(writes in proptest::collection::vec((0_u64..8, any::<u8>()), 1..20), seed: u64) {
        let base = holding(&[0; 8 * SECTOR]);
        let ops: Vec<Op> = writes.iter().map(|(at, byte)| write(2, at * SECTOR as u64, &[*byte; SECTOR])).collect();
        let found = cut::after(&base, &ops, &posix(), Fate::Chance(seed));
        for (at, sector) in (0..).zip(file(&found, "f").unwrap().chunks(SECTOR)) {
            let mut was = writes.iter().filter(|(of, _)| *of == at).map(|(_, byte)| *byte).chain([0]);
            prop_assert!(was.any(|byte| sector.iter().all(|found| *found == byte)), "sector {at}: {}", sector[0]);
        }
    }
}

fn mounted(test: &str) -> Option<(tempfile::TempDir, SimDisk)> {
    let folder = tempfile::tempdir().unwrap();
    match SimDisk::mount(&folder.path().join("disk"), 64 << 20, Path::new("m")) {
        Ok(disk) => Some((folder, disk)),
        Err(why) => {
            skip(test, &why);
            None
        }
    }
}

#[test]
fn through_the_door_it_is_a_file_system() {
    let Some((_folder, disk)) = mounted("through_the_door_it_is_a_file_system") else { return };
    let path = |name: &str| disk.point().join(name);
    let base = disk.record();
    fs::create_dir_all(path("d/e")).unwrap();
    let noise = Seed::new(1).noise(300_000);
    fs::write(path("d/f"), &noise).unwrap();
    let file = File::options().read(true).write(true).open(path("d/f")).unwrap();
    file.write_all_at(b"here", 5000).unwrap();
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, hole, 8192, 4096).unwrap();
    file.set_len(299_999).unwrap();
    file.sync_all().unwrap();
    let mut expected = noise;
    expected[5000..5004].copy_from_slice(b"here");
    expected[8192..12288].fill(0);
    expected.truncate(299_999);
    assert_eq!(fs::read(path("d/f")).unwrap(), expected);
    std::os::unix::fs::symlink("d/f", path("l")).unwrap();
    assert_eq!(fs::read(path("l")).unwrap(), expected);
    fs::write(path("g"), "other").unwrap();
    fs::rename(path("g"), path("d/f")).unwrap();
    assert_eq!(fs::read_to_string(path("l")).unwrap(), "other");
    let mut names: Vec<_> = fs::read_dir(path("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["e", "f"]);
    File::open(path("d")).unwrap().sync_all().unwrap();
    fs::remove_dir_all(path("d")).unwrap();
    assert!(!path("d").exists());
    let recording = disk.recorded(base);
    assert_eq!(recording.cut(recording.ops.len(), &posix(), Fate::Kept).digest(), disk.tree().digest());
    assert!(recording.ops.iter().any(|op| matches!(op, Op::SyncFolder { .. })), "{:?}", recording.ops);
    assert!(recording.ops.iter().any(|op| matches!(op, Op::Sync { .. })), "{:?}", recording.ops);
}

#[test]
fn through_the_door_files_are_mapped_locked_and_read_past_the_cache() {
    use std::io::{Read, Seek};
    use std::os::unix::fs::OpenOptionsExt;
    let Some((_folder, disk)) = mounted("through_the_door_files_are_mapped_locked_and_read_past_the_cache") else {
        return;
    };
    let path = disk.point().join("f");
    fs::write(&path, vec![7; 65536]).unwrap();
    // As the scratch space is: mapped, and written by nobody but the mapping.
    fs::create_dir(disk.point().join("m")).unwrap();
    let base = disk.record();
    let words = goldsync_agent::scratch::Words::kept(&disk.point().join("m/words"), 5000).unwrap();
    words.set(4000, 9);
    assert_eq!(fs::read(disk.point().join("m/words")).unwrap()[32_000], 9);
    words.set(4001, 8);
    let recording = disk.recorded(base);
    let kept = recording.cut(recording.ops.len(), &posix(), Fate::Kept);
    assert_eq!(file(&kept, "m/words").map(|bytes| (bytes.len(), bytes[32_000], bytes[32_008])), Some((40_000, 9, 8)));
    drop(words);
    let held = File::open(&path).unwrap();
    let other = File::open(&path).unwrap();
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&held, lock).unwrap();
    assert!(rustix::fs::flock(&other, lock).is_err());
    let mut direct = File::options();
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut direct = direct.read(true).custom_flags(flags).open(&path).unwrap();
    disk.flip(Path::new("f"), 10);
    let mut bytes = Vec::new();
    direct.rewind().and_then(|()| direct.read_to_end(&mut bytes)).unwrap();
    assert_eq!((bytes.len(), bytes[9], bytes[10]), (65536, 7, 3), "what is read is what is on the disk now");
}

#[test]
fn an_exchanged_disk_is_seen_at_once() {
    let Some((_folder, disk)) = mounted("an_exchanged_disk_is_seen_at_once") else { return };
    let path = disk.point().join("f");
    fs::write(&path, "one").unwrap();
    let one = disk.tree();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    disk.exchange(&one);
    assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    disk.exchange(&Tree::default());
    assert!(!path.exists());
}

#[test]
fn what_shall_go_wrong_does_and_then_not_any_more() {
    let Some((_folder, disk)) = mounted("what_shall_go_wrong_does_and_then_not_any_more") else { return };
    let path = disk.point().join("f");
    fs::write(&path, vec![1; 10_000]).unwrap();
    disk.arm(Fault::new("f", On::Read, What::Fail(fuser::Errno::EIO)).after(1).once());
    assert!(fs::read(&path).is_err());
    assert!(fs::read(&path).is_ok());
    assert_eq!(disk.lift(), 1);
    disk.arm(Fault::new("f", On::Write, What::Short(1000)));
    let file = File::options().write(true).open(&path).unwrap();
    assert_eq!(file.write_at(&[2; 5000], 0).unwrap(), 1000);
    file.write_all_at(&[2; 5000], 0).unwrap();
    disk.lift();
    disk.full_after(6000);
    let error = file.write_all_at(&[3; 7000], 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    disk.lift();
    disk.arm(Fault::new("f", On::Write, What::Forget));
    file.write_all_at(&[9; 10], 0).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..10], [3; 10]);
    disk.lift();
    disk.arm(Fault::new("f", On::Sync, What::Rot { file: "f".into(), at: 2 }));
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap()[..4], [3, 3, 7, 3]);
}
