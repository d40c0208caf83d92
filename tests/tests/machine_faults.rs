//! Stories with virtual machines whose kernel is told to fail, and to write down what it does: device mapper's dm-log-writes and
//! dm-flakey, and netem.
//!
//! What the tests with a simulated disk and a proxy do without a kernel's disks and links is done here with a real block layer, a real
//! file system and a real network stack, fewer times. As in `machines.rs`, `$GOLDSYNC_MACHINES` names what is needed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use goldsync_agent::journal::SlotRecord;
use goldsync_tests::node::hash;
use goldsync_tests::scene::{CHANNEL, NAME};
use goldsync_tests::seed::Seed;
use goldsync_tests::vm::judge::{Judge, PARTS, write_sparse};
use goldsync_tests::vm::replay::{Found, Replay};
use goldsync_tests::vm::write_log::{self, Event};
use goldsync_tests::vm::{Flaw, Kind, Layout, Part, Rig, Table, Vm, cuts, image};

const LAYOUT: Layout = Layout { table: Table::Mbr, esp: 34, slot: 16, state: 48 };

const COMMAND: &str = "backend = \"command\"\ncommand = [\"/usr/libexec/slots\"]\ntakes_effect = \"at-restart\"";

/// Room for what is written down, most of it a hole.
const LOG: u64 = 512 << 20;

const DMSETUP: &str = "/usr/sbin/dmsetup";
const TC: &str = "/usr/sbin/tc";

fn rig(test: &str, tools: &[&str]) -> Result<Option<Rig>> {
    let rig = Rig::open(test, env!("CARGO_BIN_EXE_goldsync-demo"), Kind::Small)?;
    let tools: Vec<&Path> = tools.iter().map(Path::new).collect();
    Ok(rig.and_then(|mut rig| rig.bring(test, &tools).then_some(rig)))
}

/// What a machine does whose writes are written down: a verb a line, each behind a mark; a restart in between.
const NOTED: &str = r#"
mark() { sync; dmsetup message disk 0 mark "$1" || say "stuck mark"; }
restart() { sync; umount /state; exit 0; }
# Confirms what was started; nothing is left to do then.
do_or_say node sync --json
grep -q '"outcome":"up_to_date"' /tmp/done || { say "stuck $(cat /tmp/done)"; off; }
say "ready $release"
read -r line
case $line in
  repair)
    mark drift
    dd if=/dev/zero of=/dev/vda3 bs=4096 count=3 seek=DRIFT conv=notrunc,fsync 2>/dev/null
    mark repair
    do_or_say node repair
    ;;
  update) mark update; do_or_say node sync ;;
  rollback) mark rollback; do_or_say node rollback ;;
  *) touch /dev/.done ;;
esac
restart
"#;

/// A verb, the release that the channel names meanwhile, and the slot that runs in the end.
const VERBS: [(&str, &str, &str); 4] =
    [("update", "2", "b"), ("repair", "2", "a"), ("update", "3", "b"), ("rollback", "2", "a")];

