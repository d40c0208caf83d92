//! What a machine is, as far as an update is concerned: read from `/proc`, `/sys`, `/dev` and a few folders, below any root.
//!
//! A thing that cannot be read is a thing that is not there: this is a look, not a proof.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// EFI's variable in which a boot loader says its name.
const LOADER_INFO: &str = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Where an EFI system partition is mounted.
const ESPS: [&str; 4] = ["/efi", "/boot/efi", "/boot/firmware", "/boot"];

/// Where file slots would lie.
const HOMES: [&str; 3] = ["/srv", "/var/lib", "/"];

/// The most of any of these files that is read.
const TEXT_MAX: u64 = 1 << 20;

/// Facts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    /// The kernel's release, for example `6.12.9`.
    pub kernel: Option<String>,
    /// systemd's version.
    pub systemd: Option<u32>,
    /// Whether it was started by UEFI.
    pub efi: bool,
    /// Where the EFI system partition is mounted.
    pub esp: Option<PathBuf>,
    /// Who may have started it.
    pub loaders: Loaders,
    /// The device that `/` lies on.
    pub root: Option<PathBuf>,
    /// Its partitions, by name.
    pub partitions: Vec<Partition>,
    /// Where file slots would lie.
    pub space: Option<Space>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// The kernel and its initrd, in the running system.
    pub kernel_files: [Option<PathBuf>; 2],
    /// Whether a configuration is there already.
    pub configured: bool,
}

/// Boot loaders of which something was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Loaders {
    /// What the loader that started this machine called itself.
    pub said: Option<String>,
    /// systemd-boot's folder on the ESP.
    pub systemd_boot: Option<PathBuf>,
    /// GRUB's files.
    pub grub: Option<Grub>,
    /// U-Boot's configuration of its environment.
    pub uboot: Option<PathBuf>,
}

/// GRUB's files.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Grub {
    /// `grub.cfg`
    pub config: PathBuf,
    /// `grubenv`, if it is there.
    pub environment: Option<PathBuf>,
    /// Whether they lie on another file system than `/`, which an update may replace.
    pub apart: bool,
}

/// A partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// The kernel's name, for example `vda2`.
    pub name: String,
    /// What to write into a configuration: by label, where that is possible.
    pub path: PathBuf,
    /// The name that the partition table gives it.
    pub label: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Where it is mounted.
    pub mounted: Vec<PathBuf>,
    /// Whether swap lies on it, or it belongs to a device that is put together from several.
    pub taken: bool,
}

/// A place for files.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Space {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes free.
    pub free: u64,
}

impl Machine {
    /// Looks at the machine whose root folder this is.
    pub fn look(root: &Path) -> Self {
        let mounts = mounts(&text(&root.join("proc/self/mountinfo")));
        let esp = esp(root, &mounts);
        let said = |path: &str| Some(text(&root.join(path)).trim().to_owned()).filter(|text| !text.is_empty());
        let kernel = said("proc/sys/kernel/osrelease");
        Self {
            kernel_files: kernel_files(root, kernel.as_deref()),
            kernel,
            cmdline: said("proc/cmdline"),
            systemd: systemd(root),
            efi: root.join("sys/firmware/efi").is_dir(),
            loaders: loaders(root, esp.as_deref(), &mounts),
            esp,
            root: mounts.iter().rev().find(|mount| mount.point == Path::new("/")).map(|mount| mount.source.clone()),
            partitions: partitions(root, &mounts),
            space: space(root),
            configured: root.join("etc/goldsync/agent.toml").exists(),
        }
    }

    /// The partition that `/` lies on.
    pub fn root_partition(&self) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.mounted.iter().any(|point| point == Path::new("/")))
    }
}

