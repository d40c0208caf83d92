//! What a machine's configuration could be: facts in, text out.
//!
//! ```text
//! two partitions that belong together? ── the machine runs from one of them ─▶ its boot loader's back-end
//!        │ no                          └─ it does not ─▶ a link in front of them
//!        └▶ two files, and a link
//! ```
//! Partitions belong together if their labels differ only in their last letter (`slot-a` and `slot-b`, `root1` and `root2`), or,
//! where nothing is labelled, if they are all that has that size beside the running one. A partition that is in use for
//! anything but `/` is never proposed: a slot is overwritten whole.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use goldsync_proto::block::Geometry;
use goldsync_proto::release::Word;
use goldsync_proto::units::Size;
use serde::Serialize;

use super::machine::{Machine, Partition};
use crate::config::{Address, knows_backend, knows_key};

/// The link in front of partitions that the machine does not start from.
const LINK: &str = "/srv/goldsync/current";

/// What the operator said already.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The server.
    pub server: Option<Address>,
    /// The channel; `production` if not said.
    pub channel: Option<Word>,
}

/// A configuration, and what should be known about it.
#[derive(Clone, Debug, Serialize)]
pub struct Proposal {
    /// The back-end.
    pub backend: &'static str,
    /// The slots.
    pub slots: [PathBuf; 2],
    /// `agent.toml`
    pub text: String,
    /// What the operator has to look at, or to do, before it is used.
    pub notes: Vec<String>,
}

/// Where the slots are, and why.
struct Slots {
    paths: [PathBuf; 2],
    why: String,
    /// The most that a file slot may hold.
    size: Option<u64>,
    /// The link, where one leads to the active slot.
    link: PathBuf,
    /// Whether the machine runs from one of them.
    booted: bool,
}

/// How slots become active, and why.
struct Backend {
    name: &'static str,
    why: String,
    keys: Vec<(&'static str, String)>,
}

impl Proposal {
    /// For this machine.
    pub fn of(machine: &Machine, wishes: &Wishes) -> Self {
        let mut notes = Vec::new();
        let slots = match pair(machine) {
            Some(pair) => in_partitions(machine, pair, &mut notes),
            None => in_files(machine, &mut notes),
        };
        let backend = backend(machine, &slots, &mut notes);
        if machine.configured {
            notes.push("/etc/goldsync/agent.toml is there already; this is what would be proposed without it".into());
        }
        if wishes.server.is_none() {
            notes.push("enroll it with --server HOST: the node remembers it".into());
        }
        Self { backend: backend.name, text: text(machine, wishes, &slots, &backend), slots: slots.paths, notes }
    }
}

/// Two partitions that belong together, the first one first.
fn pair(machine: &Machine) -> Option<[&Partition; 2]> {
    let is_root = |partition: &Partition| partition.mounted.iter().any(|point| point == Path::new("/"));
    let free = |partition: &&Partition| {
        !partition.taken && partition.size > 0 && (partition.mounted.is_empty() || is_root(partition))
    };
    let partitions: Vec<_> = machine.partitions.iter().filter(free).collect();
    let mut pairs: Vec<[&Partition; 2]> = Vec::new();
    for first in &partitions {
        for second in &partitions {
            if first.size == second.size
                && first.path != second.path
                && follows(first.label.as_deref(), second.label.as_deref())
            {
                pairs.push([*first, *second]);
            }
        }
    }
    // The pair that the machine runs from, then one that calls itself so.
    let called = |partition: &Partition| {
        let label = partition.label.as_deref().unwrap_or_default().to_ascii_lowercase();
        ["slot", "root", "system", "image"].iter().any(|word| label.contains(word))
    };
    let rank = |pair: &&[&Partition; 2]| (!pair.iter().any(|one| is_root(one)), !called(pair[0]), pair[0].name.clone());
    pairs.iter().min_by_key(rank).copied().or_else(|| same_size(&partitions, is_root))
}

/// Whether one label is the other's successor: `a` and `b`, `0` and `1`, `1` and `2` at their ends.
fn follows(first: Option<&str>, second: Option<&str>) -> bool {
    let split =
        |label: &str| Some((label.get(..label.len().checked_sub(1)?)?.to_ascii_lowercase(), *label.as_bytes().last()?));
    let (Some((stem, first)), Some((other, second))) = (first.and_then(split), second.and_then(split)) else {
        return false;
    };
    let ends = [(b'a', b'b'), (b'0', b'1'), (b'1', b'2')];
    stem == other && ends.contains(&(first.to_ascii_lowercase(), second.to_ascii_lowercase()))
}

/// The running partition and the only other one of its size, where neither says by a label what it is for.
fn same_size<'a>(partitions: &[&'a Partition], is_root: impl Fn(&Partition) -> bool) -> Option<[&'a Partition; 2]> {
    let root = partitions.iter().find(|one| is_root(one) && one.label.is_none())?;
    let mut others =
        partitions.iter().filter(|one| one.size == root.size && one.label.is_none() && one.name != root.name);
    let (other, None) = (others.next()?, others.next()) else { return None };
    let mut pair = [*root, *other];
    pair.sort_by(|one, two| one.name.cmp(&two.name));
    Some(pair)
}

