//! Boot loaders, put on a disk from outside as an installer would.
//!
//! | loader       | firmware | on the first partition                                                          |
//! |--------------|----------|---------------------------------------------------------------------------------|
//! | GRUB, BIOS   | SeaBIOS  | `/grub`: our snippet, a `grub.cfg`, an empty environment block; core image before it |
//! | GRUB, EFI    | OVMF     | the same, and `/EFI/BOOT/BOOTX64.EFI`                                           |
//!
//! The kernel and the initramfs are the slot's own.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Disk, Firmware, KERNEL_WORDS, Rig, Table};
use crate::disk::skip;

const SNIPPET: &str = include_str!("../../../packaging/grub/goldsync.cfg");

/// Debian's UEFI for virtual machines, and the variables that it begins with.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// What lies in a BIOS disk's first sector beside the loader's first instructions, and where its core image must end.
const BOOT_CODE: usize = 440;
const SECTOR: u64 = 512;
const FIRST_PARTITION: u64 = 1 << 20;

/// A loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// GRUB behind a BIOS.
    GrubBios,
    /// GRUB behind UEFI.
    GrubEfi,
}

impl Loader {
    /// The partition table that it wants.
    pub fn table(self) -> Table {
        match self {
            Self::GrubBios => Table::Mbr,
            Self::GrubEfi => Table::Gpt,
        }
    }

    /// What its kernel is told: which modules the init needs for what it mounts.
    fn options(self) -> String {
        let efi = if self == Self::GrubBios { "" } else { " goldsync.load=efi" };
        format!("{KERNEL_WORDS} goldsync.load=esp{efi}")
    }

    /// The section `activation` of agent.toml.
    pub fn activation(self) -> &'static str {
        match self {
            Self::GrubBios | Self::GrubEfi => "backend = \"grub\"\ngrubenv = \"/esp/grub/grubenv\"\n",
        }
    }

    /// Puts it on a disk; `None`, loudly, if this machine does not have it.
    pub fn install(self, rig: &Rig, test: &str, disk: &Disk) -> Result<Option<Firmware>> {
        match self {
            Self::GrubBios => {
                let (Some(boot), Some(core)) =
                    (rig.parts.optional(test, "boot.img"), rig.parts.optional(test, "grub-bios.img"))
                else {
                    return Ok(None);
                };
                boot_sector(disk, &boot, &core)?;
                self.grub(
                    disk,
                    "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n",
                    "msdos",
                )?;
                Ok(Some(Firmware::Bios))
            }
            Self::GrubEfi => {
                let Some(image) = rig.parts.optional(test, "grub-efi.efi") else { return Ok(None) };
                disk.esp_put(&image, "/EFI/BOOT/BOOTX64.EFI")?;
                self.grub(disk, "", "gpt")?;
                uefi(test, disk)
            }
        }
    }

    fn grub(self, disk: &Disk, terminal: &str, table: &str) -> Result<()> {
        let options = self.options();
        let config = format!(
            "{terminal}set goldsync_a='hd0,{table}2'\nset goldsync_b='hd0,{table}3'\nset goldsync_linux=/boot/vmlinuz\n\
             set goldsync_initrd=/boot/initrd\nset goldsync_panic=1\nset goldsync_options='{options}'\n\
             source $prefix/goldsync.cfg\n"
        );
        disk.esp_write("/grub/grub.cfg", config)?;
        disk.esp_write("/grub/goldsync.cfg", SNIPPET)?;
        // As grub-editenv makes it.
        disk.esp_write("/grub/grubenv", format!("{:#<1024}", "# GRUB Environment Block\n"))
    }
}

/// The loader's first sector, around the partition table, and its core image between that and the first partition.
fn boot_sector(disk: &Disk, boot: &Path, core: &Path) -> Result<()> {
    let (boot, core) = (fs::read(boot)?, fs::read(core)?);
    ensure!(core.len() as u64 <= FIRST_PARTITION - SECTOR, "GRUB's core image is too large: {} bytes", core.len());
    let file = File::options().write(true).open(&disk.path)?;
    file.write_all_at(boot.get(..BOOT_CODE).context("GRUB's boot sector is too short")?, 0)?;
    file.write_all_at(&core, SECTOR).context("write GRUB's core image")
}

/// The firmware, with variables of the machine's own beside its disk.
fn uefi(test: &str, disk: &Disk) -> Result<Option<Firmware>> {
    let [code, template] = OVMF.map(PathBuf::from);
    if !code.is_file() || !template.is_file() {
        skip(test, "OVMF is not installed; run scripts/install-packages vm");
        return Ok(None);
    }
    let vars = disk.path.with_extension("vars");
    fs::copy(template, &vars)?;
    Ok(Some(Firmware::Uefi { code, vars }))
}
