//! An ESP that is a folder, images that are folders, and a loader that counts as systemd-boot does.

use std::collections::BTreeMap;

use goldsync_proto::verity::{RootHash, Sealed};

use super::super::testing::{Machine, holds};
use super::*;
use crate::config::Kernel;

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// Images are folders here: the file lies in `SLOT.d`.
fn open(slot: &Path, file: &Path) -> io::Result<File> {
    File::open(slot.with_extension("d").join(file.strip_prefix("/").unwrap()))
}

struct Bench {
    machine: Machine,
    boot: SystemdBoot,
}

impl Bench {
    fn new(slot: Option<SlotName>) -> Self {
        let kernel = Kernel::Image { linux: "/vmlinuz".into(), initrd: Some("/boot/initrd.img".into()) };
        Self::with(slot, kernel, "root={path} ro")
    }

    fn with(slot: Option<SlotName>, kernel: Kernel, options: &str) -> Self {
        let machine = Machine::new(slot);
        let settings = Settings {
            esp: machine.path("esp"),
            efivars: machine.path("efivars"),
            kernel,
            options: Template::read(options).unwrap(),
        };
        fs::create_dir_all(settings.esp.join("EFI")).unwrap();
        fs::create_dir_all(settings.esp.join("loader/entries")).unwrap();
        fs::create_dir_all(&settings.efivars).unwrap();
        let boot = SystemdBoot::reading(&settings, &machine.slots(), machine.booted(), open);
        let bench = Self { machine, boot };
        bench.install(A, "1");
        bench.install(B, "1");
        bench
    }

    /// Puts an image with this kernel into a slot.
    fn install(&self, slot: SlotName, kernel: &str) {
        let folder = self.machine.slots().path(slot).with_extension("d");
        fs::create_dir_all(folder.join("boot")).unwrap();
        fs::write(folder.join("vmlinuz"), format!("kernel {kernel}")).unwrap();
        fs::write(folder.join("boot/initrd.img"), format!("initrd {kernel}")).unwrap();
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let found = fs::read_dir(self.boot.esp.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = found.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn entries(&self) -> Vec<String> {
        self.names("loader/entries")
    }

    fn look(&self) -> (Option<SlotName>, Option<SlotName>, Option<u8>) {
        let Look { active, next, tries } = self.boot.look().unwrap();
        (active, next, tries)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.boot.esp.join(name), text).unwrap();
    }

    /// What the loader does at a start: counts by renaming, and starts.
    fn start(&self) -> Option<SlotName> {
        let entries = self.boot.entries().unwrap();
        let first = chosen(&entries, self.boot.pattern().unwrap().as_deref())?;
        if let Some((left, done)) = first.name.tries {
            let name = Name { tries: Some((left.saturating_sub(1), done + 1)), ..first.name.clone() };
            fs::rename(&first.path, self.boot.folder().join(name.file())).unwrap();
        }
        let slot = first.ours?.0;
        self.machine.boot(slot);
        Some(slot)
    }

    /// Every file of the ESP and its content.
    fn whole(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.boot.esp.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    files.insert(entry.path(), fs::read(entry.path()).unwrap());
                }
            }
        }
        files
    }
}

#[test]
fn a_good_update_is_counted_and_confirmed() {
    let bench = Bench::new(Some(A));
    assert_eq!(bench.look(), (Some(A), None, None));
    bench.boot.activate(A, &holds(), 0).unwrap();
    assert_eq!((bench.entries(), bench.look()), (vec!["goldsync-a-1.conf".into()], (Some(A), Some(A), None)));
    bench.boot.retire(B).unwrap();
    bench.install(B, "2");
    bench.boot.activate(B, &holds(), 3).unwrap();
    assert_eq!(bench.entries(), ["goldsync-a-1.conf", "goldsync-b-2+3.conf"]);
    assert_eq!(bench.look(), (Some(A), Some(B), Some(3)));
    // Again: the old entry goes only when the new one is there.
    bench.boot.activate(B, &holds(), 3).unwrap();
    assert_eq!(bench.entries(), ["goldsync-a-1.conf", "goldsync-b-3+3.conf"]);
    assert_eq!(bench.start(), Some(B));
    assert_eq!(bench.look(), (Some(B), Some(B), Some(2)));
    for _ in 0..2 {
        bench.boot.confirm(B).unwrap();
        assert_eq!(bench.entries(), ["goldsync-a-1.conf", "goldsync-b-3.conf"]);
        assert_eq!(bench.look(), (Some(B), Some(B), None));
    }
    bench.boot.activate(A, &holds(), 0).unwrap();
    assert_eq!(bench.entries(), ["goldsync-a-4.conf", "goldsync-b-3.conf"]);
    assert_eq!(bench.look(), (Some(B), Some(A), None), "the way back");
}

