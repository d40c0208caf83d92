//! The state folder, and what it remembers.

use std::path::Path;

use goldsync_proto::wire::Outcome;

use super::Finding;
use crate::boot::Look;
use crate::journal::{Journal, JournalError};

/// What the records, the block hashes and the metadata of two large images may take.
const ROOM: u64 = 64 << 20;

/// Whether it can be written, and has room.
pub(super) fn folder(state: &Path) -> Finding {
    let shown = state.display();
    let Some(there) = state.ancestors().find(|path| path.is_dir()) else {
        return Finding::stops("state", format!("{shown} cannot be reached"), "correct `state` in the configuration");
    };
    let Ok(system) = rustix::fs::statvfs(there) else {
        return Finding::stops("state", format!("the file system of {shown} does not answer"), "look at the disk");
    };
    let read_only = system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    if read_only || rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        let says = format!("{} cannot be written", there.display());
        return Finding::stops("state", says, "mount it read-write, and run the agent as root");
    }
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if free < ROOM {
        let says = format!("{shown}: {} MiB are free", free >> 20);
        return Finding::warning("state", says, format!("make room: {} MiB should be free", ROOM >> 20));
    }
    let says = if state.is_dir() { format!("{shown}") } else { format!("{shown}, which the first verb makes") };
    Finding::fine("state", says)
}

/// What it remembers.
pub(super) fn all(journal: &Journal, look: &Look) -> Vec<Finding> {
    let checks = [
        lock(journal),
        active(journal, look),
        rollback(journal, look),
        trial(journal),
        drift(journal, look),
        held(journal),
        last(journal),
    ];
    let told = |found: Result<Option<Finding>, JournalError>| match found {
        Ok(found) => found,
        Err(error) => {
            Some(Finding::error("state", &error, "look at the disk; what is removed there costs proofs, no image"))
        }
    };
    checks.into_iter().filter_map(told).collect()
}

type Found = Result<Option<Finding>, JournalError>;

fn lock(journal: &Journal) -> Found {
    Ok(journal.holder().map(|process| {
        Finding::warning(
            "lock",
            format!("process {process} is at work"),
            "wait for it, or stop it; a second run would not begin",
        )
    }))
}

fn active(journal: &Journal, look: &Look) -> Found {
    let Some(active) = look.active else { return Ok(None) };
    Ok(Some(match journal.slot(active)?.proven() {
        Some(proven) => Finding::fine("running", format!("slot {active} was proven to be {}", proven.release)),
        None => {
            let says = format!("slot {active} is active, and nothing was ever proven to be in it");
            Finding::warning("running", says, "`goldsync-agent sync` goes from there to a proven release")
        }
    }))
}

/// Whether there is something to go back to.
fn rollback(journal: &Journal, look: &Look) -> Found {
    let Some(active) = look.active else { return Ok(None) };
    let standby = active.other();
    Ok(Some(match journal.slot(standby)?.proven() {
        Some(proven) if journal.is_newer(proven, Some(active))? => {
            let says = format!("slot {standby} holds {}, which is newer than what runs", proven.release);
            Finding::warning("rollback", says, "`goldsync-agent activate` goes on to it; what came before is gone")
        }
        Some(proven) => Finding::fine("rollback", format!("slot {standby} was proven to be {}", proven.release)),
        None => {
            let says = format!("slot {standby} holds nothing proven: there is nothing to go back to");
            Finding::warning("rollback", says, "the next update that comes through leaves the present release there")
        }
    }))
}

fn drift(journal: &Journal, look: &Look) -> Found {
    let image = look.active.map(|active| journal.slot(active)).transpose()?;
    let image = image.as_ref().and_then(|record| record.proven()).map(|proven| proven.image);
    let found = journal.drift()?.filter(|drift| Some(drift.image) == image && drift.drifted > 0);
    Ok(found.map(|drift| {
        let says = format!(
            "{} blocks of the active slot are not the release's, as of {}",
            drift.drifted,
            drift.at.format("%Y-%m-%d %H:%M UTC")
        );
        Finding::warning("drift", says, "`goldsync-agent repair`; an update mends those that it reads")
    }))
}

