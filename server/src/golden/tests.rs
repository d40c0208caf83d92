//! Goal: what is published is stored once, proven, and readable; what is torn, damaged or a lie is found out.
//! Method: a publisher and a store in one process, real files; crashes are dropped handles and files cut by hand.

use std::fs;
use std::os::unix::fs::FileExt;

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::pack::write_frame;
use goldsync_proto::signature::{Signature, sign_blocks};

use super::*;
use crate::golden::testing::*;
use crate::store::{StoreError, StoreOptions};

/// Images of every awkward kind: `(name, bytes)`.
fn images() -> Vec<(&'static str, Vec<u8>)> {
    let twice = [noise(300, 7), noise(300, 7), noise(1, 8)].concat();
    let holes = [noise(3, 1), vec![0; 700 * BLOCK], noise(1, 2), vec![0; BLOCK], noise(2, 3)].concat();
    let text: Vec<u8> = b"golden ".iter().copied().cycle().take(40 * BLOCK).collect();
    vec![
        ("one block", noise(1, 1)),
        ("one block of zeros", vec![0; BLOCK]),
        ("zeros", vec![0; 900 * BLOCK]),
        ("noise, a region and a block", noise(257, 2)),
        ("noise, regions and a few blocks", noise(3 * 256 + 5, 3)),
        ("twice the same", twice),
        ("holes", holes),
        ("what compresses", text),
    ]
}

fn section(bytes: &[u8]) -> bytes::Bytes {
    sign_blocks(bytes).into()
}

#[tokio::test]
async fn every_image_reads_back_in_any_runs_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    for (name, bytes) in images() {
        let uploaded = publish(&uploads, &bytes).await.unwrap();
        let geometry = Geometry::new(bytes.len() as u64).unwrap();
        assert_eq!(uploaded.sections, Signature::of(geometry, &bytes).unwrap().sections(), "{name}");
        assert!(store.objects().whole(uploaded.sections.rolling).await.is_ok(), "{name}");
    }
    // Once from the whole files that publishing left behind, once from the segments alone.
    for pass in ["whole", "segments"] {
        for (name, bytes) in images() {
            let (image, blocks) = (ImageId::of(&bytes), (bytes.len() / BLOCK) as u32);
            let runs: Vec<_> = [(0, 1), (blocks / 3, 1), (blocks / 2, (blocks / 2).min(600))]
                .into_iter()
                .filter(|(first, count)| *count > 0 && first + count <= blocks)
                .collect::<std::collections::BTreeMap<_, _>>()
                .into_iter()
                .collect();
            let expected = goldsync_proto::make::gather_bytes(&bytes, runs.iter().copied());
            assert!(read_runs(&store, image, &runs).await.unwrap() == expected, "{name}, {pass}");
        }
        for (_, bytes) in images() {
            store.forget_whole(ImageId::of(&bytes)).unwrap();
        }
    }
    for (name, bytes) in images() {
        let whole = store.materialise(ImageId::of(&bytes)).await.unwrap();
        assert!(whole.map().unwrap()[..] == bytes, "{name}");
    }
}

#[tokio::test]
async fn an_image_adds_only_the_blocks_that_no_other_has() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let old = noise(600, 1);
    let first = publish(&uploads, &old).await.unwrap();
    // Moved by three new blocks, ten changed, one new block twice, zeros at the end.
    let mut new = [noise(3, 9), old.clone(), noise(1, 10), noise(1, 10), vec![0; 50 * BLOCK]].concat();
    for block in (20..220).step_by(20) {
        new[block * BLOCK + 17] ^= 1;
    }
    let before = store.stored();
    let second = publish(&uploads, &new).await.unwrap();
    assert_eq!(store.stored() - before, second.added);
    let record = store.image(ImageId::of(&new)).unwrap();
    let mut segments = 0;
    for segment in &record.segments {
        segments += store.objects().len(*segment).await.unwrap();
    }
    // Of the ten changed blocks hardly more than the change: they are stored after what they were before.
    assert!(segments < (3 + 1) * BLOCK as u64 + 500, "{segments}");
    // Layout and sections are kept as what differs from the first image's.
    assert!(second.added < segments + 8 * 1024, "{} bytes for {segments} of blocks", second.added);
    assert!(first.added > 600 * BLOCK as u64);
    store.forget_whole(ImageId::of(&new)).unwrap();
    assert!(store.materialise(ImageId::of(&new)).await.unwrap().map().unwrap()[..] == new);

    // The index of blocks is the same after a restart: an image of old blocks only adds no segment.
    drop((store, uploads));
    let (store, uploads) = open_both(folder.path()).await;
    let third = [&new[5 * BLOCK..300 * BLOCK], &old[..BLOCK]].concat();
    assert!(asked_frames(&uploads, &third).await.is_empty());
    publish(&uploads, &third).await.unwrap();
    assert!(store.image(ImageId::of(&third)).unwrap().segments.is_empty());
    assert!(store.materialise(ImageId::of(&third)).await.unwrap().map().unwrap()[..] == third);
}

