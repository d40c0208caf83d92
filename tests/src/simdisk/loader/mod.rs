//! Boot loaders, as far as a disk can tell: what each would start from the bytes that it finds, and what it writes while it decides.
//!
//! Each is our own reading of what the loader's documentation, or its script, says; none shares code with the back-end that writes for it.

use goldsync_agent::slot::SlotName;

use super::tree::{Op, Tree};

mod fitted;
mod grub;
mod systemd_boot;
mod uboot;
mod uefi;

pub use fitted::Fitted;
pub use grub::Grub;
pub use systemd_boot::SystemdBoot;
pub use uboot::Uboot;
pub use uefi::Firmware;

/// One start of a machine.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// From which slot; `None`: it stands at a prompt.
    pub slot: Option<SlotName>,
    /// What the loader wrote before.
    pub ops: Vec<Op>,
}

/// A boot loader.
pub trait Loader {
    /// What it does with this disk.
    fn start(&self, disk: &Tree) -> Start;
}

/// Starts a machine so many times, without anybody coming so far as to say that it is well. From which slots.
pub fn starts(loader: &dyn Loader, disk: &mut Tree, times: usize) -> Vec<Option<SlotName>> {
    let mut once = || {
        let start = loader.start(disk);
        start.ops.iter().for_each(|op| disk.apply(op));
        start.slot
    };
    (0..times).map(|_| once()).collect()
}
