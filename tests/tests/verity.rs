//! Images with dm-verity hash trees: the trees are made on the node, and do not travel.
//!
//! Goal: an update costs what changed in the data, however many hashes changed with it; and whatever goes wrong with the data,
//! or with what is said of a tree, ends with the golden image. Method: some images are made here; the last stories have theirs
//! from `mke2fs`, `mkfs.erofs`, `veritysetup` and `sgdisk`, and say so when those are not there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldsync_agent::boot::{Activation, ActivationError, Effect, Holds, Look};
use goldsync_agent::slot::SlotName;
use goldsync_agent::update;
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::plan::{Plan, Source, Step};
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::verity::{RootHash, Salted, Sealed, Tree, find};
use goldsync_proto::wire::{Account, Answer, Outcome, Request};
use goldsync_tests::disk::skip;
use goldsync_tests::image::BLOCK;
use goldsync_tests::seed::Seed;
use goldsync_tests::volumes::{Kind, text, tool};
use goldsync_tests::{Fleet, Image, Liar, Machine, Say, damage};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Bytes that come with any update: handshake, signed metadata, the plan.
const AROUND: u64 = 24 << 10;

/// A tree's blocks: all but the data and the superblock.
fn tree_blocks(data: &Image, hashed: &Image) -> u64 {
    (hashed.len() - data.len()) / BLOCK as u64 - 1
}

/// Every hash is another by its salt: 33 blocks of them travel for nothing, if they do.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_with_another_salt_does_not_travel() {
    let fleet = Fleet::start().await;
    let data = Image::noise(1, 16);
    let edited = data.edited(11, 10);
    let (old, new) = (data.hashed(b"one"), edited.hashed(b"two"));
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    let cold = node.sync().await.updated();
    node.runs(&old);
    assert_eq!((cold.path.as_str(), cold.derived), ("cold", tree_blocks(&data, &old)), "{cold:?}");

    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert_eq!((account.path.as_str(), account.repaired), ("pack", 0), "{account:?}");
    assert_eq!((account.derived, tree_blocks(&edited, &new)), (33, 33), "{account:?}");
    assert_eq!(account.written + account.skipped, new.len() / BLOCK as u64, "{account:?}");
    assert!(account.received < 10 * BLOCK as u64 + AROUND, "{account:?}");
}

/// With the same salt most hashes are the base's: those are copied, and only what is new is derived.
#[tokio::test(flavor = "multi_thread")]
async fn hashes_that_the_base_has_are_copied() {
    let data = Image::noise(2, 16);
    let (old, new) = (data.hashed(b"salt"), data.edited(22, 3).hashed(b"salt"));
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert!((2..=4).contains(&account.derived), "a root and up to three leaves: {account:?}");
    // What is there already is not written, derived or not: the third release differs from the first, which the slot holds.
    let newest = data.edited(23, 1).hashed(b"salt");
    fleet.ship(&newest, "web:3").await;
    let account = node.sync().await.updated();
    node.runs(&newest);
    assert!(account.written <= 4, "a block, its leaf, the root: {account:?}");
}

/// Drifted data makes wrong hashes. Once it is mended, they are derived again, and still do not travel.
#[tokio::test(flavor = "multi_thread")]
async fn drifted_data_is_mended_and_derived_from_again() {
    let data = Image::noise(3, 16);
    let (old, new) = (data.hashed(b"one"), data.edited(33, 5).hashed(b"two"));
    let (fleet, node) = Fleet::with_node(&old).await;
    damage::flip(node.slot(SlotName::A), 34, 8);
    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert_eq!((account.path.as_str(), account.derived), ("pack", 33), "{account:?}");
    assert!((1..=8).contains(&account.repaired), "{account:?}");
    assert!(account.received < (5 + 8) * BLOCK as u64 + AROUND, "{account:?}");
}

/// A run that is stopped before the tree is made goes on; so does one that is stopped after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_derives_again() {
    let data = Image::noise(4, 16);
    let edited = data.edited(44, 100);
    let (old, new) = (data.hashed(b"one"), edited.hashed(b"two"));
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    // A standby slot as a killed run leaves it: all data there and a third of the tree, one block of it torn.
    let there = data.bytes.len() + 12 * BLOCK;
    let mut torn = new.bytes[..there].to_vec();
    torn[there - 2 * BLOCK..][..500].fill(0);
    fs::write(node.slot(SlotName::B), torn).expect("the standby slot");
    let account = node.sync().await.updated();
    node.runs(&new);
    assert_eq!((account.path.as_str(), account.derived, account.repaired), ("pack", 33, 0), "{account:?}");
    assert!(account.received < AROUND, "what was staged is not fetched again: {account:?}");
    // A superblock and eleven of the tree's 33 blocks were there.
    assert_eq!(account.written, 1 + 33 - 11, "the torn block, and what the run had not come to: {account:?}");
}

