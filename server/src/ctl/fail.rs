//! How a verb fails: an exit code for programs, a sentence and a remedy for people.
//!
//! Every error of the operator's tool ends up here, and here alone is decided which exit code it is. The list of codes
//! is printed by `goldsync --help` and stands in `docs/OPERATING.md`.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of `goldsync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It did not work, or the fleet is not as asked.
    Failed = 1,
    /// Wrong usage, or a configuration that cannot be used.
    Usage = 2,
    /// A signature, an expiry date or a certificate is not as it must be.
    NotTrusted = 3,
    /// The server is unreachable, or refused us.
    Server = 4,
    /// An image, a disk or a folder: missing, unreadable, full.
    Disk = 5,
    /// Another run is in progress.
    Busy = 75,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a verb failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// The values, for people.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// What a verb gives.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without a remedy.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: None }
    }

    /// The same, with what to do about it.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// A failure of a file or folder, named.
    pub fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let failure = Self::new(Code::Disk, format!("{what} {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => failure.remedy("run it as a user who may, or change the mode"),
            std::io::ErrorKind::StorageFull => failure.remedy("make room on that file system and run it again"),
            _ => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error with all its causes on one line, each said once: many libraries repeat their cause in their own text.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        cause: Option<Box<Layer>>,
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = Layer { text: "connection refused", cause: None };
        let middle = Layer { text: "cannot connect: connection refused", cause: Some(Box::new(inner)) };
        let outer = Layer { text: "sending failed", cause: Some(Box::new(middle)) };
        assert_eq!(chain(&outer), "sending failed: cannot connect: connection refused");
    }

    #[test]
    fn a_file_s_failure_names_it_and_the_cure() {
        let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let failure = Failure::io("cannot read", std::path::Path::new("/dev/vg0/golden"), &error);
        assert_eq!(failure.code, Code::Disk);
        assert!(failure.message.starts_with("cannot read /dev/vg0/golden: "), "{failure}");
        assert!(failure.remedy.is_some());
    }
}
