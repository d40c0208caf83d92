//! The demo: a whole fleet on this machine, through an update's whole life, told with what each step cost.
//!
//! ```text
//! goldsync-demo            makes the scratch folder, waits for the teller or Ctrl-C, removes the folder
//!  └─ goldsync-demo        the teller, in a process group of its own
//!      ├─ goldsync serve   the server
//!      ├─ goldsync-agent   three daemons
//!      └─ verbs            `goldsync publish`, `goldsync-agent repair`, ...
//! ```
//! The teller is a process of its own so that Ctrl-C ends everything that was started, wherever the story stands, and the
//! folder goes only when nobody is in it any more. Every figure comes from the programs themselves, and every BLAKE3 from
//! reading the slot's file here.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

mod show;
mod story;
mod summary;

/// A whole fleet on this machine: a server, three nodes, two images.
///
/// Starts the real programs on loopback, in a scratch folder that is removed at the end, and tells what each step cost: a
/// cold start, an update by pack, drift and its repair, a rollback. Without --old and --new it makes two images from the
/// Rust toolchain's own files. Exit code 0 only if every slot ends up golden, by BLAKE3.
#[derive(Debug, Parser)]
#[command(name = "goldsync-demo", version, max_term_width = 110)]
pub struct Options {
    /// The first image: a file, a multiple of 4096 bytes long.
    #[arg(long, value_name = "FILE", requires = "new")]
    pub old: Option<PathBuf>,
    /// The second image, a release later.
    #[arg(long, value_name = "FILE", requires = "old")]
    pub new: Option<PathBuf>,
    /// MiB of files for the images that the demo makes itself.
    #[arg(long, value_name = "MIB", default_value_t = 128, conflicts_with = "old")]
    #[arg(value_parser = clap::value_parser!(u64).range(4..=4096))]
    pub size: u64,
    /// Where the scratch folder is made. Needs about nine times an image.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub folder: PathBuf,
    /// Leave the scratch folder as it is at the end, to look around.
    #[arg(long)]
    pub keep: bool,
    /// Print everything as one JSON document in the end; the story goes to standard error.
    #[arg(long)]
    pub json: bool,
    /// Tell the story in this folder, and leave it there.
    #[arg(long, value_name = "DIR", hide = true)]
    scratch: Option<PathBuf>,
}

/// How long programs may take to stop when asked to.
const GRACE: Duration = Duration::from_secs(5);

/// The demo, to its exit code.
pub fn main(options: &Options) -> ExitCode {
    let told = match &options.scratch {
        Some(scratch) => story::tell(options, scratch).map(|golden| if golden { 0 } else { 1 }),
        None => supervise(options),
    };
    match told {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(options: &Options) -> Result<u8> {
    let scratch = tempfile::Builder::new().prefix("goldsync-demo.").tempdir_in(&options.folder);
    let scratch = scratch.with_context(|| format!("make a folder in {}", options.folder.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(watch(scratch.path()));
    if options.keep {
        eprintln!("The scratch folder is kept: {}", scratch.keep().display());
    } else {
        remove(scratch.path())?;
    }
    ended
}

/// Starts the teller and waits for its end, or for ours.
async fn watch(scratch: &Path) -> Result<u8> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--scratch").arg(scratch).process_group(0);
    let mut teller = command.spawn().context("start the demo's own process")?;
    loop {
        if let Some(status) = teller.try_wait()? {
            end(&mut teller);
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    eprintln!("\ninterrupted; stopping what was started");
    end(&mut teller);
    Ok(130)
}

/// Ends the teller and all that it started: first kindly.
fn end(teller: &mut Child) {
    let Some(group) = i32::try_from(teller.id()).ok().and_then(Pid::from_raw) else { return };
    let until = Instant::now() + GRACE;
    let mut ask = Signal::TERM;
    loop {
        let _ = kill_process_group(group, ask);
        std::thread::sleep(Duration::from_millis(50));
        let _ = teller.try_wait();
        // Whoever else is in the group and has ended is waited for by the system: nobody else is their parent now.
        if test_kill_process_group(group).is_err() {
            return;
        }
        if Instant::now() > until {
            ask = Signal::KILL;
        }
        if Instant::now() > until + GRACE {
            return;
        }
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
