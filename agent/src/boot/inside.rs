//! Files of the image in a slot, without the slot's being mounted anywhere: for the kernel that an image carries.
//!
//! Nobody else can see the mount, and it is gone when the last file is closed. Not one byte of the proven slot changes. Symbolic links
//! (`/vmlinuz` of Debian) are followed inside the image and never out of it.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::volume::{Options, Volume, VolumeError};

/// Opens a file in the slot at a path. Tests have another one, without mounts.
pub(super) type OpenInSlot = fn(&Path, &Path) -> io::Result<File>;

/// Opens `file`, an absolute path inside the image, in `slot`.
pub(super) fn open(slot: &Path, file: &Path) -> io::Result<File> {
    let volume = Volume { options: Options::only_files(), ..Volume::default() };
    volume.mount_unchecked(slot).map_err(without_kernel)?.open(file)
}

/// A loader's configuration does not name the image's file system; its cure is another one.
fn without_kernel(error: VolumeError) -> io::Error {
    match error {
        VolumeError::Unknown { looks, .. } => io::Error::other(format!(
            "the slot begins like {looks}, and holds none of ext4, EROFS and squashfs; set activation.kernel_from = \"esp\" and keep the kernel there"
        )),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

    #[test]
    fn what_is_no_file_system_has_no_kernel_and_the_cure_is_named() {
        let error = without_kernel(VolumeError::Unknown { path: "/slots/a".into(), looks: "gpt" }).to_string();
        assert!(error.contains("begins like gpt") && error.contains("kernel_from"), "{error}");
    }

    /// Runs a program that may be missing; its output, if it was there and succeeded.
    fn run(program: &str, arguments: &[&str]) -> Option<String> {
        let done = std::process::Command::new(program).args(arguments).output().ok()?;
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    /// A loop device, given back at the end.
    struct Loop(String);

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = run("losetup", &["-d", &self.0]);
        }
    }

    /// Renames a file to and fro, as fast as it can, until it is dropped: while that goes on, the kernel is not sure of any `..`.
    struct Renames(Arc<AtomicBool>, Option<JoinHandle<()>>);

    impl Renames {
        fn of(folder: &Path) -> Self {
            let (stop, names) = (Arc::new(AtomicBool::new(false)), ["here", "there"].map(|name| folder.join(name)));
            std::fs::write(&names[0], "").unwrap();
            let stopped = stop.clone();
            let thread = std::thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    std::fs::rename(&names[0], &names[1]).unwrap();
                    std::fs::rename(&names[1], &names[0]).unwrap();
                }
            });
            Self(stop, Some(thread))
        }
    }

    impl Drop for Renames {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            self.1.take().map(JoinHandle::join);
        }
    }

    #[test]
    fn a_file_is_read_out_of_a_file_system_that_is_mounted_nowhere_and_stays_as_it_was() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("boot")).unwrap();
        std::fs::write(tree.join("boot/vmlinuz-6.1"), "the kernel").unwrap();
        // Absolute, as in Debian: it must not lead to this machine's own.
        std::os::unix::fs::symlink("/boot/vmlinuz-6.1", tree.join("vmlinuz")).unwrap();
        std::os::unix::fs::symlink("../../../etc/hostname", tree.join("out")).unwrap();
        let (tree, image) = (tree.display().to_string(), folder.path().join("image"));
        let path = image.display().to_string();
        for make in [
            vec!["mkfs.ext4", "-q", "-d", &tree, &path, "8M"],
            vec!["mkfs.erofs", &path, &tree],
            vec!["mksquashfs", &tree, &path, "-quiet", "-noappend"],
        ] {
            let _ = std::fs::remove_file(&image);
            let device = run(make[0], &make[1..]).and_then(|_| run("losetup", &["-f", "--show", &path])).map(Loop);
            let Some(device) = device else {
                eprintln!("skipped: {} or a loop device is not to be had", make[0]);
                continue;
            };
            // As one that was copied while it was in use: to mount it read-only is to write it, unless told not to.
            let _ = run("debugfs", &["-w", "-R", "feature needs_recovery", &path]);
            let before = std::fs::read(&image).unwrap();
            for slot in [Path::new(&device.0), &image] {
                let mut file = match open(slot, Path::new("/vmlinuz")) {
                    Err(error) if error.to_string().contains("does not know") => {
                        eprintln!("skipped: this kernel has no {}", make[0]);
                        continue;
                    }
                    opened => opened.unwrap(),
                };
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "the kernel", "{}", make[0]);
                let renames = Renames::of(folder.path());
                for _ in 0..20 {
                    assert_eq!(open(slot, Path::new("/out")).unwrap_err().kind(), io::ErrorKind::NotFound);
                }
                drop(renames);
                let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
                assert!(!mounts.contains(&device.0) && !mounts.contains(&path));
            }
            drop(device);
            assert_eq!(std::fs::read(&image).unwrap(), before, "{} was not written", make[0]);
        }
    }
}