#[test]
fn an_entry_says_what_is_started() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    let entry = fs::read_to_string(bench.boot.folder().join("goldsync-a-1.conf")).unwrap();
    let (linux, initrd) = (blake3::hash(b"kernel 1").to_hex(), blake3::hash(b"initrd 1").to_hex());
    let path = bench.machine.path("a.img");
    let expected = format!(
        "title    goldsync web:1 (slot a)\noptions  root={} ro goldsync.slot=a panic=10\nsort-key goldsync\nversion  1\nlinux    /goldsync/vmlinuz-{}\ninitrd   /goldsync/initrd-{}\n",
        path.display(),
        &linux[..16],
        &initrd[..16]
    );
    assert_eq!(entry, expected);
    let kernel = bench.boot.esp.join(format!("goldsync/vmlinuz-{}", &linux[..16]));
    assert_eq!(fs::read(kernel).unwrap(), b"kernel 1");
}

#[test]
fn a_slot_that_never_reaches_us_is_left_after_its_tries() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    bench.boot.activate(B, &holds(), 2).unwrap();
    assert_eq!([bench.start(), bench.start(), bench.start()], [Some(B), Some(B), Some(A)]);
    assert_eq!(bench.entries(), ["goldsync-a-1.conf", "goldsync-b-2+0-2.conf"]);
    assert_eq!(bench.look(), (Some(A), Some(A), None));
    assert!(bench.boot.knows(B).unwrap(), "it had its tries");
    bench.boot.confirm(A).unwrap();
    bench.boot.retire(B).unwrap();
    assert_eq!(bench.entries(), ["goldsync-a-1.conf"]);
}

#[test]
fn an_entry_that_power_took_from_the_loader_is_not_known() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    bench.boot.activate(B, &holds(), 2).unwrap();
    assert_eq!([bench.boot.knows(A).unwrap(), bench.boot.knows(B).unwrap()], [true, true]);
    // A rename on FAT that was cut: the new name, and no bytes.
    fs::write(bench.boot.folder().join("goldsync-b-2+2.conf"), "").unwrap();
    assert_eq!(bench.start(), Some(A));
    assert_eq!([bench.boot.knows(A).unwrap(), bench.boot.knows(B).unwrap()], [true, false]);
}

#[test]
fn a_slot_that_runs_without_an_entry_gets_one_to_fall_back_to() {
    let bench = Bench::new(Some(A));
    bench.put("loader/loader.conf", "timeout 0\ndefault goldsync-*\n");
    bench.put("loader/entries/debian.conf", "title Debian\nsort-key debian\nversion 6.1\nlinux /EFI/vmlinuz\n");
    bench.put("EFI/vmlinuz", "debian's");
    assert_eq!(bench.look(), (Some(A), None, None), "the first entry is not ours");
    bench.boot.activate(B, &holds(), 1).unwrap();
    assert_eq!(bench.entries(), ["debian.conf", "goldsync-a-1.conf", "goldsync-b-2+1.conf"]);
    assert_eq!([bench.start(), bench.start(), bench.start()], [Some(B), Some(A), Some(A)]);
}

