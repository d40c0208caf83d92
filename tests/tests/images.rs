//! The stories on real Debian images: file systems as they are, changed as upgrades change them.
//!
//! Goal: whatever a node holds, it ends with the golden image, byte for byte. Method: `scripts/make-images small` makes pairs
//! of images from Debian's packages; each test takes one pair through one server and its own node, and compares BLAKE3s
//! that goldsync had no part in.
//!
//! The images are looked for in `$GOLDSYNC_IMAGES/small`. Without that variable every test here says that it was skipped;
//! with it, a set that is not there is a failure.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use goldsync_proto::wire::Outcome;
use goldsync_tests::node::hash;
use goldsync_tests::scene::{Scene, outcome, runs, updated};

fn scene() -> Result<Scene> {
    Scene::open(env!("CARGO_BIN_EXE_goldsync-demo"))
}

#[test]
fn rebuilt_ext4() -> Result<()> {
    known_base("rebuilt")
}

#[test]
fn ext4_upgraded_in_place() -> Result<()> {
    known_base("upgraded")
}

#[test]
fn ext4_with_a_hotfix() -> Result<()> {
    known_base("hotfix")
}

#[test]
fn squashfs() -> Result<()> {
    known_base("squashfs")
}

#[test]
fn erofs() -> Result<()> {
    known_base("erofs")
}

#[test]
fn erofs_lz4() -> Result<()> {
    known_base("erofs-lz4")
}

#[test]
fn unknown_ext4() -> Result<()> {
    unknown_base("upgraded")
}

#[test]
fn unknown_squashfs() -> Result<()> {
    unknown_base("squashfs")
}

/// From nothing to the old image, by pack to the new one, and then nothing more to do.
fn known_base(name: &str) -> Result<()> {
    let Some(pair) = Pair::find(name)? else { return Ok(()) };
    let scene = scene()?;
    scene.release(&pair.old, "1")?;
    let node = scene.node("node")?;
    let cold = updated(&node.agent(["sync", "--json"])?.ok()?)?;
    ensure!(cold.path == "cold", "a node with nothing took the way {:?}", cold.path);
    runs(&node, &pair.old)?;

    scene.release(&pair.new, "2")?;
    let first = updated(&node.agent(["sync", "--json"])?.ok()?)?;
    runs(&node, &pair.new)?;
    ensure!(first.path == "pack", "a known base took the way {:?}", first.path);
    ensure!(first.repaired == 0, "{} blocks of a sound base were repaired", first.repaired);
    let whole = fs::metadata(&pair.new)?.len();
    ensure!(first.received < whole / 2, "{name}: {} of {whole} bytes were fetched", first.received);
    eprintln!("{name}: cold {} bytes, pack {} bytes of {whole}", cold.received, first.received);

    let again = node.agent(["sync", "--json"])?.ok()?;
    ensure!(outcome(&again)? == Outcome::UpToDate, "a second sync did something: {}", again.stdout);
    Ok(())
}

/// A node that runs something the server never saw plans by the signature.
fn unknown_base(name: &str) -> Result<()> {
    let Some(pair) = Pair::find(name)? else { return Ok(()) };
    let scene = scene()?;
    scene.release(&pair.new, "1")?;
    let node = scene.node("node")?;
    fs::copy(&pair.old, node.slot("a"))?;
    std::os::unix::fs::symlink(node.slot("a"), node.folder().join("current"))?;

    let account = updated(&node.agent(["sync", "--json"])?.ok()?)?;
    runs(&node, &pair.new)?;
    ensure!(account.path == "signature", "an unknown base took the way {:?}", account.path);
    ensure!(hash(&node.slot("a"))? == hash(&pair.old)?, "the active slot was written");
    eprintln!("{name}: signature {} bytes of {}", account.received, fs::metadata(&pair.new)?.len());
    Ok(())
}

/// A known base with files changed by hand and blocks that rotted stays on the pack's way, and is found out by `verify`.
#[test]
fn a_drifted_base() -> Result<()> {
    let (Some(pair), Some(drifted)) = (Pair::find("rebuilt")?, Pair::find("drifted")?) else { return Ok(()) };
    let scene = scene()?;
    scene.release(&pair.old, "1")?;
    let node = scene.node("node")?;
    node.agent(["sync"])?.ok()?;
    let active = node.active()?.context("an active slot")?;
    fs::copy(&drifted.old, node.slot(&active))?;
    node.agent(["verify"])?.expect(6)?;

    scene.release(&pair.new, "2")?;
    let account = updated(&node.agent(["sync", "--json"])?.ok()?)?;
    runs(&node, &pair.new)?;
    ensure!(account.path == "pack" && account.repaired > 0, "a drifted base went so: {account:?}");
    ensure!(hash(&node.slot(&active))? == hash(&drifted.old)?, "the active slot was written");
    eprintln!("drifted: pack {} bytes, {} blocks repaired", account.received, account.repaired);
    Ok(())
}

/// Two images.
struct Pair {
    old: PathBuf,
    new: PathBuf,
}

impl Pair {
    /// Finds a pair; `None`, loudly, if it was not promised.
    fn find(name: &str) -> Result<Option<Self>> {
        let Some(images) = std::env::var_os("GOLDSYNC_IMAGES") else {
            eprintln!("SKIPPED: {name}: GOLDSYNC_IMAGES is not set; make images by `scripts/make-images small`");
            return Ok(None);
        };
        let folder = Path::new(&images).join("small");
        let list = folder.join("pairs");
        let text = fs::read_to_string(&list).with_context(|| format!("{}: run scripts/make-images", list.display()))?;
        let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = words.into_iter().find_map(|words| match words.as_slice() {
            [first, old, new] if *first == name => Some(Self { old: folder.join(old), new: folder.join(new) }),
            _ => None,
        });
        if found.is_none() {
            // make-images has said why: in-place pairs need a loop device.
            eprintln!("SKIPPED: {name}: not in {}", list.display());
        }
        Ok(found)
    }
}