fn text(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(TEXT_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A path of the machine's, below the folder that stands for its root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

struct Mount {
    number: String,
    point: PathBuf,
    kind: String,
    source: PathBuf,
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    let of_line = |line: &str| {
        // 36 35 98:0 /root /point options [optional...] - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let number = left.nth(2)?.to_owned();
        let point = unescape(left.nth(1)?);
        let mut right = right.split(' ');
        Some(Mount {
            number,
            point: point.into(),
            kind: right.next()?.to_owned(),
            source: unescape(right.next()?).into(),
        })
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// `mountinfo` writes space, tab, line feed and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn esp(root: &Path, mounts: &[Mount]) -> Option<PathBuf> {
    let points = ESPS.iter().map(Path::new);
    let fat = |point: &Path| mounts.iter().any(|mount| mount.point == point && mount.kind == "vfat");
    let holds = |point: &Path| below(root, point).join("EFI").is_dir();
    points.filter(|point| fat(point) && holds(point)).map(Path::to_owned).next()
}

fn loaders(root: &Path, esp: Option<&Path>, mounts: &[Mount]) -> Loaders {
    let systemd_boot = esp.filter(|esp| {
        let esp = below(root, esp);
        esp.join("EFI/systemd").is_dir() && (esp.join("loader/entries").is_dir() || esp.join("EFI/Linux").is_dir())
    });
    let folders = ["/boot/grub", "/boot/grub2"].map(PathBuf::from).into_iter().chain(esp.map(|esp| esp.join("grub")));
    let grub = folders.filter(|folder| below(root, folder).join("grub.cfg").is_file()).map(|folder| Grub {
        environment: Some(folder.join("grubenv")).filter(|path| below(root, path).is_file()),
        apart: mounts.iter().any(|mount| mount.point != Path::new("/") && folder.starts_with(&mount.point)),
        config: folder.join("grub.cfg"),
    });
    let uboot = Path::new("/etc/fw_env.config");
    Loaders {
        said: loader_info(&root.join(LOADER_INFO)),
        systemd_boot: systemd_boot.map(Path::to_owned),
        grub: { grub }.next(),
        uboot: below(root, uboot).is_file().then(|| uboot.to_owned()),
    }
}

/// Four bytes of attributes, then UTF-16 with a zero at the end.
fn loader_info(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let words: Vec<u16> = bytes.get(4..)?.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    let text = String::from_utf16_lossy(&words);
    let text = text.trim_end_matches('\0').trim();
    (!text.is_empty()).then(|| text.chars().take(80).collect())
}

/// By the name of its own library: nothing is run.
fn systemd(root: &Path) -> Option<u32> {
    let mut folders = vec![root.join("usr/lib/systemd"), root.join("lib/systemd")];
    folders.extend(entries(&root.join("usr/lib")).into_iter().map(|folder| folder.join("systemd")));
    let names = folders.iter().flat_map(|folder| entries(folder)).filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_prefix("libsystemd-shared-")?.to_owned();
        name.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    names.max()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn partitions(root: &Path, mounts: &[Mount]) -> Vec<Partition> {
    let swaps = text(&root.join("proc/swaps"));
    let of = |folder: PathBuf| {
        if !folder.join("partition").is_file() {
            return None;
        }
        let name = folder.file_name()?.to_str().filter(|name| plain(name))?.to_owned();
        let number = text(&folder.join("dev")).trim().to_owned();
        let device = Path::new("/dev").join(&name);
        let label =
            text(&folder.join("uevent")).lines().find_map(|line| line.strip_prefix("PARTNAME=").map(str::to_owned));
        // By label where udev made such a name: it stays when disks are found in another order.
        let by_label =
            label.as_deref().filter(|label| plain(label)).map(|it| Path::new("/dev/disk/by-partlabel").join(it));
        let path = by_label.filter(|path| below(root, path).symlink_metadata().is_ok());
        let mounted = mounts.iter().filter(|mount| mount.number == number || mount.source == device);
        let swap = swaps.lines().any(|line| line.split_ascii_whitespace().next() == device.to_str());
        Some(Partition {
            path: path.unwrap_or_else(|| device.clone()),
            label,
            size: text(&folder.join("size")).trim().parse::<u64>().ok()?.saturating_mul(512),
            read_only: text(&folder.join("ro")).trim() == "1",
            mounted: mounted.map(|mount| mount.point.clone()).collect(),
            taken: swap || !entries(&folder.join("holders")).is_empty(),
            name,
        })
    };
    entries(&root.join("sys/class/block")).into_iter().filter_map(of).collect()
}

/// Names that mean the same to udev, TOML and people.
fn plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// By the links that distributions make, or by the release.
fn kernel_files(root: &Path, release: Option<&str>) -> [Option<PathBuf>; 2] {
    let release = release.filter(|release| plain(release)).unwrap_or("none");
    let linux = ["/vmlinuz", "/boot/vmlinuz"].map(str::to_owned).into_iter();
    let linux = linux.chain([format!("/boot/vmlinuz-{release}"), format!("/usr/lib/modules/{release}/vmlinuz")]);
    let initrd = ["/initrd.img", "/boot/initrd.img"].map(str::to_owned).into_iter();
    let initrd = initrd.chain([format!("/boot/initrd.img-{release}"), format!("/boot/initramfs-{release}.img")]);
    let there = |path: &PathBuf| below(root, path).symlink_metadata().is_ok();
    [linux.map(PathBuf::from).find(there), initrd.map(PathBuf::from).find(there)]
}

fn space(root: &Path) -> Option<Space> {
    HOMES.iter().map(Path::new).find_map(|folder| {
        let there = below(root, folder);
        let system = there.is_dir().then(|| rustix::fs::statvfs(&there).ok()).flatten()?;
        Some(Space { folder: folder.to_owned(), free: system.f_bavail.saturating_mul(system.f_frsize) })
    })
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A machine's tree in a folder.
    pub(crate) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(crate) fn root(&self) -> &Path {
            self.0.path()
        }

        pub(crate) fn file(&self, path: &str, bytes: impl AsRef<[u8]>) -> &Self {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
            self
        }

        /// A partition, as the kernel and udev show it.
        pub(crate) fn partition(&self, name: &str, number: &str, label: Option<&str>, mib: u64) -> &Self {
            let folder = format!("sys/class/block/{name}");
            self.file(&format!("{folder}/partition"), "1\n").file(&format!("{folder}/dev"), format!("{number}\n"));
            self.file(&format!("{folder}/size"), format!("{}\n", mib * 2048)).file(&format!("{folder}/ro"), "0\n");
            let named = label.map(|label| format!("PARTNAME={label}\n")).unwrap_or_default();
            self.file(&format!("{folder}/uevent"), format!("DEVNAME={name}\n{named}PARTN=1\n"));
            if let Some(label) = label {
                self.file(&format!("dev/disk/by-partlabel/{label}"), "");
            }
            self
        }

        /// `(number, point, type, source)`
        pub(crate) fn mounts(&self, mounts: &[(&str, &str, &str, &str)]) -> &Self {
            let line = |(number, point, kind, source): &(&str, &str, &str, &str)| {
                format!("27 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw\n")
            };
            self.file("proc/self/mountinfo", mounts.iter().map(line).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Tree;
    use super::*;

    #[test]
    fn a_machine_is_read_from_its_files() {
        let tree = Tree::new();
        tree.file("proc/sys/kernel/osrelease", "6.12.9-amd64\n")
            .file("proc/cmdline", "root=/dev/vda2 ro quiet\n")
            .file("boot/vmlinuz-6.12.9-amd64", "")
            .file("initrd.img", "")
            .file("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-254.so", "")
            .file("efi/EFI/systemd/systemd-bootx64.efi", "")
            .file("efi/loader/entries/a.conf", "")
            .file("boot/grub2/grub.cfg", "")
            .file("boot/grub2/grubenv", "")
            .file("etc/fw_env.config", "")
            .file("proc/swaps", "Filename Type\n/dev/vda4 partition 1 0 -2\n")
            .partition("vda1", "254:1", Some("esp"), 100)
            .partition("vda2", "254:2", Some("slot-a"), 2048)
            .partition("vda3", "254:3", Some("a label"), 2048)
            .partition("vda4", "254:4", None, 512)
            .mounts(&[("254:2", "/", "ext4", "/dev/root"), ("254:1", "/efi", "vfat", "/dev/vda1")]);
        fs::create_dir_all(tree.root().join("srv")).unwrap();
        let said = "systemd-boot 254\0".encode_utf16().flat_map(u16::to_le_bytes);
        tree.file(LOADER_INFO, [6, 0, 0, 0].into_iter().chain(said).collect::<Vec<_>>());
        let machine = Machine::look(tree.root());
        assert_eq!((machine.kernel.as_deref(), machine.systemd, machine.efi), (Some("6.12.9-amd64"), Some(254), true));
        assert_eq!(
            (machine.esp.as_deref(), machine.root.as_deref()),
            (Some("/efi".as_ref()), Some("/dev/root".as_ref()))
        );
        assert_eq!(machine.cmdline.as_deref(), Some("root=/dev/vda2 ro quiet"));
        let files = ["/boot/vmlinuz-6.12.9-amd64", "/initrd.img"].map(|path| Some(PathBuf::from(path)));
        assert_eq!(machine.kernel_files, files);
        let Loaders { said, systemd_boot, grub, uboot } = &machine.loaders;
        assert_eq!((said.as_deref(), systemd_boot.as_deref()), (Some("systemd-boot 254"), Some("/efi".as_ref())));
        let grub = grub.as_ref().unwrap();
        assert_eq!((grub.environment.as_deref(), grub.apart), (Some("/boot/grub2/grubenv".as_ref()), false));
        assert_eq!(uboot.as_deref(), Some("/etc/fw_env.config".as_ref()));
        let paths: Vec<_> = machine.partitions.iter().map(|it| it.path.to_str().unwrap()).collect();
        // A label that udev would have to escape is not used.
        assert_eq!(paths, ["/dev/disk/by-partlabel/esp", "/dev/disk/by-partlabel/slot-a", "/dev/vda3", "/dev/vda4"]);
        assert_eq!(machine.root_partition().unwrap().name, "vda2");
        assert_eq!(machine.partitions.iter().map(|it| it.taken).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!(machine.partitions[1].size, 2048 << 20);
        assert_eq!(machine.space.unwrap().folder, Path::new("/srv"));
        assert!(!machine.configured);
    }

    #[test]
    fn an_empty_folder_is_a_machine_of_which_nothing_is_known() {
        let tree = Tree::new();
        let machine = Machine::look(tree.root());
        assert!(machine.partitions.is_empty() && machine.esp.is_none() && machine.root.is_none() && !machine.efi);
        assert!(machine.loaders.said.is_none() && machine.loaders.grub.is_none() && machine.systemd.is_none());
    }

    #[test]
    fn files_that_are_garbage_are_not_there() {
        let tree = Tree::new();
        tree.file("proc/self/mountinfo", [0xff; 100]).file(LOADER_INFO, [1, 2, 3]).partition("vda1", "x", None, 1);
        tree.file("sys/class/block/vda1/size", "many").file("sys/class/block/..x/partition", "1");
        let machine = Machine::look(tree.root());
        assert!(machine.partitions.is_empty() && machine.loaders.said.is_none() && machine.root.is_none());
    }
}
