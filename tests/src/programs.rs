//! goldsync's two programs, in one executable that starts itself again.
//!
//! A test or the demo is one file to build and to run, and still talks to real processes: those can be killed.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// If this process was started to be one of the programs, be it. To be called first in `main`.
pub fn be_one() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next()?;
    let args = std::iter::once(program.clone()).chain(args);
    match program.to_str()? {
        "goldsync" => Some(goldsync_server::main_with(args)),
        "goldsync-agent" => Some(goldsync_agent::cli::main_with(args)),
        _ => None,
    }
}

/// The program `name` beside this one, where cargo puts what it builds.
pub fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find out which executable this is")?;
    let mut places = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let found = places.find(|place| place.is_file());
    found.with_context(|| {
        format!("there is no {name} beside {}; `cargo build --workspace --bins` makes it", own.display())
    })
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    executable: PathBuf,
}

impl Programs {
    /// An executable whose `main` begins with [`be_one`].
    pub fn at(executable: impl Into<PathBuf>) -> Self {
        Self { executable: executable.into() }
    }

    /// This one.
    pub fn this() -> Result<Self> {
        std::env::current_exe().map(Self::at).context("cannot find out which executable this is")
    }

    /// A command that is the program `name`.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.executable);
        command.arg(name).stdin(Stdio::null()).env_remove("RUST_LOG").env("NO_COLOR", "1");
        command
    }
}

/// What a program that ended has left.
#[derive(Debug)]
pub struct Run {
    /// Program and arguments.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Run {
    /// Runs a command to its end.
    pub fn of(mut command: Command) -> Result<Self> {
        let line = line_of(&command);
        let output = command.output().with_context(|| format!("cannot start {line}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self { line, status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) })
    }

    /// Its exit code; -1 if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// It must have ended with this code.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code() == code,
            "{} ended with {}, not {code}:\n{}{}",
            self.line,
            self.code(),
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// It must have done what it was asked.
    pub fn ok(self) -> Result<Self> {
        self.expect(0)
    }

    /// What it printed, as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("{} did not print JSON:\n{}{}", self.line, self.stdout, self.stderr))
    }
}

/// A command as one would type it.
fn line_of(command: &Command) -> String {
    let words: Vec<OsString> = command.get_args().map(OsString::from).collect();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A program that runs until it is told to stop. What it says goes to a file.
#[derive(Debug)]
pub struct Daemon {
    line: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a command, its output going to the end of `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let line = line_of(&command);
        let open =
            || File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()));
        command.stdout(open()?).stderr(open()?);
        let child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        Ok(Self { line, child, log: log.to_owned() })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; a daemon that ends meanwhile, or takes longer than half a minute, is an error.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready()? {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}:\n{}", self.line, self.said());
            }
            ensure!(Instant::now() < deadline, "{}: not {what} after 30 s:\n{}", self.line, self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Asks it to stop, as systemd would, and waits; one that does not within half a minute is killed, and an error.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} did not stop within 30 s:\n{}", self.line, self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power cut would: now.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).with_context(|| format!("kill {}", self.line))
    }

    /// Stops it in its tracks, or lets it go on: `STOP`, `CONT`, or any other signal.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        ensure!(status.is_ok_and(|status| status.success()), "cannot send {name} to {}", self.line);
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