/// A plan that lies about a tree costs its blocks, fetched plainly, and nothing else: no loop, no other image.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_lies_about_a_tree() {
    let data = Image::noise(5, 4);
    let (old, new) = (data.hashed(b"one"), data.hashed(b"two"));
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    let (blocks, geometry) = ((data.len() / BLOCK as u64) as u32, Geometry::new(new.len()).expect("a size"));
    let tree = Tree { data: 0, blocks, at: blocks + 1, salted: Salted::Before, salt: b"no".to_vec() };
    let steps = vec![
        Step::Copy { source: Source::Active, from: 0, count: blocks + 1 },
        Step::Derive { count: tree.range().len() as u32 },
    ];
    let (base, target) = (Some(ImageId::of(&old.bytes)), ImageId::of(&new.bytes));
    let plan = Plan { base, target, geometry, steps, objects: vec![], packs: vec![], trees: vec![tree] };
    let plan = plan.encode().expect("a plan");
    let liar = Liar::between(&node, &fleet, move |request| match request {
        Request::Plan { .. } => Say::answer(&Answer::Plan { name: Digest::of(&plan), length: plan.len() as u64 }, &[]),
        Request::Object { name, .. } if *name == Digest::of(&plan) => {
            Say::answer(&Answer::Object { length: plan.len() as u64 }, &plan)
        }
        _ => Say::Truth,
    });
    let account = node.by(liar.address()).sync().await.updated();
    node.runs(&new);
    // Of nine blocks of hashes none was right, and in a second round the superblock's region.
    assert_eq!((account.path.as_str(), account.derived), ("pack", 0), "{account:?}");
    assert!(account.repaired >= 9 && account.repaired <= 9 + 256, "{account:?}");
}

/// A node whose image nobody knows asks which trees there are.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_base_derives_too() {
    let fleet = Fleet::start().await;
    let data = Image::noise(6, 16);
    let new = data.hashed(b"two");
    fleet.ship(&new, "web:1").await;
    let node = fleet.node("n1").await;
    node.preload(&data.edited(66, 10).hashed(b"one"));
    let account = node.sync().await.updated();
    node.runs(&new);
    assert_eq!((account.path.as_str(), account.derived, account.repaired), ("signature", 33, 0), "{account:?}");
    // The entries of the regions that differ: 8 bytes a block; and those of the eleven blocks that came again, finer.
    assert!(account.received < 11 * (BLOCK as u64 + 40) + new.len() / 512 + AROUND, "{account:?}");
}

/// Lies about trees cost an unknown base no more than the trees' blocks.
#[tokio::test(flavor = "multi_thread")]
async fn trees_that_are_none() {
    let fleet = Fleet::start().await;
    let data = Image::noise(7, 4);
    let (old, new) = (data.edited(77, 5).hashed(b"one"), data.hashed(b"two"));
    fleet.ship(&new, "web:1").await;
    let blocks = (data.len() / BLOCK as u64) as u32;
    let salted = Salted::Before;
    let tree = |data, blocks, at, salt: &[u8]| Tree { data, blocks, at, salted, salt: salt.to_vec() };
    let good = tree(0, blocks, blocks + 1, b"two");
    for (number, (what, trees, derived)) in [
        ("another salt", vec![tree(0, blocks, blocks + 1, b"no")], 0),
        ("other data", vec![tree(1, blocks - 1, blocks + 1, b"two")], 0),
        ("data that is not there", vec![tree(5, u32::MAX, blocks + 1, b"two")], 0),
        ("the same twice", vec![good.clone(), good.clone()], 0),
        ("too many", vec![good.clone(); 65], 0),
        ("none", vec![], 0),
        ("the truth", vec![good.clone()], 9),
    ]
    .into_iter()
    .enumerate()
    {
        let node = fleet.node(&format!("n{number}")).await;
        node.preload(&old);
        let liar = Liar::between(&node, &fleet, move |request| match request {
            Request::Trees { .. } => Say::answer(&Answer::Trees { trees: trees.clone() }, &[]),
            _ => Say::Truth,
        });
        let account = node.by(liar.address()).sync().await.updated();
        node.runs(&new);
        assert_eq!((account.path.as_str(), account.derived), ("signature", derived), "{what}: {account:?}");
        assert!(account.repaired <= 9, "{what}: {account:?}");
    }
    // A server of before there was such a request.
    let node = fleet.node("old").await;
    node.preload(&old);
    let liar = Liar::between(&node, &fleet, |request| match request {
        Request::Trees { .. } => {
            let refusal = Refusal::new(Reason::BadRequest, "a message could not be read");
            Say::answer(&Answer::Refused { refusal }, &[])
        }
        _ => Say::Truth,
    });
    let account = node.by(liar.address()).sync().await.updated();
    node.runs(&new);
    assert_eq!((account.path.as_str(), account.derived, account.repaired), ("signature", 0, 0), "{account:?}");
}

