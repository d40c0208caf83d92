//! A machine on a simulated disk, beside a real server; and its verbs, cut at every operation.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;

use super::cut::{Fate, Laws};
use super::tree::Tree;
use super::{Recording, SimDisk};
use crate::disk::skip;
use crate::fleet::Fleet;
use crate::image::Image;
use crate::machine::Machine;
use crate::seed::Seed;

/// Bytes on the disk.
const CAPACITY: u64 = 64 << 20;

/// Of so many disks found after a cut, one has its next run cut off, too.
const AGAIN: u64 = 8;

/// A machine whose slots, state, link and all else lie on a simulated disk.
pub struct Rig {
    /// The disk; first, so that it is unmounted before its folder goes.
    pub disk: SimDisk,
    /// The machine.
    pub node: Machine,
    /// Its server.
    pub fleet: Fleet,
}

impl Rig {
    /// A node without an image. `None`, said loudly, where no disk can be simulated.
    pub async fn new(test: &str) -> Option<Self> {
        Self::with(test, |_| {}).await
    }

    /// The same, changed before it enrols.
    pub async fn with(test: &str, change: impl FnOnce(&mut Machine)) -> Option<Self> {
        let fleet = Fleet::start().await;
        let disk = match SimDisk::mount(&fleet.path("n1"), CAPACITY, Path::new("state/cache")) {
            Ok(disk) => disk,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        let mut node = fleet.machine("n1");
        change(&mut node);
        node.write_config();
        node.enrol(&fleet.operator).await;
        Some(Self { disk, node, fleet })
    }

    /// A node that runs the first of two images, from release `web:1`, and is to go to the second, `web:2`.
    pub async fn before_update(test: &str, seed: u64) -> Option<(Self, Image, Image)> {
        Self::before_update_with(test, seed, |_| {}).await
    }

    /// The same on a machine that was changed before.
    pub async fn before_update_with(
        test: &str,
        seed: u64,
        change: impl FnOnce(&mut Machine),
    ) -> Option<(Self, Image, Image)> {
        let rig = Self::with(test, change).await?;
        let (old, new) = images(seed);
        rig.fleet.ship(&old, "web:1").await;
        rig.node.sync().await.updated();
        rig.fleet.ship(&new, "web:2").await;
        Some((rig, old, new))
    }

    /// What `work` does to the disk.
    pub async fn record(&self, work: impl AsyncFnOnce(&Machine)) -> Recording {
        let base = self.disk.record();
        work(&self.node).await;
        self.disk.recorded(base)
    }
}

/// Operations of a recording that is short.
const SHORT: usize = 50;

/// An image of 1 MiB, and the next: some blocks are others, some are zero now, one part moved.
pub fn images(seed: u64) -> (Image, Image) {
    let old = Image::new(seed, 1);
    let mut new = old.edited(seed + 1, 12);
    new.bytes[200 << 10..280 << 10].fill(0);
    let moved = new.bytes[600 << 10..664 << 10].to_vec();
    new.bytes[704 << 10..768 << 10].copy_from_slice(&moved);
    (old, new)
}

/// A node that is healthy as long as a file is not there.
pub fn well_without(node: &mut Machine, sick: &Path) {
    let command = format!("commands = [[\"/usr/bin/test\", \"!\", \"-e\", \"{}\"]]", sick.display());
    node.more = format!("[health]\n{command}\nevery = \"20 ms\"\ndeadline = \"100 ms\"\n");
}

/// How many disks are found at each operation beside the four plain ones: `GOLDSYNC_CUT_SEEDS`.
pub fn seeds() -> u64 {
    std::env::var("GOLDSYNC_CUT_SEEDS").map_or(1, |text| text.parse().expect("GOLDSYNC_CUT_SEEDS is a number"))
}

/// One verb, cut off everywhere.
pub struct Cuts<'a> {
    rig: &'a Rig,
    name: String,
    laws: Laws,
    /// Which operations, by their paths.
    at: fn(&Path) -> bool,
    /// The first that is cut.
    from: usize,
    /// Whether the machine starts again before the next run.
    restarts: bool,
    seen: HashSet<[u8; 32]>,
    operations: usize,
    points: u64,
    again: u64,
}

impl<'a> Cuts<'a> {
    /// Begins. `name` says of what, for the replay: `GOLDSYNC_CUT=NAME:OPERATION:FATE`.
    pub fn of(rig: &'a Rig, name: impl Display, laws: &Laws) -> Self {
        let (seen, operations, points, again) = Default::default();
        let (laws, at, from, restarts) = (laws.clone(), all as fn(&Path) -> bool, 0, false);
        Self { rig, name: name.to_string(), laws, at, from, restarts, seen, operations, points, again }
    }

    /// Only before and behind operations on such files.
    pub fn only(self, at: fn(&Path) -> bool) -> Self {
        Self { at, ..self }
    }

