//! The image that is published: what the store's own preparation reads, watched for changes while it does.
//!
//! Nothing may write to the image meanwhile. If something does, it is noticed: by the file's times and size here, by
//! each block's hash when the server takes it, and by the hash of the whole at the end. Nothing is signed then.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use goldsync_proto::block::{Geometry, Run};
use goldsync_proto::signature::Signature;
use goldsync_proto::verity::Sealed;

use super::fail::{Code, Failure, Outcome};
use super::progress::Stage;
use crate::golden::prepare::{LEVEL, PrepareError, Prepared, UploadFrame};

/// An image on this machine.
#[derive(Debug)]
pub struct Image {
    prepared: Prepared,
    seen: Seen,
}

/// What would change if a file were written to, replaced or cut. A block device says nothing of the kind.
#[derive(Debug, PartialEq, Eq)]
struct Seen(Option<(u64, u64, i64, i64, i64, i64)>);

impl Seen {
    fn of(data: &Metadata) -> Self {
        let times = (data.size(), data.ino(), data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
        Self(data.file_type().is_file().then_some(times))
    }
}

impl Image {
    /// Opens a file or a block device and checks its size.
    pub fn open(path: &Path) -> Outcome<Self> {
        let prepared = Prepared::open(path)?;
        let seen = Seen::of(&fs::metadata(path).map_err(|error| Failure::io("cannot read the image", path, &error))?);
        Ok(Self { prepared, seen })
    }

    /// Its size, as blocks and regions.
    pub fn geometry(&self) -> Geometry {
        self.prepared.geometry()
    }

    /// What its first bytes look like, for people.
    pub fn file_system(&self) -> Outcome<Option<&'static str>> {
        Ok(self.prepared.file_system()?)
    }

    /// What the hash tree says that it carries over all of its data; after [`Image::sign`]. Blocks this thread.
    pub fn sealed(&self) -> Outcome<Option<Sealed>> {
        self.held_against_changes(self.prepared.sealed())
    }

    /// Appends a hash tree to what is published, unless it carries one. Blocks this thread.
    pub fn seal(&mut self) -> Outcome<Sealed> {
        let sealed = self.prepared.seal();
        self.held_against_changes(sealed)
    }

    /// Hashes it whole, into its signature. Blocks this thread.
    pub fn sign(&self, stage: &Stage) -> Outcome<Signature> {
        let mut before = 0;
        let signed = self.prepared.sign(|done| {
            stage.advance(done - before);
            before = done;
        });
        self.held_against_changes(signed)
    }

    /// The frames that hold `runs`, in order. Blocks this thread.
    pub fn frames(&self, runs: &[Run]) -> impl Iterator<Item = Outcome<UploadFrame>> + '_ {
        self.prepared.frames(runs, LEVEL).map(|frame| match frame {
            // What an end that comes too early means, only the file itself can say.
            Err(PrepareError::Io { .. }) => self.held_against_changes(frame),
            frame => Ok(frame?),
        })
    }

    /// A result, if the file is still what it was when it was opened.
    fn held_against_changes<T>(&self, result: Result<T, PrepareError>) -> Outcome<T> {
        self.unchanged()?;
        Ok(result?)
    }

    /// Whether the file is as it was when it was opened.
    pub fn unchanged(&self) -> Outcome {
        let path = self.prepared.path();
        let data = fs::metadata(path).map_err(|error| Failure::io("cannot read the image", path, &error))?;
        if Seen::of(&data) == self.seen {
            return Ok(());
        }
        let (before, now) = (self.geometry().size(), data.size());
        let how = if before == now { "its times moved".into() } else { format!("from {before} to {now} bytes") };
        Err(Failure::new(Code::Failed, format!("{} changed while it was read: {how}", path.display()))
            .remedy("nothing was published; unmount it, or publish a snapshot or a copy that nothing writes to"))
    }
}

impl From<PrepareError> for Failure {
    fn from(error: PrepareError) -> Self {
        match &error {
            PrepareError::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    Self::io("cannot read the image", path, source)
                }
                _ => Self::new(Code::Disk, error.to_string())
                    .remedy("the medium may be failing: look at the kernel's log (dmesg)"),
            },
            PrepareError::Kind { .. } => Self::new(Code::Usage, error.to_string()).remedy(
                "an image is a file or a block device; make one from a folder with mkfs.ext4 -d, mkfs.erofs or mksquashfs",
            ),
            _ => Self::new(Code::Failed, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::progress::Manner;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::pack::read_frame;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn sign(image: &Image) -> Outcome<Signature> {
        image.sign(&Stage::begin(Manner::Quiet, "hash", 0))
    }

    #[test]
    fn an_image_is_signed_and_framed() {
        let bytes: Vec<u8> = (0..300 * 4096_u64).map(|i| ((i * i) >> 9) as u8).collect();
        let file = file(&bytes);
        let image = Image::open(file.path()).unwrap();
        assert_eq!(sign(&image).unwrap().image, ImageId::of(&bytes));
        let frames: Vec<_> = image.frames(&[(3, 1), (299, 1)]).collect::<Outcome<_>>().unwrap();
        assert_eq!(read_frame(&frames[0].bytes).unwrap(), [&bytes[3 * 4096..4 * 4096], &bytes[299 * 4096..]].concat());
    }

    #[test]
    fn a_sparse_file_is_an_image_like_any_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        let image = Image::open(file.path()).unwrap();
        assert_eq!(sign(&image).unwrap().image, ImageId::of(&vec![0; 5 << 20]));
        assert_eq!(image.file_system().unwrap(), None);
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_cure() {
        for (bytes, words) in [(vec![], "0 bytes"), (vec![7; 4097], "truncate -s %4096")] {
            let file = file(&bytes);
            let failure = Image::open(file.path()).unwrap_err();
            assert_eq!(failure.code, Code::Failed);
            assert!(failure.message.contains(words), "{failure}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Image::open(folder.path()).unwrap_err().code, Code::Usage);
        let missing = Image::open(&folder.path().join("none")).unwrap_err();
        assert_eq!(missing.code, Code::Disk);
        assert!(missing.message.contains("none"), "{missing}");
    }

    #[test]
    fn a_change_is_noticed_by_time_by_size_and_by_name() {
        let file = file(&vec![5; 300 * 4096]);
        let image = Image::open(file.path()).unwrap();
        sign(&image).unwrap();
        file.as_file().write_all_at(b"x", 299 * 4096).unwrap();
        file.as_file().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let failure = sign(&image).unwrap_err();
        assert!(failure.message.contains("changed while it was read: its times moved"), "{failure}");
        file.as_file().set_len(4096).unwrap();
        let failure = sign(&image).unwrap_err();
        assert!(failure.message.contains("from 1228800 to 4096 bytes"), "{failure}");
        let failure = image.frames(&[(0, 300)]).collect::<Outcome<Vec<_>>>().unwrap_err();
        assert!(failure.message.contains("from 1228800 to 4096 bytes"), "{failure}");
    }
}
