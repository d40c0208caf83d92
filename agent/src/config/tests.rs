//! Every error names the key, and the file where there may be several.

use goldsync_proto::wire::Prefer;
use std::fs;

use super::*;

const GOOD: &str = r#"
server = "golden.example.net"
channel = "production"
labels = { role = "web" }
[slots]
a = "/slots/a.img"
b = "/slots/b.img"
size = "4 GiB"
[activation]
backend = "symlink"
link = "/slots/current"
[schedule]
cron = "30 3 * * *"
time_zone = "Europe/Vienna"
"#;

fn error(text: &str) -> String {
    Config::parse(Path::new("agent.toml"), text).unwrap_err().to_string()
}

/// `GOOD` with one line replaced.
fn with(line: &str, by: &str) -> String {
    assert!(GOOD.contains(line), "{line}");
    GOOD.replace(line, by)
}

/// `GOOD` with another back-end.
fn loader(backend: &str) -> String {
    with("\"symlink\"\nlink = \"/slots/current\"", backend)
}

const ESP: &str = "\"systemd-boot\"\nesp = \"/efi\"\n";

#[test]
fn every_boot_loader_has_its_defaults() {
    let backend = |text: &str| Config::parse(Path::new("agent.toml"), &loader(text)).unwrap().activation;
    let grub = backend("\"grub\"");
    assert_eq!((grub.backend, grub.tries), (Backend::Grub { grubenv: "/boot/grub/grubenv".into() }, 3));
    let uboot = Backend::Uboot { env_config: "/etc/fw_env.config".into(), single: false };
    assert_eq!(backend("\"uboot\"").backend, uboot);
    let uefi = backend("\"uefi\"");
    let entries = ["goldsync a".to_owned(), "goldsync b".to_owned()];
    let efivars = PathBuf::from("/sys/firmware/efi/efivars");
    assert_eq!((uefi.backend, uefi.tries), (Backend::Uefi { efivars: efivars.clone(), entries }, 1));
    let options = "root=PARTUUID={partuuid} ro";
    let kernel = |keys: &str| {
        let Backend::SystemdBoot(settings) = backend(&format!("{ESP}options = \"{options}\"\n{keys}")).backend else {
            panic!("another back-end");
        };
        assert_eq!((settings.esp.as_path(), settings.efivars), (Path::new("/efi"), efivars.clone()));
        assert_eq!(settings.options.to_string(), options);
        settings.kernel
    };
    let (linux, initrd) = (PathBuf::from("/vmlinuz"), Some(PathBuf::from("/initrd")));
    assert_eq!(kernel("kernel = \"/vmlinuz\""), Kernel::Image { linux: linux.clone(), initrd: None });
    let fixed = kernel("kernel = \"/vmlinuz\"\ninitrd = \"/initrd\"\nkernel_from = \"esp\"");
    assert_eq!(fixed, Kernel::Esp { linux, initrd });
    assert_eq!(kernel("uki = \"/linux.efi\""), Kernel::Unified { uki: "/linux.efi".into() });
}

#[test]
fn a_good_file_is_read_with_its_defaults() {
    let config = Config::parse(Path::new("agent.toml"), GOOD).unwrap();
    assert_eq!(config.server, Some(Address { host: "golden.example.net".into(), port: 7400 }));
    assert_eq!(config.channel.as_str(), "production");
    assert_eq!(config.slots, Slots { a: "/slots/a.img".into(), b: "/slots/b.img".into(), size: Some(4 << 30) });
    assert_eq!(config.activation.backend, Backend::Symlink { link: "/slots/current".into() });
    assert_eq!(config.state, Path::new("/var/lib/goldsync"));
    assert_eq!(config.schedule.time_zone, chrono_tz::Europe::Vienna);
    assert_eq!(config.schedule.splay, Duration::from_secs(1800));
    assert_eq!(config.limits.scan_budget, 64 << 30);
    assert_eq!(config.limits.prefer, Prefer::Time);
    assert_eq!(config.limits.patience, Patience::default());
    let hasty = format!("{GOOD}\n[limits]\nsilence = \"5 s\"\nslowest = \"4 KiB/s over 10 s\"");
    let hasty = Config::parse(Path::new("agent.toml"), &hasty).unwrap().limits.patience;
    let slowest = Rate { bytes: 4096, over: Duration::from_secs(10) };
    assert_eq!(hasty, Patience { silence: Duration::from_secs(5), slowest });
    let frugal = Config::parse(Path::new("agent.toml"), &format!("{GOOD}\n[limits]\nprefer = \"bytes\"")).unwrap();
    assert_eq!(frugal.limits.prefer, Prefer::Bytes);
}

