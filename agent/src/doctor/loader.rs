//! The boot loader's half of a back-end: what has to be there before it can start a slot, and cannot be told from `look` alone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::config::{Backend, Config, Kernel, SystemdBoot};
use crate::slot::{Identity, SlotName};
use crate::volume::replaces_live;

/// What `grub.cfg` is searched for; a site may generate it from several files.
const SNIPPET: &str = "goldsync";

/// Of the back-ends that have a loader.
pub(super) fn all(config: &Config) -> Vec<Finding> {
    match &config.activation.backend {
        Backend::Grub { grubenv } => {
            [grub(grubenv), in_a_slot(config, grubenv).into_iter().chain(read_only(grubenv)).collect()].concat()
        }
        Backend::SystemdBoot(settings) => systemd_boot(settings),
        Backend::Uboot { env_config, .. } => vec![there("U-Boot's configuration of its environment", env_config)],
        Backend::Uefi { efivars, .. } => vec![there("the firmware's variables", efivars)],
        Backend::Mount { target, .. } => vec![volume(target)],
        _ => Vec::new(),
    }
}

/// A volume needs a place, and a kernel that can replace it.
fn volume(target: &Path) -> Finding {
    let shown = target.display();
    if !target.is_dir() {
        return Finding::stops("volume", format!("the mount point {shown} is no folder"), format!("mkdir -p {shown}"));
    }
    if replaces_live() {
        return Finding::fine("volume", format!("{shown} can be replaced while it is read"));
    }
    let cure =
        "stop its readers and unmount it before each update, or take a kernel of 6.5 or later; see docs/boot/mount.md";
    Finding::warning("volume", format!("this kernel cannot replace what is mounted on {shown} while it is read"), cure)
}

fn there(what: &str, path: &Path) -> Finding {
    let shown = path.display();
    if path.exists() {
        return Finding::fine("loader", format!("{what}: {shown}"));
    }
    Finding::stops("loader", format!("{what}: {shown} does not exist"), "see the back-end's page in docs/boot")
}

/// What a slot's next image would take away.
fn in_a_slot(config: &Config, grubenv: &Path) -> Option<Finding> {
    let device = Identity::Device(fs::metadata(grubenv).ok()?.dev());
    let slot =
        SlotName::ALL.into_iter().find(|name| Identity::of(config.slots.path(*name)).is_ok_and(|it| it == device))?;
    let says = format!("{} lies in slot {slot}, which an update overwrites whole", grubenv.display());
    Some(Finding::stops("loader", says, "give /boot a partition of its own"))
}

/// The snippet has to be in `grub.cfg`, which lies beside the environment block.
fn grub(grubenv: &Path) -> Vec<Finding> {
    let config = grubenv.with_file_name("grub.cfg");
    let shown = config.display();
    let snippet = match fs::read(&config) {
        Ok(text) if String::from_utf8_lossy(&text).contains(SNIPPET) => {
            Finding::fine("loader", format!("{shown} starts what goldsync chose"))
        }
        Ok(_) => {
            let cure = "install packaging/grub/goldsync.cfg beside it, and source it; see docs/boot/grub.md";
            Finding::stops(
                "loader",
                format!("{shown} has nothing of goldsync's in it: GRUB would go on starting what it starts now"),
                cure,
            )
        }
        Err(error) => {
            let cure = "name the right `activation.grubenv`: grub.cfg lies beside it";
            Finding::warning("loader", format!("{shown}: {error}"), cure)
        }
    };
    vec![there("GRUB's environment block", grubenv), snippet]
}

fn systemd_boot(settings: &SystemdBoot) -> Vec<Finding> {
    let esp = &settings.esp;
    if !esp.join("EFI/systemd").is_dir() {
        let says = format!("systemd-boot is not on {}", esp.display());
        return vec![Finding::stops("loader", says, "mount the EFI system partition there, or `bootctl install`")];
    }
    let mut findings = vec![Finding::fine("loader", format!("systemd-boot is on {}", esp.display()))];
    findings.extend(read_only(esp));
    if let Kernel::Esp { linux, initrd } = &settings.kernel {
        let on_esp = |path: &PathBuf| esp.join(path.strip_prefix("/").unwrap_or(path));
        let files = [Some(linux), initrd.as_ref()].into_iter().flatten().map(on_esp);
        findings.extend(files.map(|file| there("the machine's own kernel", &file)));
    }
    findings
}

/// What an activation writes must be on a file system that takes it.
fn read_only(path: &Path) -> Option<Finding> {
    let system = rustix::fs::statvfs(path).ok()?;
    system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY).then(|| {
        let says = format!("{} lies on a file system that is mounted read-only", path.display());
        Finding::stops("loader", says, "mount it read-write: activating a slot writes there")
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_grub_that_was_not_told_stops() {
        let folder = tempfile::tempdir().unwrap();
        let grubenv = folder.path().join("grubenv");
        assert_eq!(verdicts(&grub(&grubenv)), [Verdict::Stops, Verdict::Warning]);
        fs::write(&grubenv, "").unwrap();
        fs::write(folder.path().join("grub.cfg"), "menuentry x {}").unwrap();
        assert_eq!(verdicts(&grub(&grubenv)), [Verdict::Fine, Verdict::Stops]);
        fs::write(folder.path().join("grub.cfg"), "source $prefix/goldsync.cfg").unwrap();
        assert_eq!(verdicts(&grub(&grubenv)), [Verdict::Fine, Verdict::Fine]);
    }

    #[test]
    fn systemd_boot_and_a_machines_own_kernel_are_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let esp = folder.path().to_owned();
        let text = format!(
            "channel = \"qa\"\n[slots]\na = \"/x/a\"\nb = \"/x/b\"\n[activation]\nbackend = \"systemd-boot\"\n\
             esp = \"{}\"\nkernel = \"/linux\"\nkernel_from = \"esp\"\noptions = \"ro\"\n",
            esp.display()
        );
        let config = Config::parse(Path::new("agent.toml"), &text).unwrap();
        assert_eq!(verdicts(&all(&config)), [Verdict::Stops]);
        fs::create_dir_all(esp.join("EFI/systemd")).unwrap();
        assert_eq!(verdicts(&all(&config)), [Verdict::Fine, Verdict::Stops]);
        fs::write(esp.join("linux"), "x").unwrap();
        assert_eq!(verdicts(&all(&config)), [Verdict::Fine, Verdict::Fine]);
    }
}
