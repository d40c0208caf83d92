//! A virtual machine's disk: a file, made and read without mounting anything.
//!
//! Only while the machine is off. `mtools` speak to the ESP, `debugfs` to the state partition, and slots are plain bytes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::layout::{Layout, Part};
use crate::programs::Run;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// How it is divided.
    pub layout: Layout,
}

impl Disk {
    /// Makes an empty one, with its partition table and a FAT file system on the loader's partition.
    pub fn make(path: &Path, layout: Layout) -> Result<Self> {
        File::create(path)?.set_len(layout.whole())?;
        let disk = Self { path: path.to_owned(), layout };
        feed("sfdisk", &[Path::new("--quiet"), path], &layout.script())?;
        let esp = layout.range(Part::Esp);
        // Made beside and put in place: mkfs.vfat takes the size of what it is given.
        let beside = path.with_extension("esp");
        File::create(&beside)?.set_len(esp.end - esp.start)?;
        run("mkfs.vfat", ["-F", "32", "-n", "ESP"].map(OsString::from).into_iter().chain([beside.clone().into()]))?;
        disk.put(Part::Esp, &beside)?;
        fs::remove_file(beside)?;
        Ok(disk)
    }

    /// Writes a file's bytes at the beginning of a partition.
    pub fn put(&self, part: Part, image: &Path) -> Result<()> {
        let (range, size) = (self.layout.range(part), fs::metadata(image)?.len());
        ensure!(size <= range.end - range.start, "{} does not fit in {part:?}", image.display());
        let mut disk = File::options().write(true).open(&self.path)?;
        disk.seek(SeekFrom::Start(range.start))?;
        std::io::copy(&mut File::open(image)?, &mut disk).map(drop).context("write a partition")
    }

    /// Makes the state partition of a folder's contents.
    pub fn put_state(&self, tree: &Path) -> Result<()> {
        let state = self.layout.range(Part::State);
        let offset = format!("offset={}", state.start);
        let size = format!("{}k", (state.end - state.start) >> 10);
        let words = ["-q", "-F", "-b", "4096", "-E", &offset, "-d"].map(OsString::from);
        run("mkfs.ext4", words.into_iter().chain([tree.into(), self.path.clone().into(), size.into()])).map(drop)
    }

    /// The BLAKE3 of the first `size` bytes of a partition.
    pub fn hash(&self, part: Part, size: u64) -> Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.layout.range(part).start))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file.take(size))?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Turns the bits of the block around `offset` of a partition, as a dying medium does.
    pub fn flip(&self, part: Part, offset: u64) -> Result<()> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        let at = self.layout.range(part).start + offset / 4096 * 4096;
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, at)?;
        block.iter_mut().for_each(|byte| *byte ^= 0xff);
        file.write_all_at(&block, at).context("flip a block")
    }

    /// A file of the state partition, as a machine that was cut off left it: what is only in the journal does not count.
    pub fn state_file(&self, path: &str) -> Result<String> {
        let mut device = OsString::from(&self.path);
        device.push(format!("?offset={}", self.layout.range(Part::State).start));
        Ok(run("debugfs", ["-R".into(), format!("cat {path}").into(), device])?.stdout)
    }

    /// Copies a file to the loader's partition, making folders as needed.
    pub fn esp_put(&self, file: &Path, to: &str) -> Result<()> {
        let folders = to.match_indices('/').skip(1).map(|(at, _)| &to[..at]);
        for folder in folders {
            // One that is there already is as good.
            let mut mmd = self.mtools("mmd");
            mmd.arg("-D").arg("s").arg(format!("::{folder}"));
            Run::of(mmd)?;
        }
        let mut copy = self.mtools("mcopy");
        copy.arg("-o").arg(file).arg(format!("::{to}"));
        Run::of(copy)?.ok().map(drop)
    }

    /// Writes a text to the loader's partition.
    pub fn esp_write(&self, to: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let beside = self.path.with_extension("text");
        fs::write(&beside, text)?;
        self.esp_put(&beside, to)?;
        fs::remove_file(beside).context("remove a scratch file")
    }

    /// A file of the loader's partition.
    pub fn esp_read(&self, path: &str) -> Result<Vec<u8>> {
        let beside = self.path.with_extension("text");
        let mut copy = self.mtools("mcopy");
        copy.args(["-n", "-o"]).arg(format!("::{path}")).arg(&beside);
        Run::of(copy)?.ok()?;
        let bytes = fs::read(&beside)?;
        fs::remove_file(beside)?;
        Ok(bytes)
    }

    /// The names in a folder of the loader's partition.
    pub fn esp_list(&self, folder: &str) -> Result<Vec<String>> {
        let mut list = self.mtools("mdir");
        list.args(["-b"]).arg(format!("::{folder}"));
        let listed = Run::of(list)?.ok()?.stdout;
        Ok(listed
            .lines()
            .filter_map(|line| line.rsplit('/').find(|part| !part.is_empty()))
            .map(str::to_owned)
            .collect())
    }

    fn mtools(&self, tool: &str) -> Command {
        let mut image = OsString::from(&self.path);
        image.push(format!("@@{}", self.layout.range(Part::Esp).start));
        let mut command = Command::new(tool);
        command.arg("-i").arg(image).env("MTOOLS_SKIP_CHECK", "1").stdin(Stdio::null());
        command
    }
}

fn run(program: &str, args: impl IntoIterator<Item = OsString>) -> Result<Run> {
    let mut command = Command::new(program);
    command.args(args).env("PATH", super::path());
    Run::of(command)?.ok()
}

/// Runs a program that reads `text`.
fn feed(program: &str, args: &[&Path], text: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).env("PATH", super::path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let ended = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{program} ended with {}: {complaint}", ended.status);
    Ok(())
}
