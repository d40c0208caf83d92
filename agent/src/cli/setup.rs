//! `init` and `doctor`: the verbs that look at a machine, and need no node.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::args::Init;
use super::failure::Failure;
use super::ui::Ui;
use crate::config::Where;
use crate::doctor;
use crate::init::{Machine, Proposal, Wishes};

#[derive(Serialize)]
struct Proposed {
    machine: Machine,
    proposal: Proposal,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<PathBuf>,
}

/// `init`
pub fn init(args: &Init, place: &Where, ui: &Ui) -> Result<(), Failure> {
    let machine = Machine::look(&args.root);
    let wishes = Wishes { server: args.server.clone(), channel: args.channel.clone() };
    let proposal = Proposal::of(&machine, &wishes);
    let written = args.write.then(|| match place {
        Where::File(file) => file.clone(),
        Where::Folders(_) => args.root.join("etc/goldsync/agent.toml"),
    });
    if let Some(file) = &written {
        write(file, &proposal.text, args.force)?;
    }
    let proposed = Proposed { machine, proposal, written };
    ui.result(&proposed, || {
        let Proposal { text, notes, .. } = &proposed.proposal;
        let notes = notes.iter().map(|note| format!("# - {note}")).collect::<Vec<_>>().join("\n");
        match &proposed.written {
            Some(file) => format!("{} is written; read it, then `goldsync-agent doctor`\n{notes}", file.display()),
            None => format!("{text}\n# Before it is used:\n{notes}"),
        }
    });
    Ok(())
}

/// Whole or not at all, and never over what is there unless told.
fn write(file: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let fail = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let file = file.display();
            Failure::new(
                1,
                format!("{file} is there already; --force replaces it, without --write the proposal is only printed"),
            )
        }
        _ => Failure::new(1, format!("{} cannot be written: {error}", file.display())),
    };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    let beside = file.with_extension("toml.new");
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&beside);
    let written = written.and_then(|mut new| new.write_all(text.as_bytes()).and_then(|()| new.sync_all()));
    // A link fails where something is, a rename does not.
    let placed = written.and_then(|()| if force { fs::rename(&beside, file) } else { fs::hard_link(&beside, file) });
    let _ = fs::remove_file(&beside);
    placed.map_err(fail)
}

/// `doctor`
pub async fn doctor(place: &Where, ask: bool, ui: &Ui) -> Result<(), Failure> {
    let report = doctor::examine(place, ask, CancellationToken::new()).await;
    ui.result(&report, || report.to_string());
    if report.stops == 0 { Ok(()) } else { Err(Failure::new(1, String::new())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_never_overwritten_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etc/goldsync/agent.toml");
        let read = || fs::read_to_string(&file).unwrap();
        write(&file, "one", false).unwrap();
        assert_eq!(read(), "one");
        let refused = write(&file, "two", false).unwrap_err();
        assert!(refused.code == 1 && refused.message.contains("--force"), "{}", refused.message);
        assert_eq!(read(), "one");
        write(&file, "three", true).unwrap();
        assert_eq!(read(), "three");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "something was left beside it");
    }
}
