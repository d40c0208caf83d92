//! A stage for a story with a virtual machine: a server outside, images published there, and a disk to start from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Disk, Firmware, Flaw, HOST, Kind, Layout, Part, Parts, image, parts};
use crate::disk::skip;
use crate::scene::{CHANNEL, NAME, Scene};

/// What every machine is ordered first: words for the orders of the story, and becoming a node.
const PREAMBLE: &str = r#"
node() { goldsync-agent --config /state/agent.toml "$@"; }
# off and again leave the file systems clean, so that the host can read it.
leave() { sync; umount /state; ! grep -q ' /esp ' /proc/mounts || umount /esp; }
off() { leave; poweroff -f; }
again() { leave; reboot -f; }
do_or_say() { "$@" >/tmp/done 2>&1 || { cat /tmp/done >/dev/console; say "stuck $*"; off; }; }
[ -e /state/goldsync/identity.pem ] || do_or_say node enroll --token TOKEN --name machine
release=$(cat /etc/release)
"#;

/// Server, parts and a scratch folder.
#[derive(Debug)]
pub struct Rig {
    /// The server.
    pub scene: Scene,
    /// Kernel and programs.
    pub parts: Parts,
    kind: Kind,
    token: String,
    tools: Vec<PathBuf>,
}

impl Rig {
    /// Starts the server; `None`, loudly, if there are no machines here.
    pub fn open(test: &str, executable: &str, kind: Kind) -> Result<Option<Self>> {
        let Some(parts) = Parts::find(test)? else { return Ok(None) };
        let scene = Scene::open(executable)?;
        let token = scene.server.token(&[])?;
        Ok(Some(Self { scene, parts, kind, token, tools: Vec::new() }))
    }

    /// Puts programs of this machine on the state partitions of disks that are made from now on, for the story's orders. `false`,
    /// loudly, if one is not installed.
    pub fn bring(&mut self, test: &str, tools: &[&Path]) -> bool {
        let missing = tools.iter().find(|tool| !tool.is_file());
        if let Some(missing) = missing {
            skip(test, &format!("{} is not installed; run scripts/install-packages vm", missing.display()));
            return false;
        }
        self.tools.extend(tools.iter().map(|tool| tool.to_path_buf()));
        true
    }

    /// The image of a version, made once.
    pub fn image(&self, version: &str, flaw: Flaw) -> Result<PathBuf> {
        let file = self.scene.folder().join(format!("{version}-{flaw:?}.ext4"));
        if !file.exists() {
            image::make(&self.parts, self.scene.folder(), self.kind, &format!("{NAME}:{version}"), flaw, &file)?;
        }
        Ok(file)
    }

    /// Publishes a version and points the machines' channel at it.
    pub fn release(&self, version: &str, flaw: Flaw) -> Result<PathBuf> {
        let image = self.image(version, flaw)?;
        self.scene.release(&image, version)?;
        Ok(image)
    }

    /// A disk with version 1 in slot a, as it leaves the factory. `activation` is that section of agent.toml, and whatever
    /// follows it.
    pub fn disk(&self, name: &str, layout: Layout, activation: &str) -> Result<Disk> {
        let disk = Disk::make(&self.scene.folder().join(format!("{name}.img")), layout)?;
        disk.put(Part::A, &self.image("1", Flaw::None)?)?;
        let state = tempfile::tempdir_in(self.scene.folder())?;
        fs::write(state.path().join("agent.toml"), self.config(activation)?)?;
        fs::write(state.path().join("slots"), "a\n-\n0\n")?;
        let [programs, libraries] = ["bin", "lib"].map(|name| state.path().join(name));
        fs::create_dir(&programs)?;
        fs::create_dir(&libraries)?;
        if self.kind == Kind::Small {
            fs::copy(self.parts.agent(self.scene.folder())?, programs.join("goldsync-agent"))?;
        }
        for tool in &self.tools {
            fs::copy(tool, programs.join(tool.file_name().context("a program's name")?))?;
            for library in parts::libraries(tool)? {
                fs::copy(&library, libraries.join(library.file_name().context("a library's name")?))?;
            }
        }
        disk.put_state(state.path())?;
        Ok(disk)
    }

    /// The same for a machine with systemd: its configuration is its image's, and the state partition is `/var`.
    pub fn systemd_disk(&self, name: &str, layout: Layout) -> Result<Disk> {
        let disk = Disk::make(&self.scene.folder().join(format!("{name}.img")), layout)?;
        disk.put(Part::A, &self.image("1", Flaw::None)?)?;
        let var = tempfile::tempdir_in(self.scene.folder())?;
        fs::create_dir(var.path().join("lib"))?;
        disk.put_state(var.path())?;
        Ok(disk)
    }

    /// What guests dial.
    fn server(&self) -> Result<String> {
        let (_, port) = self.scene.server.address().rsplit_once(':').context("the server's port")?;
        Ok(format!("{HOST}:{port}"))
    }

    fn config(&self, activation: &str) -> Result<String> {
        let server = self.server()?;
        Ok(format!(
            "server = \"{server}\"\nchannel = \"{CHANNEL}\"\nstate = \"/state/goldsync\"\n\n\
             [slots]\na = \"/dev/vda2\"\nb = \"/dev/vda3\"\n\n[activation]\n{activation}\n"
        ))
    }

    /// The kernel and the initramfs, loaded by the emulator.
    pub fn kernel(&self, append: &str) -> Result<Firmware> {
        let initrd = self.scene.folder().join("initrd");
        self.parts.write_initramfs(&initrd, &[])?;
        Ok(Firmware::Kernel { kernel: self.parts.unpacked_kernel(), initrd, append: append.to_owned() })
    }

    /// The same, with device mapper's tool in the initramfs: for what lies between the machine and its disk.
    pub fn mapped_kernel(&self, dmsetup: &Path, append: &str) -> Result<Firmware> {
        let initrd = self.scene.folder().join("initrd-mapped");
        self.parts.write_initramfs(&initrd, &[dmsetup])?;
        let append = format!("goldsync.load=faults {append}");
        Ok(Firmware::Kernel { kernel: self.parts.unpacked_kernel(), initrd, append })
    }

    /// The same, with dm-verity between the slot and the machine.
    pub fn sealed_kernel(&self, veritysetup: &Path, append: &str) -> Result<Firmware> {
        let initrd = self.scene.folder().join("initrd-verity");
        self.parts.write_initramfs(&initrd, &[veritysetup])?;
        let append = format!("goldsync.load=verity {append}");
        Ok(Firmware::Kernel { kernel: self.parts.unpacked_kernel(), initrd, append })
    }

    /// A story's orders, behind what every machine is ordered.
    pub fn orders(&self, story: &str) -> String {
        format!("{}{story}", PREAMBLE.replace("TOKEN", &self.token))
    }

    /// What a machine with systemd is told: where the server is, and how it becomes a node.
    pub fn enrolment(&self) -> Result<String> {
        Ok(format!("server={}\ntoken={}\n", self.server()?, self.token))
    }

    /// A path in the scratch folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scene.folder().join(name)
    }
}

/// Which slot of a disk that is off holds this image, byte for byte.
pub fn slot_with(disk: &Disk, image: &Path) -> Result<Option<&'static str>> {
    let (golden, size) = (crate::node::hash(image)?, fs::metadata(image)?.len());
    for (name, part) in [("a", Part::A), ("b", Part::B)] {
        if disk.hash(part, size)? == golden {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