fn in_partitions(machine: &Machine, pair: [&Partition; 2], notes: &mut Vec<String>) -> Slots {
    let root = machine.root_partition();
    let booted = pair.iter().any(|one| root.is_some_and(|root| root.name == one.name));
    let names = pair.map(|one| one.label.clone().unwrap_or_else(|| one.name.clone()));
    let [a, b] = &names;
    let mut why = format!("{a} and {b}: {} each", Size(pair[0].size));
    why += if booted { ", and this machine runs from one of them." } else { ", and neither is in use." };
    let standby = pair.iter().find(|one| root.is_none_or(|root| root.name != one.name));
    if let Some(standby) = standby.filter(|_| booted) {
        let path = standby.path.display();
        notes.push(format!(
            "{path} will be overwritten whole by the first update: make sure that nothing on it is needed"
        ));
    } else {
        notes.push("both partitions will be overwritten whole: make sure that nothing on them is needed".into());
        notes.push("make the link's folder: install -d /srv/goldsync".into());
    }
    if pair[0].label.is_none() {
        notes.push("the two partitions were chosen by their size alone; give them labels (`sgdisk -c`), and name them by those".into());
    }
    if pair.iter().any(|one| one.read_only) {
        notes.push("one of the partitions is read-only: an update could not be written".into());
    }
    Slots { paths: pair.map(|one| one.path.clone()), why, size: None, link: LINK.into(), booted }
}

fn in_files(machine: &Machine, notes: &mut Vec<String>) -> Slots {
    let folder =
        machine.space.as_ref().map_or_else(|| PathBuf::from("/srv"), |space| space.folder.clone()).join("goldsync");
    let free = machine.space.as_ref().map(|space| space.free);
    let mut why = "No two partitions belong together here, so the slots are files.".to_owned();
    if let Some(free) = free {
        let _ = write!(why, " {} MiB are free for both.", free >> 20);
    }
    notes.push(format!("make the folder: install -d {}", folder.display()));
    if machine.root.is_some() {
        notes.push(
            "for a machine that starts from its slots: two partitions of one size with the labels slot-a and slot-b, and run init again".into(),
        );
    }
    // Whole blocks, and room for both beside each other. Where that is no size for an image, the file system is the limit.
    let size = free.map(|free| (free / 2) >> 20 << 20).filter(|size| Geometry::new(*size).is_ok());
    let paths = ["a.img", "b.img"].map(|name| folder.join(name));
    Slots { paths, why, size, link: folder.join("current"), booted: false }
}

fn backend(machine: &Machine, slots: &Slots, notes: &mut Vec<String>) -> Backend {
    if !slots.booted {
        return symlink(machine, slots);
    }
    let Some(found) = loader(machine) else {
        notes
            .push("no boot loader was recognised: write the program, or choose another back-end; see docs/boot".into());
        return command("No boot loader was recognised, so a program of yours has to do it.".into());
    };
    if knows_backend(found.name) {
        notes.push(format!(
            "the boot loader has to know of the slots, once: see the page of \"{}\" in docs/boot",
            found.name
        ));
        if found.name == "grub" && machine.loaders.grub.as_ref().is_some_and(|grub| !grub.apart) {
            notes.push(
                "GRUB's files lie in the running slot, which updates replace: give /boot a partition of its own".into(),
            );
        }
        if found.name == "systemd-boot" && machine.kernel_files[0].is_none() {
            notes.push(
                "no kernel was found in this system: say in activation.kernel where the image has its own".into(),
            );
        }
        return found;
    }
    notes.push(format!("write the program; an agent with the back-end \"{}\" would need none", found.name));
    command(format!("{} This agent has no back-end for that, so a program of yours has to do it.", found.why))
}

