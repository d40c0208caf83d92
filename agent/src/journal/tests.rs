//! Records that survive a crash, and a lock that only one run holds.

use super::*;

fn release() -> ReleaseRef {
    "web:2026.11.21".parse().unwrap()
}

#[test]
fn a_slot_goes_from_empty_over_staging_to_proven() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("state")).unwrap();
    let image = ImageId::of(b"golden");
    assert_eq!(journal.slot(SlotName::A).unwrap(), SlotRecord::Empty);
    journal.set_staging(SlotName::A, image, &release()).unwrap();
    let staging = journal.slot(SlotName::A).unwrap();
    assert!(matches!(&staging, SlotRecord::Staging(staging) if staging.image == image), "{staging:?}");
    assert_eq!(staging.proven(), None);
    journal.set_proven(SlotName::A, image, &release(), 4096).unwrap();
    let again = Journal::open(journal.state()).unwrap();
    let proven = again.slot(SlotName::A).unwrap().proven().cloned().unwrap();
    assert_eq!((proven.image, proven.size, proven.release), (image, 4096, release()));
    assert_eq!(again.slot(SlotName::B).unwrap(), SlotRecord::Empty);
    again.set_empty(SlotName::A).unwrap();
    assert_eq!(again.slot(SlotName::A).unwrap(), SlotRecord::Empty);
}

#[test]
fn a_crash_between_temporary_and_rename_leaves_the_old_record() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let image = ImageId::of(b"old");
    journal.set_proven(SlotName::B, image, &release(), 4096).unwrap();
    fs::write(folder.path().join("slots/b.json.new"), br#"{"state":"stag"#).unwrap();
    fs::write(folder.path().join("slots/b.blocks.new"), b"GSBLO").unwrap();
    assert_eq!(journal.slot(SlotName::B).unwrap().proven().unwrap().image, image);
    assert!(journal.blocks(SlotName::B, image).unwrap().is_none());
    journal.set_staging(SlotName::B, ImageId::of(b"new"), &release()).unwrap();
    assert!(matches!(journal.slot(SlotName::B).unwrap(), SlotRecord::Staging(_)));
    assert!(!folder.path().join("slots/b.json.new").exists());
}

#[test]
fn a_damaged_record_counts_as_empty() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    for damage in ["", "{", r#"{"state":"proven"}"#, r#"{"state":"mood"}"#, "\0\0\0\0"] {
        fs::write(folder.path().join("slots/a.json"), damage).unwrap();
        assert_eq!(journal.slot(SlotName::A).unwrap(), SlotRecord::Empty, "{damage:?}");
    }
}

#[test]
fn block_hashes_read_back_and_only_for_their_image() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let (image, other) = (ImageId::of(b"golden"), ImageId::of(b"other"));
    let hashes: Vec<u64> = (0..20_000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let mut writer = journal.write_blocks(SlotName::A, image).unwrap();
    hashes.chunks(777).for_each(|part| writer.push(part).unwrap());
    assert!(journal.blocks(SlotName::A, image).unwrap().is_none(), "nothing is visible before finish");
    writer.finish().unwrap();
    let blocks = journal.blocks(SlotName::A, image).unwrap().unwrap();
    assert_eq!(blocks.len(), hashes.len());
    assert!(blocks.iter().eq(hashes.iter().copied()));
    assert_eq!((blocks.get(19_999), blocks.get(20_000)), (Some(hashes[19_999]), None));
    assert_eq!(blocks.as_bytes().len(), 160_000);
    assert!(journal.blocks(SlotName::A, other).unwrap().is_none());
    assert!(journal.blocks(SlotName::B, image).unwrap().is_none());
}

#[test]
fn damaged_block_hashes_are_an_error_wherever_the_damage_is() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let image = ImageId::of(b"golden");
    let mut writer = journal.write_blocks(SlotName::A, image).unwrap();
    writer.push(&[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    let path = folder.path().join("slots/a.blocks");
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), 80 + 24);
    for at in (0..8).chain(40..whole.len()) {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        fs::write(&path, bent).unwrap();
        let error = journal.blocks(SlotName::A, image).unwrap_err();
        assert!(matches!(error, JournalError::Blocks { .. }), "byte {at}: {error}");
    }
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(journal.blocks(SlotName::A, image).is_err(), "{length} bytes");
    }
    // A bent image id is another image: not ours, so none.
    let mut bent = whole;
    bent[8] ^= 1;
    fs::write(&path, bent).unwrap();
    assert!(journal.blocks(SlotName::A, image).unwrap().is_none());
}

#[test]
fn the_lock_is_held_once_and_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let held = journal.lock().unwrap();
    let error = journal.lock().unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    drop(held);
    assert!(journal.lock().is_ok());
}

#[test]
fn the_last_outcome_and_drift_are_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    assert_eq!((journal.last().unwrap(), journal.drift().unwrap()), (None, None));
    journal.set_last(Some(release()), Outcome::Failed { error: "no route".into() }).unwrap();
    journal.set_drift(ImageId::of(b"x"), 3).unwrap();
    assert_eq!(journal.last().unwrap().unwrap().outcome, Outcome::Failed { error: "no route".into() });
    assert_eq!(journal.drift().unwrap().unwrap().drifted, 3);
}
