//! A story with a real U-Boot: it runs the script that operators are given, and the agent's back-end writes its environment.
//!
//! `scripts/make-machines` makes what is needed, in `$GOLDSYNC_MACHINES`; without that variable this says that it was skipped.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use goldsync_agent::boot::{Activation, Booted, Holds, Look, Uboot};
use goldsync_agent::config::Slots;
use goldsync_agent::slot::SlotName::{self, A, B};
use goldsync_proto::digest::ImageId;
use goldsync_tests::vm::emulator::QEMU_ARM;
use goldsync_tests::vm::parts::installed;
use goldsync_tests::vm::{Board, Part, Parts, board};

/// The agent's side: its back-end, on a copy of the environment.
struct Node<'a> {
    board: &'a Board,
    folder: PathBuf,
}

impl Node<'_> {
    /// Does something to the environment of a machine that was started from `slot`, and says what the back-end sees then.
    fn from(&self, slot: SlotName, work: impl FnOnce(&Uboot) -> Result<()>) -> Result<Look> {
        let path = |name: &str| self.folder.join(name);
        let environment = path("uboot.env");
        fs::write(&environment, self.board.environment()?)?;
        fs::write(path("fw_env.config"), format!("{} 0x0 {}\n", environment.display(), board::ENVIRONMENT))?;
        fs::write(path("cmdline"), format!("ro goldsync.slot={slot}"))?;
        let slots = Slots { a: path("a"), b: path("b"), size: None };
        let backend = Uboot::new(path("fw_env.config"), true, Booted::new(path("cmdline"), &slots));
        work(&backend)?;
        self.board.set_environment(&environment)?;
        Ok(backend.look()?)
    }

    /// The same: slot `next` is written, and started on trial.
    fn activate(&self, slot: SlotName, next: SlotName, tries: u8) -> Result<Look> {
        let holds = Holds { image: ImageId::of(b"x"), release: "web:1".parse()?, size: 4096, verity: None };
        self.from(slot, |backend| {
            backend.retire(next)?;
            Ok(backend.activate(next, &holds, tries)?)
        })
    }
}

/// Goal: a new slot is started, counted and confirmed; one without a kernel is given up after so many starts; when the other fails
/// as well, U-Boot says so and stays, with a prompt within reach.
#[test]
fn a_board_that_u_boot_starts() -> Result<()> {
    let test = "a_board_that_u_boot_starts";
    let Some(parts) = Parts::find(test)? else { return Ok(()) };
    let Some(loader) = parts.optional(test, board::LOADER) else { return Ok(()) };
    if ![QEMU_ARM, "mkenvimage"].iter().all(|program| installed(test, program)) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let board = Board::make(folder.path(), &loader)?;
    board.install(Part::A, Some("a"))?;
    board.install(Part::B, Some("b"))?;
    let node = Node { board: &board, folder: folder.path().to_owned() };
    let runs = |slot: SlotName| -> Result<()> {
        let mut vm = board.start()?;
        ensure!(vm.wait("runs")? == slot.as_str(), "{:?}", vm.said());
        vm.cut().map(drop)
    };
    let says = |words: &str| -> Result<()> { board.start()?.wait_line(words).map(drop) };
    let nothing = |_: &Uboot| Ok(());

    runs(A).context("as it left the factory")?;
    let look = node.activate(A, B, 2)?;
    ensure!((look.active, look.next, look.tries) == (Some(A), Some(B), Some(2)), "{look:?}");
    runs(B)?;
    ensure!(node.from(B, nothing)?.tries == Some(1), "U-Boot counts");
    let look = node.from(B, |backend| Ok(backend.confirm(B)?))?;
    ensure!((look.active, look.next, look.tries) == (Some(B), Some(B), None), "{look:?}");
    runs(B)?;
    ensure!(node.from(B, nothing)? == look, "what is confirmed is not counted");

    board.install(Part::A, None)?;
    node.activate(B, A, 2)?;
    for _ in 0..2 {
        says("slot a has no kernel that starts")?;
    }
    let mut vm = board.start()?;
    vm.wait_line("slot a failed, going back to slot b")?;
    ensure!(vm.wait("runs")? == "b", "{:?}", vm.said());
    vm.cut()?;
    ensure!(node.from(B, nothing)?.next == Some(B));
    node.from(B, |backend| Ok(backend.confirm(B)?))?;
    runs(B)?;

    board.install(Part::B, None)?;
    node.activate(B, A, 1)?;
    says("slot a has no kernel that starts")?;
    let mut vm = board.start()?;
    vm.wait_line("slot a failed, going back to slot b")?;
    vm.wait_line("slot b has no kernel that starts")?;
    vm.cut()?;
    for _ in 0..3 {
        says("slot b has no kernel that starts")?;
    }
    says("both slots failed")
}