fn symlink(machine: &Machine, slots: &Slots) -> Backend {
    let mut why = "The machine does not start from its slots: a link leads to the active one.".to_owned();
    if newer(machine.kernel.as_deref(), (6, 5)) && knows_backend("mount") {
        why += " For a mounted image, look at backend = \"mount\": this kernel can replace it under its readers.";
    }
    Backend { name: "symlink", why, keys: vec![("link", quoted(&slots.link))] }
}

fn command(why: String) -> Backend {
    let program = quoted(Path::new("/usr/local/libexec/site-activate"));
    let keys = vec![("command", format!("[{program}]")), ("takes_effect", "\"at-restart\"".into())];
    Backend { name: "command", why, keys }
}

/// The loader that started the machine, if it said so; else the one that is there.
fn loader(machine: &Machine) -> Option<Backend> {
    let loaders = &machine.loaders;
    let said = loaders.said.as_deref().unwrap_or_default();
    let systemd_boot = || {
        let folder = loaders.systemd_boot.as_ref()?;
        let why = format!("systemd-boot is on the EFI system partition ({}).", folder.display());
        let [linux, initrd] = &machine.kernel_files;
        let linux = linux.clone().unwrap_or_else(|| "/vmlinuz".into());
        let options = toml::Value::String(options(machine.cmdline.as_deref().unwrap_or_default())).to_string();
        let mut keys = vec![("esp", quoted(folder)), ("kernel", quoted(&linux)), ("options", options)];
        keys.extend(initrd.iter().map(|initrd| ("initrd", quoted(initrd))));
        Some(Backend { name: "systemd-boot", why, keys: own("systemd-boot", &keys) })
    };
    let grub = || {
        let grub = loaders.grub.as_ref()?;
        let environment = grub.environment.clone().unwrap_or_else(|| grub.config.with_file_name("grubenv"));
        let why = format!("GRUB starts this machine ({}).", grub.config.display());
        Some(Backend { name: "grub", why, keys: own("grub", &[("grubenv", quoted(&environment))]) })
    };
    let uboot = || {
        let config = loaders.uboot.as_ref()?;
        let why = format!("{} says where U-Boot's environment is.", config.display());
        Some(Backend { name: "uboot", why, keys: own("uboot", &[("env_config", quoted(config))]) })
    };
    let uefi = || {
        let why = "The firmware starts this machine without a boot loader that is known here.".to_owned();
        machine.efi.then(|| Backend { name: "uefi", why, keys: Vec::new() })
    };
    let first = if said.starts_with("GRUB") { grub().or_else(systemd_boot) } else { systemd_boot().or_else(grub) };
    first.or_else(uboot).or_else(uefi)
}

/// The running kernel's command line, for either slot.
fn options(cmdline: &str) -> String {
    let ours = ["root=", "goldsync.slot=", "BOOT_IMAGE=", "initrd="];
    let keep = |word: &&str| !ours.iter().any(|own| word.starts_with(own)) && !word.contains(['{', '}']);
    let words = cmdline.split_ascii_whitespace().filter(keep).filter(|word| !word.chars().any(char::is_control));
    ["root=PARTUUID={partuuid}"].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// Those keys that this agent's back-end has.
fn own(backend: &str, keys: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    keys.iter().filter(|(key, _)| knows_key(backend, key)).cloned().collect()
}

/// Whether a kernel's release is at least this.
fn newer(release: Option<&str>, least: (u32, u32)) -> bool {
    let mut numbers = release.unwrap_or_default().split(['.', '-']).map(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(Some(major)), Some(Some(minor))) if (major, minor) >= least)
}

/// As TOML.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

/// As a comment: what came from the machine may hold anything, and must not end the line.
fn comment(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    format!("# {}", text.chars().map(printable).collect::<String>())
}