/// Everything that a machine writes in updates, a repair, a rollback and the restarts between them is written down by its kernel, slots
/// and state in one order; then power is lost outside, at every flush, and what is found must be right. Some of it is started.
#[test]
fn power_lost_at_every_flush() -> Result<()> {
    let test = "power_lost_at_every_flush";
    let Some(rig) = rig(test, &[DMSETUP])? else { return Ok(()) };
    // One run's writes can be kept, to lose power in them again.
    let kept = std::env::var_os("GOLDSYNC_VM_LOG").map(PathBuf::from);
    let folder = kept.unwrap_or_else(|| rig.scene.folder().to_owned());
    let [before, log, images] = ["before.img", "writes.log", "images.json"].map(|name| folder.join(name));
    let again = images.exists();
    if !again {
        record(&rig, &before, &log)?;
        fs::write(&images, serde_json::to_string(&hashes(&rig)?)?)?;
    }
    let golden: HashMap<String, String> = serde_json::from_str(&fs::read_to_string(&images)?)?;
    let events = write_log::read(&mut BufReader::new(File::open(&log)?), LAYOUT.whole())?;

    let size = fs::metadata(rig.image("1", Flaw::None)?)?.len();
    let losses = |name: &str, seeds| -> Result<Losses> {
        let folder = rig.path(name);
        fs::create_dir(&folder)?;
        let judge = Judge::new(LAYOUT, size, golden.clone(), &folder.join("judge"))?;
        let seed = Seed::new(cuts::asked("GOLDSYNC_VM_SEED", 1)?);
        Ok(Losses { judge, seeds, seed, verbs: Vec::new(), folder })
    };
    let mut found = losses("found", cuts::asked("GOLDSYNC_VM_LOST", 1)?)?;
    found.everywhere(&events, fs::read(&before)?)?;
    ensure!(found.verbs.len() == VERBS.len(), "{} verbs in the log", found.verbs.len());
    eprintln!(
        "{} writes and flushes; power lost {} times, {} different state partitions, 0 left wrong",
        events.len(),
        found.judge.disks,
        found.judge.recovered
    );
    // Whoever looks can see: on a disk that forgets what is written to slot b, the first proof is a lie.
    let slot = LAYOUT.range(Part::B);
    let remembered = |event: &&Event| !matches!(event, Event::Write { offset, .. } if slot.contains(offset));
    let lie = losses("forgotten", 0)?.everywhere(events.iter().filter(remembered), fs::read(&before)?);
    let lie = lie.err().map(|error| format!("{error:#}"));
    ensure!(
        lie.as_ref().is_some_and(|lie| lie.contains("b is called proven")),
        "what is forgotten is not missed: {lie:?}"
    );

    // Another server's node cannot go on here.
    let boots = if again { 0 } else { cuts::asked("GOLDSYNC_VM_BOOTS", 3)? };
    for (number, (verb, (name, version, _))) in (0..).zip(found.verbs.iter().zip(VERBS)) {
        eprintln!("{name}: would start {:?}", verb.starts);
        if number < boots {
            verb.start(&rig, version).with_context(|| format!("{name}: {}", verb.kept))?;
        }
    }
    Ok(())
}

/// The releases, by their images' hashes.
fn hashes(rig: &Rig) -> Result<HashMap<String, String>> {
    let hashed = |version: &str| Ok((hash(&rig.image(version, Flaw::None)?)?, format!("{NAME}:{version}")));
    ["1", "2", "3"].into_iter().map(hashed).collect()
}

/// Publishes them.
fn publish(rig: &Rig) -> Result<()> {
    let publish = |version| rig.scene.server.publish(&rig.image(version, Flaw::None)?, NAME, version).map(drop);
    ["1", "2", "3"].into_iter().try_for_each(publish)
}

/// Lets the machine do its verbs.
fn record(rig: &Rig, before: &Path, log: &Path) -> Result<()> {
    publish(rig)?;
    let disk = rig.disk("machine", LAYOUT, COMMAND)?;
    fs::copy(&disk.path, before)?;
    File::create(log)?.set_len(LOG)?;
    let promote = |version: &str| rig.scene.server.promote(&format!("{NAME}:{version}"), CHANNEL);
    promote("1")?;
    let firmware = rig.mapped_kernel(Path::new(DMSETUP), "goldsync.again goldsync.noted")?;
    // In a file that no program is.
    let drift = image::place_of(&rig.image("2", Flaw::None)?, "/usr/share/payload/6")? / 4096;
    let orders = rig.orders(&NOTED.replace("DRIFT", &drift.to_string()));
    let mut vm = Vm::start_beside(&firmware, &disk.path, &orders, Some(log))?;
    vm.wait("ready")?;
    for (verb, version, slot) in VERBS {
        promote(version)?;
        vm.type_line(verb)?;
        ensure!(vm.wait("up")? == format!("{NAME}:{version} {slot}"), "{verb}: {:?}", vm.marks());
        vm.wait("ready")?;
    }
    vm.type_line("done")?;
    vm.off()
}

/// What a machine does that was found after power was lost: all that is left to do.
const FOUND: &str = r#"
do_or_say node sync --json
grep -q '"outcome":"up_to_date"' /tmp/done || again
say "golden $release"
read -r line
"#;

/// What a verb left when power was lost in it.
struct Verb {
    /// What would start, and how often.
    starts: BTreeMap<String, u64>,
    /// One of the disks, drawn by lot.
    disk: PathBuf,
    /// What would start from that one.
    kept: String,
}

impl Verb {
    /// The machine gets that disk: what was foretold starts, and the next run finishes.
    fn start(&self, rig: &Rig, version: &str) -> Result<()> {
        rig.scene.server.promote(&format!("{NAME}:{version}"), CHANNEL)?;
        let mut vm = Vm::start(&rig.kernel("")?, &self.disk, &rig.orders(FOUND))?;
        let up = vm.wait("up")?;
        ensure!(up == self.kept || self.kept.starts_with("drifted"), "{up} started");
        let golden = vm.wait("golden")?;
        ensure!(golden == format!("{NAME}:{version}"), "it ended with {golden}");
        eprintln!("started {} ({}): {golden} in the end", self.disk.display(), self.kept);
        vm.cut().map(drop)
    }
}