#[test]
fn the_packaged_example_is_a_good_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agent.toml");
    Config::load(&Where::File(path)).unwrap();
}

#[test]
fn an_unknown_key_names_its_file_and_its_neighbour() {
    let cases = [
        ("chanel = \"x\"", "unknown key `chanel`; did you mean `channel`?"),
        ("[slots]\nc = \"/x\"", "unknown key `slots.c`; "),
        (
            "[activation]\ntimelimit = \"3 s\"",
            "unknown key `activation.timelimit`; did you mean `activation.time_limit`?",
        ),
        ("size = \"3 GiB\"", "unknown key `size`; did you mean `slots.size`?"),
        ("[schedule]\nquite_another_thing = 1", "known here: cron, splay, time_zone"),
    ];
    for (text, expected) in cases {
        let error = error(text);
        assert!(error.contains(expected) && error.contains("agent.toml"), "{text}: {error}");
    }
}

#[test]
fn every_bad_value_names_its_key() {
    let cases = [
        (with("server = \"golden.example.net\"", "server = \"a b\""), "`server` is \"a b\"; write HOST:PORT"),
        (with("channel = \"production\"", ""), "`channel` is missing"),
        (with("channel = \"production\"", "channel = \"Prod\""), "`channel` cannot be used"),
        (with("{ role = \"web\" }", "{ role = \"\" }"), "`labels` cannot be used"),
        (with("a = \"/slots/a.img\"", ""), "`slots.a` is missing"),
        (with("a = \"/slots/a.img\"", "a = \"/slots/b.img\""), "`slots` a and b are both /slots/b.img"),
        (with("a = \"/slots/a.img\"", "a = \"/slots/./b.img\""), "`slots` a and b are both"),
        (with("a = \"/slots/a.img\"", "a = \"a.img\""), "`slots.a` is a.img; an absolute path"),
        (with("a = \"/slots/a.img\"", "a = \"/x/../b.img\""), "without `..`"),
        (with("\"4 GiB\"", "\"4 GB\""), "`slots.size` cannot be used: \"4 GB\" is not a size"),
        (with("\"4 GiB\"", "4097"), "`slots.size` cannot be used"),
        (
            with("\"symlink\"", "\"floppy\""),
            "`activation.backend` is \"floppy\"; known are \"symlink\", \"command\", \"grub\"",
        ),
        (with("link = \"/slots/current\"", ""), "`activation.link` is missing"),
        (with("link = \"/slots/current\"", "link = \"/slots/b.img\""), "`activation.link` is slot b itself"),
        (
            with("link = \"/slots/current\"", "link = \"/x\"\ntime_limit = \"3 s\""),
            "`activation.time_limit` does not belong",
        ),
        (
            with("\"symlink\"\nlink = \"/slots/current\"", "\"command\"\ncommand = [\"x\"]"),
            "`activation.command` must be a list",
        ),
        (loader("\"grub\"\ngrubenv = \"x\""), "`activation.grubenv` is x; an absolute path"),
        (loader("\"grub\"\ntries = 0"), "`activation.tries` is 0; the back-end \"grub\" counts 1 to 9"),
        (loader("\"uefi\"\ntries = 2"), "`activation.tries` is 2; the back-end \"uefi\" counts 1 to 1"),
        (loader("\"uboot\"\ntries = 9"), "`activation.tries` is 9; the back-end \"uboot\" counts 1 to 8"),
        (loader("\"uboot\"\nesp = \"/efi\""), "`activation.esp` does not belong to the back-end \"uboot\""),
        (loader("\"uefi\"\nentry_b = \"Goldsync A\""), "`activation.entry_b` is \"Goldsync A\", as that of a"),
        (loader("\"systemd-boot\""), "`activation.esp` is missing; name where"),
        (
            loader("\"systemd-boot\"\nesp = \"/efi\""),
            "`activation.options` is missing; write the kernel's command line",
        ),
        (loader(&format!("{ESP}options = \"{{uuid}}\"")), "`activation.options` has {uuid}, which is not known"),
        (loader(&format!("{ESP}options = \"\"")), "`activation.kernel` is missing; name the kernel"),
        (loader(&format!("{ESP}options = \"\"\nkernel = \"/a b\"")), "a boot entry takes no path with spaces"),
        (
            loader(&format!("{ESP}options = \"\"\nkernel = \"/a\"\nkernel_from = \"tape\"")),
            "`activation.kernel_from` is \"tape\"; there are \"image\" and \"esp\"",
        ),
        (loader(&format!("{ESP}options = \"\"\nkernel = \"/a\"\nuki = \"/b\"")), "`activation.uki` is a kernel with"),
        (with("\"30 3 * * *\"", "\"99 3 * * *\""), "`schedule.cron` is \"99 3 * * *\""),
        (with("\"Europe/Vienna\"", "\"Europe/Wien\""), "`schedule.time_zone` is \"Europe/Wien\""),
        (format!("{GOOD}splay = \"1 fortnight\""), "`schedule.splay` cannot be used: \"1 fortnight\" is not a span"),
        (format!("{GOOD}[limits]\nthreads = 0"), "`limits.threads` is 0; 1 to 256"),
        (format!("{GOOD}[limits]\nsilence = \"30\""), "`limits.silence` cannot be used: \"30\" is not a span"),
        (format!("{GOOD}[limits]\nsilence = \"0\""), "`limits.silence` is 0 ms; 1 s to 1 hour"),
        (format!("{GOOD}[limits]\nslowest = \"9 B\""), "`limits.slowest` cannot be used: \"9 B\" is not a rate"),
        (
            format!("{GOOD}[limits]\nslowest = \"0/s over 1 min\""),
            "`limits.slowest` is 0 B/s over 1 min; at least 1 B/s",
        ),
        (format!("{GOOD}[limits]\nslowest = \"9 B/s over 1 day\""), "`limits.slowest` is 9 B/s over 1 day; at least"),
        (format!("state = \"/slots/a.img/state\"\n{GOOD}"), "`state` /slots/a.img/state lies in slot a"),
        (with("channel = \"production\"", "channel = 3"), "line 3, column 11"),
        ("channel = ".to_owned(), "agent.toml: TOML parse error"),
    ];
    for (text, expected) in cases {
        let error = error(&text);
        assert!(error.contains(expected), "{text}\n{error}\n{expected}");
    }
}

