//! Where the partitions of a virtual machine's disk lie: arithmetic, and the partition table's text for `sfdisk`.
//!
//! ```text
//! 1 MiB   partition 1: ESP or /boot, FAT      2: slot a      3: slot b      4: state, ext4      1 MiB
//! ```
//! The first mebibyte holds the table and, on BIOS machines, GRUB's core image; the last one GPT's second table.

use std::ops::Range;

const MEBIBYTE: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The UUID of every ESP here, as firmware writes it in a device's path.
pub const ESP_UUID: [u8; 16] =
    [0x52, 0x1c, 0x5a, 0x3f, 0x0e, 0x7a, 0x5b, 0x4c, 0x9a, 0x55, 0x6d, 0x2f, 0x2b, 0x0c, 0x7e, 0x11];

/// The kind of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// What GRUB's boot sector is happy with.
    Mbr,
    /// What UEFI expects.
    Gpt,
}

/// A partition, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The loader's: `/dev/vda1`.
    Esp,
    /// `/dev/vda2`
    A,
    /// `/dev/vda3`
    B,
    /// The agent's configuration and state: `/dev/vda4`.
    State,
}

impl Part {
    /// All of them, in their order on the disk.
    pub const ALL: [Self; 4] = [Self::Esp, Self::A, Self::B, Self::State];

    /// Slot `a` or `b`.
    pub fn slot(name: &str) -> Option<Self> {
        match name {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            _ => None,
        }
    }
}

/// A disk's division, in mebibytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its table.
    pub table: Table,
    /// The loader's partition.
    pub esp: u64,
    /// Each slot.
    pub slot: u64,
    /// The state partition.
    pub state: u64,
}

impl Layout {
    /// The bytes of one partition.
    pub fn range(&self, part: Part) -> Range<u64> {
        let before = Part::ALL.iter().take_while(|other| **other != part).map(|other| self.mebibytes(*other));
        let start = (1 + before.sum::<u64>()) * MEBIBYTE;
        start..start + self.mebibytes(part) * MEBIBYTE
    }

    /// The bytes of the whole disk.
    pub fn whole(&self) -> u64 {
        self.range(Part::State).end + MEBIBYTE
    }

    /// What `sfdisk` reads.
    pub fn script(&self) -> String {
        let label = match self.table {
            Table::Mbr => "dos",
            Table::Gpt => "gpt",
        };
        let mut text = format!("label: {label}\nunit: sectors\n");
        for part in Part::ALL {
            let range = self.range(part);
            let (start, size) = (range.start / SECTOR, (range.end - range.start) / SECTOR);
            text.push_str(&format!("start={start}, size={size}, type={}\n", self.kind(part)));
        }
        text
    }

    fn mebibytes(&self, part: Part) -> u64 {
        match part {
            Part::Esp => self.esp,
            Part::A | Part::B => self.slot,
            Part::State => self.state,
        }
    }

    /// `sfdisk`'s names for the ESP and for Linux data.
    fn kind(&self, part: Part) -> &'static str {
        match (self.table, part) {
            (Table::Mbr, Part::Esp) => "ef, bootable",
            (Table::Mbr, _) => "83",
            (Table::Gpt, Part::Esp) => "U, uuid=3F5A1C52-7A0E-4C5B-9A55-6D2F2B0C7E11",
            (Table::Gpt, Part::A) => "L, name=slot-a",
            (Table::Gpt, Part::B) => "L, name=slot-b",
            (Table::Gpt, Part::State) => "L, name=state",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { table: Table::Gpt, esp: 34, slot: 64, state: 16 };

    #[test]
    fn partitions_follow_each_other() {
        let ends = Part::ALL.map(|part| LAYOUT.range(part)).map(|range| (range.start >> 20, range.end >> 20));
        assert_eq!(ends, [(1, 35), (35, 99), (99, 163), (163, 179)]);
        assert_eq!(LAYOUT.whole() >> 20, 180);
    }

    #[test]
    fn the_table_is_in_sectors() {
        let gpt = LAYOUT.script();
        assert!(gpt.contains("label: gpt") && gpt.contains("start=71680, size=131072, type=L, name=slot-a"), "{gpt}");
        let mbr = Layout { table: Table::Mbr, ..LAYOUT }.script();
        assert!(mbr.contains("label: dos") && mbr.contains("start=2048, size=69632, type=ef, bootable"), "{mbr}");
    }
}
