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
        (with("\"symlink\"", "\"floppy\""), "`activation.backend` is \"floppy\"; known are \"symlink\", \"command\""),
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
        (with("\"30 3 * * *\"", "\"99 3 * * *\""), "`schedule.cron` is \"99 3 * * *\""),
        (with("\"Europe/Vienna\"", "\"Europe/Wien\""), "`schedule.time_zone` is \"Europe/Wien\""),
        (format!("{GOOD}splay = \"1 fortnight\""), "`schedule.splay` cannot be used: \"1 fortnight\" is not a span"),
        (format!("{GOOD}[limits]\nthreads = 0"), "`limits.threads` is 0; 1 to 256"),
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