    /// Only from an operation on: what is before was done by a run that was killed.
    pub fn from(self, from: usize) -> Self {
        Self { from, ..self }
    }

    /// The next run begins with a start of the machine: what it finds then is on the disk.
    pub fn restarting(self) -> Self {
        Self { restarts: true, ..self }
    }

    /// Cuts a recording at each operation, in all fates. After each cut `found` looks at the disk, `next` is the machine's next
    /// run, and `done` looks at what that left. Some of those runs are cut off as well, once, and begun again.
    pub async fn everywhere(
        mut self,
        recording: &Recording,
        found: impl Fn(&Rig),
        next: impl AsyncFn(&Rig),
        done: impl Fn(&Rig),
    ) {
        let only = std::env::var("GOLDSYNC_CUT").ok();
        // What is short is cut in more ways.
        let seeds = if recording.ops.len() < SHORT { 16 * seeds() } else { seeds() };
        let about: Vec<bool> =
            (0..recording.ops.len()).map(|at| recording.path(at).is_some_and(|path| (self.at)(&path))).collect();
        self.operations += about.iter().skip(self.from).filter(|about| **about).count();
        let beside =
            |at: &usize| about.get(*at) == Some(&true) || at.checked_sub(1).is_some_and(|before| about[before]);
        for at in (self.from..=recording.ops.len()).filter(beside) {
            for fate in Fate::all(seeds) {
                let place = format!("{}:{at}:{fate:?}", self.name);
                if only.as_ref().is_some_and(|only| *only != place) {
                    continue;
                }
                self.points += 1;
                let tree = recording.cut(at, &self.laws, fate);
                if self.seen.insert(tree.digest()) {
                    let _says = Says(format!("power lost before {}; replay: GOLDSYNC_CUT={place}", recording.name(at)));
                    let next_run = self.once(&tree, &found, &next, &done).await;
                    // Everything kept is what a kill leaves, with power on: what was unsynced is so still.
                    let (joined, from) = match fate {
                        Fate::Kept if !self.restarts => (recording.killed(at, &next_run), at),
                        _ => (next_run, 0),
                    };
                    self.second(joined, from, &found, &next, &done).await;
                }
            }
        }
        self.count();
    }

    async fn once(
        &self,
        tree: &Tree,
        found: &impl Fn(&Rig),
        next: &impl AsyncFn(&Rig),
        done: &impl Fn(&Rig),
    ) -> Recording {
        self.rig.disk.exchange(tree);
        found(self.rig);
        let base = self.rig.disk.record();
        next(self.rig).await;
        let recording = self.rig.disk.recorded(base);
        done(self.rig);
        recording
    }

    /// Cuts off the run after a cut, or after a kill, now and then; it begins with operation `from`.
    async fn second(
        &mut self,
        recording: Recording,
        from: usize,
        found: &impl Fn(&Rig),
        next: &impl AsyncFn(&Rig),
        done: &impl Fn(&Rig),
    ) {
        let ran = recording.ops.len() - from;
        let word = blake3::hash(format!("{:?}", &recording.ops[..from]).as_bytes());
        let word = [*word.as_bytes(), recording.base.digest()].concat();
        let mut seed = Seed::new(u64::from_le_bytes(*blake3::hash(&word).as_bytes().first_chunk().expect("a hash")));
        if ran == 0 || seed.below(AGAIN) > 0 {
            return;
        }
        let then = from + seed.below(ran as u64 + 1) as usize;
        let _says = Says(format!("and in the next run once more, before {}", recording.name(then)));
        self.again += 1;
        self.once(&recording.cut(then, &self.laws, Fate::Chance(seed.word())), found, next, done).await;
    }

    fn count(self) {
        let Self { name, operations, points, again, seen, .. } = self;
        let disks = seen.len();
        count(format!(
            "power cuts: {name}: {operations} operations, {points} cuts, {disks} different disks, {again} cut again"
        ));
    }
}

/// Whether a file has to do with what is started, and not with what is fetched, or believed of the server.
pub fn concerns_starting(path: &Path) -> bool {
    let others = ["a.img", "b.img", "state/trust", "state/cache", "state/lock", "cmdline"];
    !others.iter().any(|other| path.starts_with(other))
}

fn all(_: &Path) -> bool {
    true
}

/// Writes down what a story came to: on standard error, and in the file that `GOLDSYNC_TESTS_COUNTS` names.
pub fn count(line: String) {
    use std::io::Write;
    eprintln!("{line}");
    if let Ok(file) = std::env::var("GOLDSYNC_TESTS_COUNTS") {
        let written = std::fs::File::options().create(true).append(true).open(&file);
        written.and_then(|mut file| writeln!(file, "{line}")).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// Says where it happened, if what follows panics.
struct Says(String);

impl Drop for Says {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
