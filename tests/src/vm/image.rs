//! The images that virtual machines run: a small root file system with the agent under test in it.
//!
//! ```text
//! /sbin/init               tests/guest/init: state, network, then what the test orders
//! /usr/bin/goldsync-agent  as it was built, without symbols, with its libraries
//! /usr/libexec/            health: whether this image is well; slots: the program of the `command` back-end; restart
//! /boot/vmlinuz, initrd    for loaders that start a slot's own kernel
//! /etc/release             NAME:VERSION
//! /usr/share/payload       6 MiB, of which a release has 2 MiB of its own
//! ```
//! ext4 without a journal; two that are made of the same parts differ in their files' times. A *small* image has neither kernel nor
//! agent: the emulator loads the one, and the other lies on the state partition. It is for stories told hundreds of times. A
//! *sealed* one's initramfs can open dm-verity. One with *systemd* has another userland around the same kernel, agent, release and
//! health: see [`super::userland`].

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::parts::{Parts, libraries};
use super::userland;
use crate::programs::Run;
use crate::seed::Seed;

const INIT: &str = include_str!("../../guest/init");
/// What opens dm-verity before there is a root.
pub const VERITYSETUP: &str = "/usr/sbin/veritysetup";

const SLOTS: &str = include_str!("../../guest/slots");

/// What an image has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Whole,
    /// No kernel, and no agent.
    Small,
    /// Everything, and an initramfs that can open dm-verity.
    Sealed,
    /// Everything, with Debian's systemd as the first program and the agent as its service.
    Systemd,
}

impl Kind {
    /// The image's size.
    fn mebibytes(self) -> u64 {
        match self {
            Self::Whole => 52,
            Self::Small => 16,
            Self::Sealed => 68,
            Self::Systemd => 96,
        }
    }
}

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// There is no `/sbin/init`.
    NoInit,
    /// Its init ends at once, and the kernel panics.
    Panics,
    /// It comes up, and says that it is not well.
    Unhealthy,
}

/// Makes the image of a release.
pub fn make(parts: &Parts, scratch: &Path, kind: Kind, release: &str, flaw: Flaw, to: &Path) -> Result<()> {
    let tree = tempfile::tempdir_in(scratch)?;
    let agent = parts.agent(scratch)?;
    match kind {
        Kind::Whole | Kind::Small | Kind::Sealed => system(parts, &agent, tree.path(), flaw)?,
        Kind::Systemd => userland::system(parts, &agent, tree.path(), release, flaw)?,
    }
    contents(tree.path(), release, flaw)?;
    if kind != Kind::Small {
        fs::copy(&agent, tree.path().join("usr/bin/goldsync-agent"))?;
        fs::copy(parts.kernel(), tree.path().join("boot/vmlinuz"))?;
        let veritysetup = Path::new(VERITYSETUP);
        let more = if kind == Kind::Sealed { &[veritysetup][..] } else { &[] };
        parts.write_initramfs(&tree.path().join("boot/initrd"), more)?;
    }
    ext4(tree.path(), kind.mebibytes(), to)
}

/// Makes an ext4 file system without a journal of a folder's contents, of so many mebibytes.
pub fn ext4(tree: &Path, mebibytes: u64, to: &Path) -> Result<()> {
    fs::File::create(to)?.set_len(mebibytes << 20)?;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.env("PATH", super::path()).env("E2FSPROGS_FAKE_TIME", "1767225600").args([
        "-q",
        "-F",
        "-b",
        "4096",
        "-m",
        "0",
        "-O",
        "^has_journal",
    ]);
    mkfs.args(["-U", "8c1de0a4-52b1-4a5e-bb0b-6f7f6c1a9d03", "-E", "hash_seed=8c1de0a4-52b1-4a5e-bb0b-6f7f6c1a9d03"]);
    Run::of(with(mkfs, &[Path::new("-d"), tree, to]))?.ok().map(drop)
}