/// Goal: small changes cost little however often the same place changes, and every image of the line can be read, stored
/// again, and healed.
#[tokio::test]
async fn a_line_of_small_changes_is_stored_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = vec![noise(600, 1)];
    for turn in 1..9_usize {
        let mut next = line[turn - 1].clone();
        // The same block over and over, a new one each time, and one that comes back.
        next[30 * BLOCK + turn * 9..][..9].copy_from_slice(b"somewhat ");
        next[(100 + turn) * BLOCK..][..700].copy_from_slice(&noise(1, turn as u64)[..700]);
        next[200 * BLOCK + 5] ^= (turn % 2) as u8 + 1;
        line.push(next);
    }
    {
        let (store, uploads) = open_both(folder.path()).await;
        publish(&uploads, &line[0]).await.unwrap();
        for (turn, bytes) in line.iter().enumerate().skip(1) {
            let added = publish(&uploads, bytes).await.unwrap().added;
            assert!(added < 3500, "{added} bytes");
            let layout = store.layout(ImageId::of(bytes)).await.unwrap();
            let deepest = (0..layout.frames().len() as u32).map(|frame| layout.level(frame)).max();
            assert_eq!(deepest.map(usize::from), Some(turn));
        }
    }
    // From the segments alone, after a restart: single blocks, and the whole.
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    for bytes in line.iter().rev() {
        let image = ImageId::of(bytes);
        let expected = goldsync_proto::make::gather_bytes(bytes, [(30, 1), (100, 40), (200, 1)]);
        assert!(read_runs(&store, image, &[(30, 1), (100, 40), (200, 1)]).await.unwrap() == expected);
        assert!(store.materialise(image).await.unwrap().map().unwrap()[..] == *bytes);
        store.forget_whole(image).unwrap();
    }
    // A frame in the middle of the line is lost: the last image says so, and is whole again when it is published again.
    let (middle, last) = (ImageId::of(&line[4]), ImageId::of(&line[8]));
    let segment = object_path(&store, store.image(middle).unwrap().segments[0]);
    let mut broken = fs::read(&segment).unwrap();
    broken[20] ^= 1;
    fs::write(&segment, broken).unwrap();
    let refused = store.materialise(last).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    assert!(!uploads.begin(last, line[8].len() as u64).await.unwrap().stored);
    assert!(publish(&uploads, &line[8]).await.unwrap().healed);
    store.forget_whole(last).unwrap();
    assert!(store.materialise(last).await.unwrap().map().unwrap()[..] == line[8]);
    assert!(uploads.begin(last, line[8].len() as u64).await.unwrap().stored);
    assert!(store.materialise(ImageId::of(&line[3])).await.unwrap().map().unwrap()[..] == line[3]);
}

#[tokio::test]
async fn the_same_bytes_again_are_no_work() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let (bytes, image) = (noise(5, 1), ImageId::of(&noise(5, 1)));
    let uploaded = publish(&uploads, &bytes).await.unwrap();
    let stored = store.stored();
    assert!(uploads.begin(image, bytes.len() as u64).await.unwrap().stored);
    assert_eq!(uploads.index(image, section(&bytes)).await.unwrap().runs, []);
    uploads.frame(image, 0, write_frame(&bytes, 3).into()).await.unwrap();
    let again = uploads.complete(image).await.unwrap();
    assert_eq!((again.sections, again.added), (uploaded.sections, uploaded.added));
    assert_eq!(store.stored(), stored);
    assert!(!folder.path().join("uploads").join(image.to_string()).exists());
}

