//! Boot loaders, put on a disk from outside as an installer would.
//!
//! | loader       | firmware | on the first partition                                                          |
//! |--------------|----------|---------------------------------------------------------------------------------|
//! | GRUB, BIOS   | SeaBIOS  | `/grub`: our snippet, a `grub.cfg`, an empty environment block; core image before it |
//! | GRUB, EFI    | OVMF     | the same, and `/EFI/BOOT/BOOTX64.EFI`                                           |
//! | systemd-boot | OVMF     | `/EFI/BOOT/BOOTX64.EFI`, slot a's entry, kernel and initramfs                   |
//! | none         | OVMF     | kernel and initramfs, and GRUB to start the machine once: it makes its own boot entries |
//!
//! With GRUB the kernel and the initramfs are the slot's own, with systemd-boot the agent copies the slot's own, and without a loader
//! they are the machine's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::layout::ESP_UUID;
use super::{Disk, Firmware, KERNEL_WORDS, Part, Rig, Table};
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
    /// systemd-boot.
    SystemdBoot,
    /// UEFI by itself.
    Uefi,
}

impl Loader {
    /// The partition table that it wants.
    pub fn table(self) -> Table {
        match self {
            Self::GrubBios => Table::Mbr,
            Self::GrubEfi | Self::SystemdBoot | Self::Uefi => Table::Gpt,
        }
    }

    /// What its kernel is told: which modules the init needs for what it mounts.
    fn options(self) -> String {
        let efi = if self == Self::GrubBios { "" } else { " goldsync.load=efi" };
        format!("{KERNEL_WORDS} goldsync.load=esp{efi}")
    }

    /// The section `activation` of agent.toml.
    pub fn activation(self) -> String {
        match self {
            Self::GrubBios | Self::GrubEfi => "backend = \"grub\"\ngrubenv = \"/esp/grub/grubenv\"".to_owned(),
            Self::SystemdBoot => format!(
                "backend = \"systemd-boot\"\nesp = \"/esp\"\nkernel = \"/boot/vmlinuz\"\ninitrd = \"/boot/initrd\"\n\
                 options = \"{}\"",
                self.options()
            ),
            Self::Uefi => "backend = \"uefi\"".to_owned(),
        }
    }

    /// What its machine is ordered before anything else.
    pub fn orders(self, disk: &Disk) -> String {
        if self != Self::Uefi {
            return String::new();
        }
        // As efibootmgr would: the entries, with numbers that the firmware has not given to others, and an order that
        // begins with a's. One write makes one variable.
        let mut orders = "efi() { base64 -d >/tmp/efi; dd if=/tmp/efi bs=64k count=1 of=\"/sys/firmware/efi/efivars/$1-8be4df61-93ca-11d2-aa0d-00e098032b8c\" 2>/dev/null; }\nif ! [ -e /state/entries ]; then\n".to_owned();
        for (number, slot) in [(0x0a0a, "a"), (0x0b0b, "b")] {
            let words = format!("{} goldsync.slot={slot} initrd=\\machine\\initrd", self.options());
            let option = load_option(disk, &format!("goldsync {slot}"), "\\machine\\vmlinuz", &words);
            orders.push_str(&format!("echo '{}' | efi Boot{number:04X}\n", base64(&option)));
        }
        let order: Vec<u8> = [ATTRIBUTES, &[0x0a, 0x0a]].concat();
        orders.push_str(&format!("echo '{}' | efi BootOrder\ntouch /state/entries\nfi\n", base64(&order)));
        orders
    }

    /// How many starts of a new image it counts here: as few as show that it counts. UEFI gives it one.
    pub fn counted(self) -> u8 {
        if self == Self::Uefi { 1 } else { 2 }
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
            Self::SystemdBoot => {
                let Some(image) = rig.parts.optional(test, "systemd-boot.efi") else { return Ok(None) };
                disk.esp_put(&image, "/EFI/BOOT/BOOTX64.EFI")?;
                disk.esp_write("/loader/loader.conf", "default goldsync-*\ntimeout 0\n")?;
                let entry = format!(
                    "title factory\nsort-key goldsync\nversion 0\nlinux /factory/vmlinuz\ninitrd /factory/initrd\noptions {} goldsync.slot=a\n",
                    self.options()
                );
                disk.esp_write("/loader/entries/goldsync-a.conf", entry)?;
                self.kernel(rig, disk, "/factory")?;
                uefi(test, disk)
            }
            Self::Uefi => {
                let Some(image) = rig.parts.optional(test, "grub-efi.efi") else { return Ok(None) };
                disk.esp_put(&image, "/EFI/BOOT/BOOTX64.EFI")?;
                let first = format!(
                    "linux /machine/vmlinuz {} goldsync.slot=a\ninitrd /machine/initrd\nboot\n",
                    self.options()
                );
                disk.esp_write("/grub/grub.cfg", first)?;
                self.kernel(rig, disk, "/machine")?;
                uefi(test, disk)
            }
        }
    }

    /// The kernel and the initramfs in a folder of the ESP.
    fn kernel(self, rig: &Rig, disk: &Disk, folder: &str) -> Result<()> {
        disk.esp_put(&rig.parts.kernel(), &format!("{folder}/vmlinuz"))?;
        let initrd = rig.path("loader-initrd");
        rig.parts.write_initramfs(&initrd, &[])?;
        disk.esp_put(&initrd, &format!("{folder}/initrd"))
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

/// Kept without power, seen before and after the system has started: what stands before a variable's value in efivarfs.
const ATTRIBUTES: &[u8] = &[7, 0, 0, 0];

/// A boot entry as it lies in efivarfs: start `file` of the ESP with these words.
fn load_option(disk: &Disk, description: &str, file: &str, words: &str) -> Vec<u8> {
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect() };
    let esp = disk.layout.range(Part::Esp);
    // A hard drive's partition, by its UUID in a GPT; a file; the end.
    let mut partition = vec![4, 1, 42, 0, 1, 0, 0, 0];
    partition.extend_from_slice(&(esp.start / SECTOR).to_le_bytes());
    partition.extend_from_slice(&((esp.end - esp.start) / SECTOR).to_le_bytes());
    partition.extend_from_slice(&ESP_UUID);
    partition.extend_from_slice(&[2, 2]);
    let name = wide(file);
    let length = (name.len() as u16 + 4).to_le_bytes();
    let path = [&partition[..], &[4, 4], &length, &name, &[0x7f, 0xff, 4, 0]].concat();
    let length = (path.len() as u16).to_le_bytes();
    [ATTRIBUTES, &[1, 0, 0, 0], &length, &wide(description), &path, &wide(words)].concat()
}

/// As `base64` reads it: few bytes, once, so that it needs no library.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let value = chunk.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(value >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_others_read_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob\u{7f}", "Zm9vYn8=")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
