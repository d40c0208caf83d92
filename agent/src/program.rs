//! Running a site's own program: with a time limit, and nothing of it left behind.
//!
//! Standard input is empty; what it prints is kept up to a bound; when its time is over, it and all that it has started are
//! killed. Used for activation, health checks and restarts, which each say what they call and what an exit code means.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// More than this is read from the program, but not kept: the last bytes are.
const OUTPUT_KEPT: usize = 4 << 10;

/// A program and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program, by its absolute path, and its leading arguments.
    pub command: Vec<String>,
    /// How long one call may take.
    pub limit: Duration,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It cannot be started.
    #[error("{} cannot be started: {error}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It did not end in time and was killed.
    #[error("`{call}` did not end within {limit:?} and was killed")]
    Timeout {
        /// Program and arguments.
        call: String,
        /// The limit.
        limit: Duration,
    },
    /// It failed.
    #[error("`{call}` ended with {status}{}", said(complaint))]
    Failed {
        /// Program and arguments.
        call: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// The end of its standard error.
        complaint: String,
    },
}

fn said(complaint: &str) -> String {
    if complaint.is_empty() { String::new() } else { format!(": {complaint}") }
}

impl Program {
    /// Runs it with further arguments and variables, and waits: what it printed.
    pub fn call(&self, arguments: &[&str], environment: &[(&str, String)]) -> Result<String, ProgramError> {
        let (program, leading) = self.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        let mut child = process::Command::new(program)
            .args(leading)
            .args(arguments)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            // What the service manager expects to hear, it expects from us: systemd's own tools would speak up, and be warned of.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that a time-out reaches what it has started too.
            .process_group(0)
            .spawn()
            .map_err(|error| ProgramError::Start { program: PathBuf::from(program), error })?;
        let (printed, complaint) = (drain(child.stdout.take()), drain(child.stderr.take()));
        let deadline = Instant::now() + self.limit;
        let Some(status) = wait(&mut child, deadline) else {
            // Whatever it left running must not hold the pipes, nor go on behind our back.
            kill_group(&child);
            let _ = child.wait();
            return Err(ProgramError::Timeout { call: self.shown(arguments), limit: self.limit });
        };
        let text = |output: Receiver<Vec<u8>>| {
            let patience = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
            String::from_utf8_lossy(&output.recv_timeout(patience).unwrap_or_default()).trim().to_owned()
        };
        let (printed, complaint) = (text(printed), text(complaint));
        if status.success() {
            return Ok(printed);
        }
        Err(ProgramError::Failed { call: self.shown(arguments), status, complaint })
    }

    /// The call as a shell's user would write it.
    pub fn shown(&self, arguments: &[&str]) -> String {
        let leading = self.command.iter().map(String::as_str);
        leading.chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ")
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

    fn shell(script: &str, limit: Duration) -> Program {
        Program { command: vec!["/bin/sh".into(), "-c".into(), script.into()], limit }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_does_not_speak_to_the_service_manager_for_us() {
        let printed =
            shell("echo ${NOTIFY_SOCKET-nowhere}", LONG).call(&[], &[("NOTIFY_SOCKET", "/run/notify".into())]);
        assert_eq!(printed.unwrap(), "nowhere");
    }

    #[test]
    fn what_it_prints_is_returned_and_what_it_complains_of_is_quoted() {
        assert_eq!(shell("echo $X", LONG).call(&[], &[("X", "y".into())]).unwrap(), "y");
        let error = shell("echo broken >&2; exit 3", LONG).call(&["more"], &[]).unwrap_err().to_string();
        assert!(error.contains("exit status: 3: broken") && error.contains("more"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > '{0}.new'; mv '{0}.new' '{0}'; wait", pid.display());
        let error = shell(&script, Duration::from_millis(500)).call(&[], &[]).unwrap_err();
        assert!(matches!(error, ProgramError::Timeout { .. }), "{error}");
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
        let program = Program { command: vec!["/no/such/program".into()], limit: LONG };
        assert!(program.call(&[], &[]).unwrap_err().to_string().contains("/no/such/program"));
    }

    #[test]
    fn much_output_neither_blocks_nor_grows() {
        let printed = shell("head -c 1000000 /dev/zero >&2; echo a", LONG).call(&[], &[]).unwrap();
        assert_eq!(printed, "a");
    }
}
