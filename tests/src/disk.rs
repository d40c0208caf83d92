//! Small file systems and loop devices, where this process may have them.
//!
//! Tests that need them skip loudly where it may not: [`skip`] says on standard error what was not tested and why.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Says loudly that a test does not run here.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    // Standard error of a test that passes is not shown; a runner that looks for skips finds this.
    if let Ok(file) = std::env::var("GOLDSYNC_TESTS_SKIPPED") {
        use std::io::Write;
        let written = std::fs::File::options().create(true).append(true).open(&file);
        written.and_then(|mut file| writeln!(file, "{test}: {why}")).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path as text")
}

/// Something mounted; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
}

impl Mounted {
    /// A file system in memory of so many bytes, on a new folder.
    pub fn tmpfs(point: &Path, bytes: u64) -> Result<Self, String> {
        std::fs::create_dir_all(point).map_err(|error| error.to_string())?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "goldsync-test", text(point)])?;
        Ok(Self { point: point.to_owned() })
    }

    /// A device or file, as it is.
    pub fn of(what: &Path, point: &Path, options: &str) -> Result<Self, String> {
        std::fs::create_dir_all(point).map_err(|error| error.to_string())?;
        run("mount", &["-o", options, text(what), text(point)])?;
        Ok(Self { point: point.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &["-l", text(&self.point)]) {
            eprintln!("left mounted: {error}");
        }
    }
}

/// A loop device over a file; detached when dropped.
#[derive(Debug)]
pub struct Loop {
    /// `/dev/loopN`
    pub device: PathBuf,
}

impl Loop {
    /// A device of so many bytes over a new file.
    pub fn new(file: &Path, bytes: u64) -> Result<Self, String> {
        let made = std::fs::File::create(file).and_then(|file| file.set_len(bytes));
        made.map_err(|error| error.to_string())?;
        Self::over(file, &[])
    }

    /// A device over a file that is there.
    pub fn over(file: &Path, options: &[&str]) -> Result<Self, String> {
        let mut args = vec!["--find", "--show"];
        args.extend(options);
        args.push(text(file));
        run("losetup", &args).map(|device| Self { device: device.into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", &["-d", text(&self.device)]) {
            eprintln!("left attached: {error}");
        }
    }
}

/// Makes an ext4 file system in a file of so many bytes.
pub fn make_ext4(file: &Path, bytes: u64) -> Result<(), String> {
    std::fs::File::create(file).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
    run("mkfs.ext4", &["-q", "-F", text(file)]).map(drop)
}

/// Makes an XFS file system, which shares bytes between files, in a file of so many bytes: 300 MiB at least.
pub fn make_xfs(file: &Path, bytes: u64) -> Result<(), String> {
    std::fs::File::create(file).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
    run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", text(file)]).map(drop)
}