fn text(machine: &Machine, wishes: &Wishes, slots: &Slots, backend: &Backend) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(
        "# goldsync-agent: what this node follows, and where its images live. Proposed by `goldsync-agent init`; read it before it",
    );
    line("# is used. `goldsync-agent doctor` says what would still stop an update.");
    for fact in facts(machine) {
        line(&comment(&format!("  {fact}")));
    }
    line("");
    match &wishes.server {
        Some(server) => line(&format!("server = \"{server}\"")),
        None => line("# Left out: the server that the node is enrolled with.\n# server = \"golden.example.net:7400\""),
    }
    line("");
    line("# The channel whose release this node shall run.");
    let channel = wishes.channel.as_ref().map_or("production", Word::as_str);
    line(&format!("channel = \"{channel}\""));
    line("");
    line("[slots]");
    line(&comment(&slots.why));
    line("# Everything in a slot is overwritten.");
    for (name, path) in ["a", "b"].iter().zip(&slots.paths) {
        line(&format!("{name} = {}", quoted(path)));
    }
    if let Some(size) = slots.size {
        line("# Half of what is free, so that both fit. A smaller image takes less.");
        line(&format!("size = \"{}\"", Size(size)));
    }
    line("");
    line("[activation]");
    line(&comment(&backend.why));
    line(&format!("backend = \"{}\"", backend.name));
    for (key, value) in &backend.keys {
        line(&format!("{key} = {value}"));
    }
    // The firmware starts a new slot once.
    if slots.booted && backend.name != "uefi" {
        line("# Starts that the boot loader counts before it goes back to the other slot by itself.");
        line("tries = 3");
    }
    line("");
    if slots.booted {
        line("[health]");
        line(
            "# What a new release must show after its start; else the machine goes back by itself. Add your own services: units = [...].",
        );
        line("server = true");
        line("");
        line("[restart]");
        line(
            "# Who starts the machine into a new slot: you. With \"reboot\" the agent does, when nobody is logged in and nothing forbids it;",
        );
        line("# windows = [\"Mon-Fri 02:00-04:00\"] says when.");
        line("how = \"none\"");
        line("");
    }
    line("[schedule]");
    line(
        "# The server tells a node when there is work. This is for one that cannot be told: once a night, not all at once.",
    );
    line("cron = \"30 3 * * *\"");
    line("splay = \"30 min\"");
    text
}

fn facts(machine: &Machine) -> Vec<String> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| format!("{name:<10} {value}")));
    };
    fact("kernel", machine.kernel.clone());
    fact("systemd", machine.systemd.map(|version| version.to_string()));
    let firmware = if machine.efi { "UEFI" } else { "no UEFI" };
    fact(
        "firmware",
        Some(machine.loaders.said.as_ref().map_or(firmware.to_owned(), |said| format!("{firmware}, {said}"))),
    );
    fact("ESP", machine.esp.as_ref().map(|esp| esp.display().to_string()));
    fact("/", machine.root.as_ref().map(|root| root.display().to_string()));
    fact("partitions", (!machine.partitions.is_empty()).then(|| machine.partitions.len().to_string()));
    facts
}

#[cfg(test)]
mod tests {
    use super::super::machine::testing::Tree;
    use super::super::machine::{Grub, Loaders, Space};
    use super::*;
    use crate::config::{self, Config};
    use proptest::prelude::*;

    fn partition(name: &str, label: Option<&str>, mib: u64) -> Partition {
        let path = Path::new("/dev").join(name);
        Partition { name: name.into(), path, label: label.map(str::to_owned), size: mib << 20, ..Partition::default() }
    }

    fn mounted(point: &str, partition: Partition) -> Partition {
        Partition { mounted: vec![point.into()], ..partition }
    }

    fn propose(machine: &Machine) -> (Proposal, Config) {
        let proposal = Proposal::of(machine, &Wishes::default());
        let config = Config::parse(Path::new("agent.toml"), &proposal.text);
        let config = config.unwrap_or_else(|error| panic!("{error}\n{}", proposal.text));
        assert_eq!([&config.slots.a, &config.slots.b], proposal.slots.each_ref());
        (proposal, config)
    }

    fn slots(machine: &Machine) -> [String; 2] {
        propose(machine).0.slots.map(|path| path.display().to_string())
    }