#[test]
fn a_loader_that_would_start_another_entry_is_told_before_anything_changes() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    bench.put("EFI/vmlinuz", "debian's");
    bench.put("loader/entries/debian.conf", "sort-key debian\nlinux /EFI/vmlinuz\n");
    bench.put("loader/loader.conf", "default debian*\n");
    bench.install(B, "2");
    let before = bench.whole();
    let refused = |cause: &str| {
        let error = bench.boot.activate(B, &holds(), 3).unwrap_err().to_string();
        assert!(error.contains(cause) && error.contains("default goldsync-*"), "{error}");
    };
    refused("debian.conf would be started");
    assert_eq!(bench.whole(), before);
    bench.put("loader/loader.conf", "defaultx y\n# default z\n");
    refused("debian.conf would be started");
    bench.put("loader/loader.conf", "default @saved\n");
    refused("loader.conf says default @saved, and not slot b");
    assert_eq!(bench.look(), (Some(A), None, None));
    bench.put("loader/loader.conf", "default\tgoldsync-*\n");
    let set: Vec<u8> = "debian.conf\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let variable = bench.boot.efivars.join(DEFAULT_VARIABLE);
    fs::write(&variable, [&[7, 0, 0, 0], &set[..]].concat()).unwrap();
    refused("debian.conf would be started");
    fs::write(&variable, [7, 0, 0, 0]).unwrap();
    bench.put("loader/entries/goldsync-a.conf", "sort-key about\nlinux /EFI/vmlinuz\n");
    refused("goldsync-a.conf would be started");
    bench.put("loader/entries/goldsync-a.conf", "version 6.1\nsort-key goldsync\nlinux /EFI/vmlinuz\n");
    bench.boot.activate(B, &holds(), 3).unwrap();
    assert_eq!(bench.look(), (Some(A), Some(B), Some(3)));
    assert!(bench.entries().contains(&"goldsync-b-7+3.conf".to_owned()), "newer than 6.1");
}

#[test]
fn blessing_by_systemd_is_respected() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    bench.boot.activate(B, &holds(), 3).unwrap();
    bench.start();
    let folder = bench.boot.folder();
    fs::rename(folder.join("goldsync-b-2+2-1.conf"), folder.join("goldsync-b-2.conf")).unwrap();
    assert_eq!(bench.look(), (Some(B), Some(B), None));
    bench.boot.confirm(B).unwrap();
    assert_eq!(bench.entries(), ["goldsync-a-1.conf", "goldsync-b-2.conf"]);
}

#[test]
fn kernels_are_shared_kept_while_named_and_swept() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    bench.boot.activate(B, &holds(), 3).unwrap();
    assert_eq!(bench.names("goldsync").len(), 2, "both images have the same kernel");
    bench.boot.retire(B).unwrap();
    bench.install(B, "2");
    bench.put("goldsync/.vmlinuz-0123.new", "half");
    bench.put("goldsync/readme", "somebody's");
    bench.boot.activate(B, &holds(), 3).unwrap();
    assert_eq!(bench.names("goldsync").len(), 5);
    bench.boot.retire(B).unwrap();
    let left = bench.names("goldsync");
    assert_eq!((left.len(), left.contains(&"readme".to_owned())), (3, true), "{left:?}");
    assert_eq!(bench.look(), (Some(A), Some(A), None));
    // A copy that rotted is made again.
    let kernel = left.iter().find(|name| name.starts_with("vmlinuz-")).unwrap();
    bench.put(&format!("goldsync/{kernel}"), "kernel ?");
    bench.boot.activate(A, &holds(), 0).unwrap();
    assert_eq!(fs::read(bench.boot.esp.join("goldsync").join(kernel)).unwrap(), b"kernel 1");
}

