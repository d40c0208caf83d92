//! A root file system with systemd as its first program, put together as an image builder would: read-only, the same on every
//! machine.
//!
//! ```text
//! Debian's packages                     as scripts/make-machines unpacked them, and busybox for what a shell needs
//! /usr/bin/goldsync-agent               with packaging/goldsync-agent.service and tmpfiles.conf, as a package installs them
//! /etc/goldsync/agent.toml              the golden configuration: nothing in it is one machine's own
//! /usr/libexec/machine                  tests/guest/machine, and its units: mounts and network, enrolment, telling the test
//! /var                                  empty: this machine's own, a partition
//! ```
//! There is no udev, so that mounts are made by name. What a start here can do without is left out: each service takes seconds on
//! an emulator.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::image::{Flaw, script};
use super::parts::{Parts, libraries};
use crate::programs::Run;

const MACHINE: &str = include_str!("../../guest/machine");
const AGENT_UNIT: &str = include_str!("../../../packaging/goldsync-agent.service");
const TMPFILES: &str = include_str!("../../../packaging/tmpfiles.conf");

/// The golden configuration: GRUB chooses what a real start takes, and an update starts user space alone.
const AGENT_TOML: &str = r#"
channel = "dev"

[slots]
a = "/dev/vda2"
b = "/dev/vda3"

[activation]
backend = "grub"
grubenv = "/esp/grub/grubenv"

[health]
commands = [["/usr/libexec/health"]]
units = ["dbus.service", "machine-begin.service"]
server = true
deadline = "60 s"
every = "1 s"

[restart]
how = "soft-reboot"
keep = ["/var"]
"#;

/// Units, and what wants them.
const UNITS: [(&str, &str, &str); 3] = [
    (
        "machine-begin.service",
        "local-fs.target",
        "[Unit]\nDefaultDependencies=no\nBefore=local-fs.target network-online.target shutdown.target umount.target\n\
         Conflicts=shutdown.target umount.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/libexec/machine begin\n",
    ),
    (
        "machine-enrol.service",
        "multi-user.target",
        "[Unit]\nBefore=goldsync-agent.service\n\
         [Service]\nType=oneshot\nExecStart=/usr/libexec/machine enrol\nStandardError=journal+console\n",
    ),
    (
        "machine-up.service",
        "multi-user.target",
        "[Unit]\nAfter=goldsync-agent.service\n[Service]\nExecStart=/usr/libexec/machine up\nStandardError=journal+console\n",
    ),
];

/// What the agent says is for who reads why a story failed.
const HEARD: &str = "[Service]\nStandardOutput=journal+console\nStandardError=journal+console\n";

/// What Debian starts with every machine, as far as this one has it.
const WANTED: [(&str, &[&str]); 3] = [
    ("sysinit.target.wants", &["systemd-journald.service", "systemd-tmpfiles-setup.service"]),
    ("sockets.target.wants", &["dbus.socket", "systemd-journald.socket", "systemd-journald-dev-log.socket"]),
    ("multi-user.target.wants", &["dbus.service", "systemd-logind.service"]),
];

const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n\
                     nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n";
const GROUPS: &str = "root:x:0:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nutmp:x:43:\nmessagebus:x:100:\nsystemd-journal:x:101:\nnogroup:x:65534:\n";

/// Writes the system into the folder `tree`, which is empty.
pub fn system(parts: &Parts, agent: &Path, tree: &Path, release: &str, flaw: Flaw) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg("-T").arg(parts.userland()).arg(tree);
    Run::of(copy)?.ok()?;
    for folder in ["boot", "dev", "esp", "proc", "root", "run", "sys", "tmp", "usr/libexec", "etc/goldsync"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    shell(parts, tree)?;
    for library in libraries(agent)? {
        // The system's own are as new as the agent's, and belong together.
        let place = tree.join(library.strip_prefix("/")?);
        ensure!(place.exists(), "the userland lacks {}, which the agent needs", library.display());
    }
    let text = |path: &str, text: &str| fs::write(tree.join(path), text).with_context(|| format!("write {path}"));
    text("etc/passwd", USERS)?;
    text("etc/group", GROUPS)?;
    // Empty: each machine makes its own, for as long as it is on.
    text("etc/machine-id", "")?;
    text("etc/hostname", "machine\n")?;
    text("etc/goldsync/agent.toml", AGENT_TOML)?;
    text("usr/lib/os-release", &format!("ID=story\nNAME=Story\nVERSION=\"{release}\"\n"))?;
    symlink("../usr/lib/os-release", tree.join("etc/os-release"))?;
    script(&tree.join("usr/libexec/machine"), MACHINE)?;
    units(tree)?;
    ensure!(flaw != Flaw::Panics, "systemd does not end");
    if flaw == Flaw::NoInit {
        fs::remove_file(tree.join("sbin/init"))?;
    }
    Ok(())
}

/// busybox, under all names that Debian's packages have not taken.
fn shell(parts: &Parts, tree: &Path) -> Result<()> {
    let busybox = parts.busybox();
    fs::copy(&busybox, tree.join("usr/bin/busybox"))?;
    let mut list = Command::new(&busybox);
    list.arg("--list");
    for name in Run::of(list)?.ok()?.stdout.lines() {
        let taken = |folder: &str| fs::symlink_metadata(tree.join(folder).join(name)).is_ok();
        if !taken("usr/bin") && !taken("usr/sbin") {
            symlink("busybox", tree.join("usr/bin").join(name))?;
        }
    }
    Ok(())
}

fn units(tree: &Path) -> Result<()> {
    let folder = tree.join("usr/lib/systemd/system");
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wants") {
            fs::remove_dir_all(path)?;
        }
    }
    for wants in ["system-generators", "user"] {
        fs::remove_dir_all(tree.join("usr/lib/systemd").join(wants))?;
    }
    let want = |target: &str, unit: &str| -> Result<()> {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        symlink(Path::new("..").join(unit), folder.join(unit)).context("want a unit")
    };
    for (target, units) in WANTED {
        units.iter().try_for_each(|unit| want(target, unit))?;
    }
    let put = |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| format!("write {name}"));
    for (name, target, text) in UNITS {
        put(name, text)?;
        want(&format!("{target}.wants"), name)?;
    }
    put("goldsync-agent.service", AGENT_UNIT)?;
    want("multi-user.target.wants", "goldsync-agent.service")?;
    fs::write(tree.join("usr/lib/tmpfiles.d/goldsync.conf"), TMPFILES)?;
    let heard = folder.join("goldsync-agent.service.d");
    fs::create_dir(&heard)?;
    fs::write(heard.join("heard.conf"), HEARD)?;
    let default = folder.join("default.target");
    fs::remove_file(&default)?;
    symlink("multi-user.target", default).context("the default target")
}
