//! Tests that mount: each runs once more in a process with a mount namespace of its own, with which all of its mounts end,
//! however it ends; and with them their loop devices, which detach themselves.

use std::process::Command;

use crate::disk::skip;

/// Set to the test's name in the process that really runs it.
const INSIDE: &str = "GOLDSYNC_TESTS_NAMESPACE";

/// Runs the test `name` in a namespace of its own; `true` in there. Elsewhere it has passed, or is skipped loudly, when this
/// returns `false`.
#[must_use]
pub fn own(name: &str) -> bool {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return true;
    }
    let unshare = |program: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]).args(program);
        command
    };
    match unshare(&["true"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            skip(name, String::from_utf8_lossy(&output.stderr).trim());
            return false;
        }
        Err(error) => {
            skip(name, &format!("unshare: {error}"));
            return false;
        }
    }
    let own = std::env::current_exe().expect("path of this test");
    let own = own.to_str().expect("a path as text");
    let status = unshare(&[own, "--exact", name, "--nocapture", "--test-threads", "1"]).env(INSIDE, name).status();
    assert!(status.expect("unshare").success(), "{name} failed; see above");
    false
}
