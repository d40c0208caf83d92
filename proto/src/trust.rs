//! The names of the files of signed metadata, as they travel and as they lie on disks.
//!
//! ```text
//! 1.root.json             the top; every version, so that an old one leads to the newest
//! timestamp.json          the newest snapshot; short-lived, signed by the server
//! 7.snapshot.json         the newest version of each role below; signed by the server
//! 1.targets.json          who may sign what; signed by the operator, like all that follows
//! 4.releases.json         every release
//! 2.channel-dev.json      where `dev` points
//! release_web_1.json      a target file: a release's manifest
//! channel_dev.json        a target file: a channel's pointer
//! ```
//! A name has exactly one written form, and no form can leave a folder: a name from a peer is parsed here before it
//! comes near a path.

use std::fmt;
use std::str::FromStr;

use crate::release::{RELEASES_ROLE, ReleaseRef, Word, channel_target};

/// The role at the top.
pub const ROOT: &str = "root";
/// The role that names the newest snapshot.
pub const TIMESTAMP: &str = "timestamp";
/// The role that names the newest version of every other.
pub const SNAPSHOT: &str = "snapshot";
/// The role that says who may sign what.
pub const TARGETS: &str = "targets";

/// The name of a file of signed metadata.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileName {
    /// `timestamp.json`
    Timestamp,
    /// `VERSION.ROLE.json`
    Role {
        /// [`ROOT`], [`SNAPSHOT`], [`TARGETS`], `releases` or `channel-NAME`.
        role: String,
        /// From 1.
        version: u64,
    },
    /// A target file.
    Target(Target),
}

/// What a target file is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A release's manifest.
    Release(ReleaseRef),
    /// A channel's pointer.
    Channel(Word),
}

/// Why a text is not the name of such a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the name of a file of signed metadata: \
     timestamp.json, VERSION.ROLE.json, release_NAME_VERSION.json or channel_NAME.json"
)]
pub struct FileNameError {
    /// What was given, cut to 80 characters.
    pub text: String,
}

impl FileName {
    /// The file that holds this version of a role.
    pub fn role(role: &str, version: u64) -> Self {
        match role {
            TIMESTAMP => Self::Timestamp,
            _ => Self::Role { role: role.to_owned(), version },
        }
    }
}

impl Target {
    /// The role that may sign this target.
    pub fn signer(&self) -> String {
        match self {
            Self::Release(_) => RELEASES_ROLE.to_owned(),
            Self::Channel(channel) => crate::release::channel_role(channel),
        }
    }
}

fn known_role(role: &str) -> bool {
    matches!(role, ROOT | SNAPSHOT | TARGETS | RELEASES_ROLE)
        || role.strip_prefix("channel-").is_some_and(|channel| channel.parse::<Word>().is_ok())
}

fn parse_target(text: &str) -> Option<Target> {
    let stem = text.strip_suffix(".json")?;
    if let Some(channel) = stem.strip_prefix("channel_") {
        return Some(Target::Channel(channel.parse().ok()?));
    }
    let (name, version) = stem.strip_prefix("release_")?.split_once('_')?;
    Some(Target::Release(ReleaseRef { name: name.parse().ok()?, version: version.parse().ok()? }))
}

fn parse_role(text: &str) -> Option<FileName> {
    let (number, role) = text.strip_suffix(".json")?.split_once('.')?;
    let version: u64 = number.parse().ok()?;
    // One number, one form: no sign, no leading zero, and no version 0.
    let good = version > 0 && number == version.to_string() && known_role(role);
    good.then(|| FileName::Role { role: role.to_owned(), version })
}

fn refuse(text: &str) -> FileNameError {
    FileNameError { text: text.chars().take(80).collect() }
}

impl FromStr for FileName {
    type Err = FileNameError;

    fn from_str(text: &str) -> Result<Self, FileNameError> {
        if text == "timestamp.json" {
            return Ok(Self::Timestamp);
        }
        parse_target(text).map(Self::Target).or_else(|| parse_role(text)).ok_or_else(|| refuse(text))
    }
}

impl FromStr for Target {
    type Err = FileNameError;

    fn from_str(text: &str) -> Result<Self, FileNameError> {
        parse_target(text).ok_or_else(|| refuse(text))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp => f.write_str("timestamp.json"),
            Self::Role { role, version } => write!(f, "{version}.{role}.json"),
            Self::Target(target) => fmt::Display::fmt(target, f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(release) => f.write_str(&release.target()),
            Self::Channel(channel) => f.write_str(&channel_target(channel)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_read_back() {
        for (text, expected) in [
            ("timestamp.json", FileName::Timestamp),
            ("12.root.json", FileName::Role { role: "root".into(), version: 12 }),
            ("1.channel-dev.json", FileName::Role { role: "channel-dev".into(), version: 1 }),
            ("channel_dev.json", FileName::Target(Target::Channel("dev".parse().unwrap()))),
            ("release_web_1.2.json", FileName::Target(Target::Release("web:1.2".parse().unwrap()))),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
        assert_eq!("release_web_1.json".parse::<Target>().unwrap().signer(), "releases");
        assert_eq!("channel_dev.json".parse::<Target>().unwrap().signer(), "channel-dev");
    }

    #[test]
    fn other_names_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "../1.root.json",
            "root.json",
            "0.root.json",
            "01.root.json",
            "+1.root.json",
            "1.root",
            "1.mirrors.json",
            "1.timestamp.json",
            "1.channel-.json",
            "1.channel-A.json",
            "1.channel-a/b.json",
            "release_web.json",
            "release__1.json",
            "release_web_1_2.json",
            "release_../x_1.json",
            "channel_.json",
            "18446744073709551616.root.json",
            "timestamp.json\0",
            "1.root.json/..",
        ] {
            assert!(text.parse::<FileName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_taken_has_one_form_and_stays_in_its_folder(text in "(release_|channel_|[0-9]{1,3}\\.)?\\PC{0,24}(\\.json)?") {
            if let Ok(name) = text.parse::<FileName>() {
                prop_assert_eq!(name.to_string(), text.clone());
                prop_assert!(!text.contains('/') && !text.starts_with('.'));
            }
        }
    }
}