/// Power, lost again and again.
struct Losses {
    judge: Judge,
    /// Ways by chance at each moment.
    seeds: u64,
    seed: Seed,
    verbs: Vec<Verb>,
    folder: PathBuf,
}

impl Losses {
    fn everywhere<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>, before: Vec<u8>) -> Result<()> {
        let superblock = LAYOUT.range(Part::State).start;
        let mut replay = Replay::new(before, &PARTS.map(|part| LAYOUT.range(part)), superblock..superblock + 4096);
        // Enrolment comes before the first verb; and while the story itself changes a slot, nobody looks.
        let mut looks = false;
        for event in events {
            if let Event::Mark(name) = event {
                looks = name != "drift";
                if name == "repair" {
                    replay.now(|found| self.judge.drifted(found, 1))?;
                }
                if VERBS.iter().any(|(verb, ..)| verb == name) {
                    let disk = self.folder.join(format!("found-{}.img", self.verbs.len()));
                    self.verbs.push(Verb { starts: BTreeMap::new(), disk, kept: String::new() });
                }
            }
            let seeds = if looks { self.seeds } else { 0 };
            replay.happen(event, seeds, |found| if looks { self.look(found) } else { Ok(()) })?;
        }
        replay.end(self.seeds, |found| self.look(found))
    }

    fn look(&mut self, found: &Found<'_>) -> Result<()> {
        let starts = self.judge.look(found)?;
        let verb = self.verbs.last_mut().context("no verb in the log")?;
        let number: u64 = verb.starts.values().sum();
        if self.seed.below(number + 1) == 0 {
            write_sparse(&verb.disk, found.disk)?;
            verb.kept = starts.clone();
        }
        *verb.starts.entry(starts).or_default() += 1;
        Ok(())
    }
}

/// What a machine does whose link and whose standby slot fail when it is told so: a line each, `link`, or the fault of the slot behind
/// a sector. A fault ends before the line `mended` is asked for.
const FAULTY: &str = r#"
size=$(cat /sys/block/vda/vda3/size) below=$(cat /sys/block/vda/vda3/dev)
if ! [ -e /dev/mapper/slot ]; then
  dmsetup create slot --table "0 $size linear $below 0" && ln -sf /dev/mapper/slot /dev/vda3 || say "stuck slot"
fi
# Not the shell's own.
tc() { /state/bin/tc "$@"; }
lay() { dmsetup load slot && dmsetup suspend slot && dmsetup resume slot || say "stuck table"; }
heal() { echo "0 $size linear $below 0" | lay; }
fail() { printf '0 %s linear %s 0\n%s %s flakey %s %s 0 1 %s\n' "$1" "$below" "$1" $((size - $1)) "$below" "$1" "$2" | lay; }
written() { awk '{ print $7 }' "/sys/block/$(basename "$(dmsetup info -c --noheadings -o blkdevname slot)")/stat"; }
counters() { for name in eth0 ifb0; do say "link $name $(tc -s qdisc show dev $name | tr '\n' ' ')"; done; }
# What leaves is made bad on eth0; what comes is led through ifb0, and made bad there.
spoil() {
  ifconfig eth0 mtu 1280 && ifconfig ifb0 up && tc qdisc add dev eth0 ingress &&
    tc filter add dev eth0 parent ffff: matchall action mirred egress redirect dev ifb0 || say "stuck link"
  for name in eth0 ifb0; do
    tc qdisc add dev $name root netem delay 100ms 20ms loss 5% reorder 25% 50% rate 2mbit || say "stuck $name"
  done
}
good_again() { tc qdisc del dev eth0 ingress; tc qdisc del dev eth0 root; tc qdisc del dev ifb0 root; }
told() { say "ended $code $(tail -n 1 /tmp/done)"; say "record $(tr -d '\n' </state/goldsync/slots/b.json)"; sync; }
sync_now() { node sync >/tmp/done 2>&1; code=$?; told; }
while :; do
  say "ready"
  read -r what from features
  case $what in
    link) spoil; sync_now; counters; good_again ;;
    always) fail "$from" "$features"; sync_now; heal ;;
    # Until the run has written more than half of what it has to.
    while)
      fail "$from" "$features"
      end=$(($(written) + 2600))
      ( until [ "$(written)" -ge "$end" ]; do usleep 10000; done; heal ) &
      sync_now
      kill $! 2>/dev/null
      heal
      ;;
    well) sync_now ;;
    *) sync; umount /state; exit 0 ;;
  esac