#[test]
fn drop_ins_win_key_by_key_and_mask_by_name() {
    let root = tempfile::tempdir().unwrap();
    let folders = ["lib", "run", "etc"].map(|name| root.path().join(name));
    let write = |folder: &Path, name: &str, text: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let [lib, run, etc] = &folders;
    let place = Where::Folders(folders.to_vec());
    let none = Config::load(&place).unwrap_err().to_string();
    assert!(none.contains("no agent.toml in") && none.contains("--config"), "{none}");
    write(lib, "agent.toml", GOOD);
    write(etc, "agent.toml", "channel = \"qa\"");
    write(lib, "agent.toml.d/10-size.toml", "slots.size = \"1 GiB\"");
    write(lib, "agent.toml.d/20-role.toml", "labels.role = \"db\"\nlabels.rack = \"r1\"");
    write(run, "agent.toml.d/20-role.toml", "labels.rack = \"r2\"");
    write(etc, "agent.toml.d/05-size.toml", "slots.size = \"2 GiB\"");
    write(etc, "agent.toml.d/notes.txt", "not toml");
    let config = Config::load(&place).unwrap();
    assert_eq!(config.channel.as_str(), "qa");
    assert_eq!(config.slots.size, Some(1 << 30), "10- comes after 05-, whatever the folder");
    let labels: Vec<_> = config.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("rack", "r2"), ("role", "web")], "the later 20-role.toml replaces the earlier one");
    write(etc, "agent.toml.d/99-bad.toml", "[limits]\nthread = 3");
    let error = Config::load(&place).unwrap_err().to_string();
    assert!(error.contains("99-bad.toml") && error.contains("`limits.threads`"), "{error}");
}

