//! Which images are compared: what `scripts/make-images` made, or a folder that lists its own.
//!
//! A folder's file `pairs` has a line "NAME OLD NEW" for each. Without it, the names below are looked for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// An old image and a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What kind of change it is.
    pub name: String,
    /// What the node has.
    pub old: PathBuf,
    /// What it shall have.
    pub new: PathBuf,
    /// The old image is one that no server knows: a node's own, drifted.
    pub drifted: bool,
}

/// The pair whose node believes that it runs the golden image already.
pub const REPAIR: &str = "repair";

/// What `scripts/make-images` lists too.
const KNOWN: &[(&str, &str, &str)] = &[
    ("rebuilt", "old.ext4", "new.ext4"),
    ("upgraded", "old.ext4", "new-inplace.ext4"),
    ("hotfix", "old.ext4", "new-hotfix.ext4"),
    ("squashfs", "old.squashfs", "new.squashfs"),
    ("erofs", "old.erofs", "new.erofs"),
    ("erofs-lz4", "old.erofs-lz4", "new.erofs-lz4"),
    ("drifted", "node-drift.ext4", "new.ext4"),
    (REPAIR, "node-drift.ext4", "old.ext4"),
];

/// The pairs of `folder`, in its order, that `wanted` names; all, if it names none.
pub fn find(folder: &Path, wanted: &[String]) -> Result<Vec<Pair>> {
    let listed = match fs::read_to_string(folder.join("pairs")) {
        Ok(text) => parse(&text)?,
        Err(_) => KNOWN.iter().map(|(name, old, new)| [name, old, new].map(|word| (*word).to_owned())).collect(),
    };
    let pairs: Vec<Pair> = listed
        .into_iter()
        .map(|[name, old, new]| {
            let drifted = old.contains("drift");
            Pair { name, old: folder.join(old), new: folder.join(new), drifted }
        })
        .filter(|pair| wanted.is_empty() || wanted.contains(&pair.name))
        .filter(|pair| pair.old.is_file() && pair.new.is_file())
        .collect();
    for name in wanted {
        ensure!(pairs.iter().any(|pair| pair.name == *name), "{} has no pair {name:?}", folder.display());
    }
    ensure!(!pairs.is_empty(), "{} holds no pair of images; scripts/make-images makes some", folder.display());
    Ok(pairs)
}

fn parse(text: &str) -> Result<Vec<[String; 3]>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            words.try_into().ok().with_context(|| format!("{line:?} is not \"NAME OLD NEW\""))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_s_own_list_is_read_and_what_is_not_there_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("pairs"), "# made\nrebuilt a b\ngone a c\ndrifted node-drift.ext4 b\n").unwrap();
        for name in ["a", "b", "node-drift.ext4"] {
            fs::write(path.join(name), "x").unwrap();
        }
        let names = |pairs: Vec<Pair>| pairs.into_iter().map(|pair| (pair.name, pair.drifted)).collect::<Vec<_>>();
        assert_eq!(names(find(path, &[]).unwrap()), [("rebuilt".into(), false), ("drifted".into(), true)]);
        assert_eq!(names(find(path, &["rebuilt".into()]).unwrap()), [("rebuilt".into(), false)]);
        assert!(find(path, &["gone".into()]).unwrap_err().to_string().contains("gone"));
        fs::write(path.join("pairs"), "two words\n").unwrap();
        assert!(find(path, &[]).unwrap_err().to_string().contains("NAME OLD NEW"));
    }

    #[test]
    fn without_a_list_the_usual_names_are_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(folder.path(), &[]).unwrap_err().to_string().contains("make-images"));
        for name in ["old.ext4", "new-hotfix.ext4"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(find(folder.path(), &[]).unwrap()[0].name, "hotfix");
    }
}