#[tokio::test]
async fn an_upload_out_of_order_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, uploads) = open_both(folder.path()).await;
    let bytes = noise(10, 1);
    let image = ImageId::of(&bytes);
    let frame =
        |first: usize, count: usize| bytes::Bytes::from(write_frame(&bytes[first * BLOCK..][..count * BLOCK], 3));
    let text = |result: Result<(), UploadError>| result.unwrap_err().to_string();

    assert!(text(uploads.frame(image, 0, frame(0, 1)).await).contains("begin it first"));
    assert_eq!(uploads.complete(image).await.unwrap_err().code(), "not_found");
    assert!(matches!(uploads.begin(image, 4097).await, Err(UploadError::Size(_))));
    uploads.begin(image, bytes.len() as u64).await.unwrap();
    assert!(matches!(uploads.frame(image, 0, frame(0, 1)).await, Err(UploadError::NotIndexed)));
    assert!(matches!(uploads.complete(image).await, Err(UploadError::NotIndexed)));
    let short = uploads.index(image, section(&bytes[BLOCK..])).await.unwrap_err();
    assert!(short.to_string().contains("72 bytes, 80 expected"), "{short}");
    assert_eq!(uploads.index(image, section(&bytes)).await.unwrap().runs, [(0, 10)]);

    assert!(matches!(uploads.frame(image, 10, frame(0, 1)).await, Err(UploadError::NotMissing { first: 10 })));
    let long = uploads.frame(image, 8, bytes::Bytes::from(write_frame(&noise(3, 1), 3))).await;
    assert!(matches!(long, Err(UploadError::TooLong { first: 8, blocks: 3, left: 2 })));
    assert!(matches!(uploads.frame(image, 1, frame(0, 1)).await, Err(UploadError::Block { block: 1 })));
    for broken in [vec![], vec![1; 8], frame(0, 2)[..300].to_vec(), [&frame(0, 1)[..], &[0]].concat()] {
        let refused = uploads.frame(image, 0, broken.into()).await;
        assert!(matches!(refused, Err(UploadError::Frame { first: 0, .. })), "{refused:?}");
    }
    uploads.frame(image, 2, frame(2, 3)).await.unwrap();
    uploads.frame(image, 2, frame(2, 3)).await.unwrap();
    let overlap = uploads.frame(image, 4, frame(4, 2)).await;
    assert!(matches!(overlap, Err(UploadError::Overlap { first: 4, blocks: 2 })));
    let early = uploads.complete(image).await.unwrap_err();
    assert!(matches!(early, UploadError::Incomplete { blocks: 7, first: 0 }), "{early}");
    assert_eq!(uploads.index(image, section(&bytes)).await.unwrap().runs, [(0, 2), (5, 5)]);
    // Blocks on both sides of those that came, in one frame.
    let rest = [&bytes[..2 * BLOCK], &bytes[5 * BLOCK..]].concat();
    uploads.frame(image, 0, write_frame(&rest, 3).into()).await.unwrap();
    uploads.complete(image).await.unwrap();
}

#[tokio::test]
async fn an_upload_is_taken_up_where_it_was_torn() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(900, 1);
    let image = ImageId::of(&bytes);
    {
        let (_store, uploads) = open_both(folder.path()).await;
        let frames = asked_frames(&uploads, &bytes).await;
        assert_eq!(frames.len(), 4);
        for frame in frames.into_iter().take(3) {
            uploads.frame(image, frame.first, frame.bytes.into()).await.unwrap();
        }
    }
    let frames = folder.path().join("uploads").join(image.to_string()).join("frames");
    let second = crate::store::files::list(&frames).unwrap().remove(1);
    let torn = fs::File::options().write(true).open(&second).unwrap();
    torn.set_len(fs::metadata(&second).unwrap().len() / 2).unwrap();
    fs::write(frames.join("0000000900.1-1.tmp"), b"half").unwrap();

    let (store, uploads) = open_both(folder.path()).await;
    assert!(matches!(uploads.frame(image, 0, noise(1, 1).into()).await, Err(UploadError::NotIndexed)));
    assert!(!uploads.begin(image, bytes.len() as u64).await.unwrap().stored);
    assert_eq!(uploads.index(image, section(&bytes)).await.unwrap().runs, [(256, 256), (768, 132)]);
    publish(&uploads, &bytes).await.unwrap();
    assert!(store.materialise(image).await.unwrap().map().unwrap()[..] == bytes);
    assert!(crate::store::files::list(&folder.path().join("uploads")).unwrap().is_empty());
}