    #[test]
    fn a_machine_without_slots_gets_files_and_a_link() {
        let space = Some(Space { folder: "/srv".into(), free: (9 << 30) + 5 });
        let root = mounted("/", partition("vda1", None, 10_000));
        let machine = Machine { space, partitions: vec![root], root: Some("/dev/vda1".into()), ..Machine::default() };
        let (proposal, config) = propose(&machine);
        assert_eq!(slots(&machine), ["/srv/goldsync/a.img", "/srv/goldsync/b.img"]);
        assert_eq!(config.slots.size, Some((9 << 30) / 2));
        assert_eq!(config.activation.backend, config::Backend::Symlink { link: "/srv/goldsync/current".into() });
        assert!(proposal.notes.iter().any(|note| note.contains("install -d /srv/goldsync")), "{:?}", proposal.notes);
    }

    #[test]
    fn partitions_that_belong_together_are_found_by_label_and_size() {
        let esp = mounted("/efi", partition("vda1", Some("esp"), 100));
        let pairs = [("slot-a", "slot-b"), ("ROOT_A", "root_B"), ("root1", "root2"), ("system0", "system1")];
        for (a, b) in pairs {
            let (a, b) = (mounted("/", partition("vda3", Some(a), 2048)), partition("vda2", Some(b), 2048));
            let machine = Machine { partitions: vec![esp.clone(), b, a], ..Machine::default() };
            assert_eq!(slots(&machine), ["/dev/vda3", "/dev/vda2"]);
        }
        // Of another size, mounted elsewhere, in use, or of another name: not a slot.
        let a = mounted("/", partition("vda2", Some("slot-a"), 2048));
        for b in [
            partition("vda3", Some("slot-b"), 1024),
            mounted("/home", partition("vda3", Some("slot-b"), 2048)),
            Partition { taken: true, ..partition("vda3", Some("slot-b"), 2048) },
            partition("vda3", Some("slot-c"), 2048),
            partition("vda3", None, 2048),
        ] {
            let machine = Machine { partitions: vec![a.clone(), b.clone()], ..Machine::default() };
            assert_eq!(slots(&machine), ["/srv/goldsync/a.img", "/srv/goldsync/b.img"], "{b:?}");
        }
    }

    #[test]
    fn the_pair_that_runs_goes_before_others() {
        let data = [partition("vda5", Some("slot-a"), 512), partition("vda6", Some("slot-b"), 512)];
        let system = [partition("vda8", Some("x1"), 2048), mounted("/", partition("vda9", Some("x2"), 2048))];
        let machine = Machine { partitions: [data.clone(), system].concat(), ..Machine::default() };
        assert_eq!(slots(&machine), ["/dev/vda8", "/dev/vda9"]);
        let machine = Machine { partitions: data.to_vec(), ..Machine::default() };
        let (proposal, config) = propose(&machine);
        assert!(matches!(config.activation.backend, config::Backend::Symlink { .. }));
        assert!(proposal.notes.iter().any(|note| note.contains("both partitions will be overwritten")));
    }

    #[test]
    fn without_labels_only_an_only_twin_is_a_slot_and_called_a_guess() {
        let root = mounted("/", partition("vda2", None, 2048));
        let twin = |name| partition(name, None, 2048);
        let machine = Machine { partitions: vec![root.clone(), twin("vda3")], ..Machine::default() };
        let (proposal, _) = propose(&machine);
        assert_eq!(slots(&machine), ["/dev/vda2", "/dev/vda3"]);
        assert!(proposal.notes.iter().any(|note| note.contains("by their size alone")), "{:?}", proposal.notes);
        let machine = Machine { partitions: vec![root, twin("vda3"), twin("vda4")], ..Machine::default() };
        assert_eq!(slots(&machine)[0], "/srv/goldsync/a.img");
    }

    #[test]
    fn a_machine_that_runs_from_a_slot_gets_its_boot_loader_or_a_program() {
        let pair = vec![mounted("/", partition("vda2", Some("slot-a"), 64)), partition("vda3", Some("slot-b"), 64)];
        let grub = Some(Grub { config: "/boot/grub/grub.cfg".into(), environment: None, apart: true });
        let all =
            Loaders { said: None, systemd_boot: Some("/efi".into()), grub, uboot: Some("/etc/fw_env.config".into()) };
        let only = |change: fn(&mut Loaders)| {
            let mut loaders = all.clone();
            change(&mut loaders);
            loaders
        };
        for (loaders, efi, expected) in [
            (all.clone(), true, "systemd-boot"),
            (only(|it| it.said = Some("GRUB 2.12".into())), true, "grub"),
            (only(|it| it.systemd_boot = None), false, "grub"),
            (only(|it| (it.systemd_boot, it.grub) = (None, None)), false, "uboot"),
            (Loaders::default(), true, "uefi"),
            (Loaders::default(), false, "command"),
        ] {
            let machine = Machine { partitions: pair.clone(), loaders, efi, ..Machine::default() };
            let (proposal, _) = propose(&machine);
            let expected = if knows_backend(expected) { expected } else { "command" };
            assert_eq!(proposal.backend, expected);
            let standby = proposal.notes.iter().any(|note| note.contains("/dev/vda3 will be overwritten"));
            assert!(standby, "{:?}", proposal.notes);
        }
    }