done
"#;

/// A fault of the standby slot: how long, what dm-flakey is told, and what the run says of it: exit codes and words. (Linux 6.1 forgets
/// to corrupt what is read; the simulated disk does that.)
const FAULTS: [(&str, &str, &[u8], &str); 5] = [
    ("always", "1 error_writes", &[5], "slot b"),
    ("always", "0", &[5], "slot b"),
    ("always", "1 drop_writes", &[7], "the standby slot reads back as"),
    ("always", "5 corrupt_bio_byte 32 w 7 0", &[7], "the standby slot reads back as"),
    ("while", "1 drop_writes", &[0, 7], ""),
];

/// An update over a link that is slow, late, lossy and out of order in the kernel's own network stack; then updates into a slot whose
/// device fails. What the agent says is held against the bytes outside, and the next run on a healthy device finishes.
#[test]
fn a_bad_link_and_a_bad_slot() -> Result<()> {
    let test = "a_bad_link_and_a_bad_slot";
    let Some(rig) = rig(test, &[DMSETUP, TC])? else { return Ok(()) };
    let promote = |version: &str| rig.scene.server.promote(&format!("{NAME}:{version}"), CHANNEL);
    publish(&rig)?;
    let golden = hashes(&rig)?;
    let (image, size) = (rig.image("1", Flaw::None)?, fs::metadata(rig.image("1", Flaw::None)?)?.len());
    // Half of what differs from release to release lies behind this.
    let sector = image::place_of(&image, "/usr/share/payload/6")? / 512;
    let disk = rig.disk("machine", LAYOUT, COMMAND)?;
    let firmware = rig.kernel("goldsync.again goldsync.load=faults goldsync.load=netem")?;
    let mut vm = Vm::start(&firmware, &disk.path, &rig.orders(FAULTY))?;
    // The record's claim, held against the slot.
    let claim = |vm: &mut Vm| -> Result<bool> {
        let record: SlotRecord = serde_json::from_str(&vm.wait("record")?)?;
        let holds = disk.hash(Part::B, size)?;
        let lie = record.proven().is_some_and(|proven| proven.image.to_string() != holds);
        ensure!(!lie, "slot b holds {holds}, and the record says {record:?}");
        Ok(record.proven().is_some())
    };

    vm.wait("ready")?;
    promote("2")?;
    vm.type_line("link")?;
    let ended = vm.wait("ended")?;
    ensure!(ended.starts_with("0 ") && claim(&mut vm)?, "{ended}");
    for _ in ["eth0", "ifb0"] {
        let counted = vm.wait("link")?;
        ensure!(count(&counted, "dropped") > 0 && count(&counted, "requeues") > 0, "it was not bad: {counted}");
        eprintln!("{counted}");
    }
    vm.wait("ready")?;

    for (number, (how_long, features, codes, words)) in FAULTS.iter().enumerate() {
        let version = ["3", "2"][number % 2];
        promote(version)?;
        vm.type_line(&format!("{how_long} {sector} {features}"))?;
        let ended = vm.wait("ended")?;
        let code = ended.split(' ').next().and_then(|code| code.parse::<u8>().ok());
        ensure!(code.is_some_and(|code| codes.contains(&code)) && ended.contains(words), "{features}: {ended}");
        ensure!(claim(&mut vm)? == (code == Some(0)), "{features}: {ended}");
        eprintln!("{how_long} {features}: {ended}");
        vm.wait("ready")?;
        vm.type_line("well")?;
        let ended = vm.wait("ended")?;
        ensure!(ended.starts_with("0 ") && claim(&mut vm)?, "after {features}: {ended}");
        let holds = golden.get(&disk.hash(Part::B, size)?);
        ensure!(holds == Some(&format!("{NAME}:{version}")), "after {features}: slot b holds {holds:?}");
        vm.wait("ready")?;
    }
    vm.type_line("restart")?;
    ensure!(vm.wait("up")? == format!("{NAME}:3 b"), "it started {:?}", vm.marks());
    vm.wait("ready")?;
    vm.cut().map(drop)
}

/// A counter in what `tc -s qdisc` prints first: netem's own.
fn count(text: &str, name: &str) -> u64 {
    let number = text.split_once(name).map(|(_, rest)| rest.trim_start());
    number.and_then(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()).unwrap_or(0)
}
