//! Releases and channels as they are signed: the words, and the two small files that The Update Framework protects.
//!
//! A *release* is the target file `release_NAME_VERSION.json` holding a [`Manifest`]; a *channel* is the target file
//! `channel_CHANNEL.json` holding a [`Pointer`]. The first is signed by the role `releases`, the second by the role
//! `channel-CHANNEL`, so that the key that promotes to `dev` cannot promote to `production`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::block::{Geometry, GeometryError};
use crate::digest::{Digest, ImageId};
use crate::limits::{LABEL_LEN_MAX, LABELS_MAX, NAME_LEN_MAX};
use crate::verity::{Sealed, SealedError};

/// The TUF role that signs releases.
pub const RELEASES_ROLE: &str = "releases";

/// The path pattern delegated to [`RELEASES_ROLE`].
pub const RELEASES_PATHS: &str = "release_*";

/// A word that names something: a release's name or version, a channel, a node.
///
/// Lower-case letters, digits, `.`, `-` and `+`, a letter or digit first, at most 64 bytes. No `_` and no `:`: those two
/// join words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

/// Why a text is not a [`Word`] or a [`ReleaseRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// Empty, too long, or a character that is not allowed.
    #[error(
        "{text:?} is not a name: use 1 to {NAME_LEN_MAX} lower-case letters, digits, '.', '-' or '+', a letter or digit first"
    )]
    Word {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// No `:` between name and version.
    #[error("{text:?} is not a release: write NAME:VERSION, for example web:2026.11.21")]
    Release {
        /// What was given, cut to 80 characters.
        text: String,
    },
}

impl Word {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Word {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let allowed = |b: u8| plain(b) || matches!(b, b'.' | b'-' | b'+');
        let good = text.len() <= NAME_LEN_MAX && text.bytes().next().is_some_and(plain) && text.bytes().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(WordError::Word { text: text.chars().take(80).collect() }) }
    }
}

impl TryFrom<String> for Word {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        text.parse()
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `web:2026.11.21`: an image's name and version. Never changes what it means, never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseRef {
    /// What the image is for.
    pub name: Word,
    /// Which one it is.
    pub version: Word,
}

impl ReleaseRef {
    /// The TUF target that holds this release's manifest.
    pub fn target(&self) -> String {
        format!("release_{}_{}.json", self.name, self.version)
    }
}

impl FromStr for ReleaseRef {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let (name, version) =
            text.split_once(':').ok_or_else(|| WordError::Release { text: text.chars().take(80).collect() })?;
        Ok(Self { name: name.parse()?, version: version.parse()? })
    }
}

impl TryFrom<String> for ReleaseRef {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        text.parse()
    }
}

impl From<ReleaseRef> for String {
    fn from(release: ReleaseRef) -> Self {
        release.to_string()
    }
}

impl fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.name, self.version))
    }
}

/// The TUF role that signs a channel's pointer.
pub fn channel_role(channel: &Word) -> String {
    format!("channel-{channel}")
}

/// The TUF target that holds a channel's pointer.
pub fn channel_target(channel: &Word) -> String {
    format!("channel_{channel}.json")
}

/// An immutable object: its name, and its length so that nobody downloads more than was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// BLAKE3 of the bytes.
    pub name: Digest,
    /// Bytes.
    pub length: u64,
}

/// The three sections of a signature; see `signature`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sections {
    /// 32 bytes for every 1 MiB.
    pub subtrees: Section,
    /// 8 bytes for every 4 KiB: truncated BLAKE3.
    pub blocks: Section,
    /// 8 bytes for every 4 KiB: rolling sum and truncated MD4, the rolling scan's food.
    pub rolling: Section,
}

/// What a publisher signs for one release. Unknown fields are ignored, so that a newer publisher can say more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form: 1.
    pub format: u32,
    /// Which release this is; must equal the target's name.
    pub release: ReleaseRef,
    /// BLAKE3 of the image, as `b3sum` prints it.
    pub image: ImageId,
    /// Bytes in the image.
    pub size: u64,
    /// The signature's sections.
    pub sections: Sections,
    /// What was recognised in the image's first bytes (`ext4`, `squashfs`, `erofs`, `gpt`, ...); for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// The hash tree that it carries, for dm-verity: its root hash stands for all that is read through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Sealed>,
    /// The oldest agent that can install it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_agent: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was published, RFC 3339; for people.
    pub published_at: String,
}