#[tokio::test]
async fn a_kill_before_the_commit_leaves_nothing_visible_and_the_next_publish_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(300, 1);
    let image = ImageId::of(&bytes);
    let stored = {
        let (store, uploads) = open_both(folder.path()).await;
        publish(&uploads, &bytes).await.unwrap();
        store.stored()
    };
    // All objects are there, the record is not: as a kill just before the commit leaves it.
    fs::remove_file(folder.path().join("images").join(image.to_string())).unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    assert!(store.image(image).is_none());
    assert!(matches!(read_runs(&store, image, &[(0, 1)]).await, Err(StoreError::UnknownImage { .. })));
    publish(&uploads, &bytes).await.unwrap();
    assert_eq!(store.stored(), stored);
}

#[tokio::test]
async fn a_disk_that_fills_up_at_any_object_leaves_nothing_visible_and_the_next_publish_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    // Two segments, layout, three sections.
    let (old, new) = (noise(7, 1), [noise(4 * 256, 2), noise(3, 1), noise(5, 3)].concat());
    let image = ImageId::of(&new);
    {
        let (_store, uploads) = open_both(folder.path()).await;
        publish(&uploads, &old).await.unwrap();
        for frame in asked_frames(&uploads, &new).await {
            uploads.frame(image, frame.first, frame.bytes.into()).await.unwrap();
        }
    }
    for puts in 0.. {
        let (store, uploads) = open_both(folder.path()).await;
        store.objects().break_in(puts);
        match uploads.complete(image).await {
            Ok(_) => {
                assert_eq!(puts, 6);
                break;
            }
            Err(error) => assert_eq!(error.code(), "internal", "{error}"),
        }
        assert!(store.image(image).is_none() && open_store(folder.path()).await.image(image).is_none());
        assert!(read_runs(&store, ImageId::of(&old), &[(0, 7)]).await.unwrap() == old);
        assert_eq!(uploads.index(image, section(&new)).await.unwrap().runs, []);
    }
    let store = open_store(folder.path()).await;
    assert!(
        read_runs(&store, image, &[(0, 1), (4 * 256 - 1, 9)]).await.unwrap()
            == [&new[..BLOCK], &new[new.len() - 9 * BLOCK..]].concat()
    );
}

#[tokio::test]
async fn frames_may_come_at_once_and_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let bytes = noise(1500, 1);
    let image = ImageId::of(&bytes);
    let mut frames = asked_frames(&uploads, &bytes).await;
    frames.reverse();
    let sent = frames.into_iter().flat_map(|frame| {
        let bytes = bytes::Bytes::from(frame.bytes);
        [uploads.frame(image, frame.first, bytes.clone()), uploads.frame(image, frame.first, bytes)]
    });
    for sent in futures::future::join_all(sent).await {
        sent.unwrap();
    }
    uploads.complete(image).await.unwrap();
    assert!(store.materialise(image).await.unwrap().map().unwrap()[..] == bytes);
    let layout = store.layout(image).await.unwrap();
    assert_eq!((layout.frames().len(), layout.extents().len()), (6, 6));
}

#[tokio::test]
async fn a_kill_after_the_commit_leaves_the_image_and_no_upload() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(3, 1);
    let image = ImageId::of(&bytes);
    let (_store, uploads) = open_both(folder.path()).await;
    publish(&uploads, &bytes).await.unwrap();
    let left = folder.path().join("uploads").join(image.to_string());
    fs::create_dir_all(left.join("frames")).unwrap();
    let (store, _uploads) = open_both(folder.path()).await;
    assert!(store.image(image).is_some() && !left.exists());
}