fn with(mut command: Command, args: &[&Path]) -> Command {
    command.args(args);
    command
}

fn system(parts: &Parts, agent: &Path, tree: &Path, flaw: Flaw) -> Result<()> {
    for folder in ["bin", "sbin", "boot", "dev", "esp", "etc", "proc", "run", "state", "sys", "tmp", "usr/bin"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::create_dir_all(tree.join("usr/libexec"))?;
    // What the agent needs is part of every system.
    for library in libraries(agent)? {
        let place = tree.join(library.strip_prefix("/")?);
        fs::create_dir_all(place.parent().context("a library's folder")?)?;
        fs::copy(&library, &place).with_context(|| format!("copy {}", library.display()))?;
    }
    let busybox = parts.busybox();
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    let listed = Run::of(with(Command::new(&busybox), &[Path::new("--list")]))?.ok()?.stdout;
    for name in listed.lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(name))?;
    }
    script(&tree.join("usr/libexec/slots"), SLOTS)?;
    script(&tree.join("usr/libexec/restart"), "#!/bin/sh\nsync\nreboot -f\n")?;
    match flaw {
        Flaw::NoInit => Ok(()),
        Flaw::Panics => script(&tree.join("sbin/init"), "#!/bin/sh\nexit 1\n"),
        Flaw::None | Flaw::Unhealthy => script(&tree.join("sbin/init"), INIT),
    }
}

/// What every system has: its release's name and its files, and whether it is well.
fn contents(tree: &Path, release: &str, flaw: Flaw) -> Result<()> {
    fs::write(tree.join("etc/release"), format!("{release}\n"))?;
    let folder = tree.join("usr/share/payload");
    fs::create_dir_all(&folder)?;
    payload(&folder, release)?;
    let well = if flaw == Flaw::Unhealthy { "echo 'the service does not answer' >&2\nexit 1\n" } else { "exit 0\n" };
    script(&tree.join("usr/libexec/health"), &format!("#!/bin/sh\n{well}"))
}

/// Files that all releases have, and files of which each release has its own.
fn payload(folder: &Path, release: &str) -> Result<()> {
    let own = blake3::hash(release.as_bytes()).as_bytes()[..8].try_into().map(u64::from_le_bytes)?;
    for number in 0..12 {
        let mut seed = Seed::new(if number % 3 == 0 { own } else { 0 } + number);
        fs::write(folder.join(number.to_string()), seed.noise(512 << 10))?;
    }
    Ok(())
}

/// A program in the shell's language.
pub(super) fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", path.display()))
}

/// Appends dm-verity's hash tree to an image, and returns the root hash.
pub fn seal(image: &Path) -> Result<String> {
    let size = fs::metadata(image)?.len();
    let mut format = Command::new("veritysetup");
    format.env("PATH", super::path()).arg("format").args([image, image]);
    format.arg(format!("--data-blocks={}", size / 4096)).arg(format!("--hash-offset={size}"));
    format.args(["--salt=5b7e0b6a1f4339c8", "--uuid=8c1de0a4-52b1-4a5e-bb0b-6f7f6c1a9d03"]);
    let printed = Run::of(format)?.ok()?.stdout;
    let file = fs::File::options().write(true).open(image)?;
    file.set_len(file.metadata()?.len().next_multiple_of(4096))?;
    let line = printed.lines().find_map(|line| line.strip_prefix("Root hash:"));
    line.map(|hash| hash.trim().to_owned()).with_context(|| format!("veritysetup printed no root hash:\n{printed}"))
}

/// Where the first block of a file lies in an image.
pub fn place_of(image: &Path, file: &str) -> Result<u64> {
    let mut blocks = Command::new("debugfs");
    blocks.env("PATH", super::path()).arg("-R").arg(format!("blocks {file}")).arg(image);
    let printed = Run::of(blocks)?.ok()?.stdout;
    let first = printed.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    first.map(|block| block * 4096).with_context(|| format!("debugfs printed no block of {file}: {printed}"))
}
