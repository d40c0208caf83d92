//! The kernel's command line, from a template: what a boot entry of a slot says.
//!
//! | in the template | becomes                                                          |
//! |-----------------|------------------------------------------------------------------|
//! | `{slot}`        | `a` or `b`                                                       |
//! | `{path}`        | the slot's path as configured                                    |
//! | `{partuuid}`    | the UUID of its partition                                        |
//! | `{image}`       | the image's BLAKE3, 64 digits                                    |
//! | `{root_hash}`   | the root hash of its dm-verity tree, 64 digits                   |
//! | `{hash_offset}` | the image's byte at which that tree's superblock begins          |
//!
//! `goldsync.slot=` and `panic=10` are added if the template has no such words: the one tells the agent which slot runs, without
//! the other a kernel that panics would stand still instead of giving the next try its turn.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use goldsync_proto::verity::Sealed;

use crate::slot::{Identity, SlotName};

const NAMES: [&str; 6] = ["slot", "path", "partuuid", "image", "root_hash", "hash_offset"];

/// A command line with places to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Text, then a name, then text...: a name at every odd place.
    parts: Vec<String>,
}

/// What is filled in; what is not known may not be asked for.
#[derive(Clone, Debug)]
pub(super) struct Values<'a> {
    pub(super) slot: SlotName,
    pub(super) path: &'a Path,
    pub(super) image: Option<String>,
    pub(super) sealed: Option<&'a Sealed>,
}

impl Template {
    /// Reads a template; says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("has a line end or another control character in it".to_owned());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| format!("has no `}}` after `{{{after}`"))?;
            if !NAMES.contains(&name) {
                return Err(format!("has {{{name}}}, which is not known; there are {{{}}}", NAMES.join("}, {")));
            }
            parts.extend([before.to_owned(), name.to_owned()]);
            rest = after;
        }
        parts.push(rest.to_owned());
        Ok(Self { parts })
    }

    /// Fills it in.
    pub(super) fn fill(&self, values: &Values<'_>) -> Result<String, String> {
        let mut line = String::new();
        for (at, part) in self.parts.iter().enumerate() {
            if at % 2 == 0 {
                line.push_str(part);
            } else {
                line.push_str(&value(part, values)?);
            }
        }
        let has = |word: &str| line.split_ascii_whitespace().any(|other| other.starts_with(word));
        let mut more = Vec::new();
        if !has("goldsync.slot=") {
            more.push(format!("goldsync.slot={}", values.slot));
        }
        if !has("panic=") {
            more.push("panic=10".to_owned());
        }
        let words = line.split_ascii_whitespace().map(str::to_owned);
        Ok(words.chain(more).collect::<Vec<_>>().join(" "))
    }
}

fn value(name: &str, values: &Values<'_>) -> Result<String, String> {
    let slot = values.slot;
    match name {
        "slot" => Ok(slot.to_string()),
        "path" => Ok(values.path.display().to_string()),
        "partuuid" => partition_uuid(values.path).ok_or_else(|| {
            let path = values.path.display();
            format!("has {{partuuid}}, but {path}, slot {slot}, is no partition with a UUID that udev or the kernel knows; write a `root=` without it")
        }),
        "image" => values.image.clone().ok_or_else(|| format!("has {{image}}, but what slot {slot} holds is not known")),
        name => {
            let sealed = values.sealed.ok_or_else(|| {
                format!("has {{{name}}}, but what slot {slot} holds is not known to be sealed by dm-verity")
            })?;
            Ok(if name == "root_hash" { sealed.root_hash.to_string() } else { sealed.hash_offset.to_string() })
        }
    }
}

/// The UUID of the partition that a path leads to: from udev's links, or from the kernel (6.11 and later), which needs no udev.
fn partition_uuid(path: &Path) -> Option<String> {
    let number = fs::metadata(path).ok()?.rdev();
    let device = Identity::of(path).ok()?;
    let mut links = fs::read_dir("/dev/disk/by-partuuid").into_iter().flatten().flatten();
    let by_link = links.find(|link| Identity::of(&link.path()).is_ok_and(|found| found == device));
    if let Some(link) = by_link {
        return link.file_name().into_string().ok();
    }
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("PARTUUID=")).map(str::to_owned)
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts.iter().enumerate() {
            if at % 2 == 0 { f.write_str(part)? } else { write!(f, "{{{part}}}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values<'static> {
        Values { slot: SlotName::B, path: Path::new("/no/b"), image: Some("ab12".into()), sealed: None }
    }

    #[test]
    fn places_are_filled_and_what_must_be_there_is_added() {
        for (text, expected) in [
            ("root={path} ro", "root=/no/b ro goldsync.slot=b panic=10"),
            ("x={slot}{image}  panic=3", "x=bab12 panic=3 goldsync.slot=b"),
            ("goldsync.slot={slot}", "goldsync.slot=b panic=10"),
            ("", "goldsync.slot=b panic=10"),
        ] {
            let template = Template::read(text).unwrap();
            assert_eq!((template.fill(&values()).unwrap().as_str(), template.to_string().as_str()), (expected, text));
        }
    }

    #[test]
    fn what_cannot_be_filled_is_said() {
        for (text, expected) in [
            ("a {", "has no `}`"),
            ("a {slt}", "has {slt}, which is not known; there are {slot}, {path}"),
            ("a\nb", "control character"),
        ] {
            let error = Template::read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        for (text, expected) in [
            ("{partuuid}", "/no/b, slot b, is no partition"),
            ("{root_hash}", "has {root_hash}, but what slot b holds is not known to be sealed"),
        ] {
            let error = Template::read(text).unwrap().fill(&values()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
