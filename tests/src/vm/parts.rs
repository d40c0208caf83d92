//! What virtual machines are made of: the files of `scripts/make-machines`, and the agent under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::emulator::QEMU;
use crate::disk::skip;
use crate::programs::{self, Run};

/// The first program of the initramfs.
const INITRAMFS: &str = include_str!("../../guest/initramfs");

/// The folder of `scripts/make-machines`.
#[derive(Clone, Debug)]
pub struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// Finds them; says loudly why not, if this machine was not promised to have them. A promise that does not hold is a
    /// failure.
    pub fn find(test: &str) -> Result<Option<Self>> {
        let Some(folder) = std::env::var_os("GOLDSYNC_MACHINES").map(PathBuf::from) else {
            skip(test, "GOLDSYNC_MACHINES is not set; make machines by `scripts/make-machines`");
            return Ok(None);
        };
        ensure!(
            folder.join("ready").is_file(),
            "GOLDSYNC_MACHINES is {}, where nothing is ready: run scripts/make-machines",
            folder.display()
        );
        Ok(installed(test, QEMU).then_some(Self { folder }))
    }

    /// A file or folder of `scripts/make-machines` that needs a package which may be missing; says loudly if it is.
    pub fn optional(&self, test: &str, name: &str) -> Option<PathBuf> {
        let file = self.folder.join(name);
        if !file.exists() {
            skip(test, &format!("{} is not there; scripts/make-machines says why", file.display()));
            return None;
        }
        Some(file)
    }

    /// The kernel, as loaders start it.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The kernel as the emulator starts it: unpacked, which saves the guest half of the time that starting takes.
    pub fn unpacked_kernel(&self) -> PathBuf {
        Some(self.folder.join("vmlinux")).filter(|file| file.is_file()).unwrap_or_else(|| self.kernel())
    }

    /// systemd, and what it needs; [`Parts::optional`] says whether it is there.
    pub fn userland(&self) -> PathBuf {
        self.folder.join("userland")
    }

    /// A shell and all that goes with it, in one static program.
    pub fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// Writes the initramfs: the programs, the kernel's modules and their order. `more` are further programs, which bring their
    /// libraries.
    pub fn write_initramfs(&self, to: &Path, more: &[&Path]) -> Result<()> {
        let mut archive = Archive::default();
        for folder in ["bin", "modules"] {
            archive.put(folder, 0o040_755, &[]);
        }
        for program in more {
            let name = program.file_name().and_then(|name| name.to_str()).context("a program's name")?;
            archive.put(&format!("bin/{name}"), 0o100_755, &fs::read(program)?);
            for library in libraries(program)? {
                archive.put_with_folders(&library, &fs::read(&library)?)?;
            }
        }
        archive.put("init", 0o100_755, INITRAMFS.as_bytes());
        archive.put("bin/busybox", 0o100_755, &fs::read(self.busybox())?);
        let modules = self.folder.join("modules");
        let mut names: Vec<_> = fs::read_dir(&modules)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let name = name.to_str().context("a module's name")?;
            archive.put(&format!("modules/{name}"), 0o100_644, &fs::read(modules.join(name))?);
        }
        fs::write(to, archive.finish()).with_context(|| format!("write {}", to.display()))
    }

    /// The agent under test without its symbols, made once beside `folder`.
    pub fn agent(&self, folder: &Path) -> Result<PathBuf> {
        let stripped = folder.join("goldsync-agent");
        if !stripped.exists() {
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&stripped).arg(programs::beside("goldsync-agent")?);
            Run::of(strip)?.ok()?;
        }
        Ok(stripped)
    }
}

/// Whether a program can be started; says loudly if not.
pub fn installed(test: &str, program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(test, &format!("{program} is not installed; run scripts/install-packages vm"));
    }
    there
}

/// The shared libraries of a program, and its loader.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let listed = Run::of(ldd)?.ok()?.stdout;
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// An archive as the kernel unpacks it (cpio, "newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    /// A program's part at its place on this machine, after the folders that lead there.
    fn put_with_folders(&mut self, path: &Path, data: &[u8]) -> Result<()> {
        let place = path.strip_prefix("/")?;
        let mut folders: Vec<_> = place.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).collect();
        folders.reverse();
        for folder in folders {
            if self.folders.insert(folder.to_owned()) {
                self.put(folder.to_str().context("a path as text")?, 0o040_755, &[]);
            }
        }
        self.put(place.to_str().context("a path as text")?, 0o100_755, data);
        Ok(())
    }

    fn put(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        // inode, mode, uid, gid, links, time, size, two devices of two numbers, the name's length, no checksum
        let (size, name_size) = (data.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.put("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends() {
        let mut archive = Archive::default();
        archive.put("init", 0o100_755, b"hello");
        let bytes = archive.finish();
        assert!(bytes.len().is_multiple_of(4));
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("07070100000001000081ed"), "{text}");
        // The name begins after 110 bytes of header, the data at the next multiple of 4 after its zero.
        assert_eq!((&text[110..115], &text[116..121]), ("init\0", "hello"));
        assert!(text.contains("TRAILER!!!"));
    }
}
