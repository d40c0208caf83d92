//! The kernel that belongs to an image, on the EFI system partition where its loader finds it.
//!
//! ```text
//! image in slot b                          ESP/goldsync/
//!   /vmlinuz      ── copied as ──▶           vmlinuz-5f0c1c0e3b1d4a77
//!   /initrd.img   ── copied as ──▶           initrd-90b3aa41c2de6f18
//! ```
//! A copy is named by its content's BLAKE3: images with the same kernel share it, what is there already is not written again, and
//! no copy that an entry names is ever overwritten. What no entry names is removed. Room is looked for before anything is changed.
//! FAT knows no journal and no safe replacing: a copy gets its name only when it is whole and synced, and a new name every time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::ActivationError;
use super::inside::OpenInSlot;
use crate::config::Kernel;

/// The folder on the ESP.
const FOLDER: &str = "goldsync";

/// The largest file that is taken for a kernel or an initrd.
const SIZE_MAX: u64 = 1 << 30;

/// Left free on the ESP: folders and entries take clusters too.
const SPARE: u64 = 1 << 20;

/// An ESP, and where its kernels come from.
#[derive(Debug)]
pub(super) struct Kernels {
    esp: PathBuf,
    kernel: Kernel,
    open: OpenInSlot,
}

/// What a boot entry says: a key (`linux`, `efi`, `initrd`) and a path from the ESP's root.
type Lines = Vec<(&'static str, String)>;

/// One file to be copied.
struct Copied {
    key: &'static str,
    file: PathBuf,
    name: String,
    digest: blake3::Hash,
    length: u64,
    there: bool,
}

impl Kernels {
    pub(super) fn new(esp: PathBuf, kernel: Kernel, open: OpenInSlot) -> Self {
        Self { esp, kernel, open }
    }

    /// Brings the kernel of the image in `slot` to the ESP, unless it is there.
    pub(super) fn bring(&self, slot: &Path) -> Result<Lines, ActivationError> {
        if let Kernel::Esp { linux, initrd } = &self.kernel {
            return self.fixed(linux, initrd.as_deref());
        }
        let copies = self.copies(slot)?;
        let missing: u64 = copies.iter().filter(|copy| !copy.there).map(|copy| copy.length + SPARE).sum();
        self.check_room(missing)?;
        for copy in &copies {
            if !copy.there {
                self.copy(slot, copy)?;
            }
            // On FAT, where a file lies is written with the file and not with its folder. And one that is there may have been written
            // by a run that was killed before this.
            let path = self.folder().join(&copy.name);
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("syncing", &path))?;
        }
        self.sync_folder()?;
        Ok(copies.into_iter().map(|copy| (copy.key, format!("/{FOLDER}/{}", copy.name))).collect())
    }

    /// Files that are not the image's: they must be there, and that is all.
    fn fixed(&self, linux: &Path, initrd: Option<&Path>) -> Result<Lines, ActivationError> {
        let files = [("linux", Some(linux)), ("initrd", initrd)];
        let files = files.into_iter().filter_map(|(key, file)| Some((key, file?)));
        files
            .map(|(key, file)| {
                let path = self.esp.join(file.strip_prefix("/").unwrap_or(file));
                fs::metadata(&path).map_err(failed("looking at", &path))?;
                Ok((key, file.display().to_string()))
            })
            .collect()
    }

    fn copies(&self, slot: &Path) -> Result<Vec<Copied>, ActivationError> {
        let files: Vec<(&'static str, &'static str, &Path)> = match &self.kernel {
            Kernel::Image { linux, initrd } => {
                let initrd = initrd.as_deref().map(|initrd| ("initrd", "initrd-", initrd));
                [("linux", "vmlinuz-", linux.as_path())].into_iter().chain(initrd).collect()
            }
            Kernel::Unified { uki } => vec![("efi", "uki-", uki)],
            Kernel::Esp { .. } => Vec::new(),
        };
        let copied = |(key, prefix, file): (_, &str, &Path)| {
            let source = self.source(slot, file)?;
            let (digest, length) = digest(source).map_err(failed("reading in the slot", file))?;
            let suffix = if key == "efi" { ".efi" } else { "" };
            let name = format!("{prefix}{}{suffix}", &digest.to_hex()[..16]);
            // A copy that rotted is made again.
            let there = File::open(self.folder().join(&name)).and_then(self::digest);
            let there = there.is_ok_and(|there| there == (digest, length));
            Ok(Copied { key, file: file.to_owned(), name, digest, length, there })
        };
        files.into_iter().map(copied).collect()
    }

    fn source(&self, slot: &Path, file: &Path) -> Result<File, ActivationError> {
        (self.open)(slot, file).map_err(failed("opening in the slot", file))
    }

    fn check_room(&self, needed: u64) -> Result<(), ActivationError> {
        let system = rustix::fs::statvfs(&self.esp).map_err(|error| failed("looking at", &self.esp)(error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if free >= needed {
            return Ok(());
        }
        let problem = format!(
            "has {free} bytes free, the image's kernel needs {needed}; remove {} bytes of what is not needed there, or make the partition larger",
            needed - free
        );
        Err(ActivationError::Content { backend: super::systemd_boot::BACKEND, path: self.esp.clone(), problem })
    }

    fn copy(&self, slot: &Path, copy: &Copied) -> Result<(), ActivationError> {
        let folder = self.folder();
        let (beside, path) = (folder.join(format!(".{}.new", copy.name)), folder.join(&copy.name));
        fs::create_dir_all(&folder).map_err(failed("making", &folder))?;
        let mut source = self.source(slot, &copy.file)?.take(SIZE_MAX);
        let mut write = || {
            let mut file = File::create(&beside)?;
            io::copy(&mut source, &mut file)?;
            file.flush()?;
            file.sync_all()
        };
        write().map_err(failed("writing", &beside))?;
        let (written, _) = File::open(&beside).and_then(digest).map_err(failed("reading back", &beside))?;
        if written != copy.digest {
            let why = "what was read from the slot the second time is not what it was the first time";
            return Err(failed("copying", &copy.file)(io::Error::other(why)));
        }
        remove(&path)?;
        fs::rename(&beside, &path).map_err(failed("naming", &path))
    }

    /// Removes the copies that none of these paths names, and what was left half-copied.
    pub(super) fn sweep<'a>(&self, named: impl Iterator<Item = &'a str>) -> Result<(), ActivationError> {
        let named: BTreeSet<String> = named.map(str::to_ascii_lowercase).collect();
        let Ok(found) = fs::read_dir(self.folder()) else { return Ok(()) };
        for entry in found.flatten() {
            let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
            let ours = ["vmlinuz-", "initrd-", "uki-", "."].iter().any(|prefix| name.starts_with(prefix));
            if ours && !named.contains(&format!("/{FOLDER}/{name}")) {
                remove(&entry.path())?;
            }
        }
        self.sync_folder()
    }

    fn folder(&self) -> PathBuf {
        self.esp.join(FOLDER)
    }

    fn sync_folder(&self) -> Result<(), ActivationError> {
        // The folder's own name is new once in a machine's life.
        for folder in [self.folder(), self.esp.clone()] {
            match File::open(&folder).and_then(|folder| folder.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("syncing", &folder)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A file's BLAKE3 and length.
fn digest(file: File) -> io::Result<(blake3::Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.take(SIZE_MAX + 1))?;
    let length = hasher.count();
    if length > SIZE_MAX {
        return Err(io::Error::other(format!("is larger than {SIZE_MAX} bytes, which no kernel or initrd is")));
    }
    Ok((hasher.finalize(), length))
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), ActivationError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
    super::failed(super::systemd_boot::BACKEND, what, path)
}
