//! Activation by a site's own program.
//!
//! ```text
//! PROGRAM [ARG...] query         prints `a`, `b` or `none` and ends with 0
//! PROGRAM [ARG...] activate a|b  makes that slot the active one and ends with 0
//! ```
//! * Environment, besides the agent's own: `GOLDSYNC_SLOT_A` and `GOLDSYNC_SLOT_B` (the slots' paths); for `activate`
//!   also `GOLDSYNC_SLOT_PATH` (the path of the slot to activate), `GOLDSYNC_IMAGE` (its BLAKE3, 64 digits) and
//!   `GOLDSYNC_RELEASE` (`NAME:VERSION`).
//! * Standard input is empty. What `activate` prints is ignored; standard error is shown when it fails.
//! * Exit code 0 means done and durable; any other code, or a signal, means that the old slot is still active.
//! * Atomicity is the program's duty: power lost at any moment leaves the old slot active or the new one. Activating
//!   the slot that is active already must succeed.
//! * It has `activation.time_limit` (default 60 s); then it and the processes it started are killed, and `query` is
//!   asked at the next occasion how things stand.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{Activation, ActivationError, Holds};
use crate::config::Slots;
use crate::slot::SlotName;

/// More than this is read from the program, but not kept.
const OUTPUT_KEPT: usize = 4 << 10;

/// A program that knows which slot is active.
#[derive(Debug)]
pub struct Command {
    command: Vec<String>,
    limit: Duration,
    slots: Slots,
}

impl Command {
    /// The program with its leading arguments, how long a call may take, and the slots.
    pub fn new(command: Vec<String>, limit: Duration, slots: &Slots) -> Self {
        Self { command, limit, slots: slots.clone() }
    }

    fn call(&self, arguments: &[&str], environment: &[(&str, String)]) -> Result<String, ActivationError> {
        let (program, leading) = self.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        let call = [self.command.join(" "), arguments.join(" ")].join(" ");
        let mut child = process::Command::new(program)
            .args(leading)
            .args(arguments)
            .env("GOLDSYNC_SLOT_A", self.slots.path(SlotName::A))
            .env("GOLDSYNC_SLOT_B", self.slots.path(SlotName::B))
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that a time-out reaches what it has started too.
            .process_group(0)
            .spawn()
            .map_err(|error| ActivationError::Start { program: PathBuf::from(program), error })?;
        let (printed, complaint) = (drain(child.stdout.take()), drain(child.stderr.take()));
        let deadline = Instant::now() + self.limit;
        let status = wait(&mut child, deadline);
        // Whatever it left running must not hold the pipes, nor go on behind our back after a time-out.
        if status.is_none() {
            kill_group(&child);
            let _ = child.wait();
            return Err(ActivationError::Timeout { call, limit: self.limit });
        }
        let text = |output: Receiver<Vec<u8>>| {
            let patience = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
            String::from_utf8_lossy(&output.recv_timeout(patience).unwrap_or_default()).trim().to_owned()
        };
        let (printed, complaint) = (text(printed), text(complaint));
        match status {
            Some(status) if status.success() => Ok(printed),
            other => {
                let status = other.map_or_else(String::new, |status| status.to_string());
                Err(ActivationError::Failed { call, status, complaint })
            }
        }
    }
}

impl Activation for Command {
    fn active(&self) -> Result<Option<SlotName>, ActivationError> {
        let printed = self.call(&["query"], &[])?;
        match printed.as_str() {
            "none" => Ok(None),
            other => other.parse().map(Some).map_err(|_| ActivationError::Answer {
                call: format!("{} query", self.command.join(" ")),
                printed: printed.chars().take(80).collect(),
            }),
        }
    }

    fn activate(&self, slot: SlotName, holds: &Holds) -> Result<(), ActivationError> {
        let environment = [
            ("GOLDSYNC_SLOT_PATH", self.slots.path(slot).display().to_string()),
            ("GOLDSYNC_IMAGE", holds.image.to_string()),
            ("GOLDSYNC_RELEASE", holds.release.to_string()),
        ];
        self.call(&["activate", slot.as_str()], &environment).map(drop)
    }
}