/// A folder of 6 MiB of files, of which one is a little longer in a later release.
fn files(folder: &Path, release: usize) -> PathBuf {
    fs::create_dir_all(folder).expect("a folder");
    for number in 0..96 {
        let mut seed = Seed::new(1000 + number as u64);
        let mut bytes = if number % 2 == 0 { seed.noise(64 << 10) } else { seed.text(64 << 10) };
        if number == 17 {
            bytes.extend(Seed::new(1).noise(release * 1000));
        }
        let path = folder.join(format!("file-{number}"));
        fs::write(&path, bytes).expect("a file");
        let file = File::options().write(true).open(&path).expect("a file");
        file.set_modified(std::time::UNIX_EPOCH).expect("its time");
    }
    folder.to_owned()
}

/// Appends a tree with a salt of veritysetup's own choice, as image builders do.
fn seal(image: &Path) -> Option<()> {
    let offset = fs::metadata(image).expect("an image").len().to_string();
    let blocks = (fs::metadata(image).expect("an image").len() / BLOCK as u64).to_string();
    let format = ["format", text(image), text(image), "--hash-offset", &offset, "--data-blocks", &blocks];
    tool("veritysetup", &format).map(drop)
}

fn read(path: &Path) -> Image {
    Image { bytes: fs::read(path).expect("an image") }
}

