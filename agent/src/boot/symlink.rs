//! Activation by a symbolic link: for images that are files (VM hosts, containers), or read by whoever opens the link.
//!
//! ```text
//! current ──▶ a.img            .current.goldsync ──▶ b.img            rename(2)            current ──▶ b.img
//! ```
//! Whoever opens the link gets the old slot or the new one. Who has the old one open keeps it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{Activation, ActivationError, Holds, Look};
use crate::config::Slots;
use crate::slot::{Identity, SlotName};

/// A link that points at the active slot.
#[derive(Debug)]
pub struct Symlink {
    link: PathBuf,
    slots: [(SlotName, PathBuf); 2],
}

impl Symlink {
    /// The link and the slots it may point at.
    pub fn new(link: PathBuf, slots: &Slots) -> Self {
        Self { link, slots: SlotName::ALL.map(|name| (name, slots.path(name).to_owned())) }
    }

    fn folder(&self) -> &Path {
        self.link.parent().unwrap_or(Path::new("/"))
    }

    /// Lets the link last, which may be the work of a run that was killed before it synced.
    fn sync(&self) -> Result<(), ActivationError> {
        let folder = self.folder();
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Self::fail("syncing", folder))
    }

    fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
        let path = path.to_owned();
        move |error| ActivationError::File { backend: "symlink", what, path, error }
    }
}

impl Activation for Symlink {
    fn look(&self) -> Result<Look, ActivationError> {
        let target = match fs::read_link(&self.link) {
            Ok(target) => self.folder().join(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::default()),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(ActivationError::NotALink { path: self.link.clone() });
            }
            Err(error) => return Err(Self::fail("reading", &self.link)(error)),
        };
        let led_to = Identity::of(&target).ok();
        let same = |path: &Path| path == target || (led_to.is_some() && Identity::of(path).ok() == led_to);
        match self.slots.iter().find(|(_, path)| same(path)) {
            Some((name, _)) => Ok(Look { active: Some(*name), next: Some(*name), tries: None }),
            None => Err(ActivationError::Foreign { link: self.link.clone(), target }),
        }
    }

    /// The link does not lead there, or it would be the active slot. That must last before the slot is written.
    fn retire(&self, _slot: SlotName) -> Result<(), ActivationError> {
        self.sync()
    }

    fn activate(&self, slot: SlotName, _holds: &Holds, _tries: u8) -> Result<(), ActivationError> {
        // Only a link, or nothing, may be replaced: a file here is somebody's data.
        match fs::symlink_metadata(&self.link) {
            Ok(meta) if !meta.is_symlink() => return Err(ActivationError::NotALink { path: self.link.clone() }),
            _ => {}
        }
        let target = self.slots.iter().find(|(name, _)| *name == slot).map(|(_, path)| path.as_path());
        let target = target.unwrap_or(Path::new(""));
        let name = self.link.file_name().unwrap_or_default().to_string_lossy();
        let temporary = self.folder().join(format!(".{name}.goldsync"));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Self::fail("removing", &temporary)(error));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(target, &temporary).map_err(Self::fail("making", &temporary))?;
        fs::rename(&temporary, &self.link).map_err(Self::fail("renaming over", &self.link))?;
        self.sync()
    }

    fn confirm(&self, _slot: SlotName) -> Result<(), ActivationError> {
        self.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::holds;
    use super::*;

    fn slots(folder: &Path) -> Slots {
        Slots { a: folder.join("a.img"), b: folder.join("b.img"), size: None }
    }

    #[test]
    fn the_link_is_swapped_and_tells_the_active_slot() {
        let folder = tempfile::tempdir().unwrap();
        let slots = slots(folder.path());
        fs::write(&slots.a, "a").unwrap();
        fs::write(&slots.b, "b").unwrap();
        let link = folder.path().join("current");
        let activation = Symlink::new(link.clone(), &slots);
        assert_eq!(activation.active().unwrap(), None);
        for (slot, text) in [(SlotName::A, "a"), (SlotName::B, "b"), (SlotName::B, "b"), (SlotName::A, "a")] {
            activation.activate(slot, &holds(), 0).unwrap();
            assert_eq!(activation.active().unwrap(), Some(slot));
            assert_eq!(fs::read_to_string(&link).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left beside");
    }

    #[test]
    fn a_crash_before_the_rename_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let slots = slots(folder.path());
        let activation = Symlink::new(folder.path().join("current"), &slots);
        activation.activate(SlotName::A, &holds(), 0).unwrap();
        std::os::unix::fs::symlink(&slots.b, folder.path().join(".current.goldsync")).unwrap();
        assert_eq!(activation.active().unwrap(), Some(SlotName::A));
        activation.activate(SlotName::B, &holds(), 0).unwrap();
        assert_eq!(activation.active().unwrap(), Some(SlotName::B));
    }

    #[test]
    fn a_relative_or_second_hand_target_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let slots = slots(folder.path());
        fs::write(&slots.b, "b").unwrap();
        let activation = Symlink::new(folder.path().join("current"), &slots);
        std::os::unix::fs::symlink("b.img", folder.path().join("current")).unwrap();
        assert_eq!(activation.active().unwrap(), Some(SlotName::B));
        fs::remove_file(folder.path().join("current")).unwrap();
        fs::hard_link(&slots.b, folder.path().join("same")).unwrap();
        std::os::unix::fs::symlink("same", folder.path().join("current")).unwrap();
        assert_eq!(activation.active().unwrap(), Some(SlotName::B));
    }

    #[test]
    fn what_is_no_link_to_a_slot_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        let activation = Symlink::new(link.clone(), &slots(folder.path()));
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        assert!(matches!(activation.active(), Err(ActivationError::Foreign { .. })));
        fs::remove_file(&link).unwrap();
        fs::write(&link, "data").unwrap();
        assert!(matches!(activation.active(), Err(ActivationError::NotALink { .. })));
        assert!(matches!(activation.activate(SlotName::A, &holds(), 0), Err(ActivationError::NotALink { .. })));
        assert_eq!(fs::read_to_string(&link).unwrap(), "data");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let activation = Symlink::new(folder.path().join("no/current"), &slots(folder.path()));
        let error = activation.activate(SlotName::A, &holds(), 0).unwrap_err().to_string();
        assert!(error.contains("making") && error.contains("no/.current.goldsync"), "{error}");
    }
}