#[test]
fn two_names_for_one_slot_are_found_on_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.img"), folder.path().join("b.img"));
    fs::write(&a, "x").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let text = GOOD.replace("/slots", &folder.path().display().to_string());
    let file = folder.path().join("agent.toml");
    fs::write(&file, text).unwrap();
    let error = Config::load(&Where::File(file.clone())).unwrap_err().to_string();
    assert!(error.contains("are the same file or device"), "{error}");
    fs::remove_file(&b).unwrap();
    Config::load(&Where::File(file.clone())).unwrap();
    fs::create_dir(&b).unwrap();
    let error = Config::load(&Where::File(file)).unwrap_err().to_string();
    assert!(error.contains("b.img) is a folder"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(&Where::File("/no/agent.toml".into())).unwrap_err().to_string();
    assert!(error.contains("/no/agent.toml cannot be read"), "{error}");
}

#[test]
fn addresses_read_back_as_they_print() {
    for (text, host, port) in [
        ("golden", "golden", 7400),
        ("golden.example.net:1", "golden.example.net", 1),
        ("192.0.2.7:7400", "192.0.2.7", 7400),
        ("[2001:db8::1]", "2001:db8::1", 7400),
        ("[::1]:9", "::1", 9),
    ] {
        let address: Address = text.parse().unwrap();
        assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    for bad in ["", ":1", "a:0", "a:b", "a:70000", "::1", "[::1", "[::1]x", "a b", "http://x"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

#[test]
fn a_mount_point_is_held_against_slots_and_state() {
    let mount = |section: &str| {
        with("backend = \"symlink\"\nlink = \"/slots/current\"", &format!("backend = \"mount\"\n{section}"))
    };
    let parse = |section: &str| Config::parse(Path::new("agent.toml"), &mount(section));
    let config = parse("target = \"/srv/app\"\noptions = \"nodev,nosuid\"\nverity = true").unwrap();
    let Backend::Mount { target, volume } = config.activation.backend else { panic!("another back-end") };
    assert_eq!((target, volume.file_system, volume.verity), ("/srv/app".into(), None, true));
    assert_eq!(volume.options.to_string(), "ro,nodev,nosuid");
    for (section, expected) in [
        ("", "`activation.target` is missing"),
        ("target = \"srv\"", "an absolute path"),
        ("target = \"/\"", "a boot loader's back-end"),
        ("target = \"/slots\"", "must not lie inside the volume"),
        ("target = \"/srv/app\"\noptions = \"rw\"", "never written"),
        ("target = \"/srv/app\"\nfstype = \"a/b\"", "names no file system"),
        ("target = \"/srv/app\"\nlink = \"/x\"", "does not belong to the back-end \"mount\""),
    ] {
        let error = parse(section).unwrap_err().to_string();
        assert!(error.contains(expected), "{section}: {error}");
    }
}