fn trial(journal: &Journal) -> Found {
    Ok(journal.trial()?.map(|trial| {
        let since = trial.since.format("%Y-%m-%d %H:%M UTC");
        Finding::fine("trial", format!("{} in slot {} is on trial since {since}", trial.release, trial.slot))
    }))
}

fn held(journal: &Journal) -> Found {
    let held = journal.held()?;
    let Some(newest) = held.last() else { return Ok(None) };
    let others = if held.len() > 1 { format!(", and {} more", held.len() - 1) } else { String::new() };
    let says = format!("{} is not gone to again by itself ({}){others}", newest.release, newest.why);
    Ok(Some(Finding::warning(
        "held",
        says,
        "`goldsync-agent sync` goes to it all the same; a newer release is not held",
    )))
}

fn last(journal: &Journal) -> Found {
    Ok(journal.last()?.and_then(|last| match last.outcome {
        Outcome::Failed { error } => {
            let says = format!("the last update failed ({}): {error}", last.at.format("%Y-%m-%d %H:%M UTC"));
            Some(Finding::warning("last", says, "what it says; `goldsync-agent sync` goes on from what was staged"))
        }
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::slot::SlotName;
    use goldsync_proto::digest::ImageId;

    const A: Look = Look { active: Some(SlotName::A), next: None, tries: None };

    fn found(journal: &Journal, check: &str) -> Option<Finding> {
        all(journal, &A).into_iter().find(|finding| finding.check == check)
    }

    #[test]
    fn what_is_remembered_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        for check in ["running", "rollback"] {
            assert_eq!(found(&journal, check).unwrap().verdict, Verdict::Warning, "{check}");
        }
        let (image, release) = (ImageId::of(b"x"), "web:1".parse().unwrap());
        journal.set_proven(SlotName::A, image, &release, 4096).unwrap();
        // Proofs are told apart by their times.
        std::thread::sleep(std::time::Duration::from_millis(2));
        journal.set_proven(SlotName::B, image, &release, 4096).unwrap();
        let newer = found(&journal, "rollback").unwrap();
        assert!(newer.verdict == Verdict::Warning && newer.says.contains("newer than what runs"), "{newer:?}");
        std::thread::sleep(std::time::Duration::from_millis(2));
        journal.set_proven(SlotName::A, image, &release, 4096).unwrap();
        for check in ["running", "rollback"] {
            assert_eq!(found(&journal, check).unwrap().verdict, Verdict::Fine, "{check}");
        }
        for check in ["drift", "held", "last", "lock"] {
            assert_eq!(found(&journal, check), None, "{check}");
        }
        journal.set_drift(image, 3).unwrap();
        journal.hold(image, &release, "it did not start").unwrap();
        journal.set_last(None, Outcome::Failed { error: "the disk is full".into() }).unwrap();
        let _held = journal.lock().unwrap();
        for (check, word) in
            [("drift", "3 blocks"), ("held", "it did not start"), ("last", "the disk is full"), ("lock", "is at work")]
        {
            let finding = found(&journal, check).unwrap();
            assert!(
                finding.says.contains(word) && finding.verdict == Verdict::Warning && finding.cure.is_some(),
                "{finding:?}"
            );
        }
        // Of another image than the active one: no matter.
        journal.set_drift(ImageId::of(b"old"), 3).unwrap();
        assert_eq!(found(&journal, "drift"), None);
    }

    #[test]
    fn a_state_folder_is_made_where_it_can_be() {
        let there = tempfile::tempdir().unwrap();
        assert_eq!(folder(there.path()).verdict, Verdict::Fine);
        assert!(folder(&there.path().join("a/b")).says.contains("the first verb makes"));
        assert!(!there.path().join("a").exists());
        // /proc is a file system without room that nobody can write to.
        assert_ne!(folder(Path::new("/proc/goldsync")).verdict, Verdict::Fine);
        std::fs::write(there.path().join("lock"), "x").unwrap();
        std::fs::create_dir_all(there.path().join("last.json")).unwrap();
        let journal = Journal::open(there.path()).unwrap();
        let finding = all(&journal, &A).into_iter().find(|finding| finding.check == "state").unwrap();
        assert!(finding.verdict == Verdict::Stops && finding.says.contains("last.json"), "{finding:?}");
    }
}