/// Reads a pipe to its end on a thread of its own, keeping the last [`OUTPUT_KEPT`] bytes.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; OUTPUT_KEPT]);
        if let Some(mut pipe) = pipe {
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..read]);
                kept.drain(..kept.len().saturating_sub(OUTPUT_KEPT));
            }
        }
        let _ = sender.send(kept);
    });
    receiver
}

/// Waits until the child ends or the deadline passes. Looks often at first, then every 50 ms: calls are short and rare.
fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(pause),
            _ => return None,
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn kill_group(child: &Child) {
    let group = rustix::process::Pid::from_raw(child.id() as i32);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn holds() -> Holds {
        Holds { image: goldsync_proto::digest::ImageId::of(b"x"), release: "web:1".parse().unwrap() }
    }

    fn script(folder: &Path, body: &str, limit: Duration) -> Command {
        let slots = Slots { a: "/slots/a".into(), b: "/slots/b".into(), size: None };
        let path = folder.join("program");
        fs::write(&path, body).unwrap();
        Command::new(vec!["/bin/sh".into(), path.display().to_string(), "extra".into()], limit, &slots)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_contract_is_kept_from_query_to_activate() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let body = format!(
            r#"
            set -eu
            [ "$1" = extra ]
            case "$2" in
              query) cat '{0}' 2>/dev/null || echo none ;;
              activate) echo "$3" > '{0}.new'; mv '{0}.new' '{0}'; env | grep -e '^GOLDSYNC_SLOT' -e '^GOLDSYNC_IMAGE=' -e '^GOLDSYNC_RELEASE=' | sort > '{0}.env' ;;
            esac"#,
            state.display()
        );
        let command = script(folder.path(), &body, LONG);
        assert_eq!(command.active().unwrap(), None);
        command.activate(SlotName::B, &holds()).unwrap();
        assert_eq!(command.active().unwrap(), Some(SlotName::B));
        let environment = fs::read_to_string(folder.path().join("state.env")).unwrap();
        let image = holds().image;
        let expected = format!(
            "GOLDSYNC_IMAGE={image}\nGOLDSYNC_RELEASE=web:1\nGOLDSYNC_SLOT_A=/slots/a\nGOLDSYNC_SLOT_B=/slots/b\nGOLDSYNC_SLOT_PATH=/slots/b\n"
        );
        assert_eq!(environment, expected);
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let command = script(folder.path(), "echo 'no such entry' >&2; exit 3", LONG);
        let error = command.activate(SlotName::A, &holds()).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such entry"), "{error}");
        assert!(error.contains("extra activate a"), "{error}");
    }

    #[test]
    fn an_answer_that_is_none_of_the_three_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for answer in ["c", "", "a b", "A"] {
            let command = script(folder.path(), &format!("echo '{answer}'"), LONG);
            assert!(matches!(command.active(), Err(ActivationError::Answer { .. })), "{answer}");
        }
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let body = format!("sleep 1000 & echo $! > '{0}.new'; mv '{0}.new' '{0}'; wait", pid.display());
        let command = script(folder.path(), &body, Duration::from_millis(500));
        let error = command.active().unwrap_err();
        assert!(matches!(error, ActivationError::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("activation.time_limit"), "{error}");
        // The kernel takes its time to bury the killed; a child that was spared would sleep far longer than this waits.
        let alive = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.contains("(sleep)") && !stat.contains(") Z ")
        };
        if let Ok(pid) = fs::read_to_string(&pid) {
            let gone = (0..600).any(|_| {
                thread::sleep(Duration::from_millis(50));
                !alive(&pid)
            });
            assert!(gone, "process {pid} is still there");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let slots = Slots { a: "/a".into(), b: "/b".into(), size: None };
        let command = Command::new(vec!["/no/such/program".into()], LONG, &slots);
        assert!(command.active().unwrap_err().to_string().contains("/no/such/program"));
    }

    #[test]
    fn much_output_neither_blocks_nor_grows() {
        let folder = tempfile::tempdir().unwrap();
        let command = script(folder.path(), "head -c 1000000 /dev/zero >&2; echo a", LONG);
        assert_eq!(command.active().unwrap(), Some(SlotName::A));
    }
}
