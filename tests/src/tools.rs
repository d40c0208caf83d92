//! Both programs' command lines as processes, waited for without blocking the fleet that is in this process.

use std::ffi::OsStr;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::programs::{Programs, beside};

/// The operator's tool and the server.
pub const GOLDSYNC: &str = "goldsync";
/// What runs on a node.
pub const AGENT: &str = "goldsync-agent";

/// A command line about to be run. The environment is this process's, without what would reach a real installation.
pub fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    // The demo's executable is both programs.
    let executable = beside("goldsync-demo").unwrap_or_else(|error| panic!("{error:#}"));
    let mut command = Command::from(Programs::at(executable).command(program));
    command.args(args).env_remove("GOLDSYNC_OPERATOR").env_remove("NOTIFY_SOCKET");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The same, in a network namespace.
pub fn command_in<S: AsRef<OsStr>>(namespace: &str, program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let inner = command(program, args);
    let inner = inner.as_std();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs it to its end.
pub async fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Ran {
    let mut command = command(program, args);
    let line = format!("{:?}", command.as_std());
    finish(command.spawn().unwrap_or_else(|error| panic!("{line}: {error}")), line).await
}

/// Waits for a process that [`command`] began.
pub async fn finish(child: Child, line: String) -> Ran {
    let output = child.wait_with_output().await.unwrap_or_else(|error| panic!("{line}: {error}"));
    Ran {
        line,
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// How a command line ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What was run.
    pub line: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}{}", self.line, self.out, self.err);
        self
    }

    /// Its output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}{}", self.line, self.out, self.err))
    }

    /// It must have failed with this exit code, and have said all of these words on standard error.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.line, self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "{}\nexpected {word:?} in:\n{}", self.line, self.err);
        }
        self
    }
}