#[tokio::test]
async fn an_upload_that_nobody_touched_for_a_day_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, uploads) = open_both(folder.path()).await;
    for seed in [1, 2] {
        let bytes = noise(3, seed);
        uploads.begin(ImageId::of(&bytes), bytes.len() as u64).await.unwrap();
    }
    let old = folder.path().join("uploads").join(ImageId::of(&noise(3, 1)).to_string());
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    for path in [old.join("frames"), old.join("upload.json")] {
        fs::File::open(path).unwrap().set_modified(yesterday).unwrap();
    }
    let (_store, uploads) = open_both(folder.path()).await;
    assert!(!old.exists());
    assert!(matches!(
        uploads.index(ImageId::of(&noise(3, 1)), section(&noise(3, 1))).await,
        Err(UploadError::NotBegun { .. })
    ));
    assert!(uploads.index(ImageId::of(&noise(3, 2)), section(&noise(3, 2))).await.is_ok());
}

#[tokio::test]
async fn blocks_that_do_not_make_the_image_are_refused_and_every_block_is_asked_for_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let other = noise(40, 2);
    publish(&uploads, &other).await.unwrap();
    // As when two blocks share a hash: the section names a stored block where the image has another one.
    let truth = [&other[..10 * BLOCK], &noise(5, 3)[..], &noise(1, 4)[..], &noise(1, 4)[..]].concat();
    let lie =
        [&other[..9 * BLOCK], &other[20 * BLOCK..21 * BLOCK], &noise(5, 3)[..], &noise(1, 4), &noise(1, 4)].concat();
    let image = ImageId::of(&truth);
    uploads.begin(image, truth.len() as u64).await.unwrap();
    let missing = uploads.index(image, section(&lie)).await.unwrap();
    assert_eq!(missing.runs, [(10, 6)]);
    uploads.frame(image, 10, write_frame(&lie[10 * BLOCK..16 * BLOCK], 3).into()).await.unwrap();
    let refused = uploads.complete(image).await.unwrap_err();
    assert!(matches!(refused, UploadError::WrongImage { got, .. } if got == ImageId::of(&lie)), "{refused}");
    assert_eq!(refused.code(), "conflict");
    assert!(store.image(image).is_none() && store.image(ImageId::of(&lie)).is_none());
    assert!(matches!(store.materialise(image).await, Err(StoreError::UnknownImage { .. })));

    // Also after a restart.
    drop((store, uploads));
    let (store, uploads) = open_both(folder.path()).await;
    uploads.begin(image, truth.len() as u64).await.unwrap();
    assert_eq!(uploads.index(image, section(&truth)).await.unwrap().runs, [(0, 17)]);
    publish(&uploads, &truth).await.unwrap();
    assert!(store.materialise(image).await.unwrap().map().unwrap()[..] == truth);
    store.forget_whole(image).unwrap();
    assert!(store.materialise(image).await.unwrap().map().unwrap()[..] == truth);
}

#[tokio::test]
async fn another_section_for_the_same_image_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let (truth, lie) = (noise(4, 1), noise(4, 2));
    let image = ImageId::of(&truth);
    uploads.begin(image, truth.len() as u64).await.unwrap();
    uploads.index(image, section(&lie)).await.unwrap();
    uploads.frame(image, 0, write_frame(&lie, 3).into()).await.unwrap();
    publish(&uploads, &truth).await.unwrap();
    assert!(store.image(image).is_some());
    // And so does another size.
    let image = ImageId::of(&noise(9, 1));
    uploads.begin(image, 8 * BLOCK as u64).await.unwrap();
    publish(&uploads, &noise(9, 1)).await.unwrap();
}

