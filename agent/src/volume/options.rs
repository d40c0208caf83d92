//! Mount options, as in `fstab`: those that every mount has are the kernel's flags, the others the file system's parameters.

use std::fmt;
use std::str::FromStr;

use rustix::mount::MountAttrFlags;

/// What a mount is told, beyond that it is read-only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(String, Option<String>)>);

/// Why a text is not a list of mount options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// An active slot is never written.
    #[error("{0:?} is not possible: an active slot is never written")]
    Writable(String),
    /// Two commas, or one at an end; a `=` without a key.
    #[error("{0:?} is not a list of mount options, like \"nodev,nosuid\"")]
    List(String),
}

impl FromStr for Options {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let option = |word: &str| match word.split_once('=') {
            Some(("", _)) => Err(OptionsError::List(text.to_owned())),
            Some((key, value)) => Ok((key.to_owned(), Some(value.to_owned()))),
            None if word.is_empty() || word.contains(char::is_whitespace) => Err(OptionsError::List(text.to_owned())),
            None if word == "rw" => Err(OptionsError::Writable(word.to_owned())),
            None => Ok((word.to_owned(), None)),
        };
        let options = text.split(',').map(option).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(options.into_iter().filter(|(key, _)| !matches!(key.as_str(), "ro" | "defaults")).collect()))
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ro")?;
        self.0.iter().try_for_each(|(key, value)| match value {
            Some(value) => write!(f, ",{key}={value}"),
            None => write!(f, ",{key}"),
        })
    }
}

impl Options {
    /// Files to be read and nothing else: no devices, no set-user-ids, no programs.
    pub fn only_files() -> Self {
        Self(["nosuid", "nodev", "noexec"].map(|word| (word.to_owned(), None)).to_vec())
    }

    /// The flags of the mount itself.
    pub fn attributes(&self) -> MountAttrFlags {
        let flags = self.0.iter().filter_map(|(key, value)| value.is_none().then(|| attribute(key))?);
        flags.fold(MountAttrFlags::MOUNT_ATTR_RDONLY, |all, flag| all | flag)
    }

    /// What is said to the file system.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let own = self.0.iter().filter(|(key, value)| value.is_some() || attribute(key).is_none());
        own.map(|(key, value)| (key.as_str(), value.as_deref()))
    }
}

fn attribute(word: &str) -> Option<MountAttrFlags> {
    Some(match word {
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
        "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        "relatime" => MountAttrFlags::MOUNT_ATTR_RELATIME,
        "nosymfollow" => MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_from_parameters() {
        let options: Options = "ro,nodev,nosuid,noload,errors=panic,noatime,defaults".parse().unwrap();
        let expected = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        assert_eq!(options.attributes(), expected);
        assert_eq!(options.parameters().collect::<Vec<_>>(), [("noload", None), ("errors", Some("panic"))]);
        assert_eq!(options.to_string(), "ro,nodev,nosuid,noload,errors=panic,noatime");
        let none: Options = "".parse().unwrap();
        assert_eq!((none.attributes(), none.parameters().count()), (MountAttrFlags::MOUNT_ATTR_RDONLY, 0));
    }

    #[test]
    fn what_would_write_or_is_no_list_is_refused() {
        assert_eq!("nodev,rw".parse::<Options>(), Err(OptionsError::Writable("rw".into())));
        for bad in [",", "nodev,", "=x", "a b", ",,nodev"] {
            assert!(matches!(bad.parse::<Options>(), Err(OptionsError::List(_))), "{bad}");
        }
    }
}