#[test]
fn what_a_cut_rename_leaves_is_passed_over() {
    let bench = Bench::new(Some(A));
    bench.boot.activate(A, &holds(), 0).unwrap();
    bench.put("loader/entries/goldsync-b-2+3.conf", "");
    bench.put("loader/entries/.goldsync-b-2.new", "title half");
    assert_eq!(bench.look(), (Some(A), Some(A), None));
    bench.boot.activate(B, &holds(), 3).unwrap();
    assert_eq!(bench.look(), (Some(A), Some(B), Some(3)));
    bench.start();
    bench.put("loader/entries/goldsync-b-3.conf", "");
    bench.boot.confirm(B).unwrap();
    assert_eq!(bench.look(), (Some(B), Some(B), None));
    assert!(bench.entries().contains(&"goldsync-b-3.conf".to_owned()));
    bench.boot.retire(A).unwrap();
    assert_eq!(bench.look(), (Some(B), Some(B), None));
}

#[test]
fn a_unified_image_and_a_fixed_kernel_are_named_too() {
    let unified = Bench::with(Some(A), Kernel::Unified { uki: "/vmlinuz".into() }, "");
    unified.boot.activate(A, &holds(), 0).unwrap();
    let entry = fs::read_to_string(unified.boot.folder().join("goldsync-a-1.conf")).unwrap();
    assert!(entry.contains("\nefi      /goldsync/uki-") && entry.ends_with(".efi\n"), "{entry}");
    let kernel = Kernel::Esp { linux: "/EFI/board/Image".into(), initrd: None };
    let fixed = Bench::with(Some(A), kernel, "{image}");
    let error = fixed.boot.activate(A, &holds(), 0).unwrap_err().to_string();
    assert!(error.contains("looking at") && error.contains("EFI/board/Image"), "{error}");
    fs::create_dir(fixed.boot.esp.join("EFI/board")).unwrap();
    fixed.put("EFI/board/Image", "fixed");
    fixed.boot.activate(A, &holds(), 0).unwrap();
    let entry = fs::read_to_string(fixed.boot.folder().join("goldsync-a-1.conf")).unwrap();
    assert!(entry.contains("linux    /EFI/board/Image\n"), "{entry}");
    assert!(entry.contains(&holds().image.to_string()), "{entry}");
    // The slot that runs needs an entry, and what image it holds is not known.
    fixed.boot.retire(A).unwrap();
    let error = fixed.boot.activate(B, &holds(), 3).unwrap_err().to_string();
    assert!(error.contains("`activation.options` has {image}, but what slot a holds is not known"), "{error}");
}

#[test]
fn a_sealed_image_hands_its_root_hash_to_the_entry() {
    let kernel = Kernel::Unified { uki: "/vmlinuz".into() };
    let bench = Bench::with(None, kernel, "roothash={root_hash} systemd.verity_root_options=hash-offset={hash_offset}");
    let error = bench.boot.activate(A, &holds(), 3).unwrap_err().to_string();
    assert!(error.contains("has {root_hash}, but what slot a holds is not known to be sealed"), "{error}");
    let sealed = Sealed {
        version: 1,
        algorithm: "sha256".into(),
        data_block_size: 4096,
        hash_block_size: 4096,
        data_blocks: 2,
        hash_offset: 8192,
        salt: Vec::new(),
        root_hash: RootHash([0xab; 32]),
    };
    bench.boot.activate(A, &Holds { verity: Some(sealed), ..holds() }, 3).unwrap();
    let entry = fs::read_to_string(bench.boot.folder().join("goldsync-a-1+3.conf")).unwrap();
    let expected = format!("options  roothash={} systemd.verity_root_options=hash-offset=8192 ", "ab".repeat(32));
    assert!(entry.contains(&expected), "{entry}");
}

#[test]
fn what_is_missing_is_named() {
    let bench = Bench::new(Some(A));
    let error = bench.boot.confirm(A).unwrap_err().to_string();
    assert!(error.contains("has no entry for slot a"), "{error}");
    fs::remove_file(bench.machine.path("a.d/vmlinuz")).unwrap();
    let error = bench.boot.activate(A, &holds(), 0).unwrap_err().to_string();
    assert!(error.contains("opening in the slot /vmlinuz"), "{error}");
    fs::remove_dir_all(&bench.boot.esp).unwrap();
    let error = bench.boot.look().unwrap_err().to_string();
    assert!(error.contains("mount the EFI system partition there"), "{error}");
}