#[tokio::test]
async fn two_uploads_at_once_of_images_that_share_blocks_both_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let (one, two) = ([noise(50, 1), noise(3, 2)].concat(), [noise(2, 3), noise(50, 1)].concat());
    let (frames_one, frames_two) = (asked_frames(&uploads, &one).await, asked_frames(&uploads, &two).await);
    for (bytes, frames) in [(&one, frames_one), (&two, frames_two)] {
        for frame in frames {
            uploads.frame(ImageId::of(bytes), frame.first, frame.bytes.into()).await.unwrap();
        }
    }
    let (left, right) = tokio::join!(uploads.complete(ImageId::of(&one)), uploads.complete(ImageId::of(&two)));
    left.unwrap();
    right.unwrap();
    for bytes in [&one, &two] {
        store.forget_whole(ImageId::of(bytes)).unwrap();
        assert!(store.materialise(ImageId::of(bytes)).await.unwrap().map().unwrap()[..] == bytes[..]);
    }
}

#[tokio::test]
async fn a_damaged_segment_is_named_and_never_becomes_other_bytes() {
    let bytes = noise(300, 1);
    let image = ImageId::of(&bytes);
    for damage in ["a changed byte", "a short file", "no file"] {
        let folder = tempfile::tempdir().unwrap();
        let (store, uploads) = open_both(folder.path()).await;
        publish(&uploads, &bytes).await.unwrap();
        let segment = store.image(image).unwrap().segments[0];
        let path = object_path(&store, segment);
        match damage {
            "a changed byte" => {
                fs::File::options().write(true).open(&path).unwrap().write_all_at(b"x", 290 * BLOCK as u64).unwrap()
            }
            "a short file" => fs::File::options().write(true).open(&path).unwrap().set_len(290 * BLOCK as u64).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        store.forget_whole(image).unwrap();
        for error in
            [read_runs(&store, image, &[(290, 2)]).await.unwrap_err(), store.materialise(image).await.unwrap_err()]
        {
            assert!(matches!(error, StoreError::Damaged { name, .. } if name == segment), "{damage}: {error}");
            assert!(error.to_string().contains(&format!("objects/{}/{segment}", &segment.to_string()[..2])), "{error}");
        }
        // The frame before it is as good as ever, where there is one.
        assert_eq!(read_runs(&store, image, &[(0, 1)]).await.is_ok(), damage != "no file");
        assert!(crate::store::files::list(&folder.path().join("cache")).unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_damaged_layout_is_named_and_does_not_stop_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let (bytes, other) = (noise(300, 1), noise(3, 2));
    publish(&uploads, &bytes).await.unwrap();
    publish(&uploads, &other).await.unwrap();
    let layout = store.image(ImageId::of(&bytes)).unwrap().layout.name;
    let path = object_path(&store, layout);
    let mut damaged = fs::read(&path).unwrap();
    damaged[20] ^= 1;
    fs::write(&path, damaged).unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let error = read_runs(&store, ImageId::of(&bytes), &[(0, 1)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { name, .. } if name == layout), "{error}");
    assert!(read_runs(&store, ImageId::of(&other), &[(0, 3)]).await.is_ok());
    // Its blocks are not found any more, and are stored again with the next image that has them.
    publish(&uploads, &[&bytes[..], &other[..]].concat()).await.unwrap();
}

#[tokio::test]
async fn whole_images_keep_within_their_bound_and_old_ones_are_proven_again() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (noise(100, 1), noise(100, 2));
    let (first, second) = (ImageId::of(&one), ImageId::of(&two));
    let names = || -> Vec<_> {
        let files = crate::store::files::list(&folder.path().join("cache")).unwrap();
        files.iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    {
        let options = StoreOptions { cache_bytes: 150 * BLOCK as u64, ..StoreOptions::default() };
        let store = crate::store::Store::open(folder.path(), options).await.unwrap();
        let uploads = Uploads::open(store.clone()).await.unwrap();
        publish(&uploads, &one).await.unwrap();
        let held = store.materialise(first).await.unwrap();
        publish(&uploads, &two).await.unwrap();
        assert_eq!(names(), [second.to_string()]);
        assert!(held.map().unwrap()[..] == one, "who holds it keeps it");
        store.materialise(first).await.unwrap();
        assert_eq!(names(), [first.to_string()]);
    }
    let store = open_store(folder.path()).await;
    let path = folder.path().join("cache").join(format!("{first}.img"));
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(store.materialise(first).await.unwrap().map().unwrap()[..] == one);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written, "a good one is not made again");

    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"x", 5).unwrap();
    let store = open_store(folder.path()).await;
    assert!(store.materialise(first).await.unwrap().map().unwrap()[..] == one);
}

/// Goal: what is damaged or lost on the server's disk, whatever it is, is whole again when the same image is published again,
/// and only what was lost is sent.
#[tokio::test]
async fn publishing_again_heals_what_is_damaged() {
    let (bytes, other) = (noise(1500, 1), noise(3, 2));
    let image = ImageId::of(&bytes);
    for what in ["a changed byte", "a short segment", "no segment", "layout", "section", "nothing"] {
        let folder = tempfile::tempdir().unwrap();
        let (store, uploads) = open_both(folder.path()).await;
        let before = publish(&uploads, &bytes).await.unwrap();
        // One more image, which needs of the first what will not be damaged.
        publish(&uploads, &[&bytes[..10 * BLOCK], &other[..]].concat()).await.unwrap();
        let record = store.image(image).unwrap();
        assert!(record.segments.len() > 1, "the first segment shall stay as it is");
        let path = |name| object_path(&store, name);
        let last = *record.segments.last().unwrap();
        let open = |name| fs::File::options().write(true).open(path(name)).unwrap();
        let lost = match what {
            "a changed byte" => open(last).write_all_at(b"x", 9).map(|()| 256).unwrap(),
            "a short segment" => open(last).set_len(5000).map(|()| 1500 - 1024).unwrap(),
            "no segment" => fs::remove_file(path(last)).map(|()| 1500 - 1024).unwrap(),
            "layout" => open(record.layout.name).write_all_at(b"x", 40).map(|()| 0).unwrap(),
            "section" => fs::remove_file(path(record.sections.rolling.name)).map(|()| 0).unwrap(),
            _ => 0,
        };
        store.forget_whole(image).unwrap();
        let frames = asked_frames(&uploads, &bytes).await;
        assert_eq!(frames.iter().map(|frame| frame.blocks).sum::<u32>(), lost, "{what}");
        for frame in frames {
            uploads.frame(image, frame.first, frame.bytes.into()).await.unwrap();
        }
        let after = uploads.complete(image).await.unwrap();
        assert_eq!((after.sections, after.healed), (before.sections, what != "nothing"), "{what}");
        // From the disk: after a restart, and without the whole image at hand.
        for _ in 0..2 {
            let (store, uploads) = open_both(folder.path()).await;
            store.forget_whole(image).unwrap();
            assert!(store.damage(image).await.unwrap().is_none(), "{what}");
            assert!(read_runs(&store, image, &[(0, 1500)]).await.unwrap() == bytes, "{what}");
            assert!(asked_frames(&uploads, &[&bytes[..], &other[..]].concat()).await.is_empty(), "{what}");
        }
    }
}

/// Goal: a new image that shares blocks with a damaged one is published nevertheless: the publisher is asked for them.
#[tokio::test]
async fn a_new_image_does_not_build_on_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let (store, uploads) = open_both(folder.path()).await;
    let old = noise(300, 1);
    publish(&uploads, &old).await.unwrap();
    fs::remove_file(object_path(&store, store.image(ImageId::of(&old)).unwrap().segments[0])).unwrap();
    let new = [&old[..], &noise(5, 2)].concat();
    let image = ImageId::of(&new);
    let refused = publish(&uploads, &new).await.unwrap_err();
    assert!(matches!(refused, UploadError::Incomplete { blocks: 300, .. }), "{refused}");
    publish(&uploads, &new).await.unwrap();
    store.forget_whole(image).unwrap();
    assert!(read_runs(&store, image, &[(0, 305)]).await.unwrap() == new);
    // And the old one finds them there when it is published again.
    assert!(asked_frames(&uploads, &old).await.is_empty());
    assert!(uploads.complete(ImageId::of(&old)).await.unwrap().healed);
    store.forget_whole(ImageId::of(&old)).unwrap();
    assert!(read_runs(&store, ImageId::of(&old), &[(0, 300)]).await.unwrap() == old);
}