/// One node, from nothing to the old image, and on to the new one; what each cost, and how large the new tree is.
async fn both_ways(old: &Image, new: &Image) -> (Account, Account) {
    let fleet = Fleet::start().await;
    fleet.ship(old, "web:1").await;
    let node = fleet.node("n1").await;
    let cold = node.sync().await.updated();
    node.runs(old);
    fleet.ship(new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(new);
    (cold, account)
}

/// Real file systems, real trees, fresh salts: nothing of the trees travels, known base or cold.
async fn sealed(name: &str, kind: Kind) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut images = Vec::new();
    for release in 0..2 {
        let image = folder.path().join(format!("{release}.img"));
        let made = kind.make(&files(&folder.path().join(release.to_string()), release), &image);
        let data = made.map(|()| fs::metadata(&image).expect("an image").len());
        let (Some(data), Some(())) = (data, made.and_then(|()| seal(&image))) else {
            return skip(name, "no mkfs or veritysetup here; scripts/install-packages images");
        };
        images.push((read(&image), data));
    }
    let [(old, _), (new, data)] = images.as_slice() else { panic!("two images") };
    let tree = new.len() - data - BLOCK as u64;
    let (cold, account) = both_ways(old, new).await;
    eprintln!("{name}: a tree of {tree} bytes; known base {} bytes, cold {}", account.received, cold.received);
    assert_eq!((account.path.as_str(), account.derived * BLOCK as u64), ("pack", tree), "{account:?}");
    assert_eq!((cold.path.as_str(), cold.derived * BLOCK as u64), ("cold", tree), "{cold:?}");
    assert!(account.received < tree, "all of the update is less than the tree alone: {account:?}");
    let (size, zeros) =
        (new.len(), new.bytes.chunks(BLOCK).filter(|block| block.iter().all(|byte| *byte == 0)).count());
    assert!(cold.received < size - (zeros * BLOCK) as u64 - tree, "{cold:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_sealed_by_veritysetup() {
    sealed("ext4_sealed_by_veritysetup", Kind::Ext4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_sealed_by_veritysetup() {
    sealed("erofs_sealed_by_veritysetup", Kind::Erofs).await;
}

/// A whole disk: a table, a partition of data, a partition of hashes. Only the salt is new; nothing travels but its superblock.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_a_partition_of_hashes() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    if Kind::Ext4.make(&files(&folder.path().join("files"), 0), &root).is_none() {
        return skip("a_disk_with_a_partition_of_hashes", "no mke2fs here; scripts/install-packages images");
    }
    let mut disks = Vec::new();
    for number in 0..2 {
        let (disk, hashes) = (folder.path().join(format!("{number}.disk")), folder.path().join(number.to_string()));
        File::create(&disk).and_then(|file| file.set_len(32 << 20)).expect("a disk");
        let table = tool("sgdisk", &["--new=1:2048:+20M", "--new=2:0:+1M", text(&disk)]);
        let sealed = tool("veritysetup", &["format", text(&root), text(&hashes)]);
        if table.and(sealed).is_none() {
            return skip(
                "a_disk_with_a_partition_of_hashes",
                "no sgdisk or veritysetup; scripts/install-packages images",
            );
        }
        let file = File::options().write(true).open(&disk).expect("a disk");
        file.write_all_at(&read(&root).bytes, 2048 * 512).expect("a partition");
        file.write_all_at(&read(&hashes).bytes, (2048 + 20 * 2048) * 512).expect("a partition");
        disks.push(read(&disk));
    }
    let (cold, account) = both_ways(&disks[0], &disks[1]).await;
    // 16 MiB of data: 32 leaves and a root.
    assert_eq!((cold.derived, account.derived, account.repaired), (33, 33, 0), "{cold:?} {account:?}");
    assert!(account.received < AROUND, "{account:?}");
}

/// Gives a root hash as the one by which the kernel checks the active slot, as it would be on a machine with dm-verity.
struct Sealing(Box<dyn Activation>, RootHash);

impl Activation for Sealing {
    fn look(&self) -> Result<Look, ActivationError> {
        self.0.look()
    }
    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.0.retire(slot)
    }
    fn activate(&self, slot: SlotName, holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        self.0.activate(slot, holds, tries)
    }
    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.0.confirm(slot)
    }
    fn takes_effect(&self) -> Effect {
        self.0.takes_effect()
    }
    fn root_hash(&self) -> Option<RootHash> {
        Some(self.1)
    }
}

/// A machine that came with its image, and whose kernel checks it, needs no scan to know what it runs: not even its slot is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_root_hash_tells_what_the_base_is() {
    let fleet = Fleet::start().await;
    let data = Image::noise(8, 4);
    let images = [data.hashed(b"one"), data.edited(88, 5).hashed(b"two"), data.edited(89, 9).hashed(b"three")];
    for (image, version) in images.iter().zip(1..) {
        fleet.ship(image, &format!("web:{version}")).await;
    }
    let [old, _, new] = &images;
    let root = |image: &Image| Sealed::of(&image.bytes, &find(&image.bytes)).expect("a sealed image").root_hash;
    let sync = async |node: &Machine, root| {
        let (mut context, _) = node.context(CancellationToken::new()).await;
        context.activation = Box::new(Sealing(context.activation, root));
        update::sync(&mut context).await.expect("a sync")
    };
    let node = fleet.node("n1").await;
    node.preload(old);
    let Outcome::Updated { account } = sync(&node, root(old)).await else { panic!("an update") };
    assert_eq!(account.path, "pack", "{account:?}");
    node.runs(new);
    let before = node.record(SlotName::A).proven().expect("a record").clone();
    assert_eq!((before.release.to_string(), before.image.to_string()), ("web:1".into(), old.id()));
    assert_eq!(before.verity.expect("its seal").root_hash, root(old));
    // The slot is not even read: other bytes are believed to be that release, and the proof mends what came of it.
    let node = fleet.node("n0").await;
    node.preload(&Image::noise(80, 4).hashed(b"other"));
    let Outcome::Updated { account } = sync(&node, root(old)).await else { panic!("an update") };
    assert!(account.path == "pack" && account.repaired > 0, "{account:?}");
    node.runs(new);
    // Run by the channel's release, and by one that nobody signed.
    let node = fleet.node("n2").await;
    node.preload(new);
    assert!(matches!(sync(&node, root(new)).await, Outcome::UpToDate));
    let node = fleet.node("n3").await;
    node.preload(old);
    assert!(matches!(sync(&node, RootHash([7; 32])).await, Outcome::Updated { .. }));
    assert_eq!(node.record(SlotName::A).proven(), None, "a root hash that nobody signed proves nothing");
    node.runs(new);
}

