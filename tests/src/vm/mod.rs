//! Virtual machines: a node that really starts, from a disk of its own, and whose plug can be pulled.
//!
//! ```text
//! Parts      what scripts/make-machines made of Debian's kernel; the agent under test
//!    ├─▶ image     root file systems with that agent in them: good ones, and broken ones  (userland: with systemd)
//!    └─▶ Disk      a file with a partition table: loader, slot a, slot b, state  (layout: the arithmetic)
//!           ├─▶ Loader a boot loader, put on it
//!           └─▶ Vm     the emulator at work on it; its console, line by line  (console: what a line is)
//!
//! write_log ─▶ replay ─▶ judge   what a guest's kernel wrote down of its writes; the disks that may be found when power is lost
//!                                between them; what would start from those, and what they claim
//! ```
//! [`Board`] is another machine altogether: one that U-Boot starts.
//!
//! Nothing is mounted and no loop device is used: tools write file systems into files, and read them afterwards. The
//! server runs on the host, outside; the guest reaches it as [`HOST`].

pub mod board;
pub mod console;
pub mod cuts;
pub mod disk;
pub mod emulator;
pub mod image;
pub mod judge;
pub mod layout;
pub mod loader;
pub mod parts;
pub mod replay;
pub mod rig;
pub mod userland;
pub mod write_log;

pub use board::Board;
pub use disk::Disk;
pub use emulator::{Firmware, Vm};
pub use image::{Flaw, Kind};
pub use layout::{Layout, Part, Table};
pub use loader::Loader;
pub use parts::Parts;
pub use rig::Rig;

/// The address under which a guest reaches the host's loopback.
pub const HOST: &str = "10.0.2.2";

/// What every kernel here is told: talk to the serial line, from the very beginning, say only what is fatal, and restart when it
/// dies. An emulator that gets little of a busy host's time delivers timer interrupts late, which is no fault of its timer. What
/// keeps a processor's secrets from its programs costs a fifth of a start here, and so do the kernel's tests of its own ciphers.
pub const KERNEL_WORDS: &str =
    "console=ttyS0 earlyprintk=ttyS0 no_timer_check loglevel=2 panic=1 mitigations=off cryptomgr.notests";

/// Where the tools for disks are; a user's `PATH` may lack the second half.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