/// Why a signed manifest cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A newer form.
    #[error("manifest format {got} is not known here, only 1; update goldsync-agent")]
    Format {
        /// Its number.
        got: u32,
    },
    /// The size is not an image's.
    #[error(transparent)]
    Size(#[from] GeometryError),
    /// A section's length does not follow from the size.
    #[error("section {section} is {got} bytes, {expected} expected for this image's size")]
    Section {
        /// Which.
        section: &'static str,
        /// As signed.
        got: u64,
        /// As the size demands.
        expected: u64,
    },
    /// A hash tree that the image cannot have.
    #[error(transparent)]
    Verity(#[from] SealedError),
    /// Labels beyond the limits.
    #[error("{0}")]
    Labels(#[from] LabelsError),
}

impl Manifest {
    /// Checks everything that can be checked without the image.
    pub fn check(&self) -> Result<Geometry, ManifestError> {
        if self.format != 1 {
            return Err(ManifestError::Format { got: self.format });
        }
        let geometry = Geometry::new(self.size)?;
        let (regions, blocks) = (u64::from(geometry.regions()), u64::from(geometry.blocks()));
        for (section, got, expected) in [
            ("subtrees", self.sections.subtrees.length, regions * 32),
            ("blocks", self.sections.blocks.length, blocks * 8),
            ("rolling", self.sections.rolling.length, blocks * 8),
        ] {
            if got != expected {
                return Err(ManifestError::Section { section, got, expected });
            }
        }
        self.verity.as_ref().map(|verity| verity.check(geometry)).transpose()?;
        check_labels(&self.labels)?;
        Ok(geometry)
    }
}

/// What a promoter signs for one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// Version of this form: 1.
    pub format: u32,
    /// Which channel this is; must equal the target's name.
    pub channel: Word,
    /// The release that its nodes shall run.
    pub release: ReleaseRef,
    /// That release's image, so that a pointer can never come to mean other bytes.
    pub image: ImageId,
    /// When, RFC 3339; for people.
    pub promoted_at: String,
    /// By whom; for people.
    pub promoted_by: String,
}

/// Why labels were turned down.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// Too many.
    #[error("{got} labels given, at most {LABELS_MAX} allowed")]
    Count {
        /// How many.
        got: usize,
    },
    /// One is empty or too long.
    #[error("label {key:?}: key and value must be 1 to {LABEL_LEN_MAX} bytes")]
    Length {
        /// Its key, cut to 80 characters.
        key: String,
    },
}

/// Holds labels against the limits.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), LabelsError> {
    if labels.len() > LABELS_MAX {
        return Err(LabelsError::Count { got: labels.len() });
    }
    let fits = |text: &str| (1..=LABEL_LEN_MAX).contains(&text.len());
    match labels.iter().find(|(key, value)| !fits(key) || !fits(value)) {
        Some((key, _)) => Err(LabelsError::Length { key: key.chars().take(80).collect() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_reads_back_and_names_its_target() {
        let release: ReleaseRef = "web:2026.11.21".parse().unwrap();
        assert_eq!(release.to_string(), "web:2026.11.21");
        assert_eq!(release.target(), "release_web_2026.11.21.json");
        assert!("web".parse::<ReleaseRef>().unwrap_err().to_string().contains("NAME:VERSION"));
    }

    #[test]
    fn words_keep_to_their_alphabet() {
        for bad in ["", "Web", "a_b", "a:b", "-a", "../a", "a b", &"a".repeat(65)] {
            assert!(bad.parse::<Word>().is_err(), "{bad}");
        }
        assert!("production".parse::<Word>().is_ok());
    }

    #[test]
    fn too_many_or_empty_labels_are_refused() {
        let many = (0..65).map(|i| (format!("k{i}"), "v".to_owned())).collect();
        assert_eq!(check_labels(&many), Err(LabelsError::Count { got: 65 }));
        assert!(check_labels(&BTreeMap::from([("role".into(), String::new())])).is_err());
    }
}