/// What `veritysetup` says of an image and a root hash.
fn verify(image: &Path, sealed: &Value) -> Option<bool> {
    let (offset, root) = (sealed["hash_offset"].to_string(), sealed["root_hash"].as_str().expect("a root hash"));
    let args = ["verify", text(image), text(image), root, "--hash-offset", &offset];
    let output = Command::new("veritysetup").args(args).output();
    output.ok().map(|output| output.status.success())
}

/// A tree that is appended when an image is published is one for `veritysetup`; always the same one, and the file is not written.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_sealed_when_it_is_published() {
    const NAME: &str = "an_image_is_sealed_when_it_is_published";
    let fleet = Fleet::start().await;
    let image = Image::new(9, 3).write(&fleet.path("plain.img"));
    let seal = async |version: &str| {
        fleet.operator.json(["publish", text(&image), "--name", "web", "--version", version, "--verity"]).await
    };
    let (first, again) = (seal("1").await, seal("2").await);
    assert_eq!(fs::metadata(&image).expect("an image").len(), 3 << 20, "the file is as it was");
    assert!(first["root_hash"].is_string(), "{first}");
    assert_eq!((&first["image"], &first["root_hash"]), (&again["image"], &again["root_hash"]));
    assert_eq!(first["size"], (3 << 20) + (1 + 1 + 6) * BLOCK as u64, "superblock, root and six leaves");
    let shown = fleet.operator.json(["release", "show", "web:1"]).await;
    let sealed = shown["manifest"]["verity"].clone();
    assert_eq!((&sealed["root_hash"], &sealed["data_blocks"]), (&first["root_hash"], &768.into()));
    fleet.operator.promote("web:1", "production").await;
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    let slot = node.slot(SlotName::A);
    assert_eq!(goldsync_tests::image::b3sum(slot), first["image"].as_str().expect("an id"));
    let record = node.record(SlotName::A).proven().cloned().expect("a record");
    assert_eq!(serde_json::to_value(record.verity).expect("JSON"), sealed);
    let Some(good) = verify(slot, &sealed) else { return skip(NAME, "no veritysetup here") };
    assert!(good, "veritysetup does not take the tree");
    let file = File::options().write(true).open(slot).expect("a slot");
    file.write_all_at(b"x", 77 * BLOCK as u64).expect("a flipped block");
    assert_eq!(verify(slot, &sealed), Some(false), "veritysetup does not see a flipped block");
}

/// The root hash of a tree that an image builder appended is signed as it printed it; asked for one, nothing is added.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_there_is_signed() {
    const NAME: &str = "a_tree_that_is_there_is_signed";
    let fleet = Fleet::start().await;
    let image = Image::new(10, 2).write(&fleet.path("sealed.img"));
    let format = ["format", text(&image), text(&image), "--hash-offset", "2097152", "--data-blocks", "512"];
    let Some(printed) = tool("veritysetup", &format) else { return skip(NAME, "no veritysetup here") };
    let root = printed.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a root hash").trim().to_owned();
    for (version, more) in [("1", None), ("2", Some("--verity"))] {
        let args = ["publish", text(&image), "--name", "web", "--version", version];
        let published = fleet.operator.json(args.into_iter().chain(more)).await;
        assert_eq!(published["root_hash"], root, "{published}");
        assert_eq!(published["size"], fs::metadata(&image).expect("an image").len());
    }
    // A tree with a leaf that is wrong is no seal, and a disk is none that can be appended to.
    let file = File::options().write(true).open(&image).expect("an image");
    file.write_all_at(b"x", (512 + 2) * BLOCK as u64).expect("a flipped leaf");
    let published = fleet.operator.json(["publish", text(&image), "--name", "web", "--version", "3"]).await;
    assert_eq!(published.get("root_hash"), None, "{published}");
    file.write_all_at(b"EFI PART", 512).expect("a table");
    let args = ["publish", text(&image), "--name", "web", "--version", "4", "--verity"];
    fleet.operator.run(args).await.fails(2, &["whole disk (gpt)"]);
}
