//! Images with a file system in them, made as image builders make them; `None` where a tool is not installed.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

/// What mkfs would else draw at random.
const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read-only, compressed or not.
    Erofs,
    /// Read-only, compressed.
    Squashfs,
    /// 16 MiB of it.
    Ext4,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Erofs, Self::Squashfs, Self::Ext4];

    /// Makes an image of the files in a folder: whole blocks, the same at every time.
    pub fn make(self, from: &Path, image: &Path) -> Option<()> {
        let (image_text, from) = (text(image), text(from));
        match self {
            Self::Erofs => tool("mkfs.erofs", &["-T0", "-U", UUID, image_text, from])?,
            Self::Squashfs => {
                let fixed = ["-noappend", "-quiet", "-no-progress", "-all-time", "0", "-mkfs-time", "0"];
                tool("mksquashfs", &[&[from, image_text], &fixed[..]].concat())?
            }
            Self::Ext4 => {
                let options = format!("root_owner=0:0,hash_seed={UUID}");
                let kind = ["-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID, "-E", &options];
                tool("mke2fs", &[&kind[..], &["-d", from, image_text, "16M"]].concat())?
            }
        };
        let length = fs::metadata(image).expect("an image").len();
        let file = File::options().write(true).open(image).expect("an image");
        file.set_len(length.next_multiple_of(4096)).expect("whole blocks");
        Some(())
    }
}

/// Runs a tool, which must succeed; `None`, if it is not there.
pub fn tool(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.unwrap_or_else(|error| panic!("{program}: {error}")),
    };
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path as text")
}
