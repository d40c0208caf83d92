//! A board with U-Boot: Debian's own build for one with an Allwinner H3, started by the emulator from an SD card as the board would.
//!
//! ```text
//! 8 KiB   U-Boot        1 MiB   FAT: uboot.env, the environment, one copy      slot a, slot b: ext4 with /boot/zImage
//! ```
//! The environment is `packaging/uboot/goldsync.txt` with that board's values. U-Boot is real, its script is ours and runs as it is;
//! what stands for the slots' kernels is a dozen instructions that say on the serial line which slot they are of, and wait.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::layout::{Layout, Part, Table};
use super::{Disk, Firmware, Vm, image};
use crate::programs::Run;

/// The variables and scripts that operators are given.
const VARIABLES: &str = include_str!("../../../packaging/uboot/goldsync.txt");

/// What is this board's, and replaces lines of the same name.
const OWN: [&str; 6] = [
    "bootdelay=0",
    "kernel_addr_r=0x42000000",
    "goldsync_options=ro console=ttyS0,115200",
    "goldsync_linux=/boot/zImage",
    "goldsync_wait=1",
    "goldsync_load=load ${goldsync_device}:${goldsync_part} ${kernel_addr_r} ${goldsync_linux} && bootz ${kernel_addr_r} - ${fdtcontroladdr}",
];

/// The board's U-Boot in the folder of `scripts/make-machines`.
pub const LOADER: &str = "uboot-board.bin";

/// Where the board's first program looks for it.
const LOADER_AT: u64 = 8 << 10;

/// The size of the environment in Debian's build.
pub const ENVIRONMENT: &str = "0x10000";

/// 64 MiB: a card's size must be a power of two.
const LAYOUT: Layout = Layout { table: Table::Mbr, esp: 40, slot: 8, state: 6 };

/// The card, and what is needed to make its contents.
#[derive(Debug)]
pub struct Board {
    card: Disk,
    folder: PathBuf,
}

impl Board {
    /// A card with U-Boot on it, and slot a in its environment.
    pub fn make(folder: &Path, loader: &Path) -> Result<Self> {
        let card = Disk::make(&folder.join("card.img"), LAYOUT)?;
        let file = File::options().write(true).open(&card.path)?;
        file.write_all_at(&fs::read(loader)?, LOADER_AT)?;
        let board = Self { card, folder: folder.to_owned() };
        let (text, made) = (folder.join("environment.txt"), folder.join("environment"));
        fs::write(&text, variables())?;
        let mut make = Command::new("mkenvimage");
        make.args(["-s", ENVIRONMENT, "-o"]).args([&made, &text]);
        Run::of(make)?.ok()?;
        board.card.esp_put(&made, "/uboot.env")?;
        Ok(board)
    }

    /// Makes a slot's image: with a kernel that says which slot it is of, or with none.
    pub fn install(&self, part: Part, kernel: Option<&str>) -> Result<()> {
        let (tree, image) = (self.folder.join("tree"), self.folder.join("slot.img"));
        let boot = tree.join("boot");
        fs::create_dir_all(&boot)?;
        if let Some(name) = kernel {
            fs::write(boot.join("zImage"), self::kernel(&format!("\r\n[[runs {name}]]\r\n")))?;
        }
        image::ext4(&tree, LAYOUT.slot, &image)?;
        fs::remove_dir_all(&tree)?;
        self.card.put(part, &image)
    }

    /// The environment, as U-Boot left it.
    pub fn environment(&self) -> Result<Vec<u8>> {
        self.card.esp_read("/uboot.env")
    }

    /// Puts an environment there.
    pub fn set_environment(&self, file: &Path) -> Result<()> {
        self.card.esp_put(file, "/uboot.env")
    }

    /// Switches it on.
    pub fn start(&self) -> Result<Vm> {
        Vm::start(&Firmware::Board, &self.card.path, "")
    }
}

/// The environment's text.
fn variables() -> String {
    let name = |line: &str| line.split_once('=').map(|(name, _)| name.to_owned());
    let own: Vec<_> = OWN.iter().filter_map(|line| name(line)).collect();
    let kept = VARIABLES.lines().filter(|line| !name(line).is_some_and(|name| own.contains(&name)));
    kept.chain(OWN).map(|line| format!("{line}\n")).collect()
}

/// A program for 32-bit ARM with a kernel's header: writes a text to the first serial line, and stays there.
fn kernel(text: &str) -> Vec<u8> {
    const HEAD: usize = 0x30;
    // r0: the serial line's registers, at 0x01c28000.
    let mut code: Vec<u32> = vec![0xe308_0000, 0xe340_01c2];
    for byte in text.bytes() {
        // Wait until the line has taken what it was given, and give it the next.
        code.extend([0xe590_2014, 0xe312_0020, 0x0aff_fffc, 0xe3a0_1000 | u32::from(byte), 0xe580_1000]);
    }
    // A jump to itself.
    code.push(0xeaff_fffe);
    let size = (HEAD + 4 * code.len()) as u32;
    // A jump behind the head; at 0x24 what it is known by, where it begins and ends.
    let mut head = vec![0; HEAD / 4];
    (head[0], head[9], head[11]) = (0xea00_000a, 0x016f_2818, size);
    head.into_iter().chain(code).flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_s_own_values_are_the_only_ones_of_their_name() {
        let text = variables();
        for line in OWN {
            let (name, _) = line.split_once('=').unwrap();
            assert_eq!(text.lines().filter(|line| line.starts_with(&format!("{name}="))).count(), 1, "{name}");
        }
        assert!(text.contains("\ngoldsync_count=if test"));
    }
}
