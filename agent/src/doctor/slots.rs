//! The slots: there, whole, free to be written, large enough.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use goldsync_proto::units::Size;

use super::Finding;
use crate::boot::Look;
use crate::config::Config;
use crate::slot::{Kind, SlotName, Source, Standby};

/// All of it.
pub(super) fn all(config: &Config, look: &Look) -> Vec<Finding> {
    let mut findings: Vec<_> = SlotName::ALL.iter().map(|name| present(config, look, *name)).collect();
    let standby = look.active.unwrap_or(SlotName::B).other();
    findings.extend(writable(config, look.active, standby));
    findings.extend(sizes(config));
    findings.extend(look.active.and_then(|active| room(config, active)));
    findings
}

fn present(config: &Config, look: &Look, name: SlotName) -> Finding {
    let path = config.slots.path(name);
    let shown = path.display();
    if path.symlink_metadata().is_ok() || path.starts_with("/dev") || look.active == Some(name) {
        return match Source::open(name, path) {
            Ok(slot) if slot.kind() == Kind::Device => {
                Finding::fine("slots", format!("{name}: {shown}, a device of {}", Size(slot.len())))
            }
            Ok(slot) => Finding::fine("slots", format!("{name}: {shown}, a file of {} bytes", slot.len())),
            Err(error) => {
                Finding::error("slots", &error, "correct `slots` in the configuration, or find out where the disk went")
            }
        };
    }
    // A file slot is made by the first update that needs it; its folder is not.
    match path.parent() {
        Some(folder) if !folder.is_dir() => {
            let folder = folder.display();
            Finding::stops(
                "slots",
                format!("{name}: the folder {folder} does not exist"),
                format!("install -d {folder}"),
            )
        }
        _ => Finding::fine("slots", format!("{name}: {shown}, which the first update makes")),
    }
}

/// What would keep an update from opening the standby slot.
fn writable(config: &Config, active: Option<SlotName>, standby: SlotName) -> Option<Finding> {
    let source = active.and_then(|active| Source::open(active, config.slots.path(active)).ok());
    let obstacle = Standby::obstacle(standby, config.slots.path(standby), source.as_ref())?;
    // What is not there was said already.
    config.slots.path(standby).exists().then(|| Finding::error("standby", &obstacle, "make it writable"))
}

fn sizes(config: &Config) -> Option<Finding> {
    let device = |name| Source::open(name, config.slots.path(name)).ok().filter(|slot| slot.kind() == Kind::Device);
    let (a, b) = (device(SlotName::A)?, device(SlotName::B)?);
    (a.len() != b.len()).then(|| {
        let says = format!("a is a device of {} bytes, b one of {}", a.len(), b.len());
        Finding::stops("slots", says, "make both partitions the same size")
    })
}

/// Whether an image like the active one fits beside it.
fn room(config: &Config, active: SlotName) -> Option<Finding> {
    let standby = config.slots.path(active.other());
    if standby.starts_with("/dev") {
        return None;
    }
    let taken = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.blocks().saturating_mul(512));
    let system = rustix::fs::statvfs(standby.parent()?).ok()?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    let needed = taken(config.slots.path(active)).saturating_sub(taken(standby));
    Some(if needed > free {
        let says = format!(
            "an image like the active one needs {needed} more bytes in slot {}, and {free} are free",
            active.other()
        );
        Finding::stops("room", says, format!("make room on the file system of {}", standby.display()))
    } else {
        Finding::fine("room", format!("{} MiB free for slot {}", free >> 20, active.other()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::node::testing::node;

    const NOTHING: Look = Look { active: None, next: None, tries: None };
    const A: Look = Look { active: Some(SlotName::A), next: None, tries: None };

    fn worst(findings: &[Finding]) -> &Finding {
        findings.iter().max_by_key(|finding| finding.verdict).unwrap()
    }

    #[test]
    fn files_that_the_first_update_makes_are_fine_and_their_folder_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = (*node(folder.path()).config).clone();
        let findings = all(&config, &NOTHING);
        assert_eq!(worst(&findings).verdict, Verdict::Fine, "{findings:?}");
        config.slots.b = folder.path().join("none/b");
        let findings = all(&config, &NOTHING);
        let worst = worst(&findings);
        assert!(
            worst.verdict == Verdict::Stops && worst.cure.as_ref().unwrap().starts_with("install -d"),
            "{findings:?}"
        );
    }

    #[test]
    fn an_active_slot_that_is_gone_and_a_folder_in_a_slots_place_stop() {
        let folder = tempfile::tempdir().unwrap();
        let config = (*node(folder.path()).config).clone();
        let findings = all(&config, &A);
        assert!(worst(&findings).says.contains("slot a"), "{findings:?}");
        assert_eq!(worst(&findings).verdict, Verdict::Stops);
        fs::write(&config.slots.a, vec![7; 8192]).unwrap();
        fs::create_dir(&config.slots.b).unwrap();
        let findings = all(&config, &A);
        assert!(
            worst(&findings).says.contains("is a folder") && worst(&findings).verdict == Verdict::Stops,
            "{findings:?}"
        );
        fs::remove_dir(&config.slots.b).unwrap();
        assert_eq!(worst(&all(&config, &A)).verdict, Verdict::Fine);
    }

    #[test]
    fn a_device_that_is_not_there_stops() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = (*node(folder.path()).config).clone();
        config.slots.b = "/dev/goldsync-none".into();
        let findings = all(&config, &NOTHING);
        let worst = worst(&findings);
        assert!(worst.verdict == Verdict::Stops && worst.says.contains("/dev/goldsync-none"), "{findings:?}");
    }

    #[test]
    fn both_slots_as_one_file_stop() {
        let folder = tempfile::tempdir().unwrap();
        let config = (*node(folder.path()).config).clone();
        fs::write(&config.slots.a, vec![7; 8192]).unwrap();
        fs::hard_link(&config.slots.a, &config.slots.b).unwrap();
        let findings = all(&config, &A);
        assert!(worst(&findings).verdict == Verdict::Stops && worst(&findings).check == "standby", "{findings:?}");
    }
}