    #[test]
    fn a_command_line_is_one_for_either_slot() {
        let line = "BOOT_IMAGE=/x root=/dev/vda2 ro quiet goldsync.slot=a console=ttyS0 x={y} root=/dev/vda3";
        assert_eq!(options(line), "root=PARTUUID={partuuid} ro quiet console=ttyS0");
        assert_eq!(options(""), "root=PARTUUID={partuuid}");
    }

    #[test]
    fn wishes_are_taken_over() {
        let wishes = Wishes { server: Some("gold:1".parse().unwrap()), channel: Some("qa".parse().unwrap()) };
        let proposal = Proposal::of(&Machine::default(), &wishes);
        let config = Config::parse(Path::new("agent.toml"), &proposal.text).unwrap();
        assert_eq!((config.server, config.channel.as_str()), (wishes.server, "qa"));
    }

    #[test]
    fn this_very_machine_gets_a_configuration_that_can_be_used() {
        propose(&Machine::look(Path::new("/")));
        let tree = Tree::new();
        tree.partition("vda2", "254:2", Some("slot-a"), 64).partition("vda3", "254:3", Some("slot-b"), 64);
        tree.mounts(&[("254:2", "/", "ext4", "/dev/vda2")]);
        assert_eq!(slots(&Machine::look(tree.root()))[1], "/dev/disk/by-partlabel/slot-b");
    }

    prop_compose! {
        fn partitions()(
            label in proptest::option::of("(slot|root|x)?[-_ \"\\\\é]?[abAB012\n]"),
            mib in 0_u64..3, point in proptest::option::of("/|/home"), taken: bool, read_only: bool, number in 0_u32..20,
        ) -> Partition {
            let mounted = point.into_iter().map(PathBuf::from).collect();
            Partition { label, mounted, taken, read_only, ..partition(&format!("vda{number}"), None, mib) }
        }
    }

    prop_compose! {
        fn machines()(
            partitions in proptest::collection::vec(partitions(), 0..8),
            efi: bool, said in proptest::option::of("(GRUB|systemd-boot)?.{0,9}"), esp: bool, grub: bool, apart: bool, uboot: bool,
            free in proptest::option::of(any::<u64>()), kernel in proptest::option::of(".{0,9}"), folder in "(/[^/\\x00.]{1,9}){1,3}", cmdline in proptest::option::of(".{0,40}"),
        ) -> Machine {
            let folder = PathBuf::from(folder);
            let systemd_boot = esp.then(|| folder.clone());
            let grub = grub.then(|| Grub { config: folder.join("grub.cfg"), environment: None, apart });
            let loaders = Loaders { said, systemd_boot, grub, uboot: uboot.then(|| folder.clone()) };
            let space = free.map(|free| Space { folder, free });
            Machine { kernel, efi, loaders, partitions, space, cmdline, ..Machine::default() }
        }
    }

    proptest! {
        /// Whatever a machine is, what is proposed for it can be used.
        #[test]
        fn what_is_proposed_can_be_used(machine in machines()) {
            let proposal = Proposal::of(&machine, &Wishes::default());
            let config = Config::parse(Path::new("agent.toml"), &proposal.text);
            prop_assert!(config.is_ok(), "{}\n{}", config.unwrap_err(), proposal.text);
            // No slot is in use for anything but the running system.
            for partition in machine.partitions.iter().filter(|it| proposal.slots.contains(&it.path)) {
                let here = machine.partitions.iter().filter(|it| it.path == partition.path).count() == 1;
                prop_assert!(!here || (!partition.taken && partition.mounted.iter().all(|it| it == Path::new("/"))));
            }
        }
    }
}
