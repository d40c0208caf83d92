//! Plans: one for each pair of images, made once, the same bytes for every node ever after.
//!
//! ```text
//! plan(base, target) ──▶ made before? ──yes──▶ Ready: an object's name
//!                            │ no
//!                            ▼
//!                        one job a pair, one at a time ──▶ packs ──▶ plan ──▶ proven ──▶ plans/<base>-<target>
//!                            │ not done within 2 s
//!                            ▼                            made again in the background ──▶ ….thorough, ….smallest
//!                        Making: ask again, or plan by the signature
//! ```
//! However many nodes ask for a pair at once, one job makes it, and it goes on when they hang up. A plan exists when its
//! small file does, which is written after its objects were synced: a kill at any point costs the work since, no more.
//! A job that failed is not tried again for a minute, so that a fleet that asks does not keep the server busy failing.
//!
//! What a node waits for is made quickly. In the background it is made [again](better), twice: thoroughly, smaller by up to
//! a half and unpacked at hundreds of megabytes a second, for all who come later; and as small as can be, smaller by up to three
//! fifths and slower to unpack by a factor of fifty, for nodes that would rather spare bytes than time. Who asks gets the best of its kind that is there.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::make::{self, Effort};
use goldsync_proto::plan::Plan;
use goldsync_proto::release::Section;
use goldsync_proto::signature::BlockHashes;
use goldsync_proto::verity::Derived;
use goldsync_proto::wire::Prefer;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use crate::memory;
use crate::store::files::{blocking, list, prepare_folder, temporary, write_durable};
use crate::store::{Store, StoreError, Whole, cold};

mod better;
pub(crate) mod prove;

/// 2: plans of version 2. Older ones are made again.
const FORMAT: u32 = 2;

/// A guess of how many bytes of the target are dealt with in a millisecond.
const BYTES_PER_MS: u64 = 100_000;

/// The answer to a request for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanState {
    /// It is an object.
    Ready {
        /// Its name.
        name: Digest,
        /// Its length.
        length: u64,
    },
    /// It is being made.
    Making {
        /// When to ask again.
        retry_ms: u64,
    },
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The server does not hold the base.
    #[error("the base image {base} is not stored here; plan by the signature")]
    UnknownBase {
        /// Its id.
        base: ImageId,
    },
    /// The server does not hold the target.
    #[error("the target image {target} is not stored here; publish it first")]
    UnknownTarget {
        /// Its id.
        target: ImageId,
    },
    /// A node could not be asked to hold it. Known for good: the images do not change.
    #[error("{reason}")]
    TooLarge {
        /// Of what there is too much.
        reason: String,
    },
    /// It could not be made.
    #[error("the plan could not be made: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
}

impl From<StoreError> for PlanError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Plan(error) => error.into(),
            error => Self::Failed { reason: error.to_string() },
        }
    }
}

impl From<goldsync_proto::plan::PlanError> for PlanError {
    fn from(error: goldsync_proto::plan::PlanError) -> Self {
        use goldsync_proto::plan::PlanError::TooLarge;
        match error {
            TooLarge { .. } => Self::TooLarge { reason: error.to_string() },
            error => Self::Failed { reason: error.to_string() },
        }
    }
}

/// How much work went into a plan, and goes into unpacking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// As much as a waiting node has time for. Plans from nothing are always of this kind.
    Quick,
    /// More, for packs that unpack nearly as fast.
    Thorough,
    /// As much as makes the fewest bytes, whatever it takes to unpack them.
    Smallest,
}

impl Grade {
    /// Those that a node would take, the best first.
    fn for_who(prefers: Prefer) -> &'static [Self] {
        match prefers {
            Prefer::Time => &[Self::Thorough],
            Prefer::Bytes => &[Self::Smallest, Self::Thorough],
        }
    }
}

/// How far a pair's plans are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// All bytes on the wire of the quick plan, if there is one.
    pub quick: Option<u64>,
    /// The same of the thorough plan.
    pub thorough: Option<u64>,
    /// The same of the smallest plan.
    pub smallest: Option<u64>,
    /// Whether one of them is being made or waits for its turn.
    pub under_way: bool,
}

/// How plans are made.
#[derive(Clone, Copy, Debug)]
pub struct PacksOptions {
    /// Plans in the making at a time. Each takes all cores in its long part, so that more than one only helps with disks.
    pub at_once: usize,
    /// How hard to try while a node waits.
    pub effort: Effort,
    /// How hard to try when none does, for each kind of plan; none: leave it at that.
    pub better: &'static [(Grade, Effort)],
    /// How long a request waits for a plan in the making before it is told to come again.
    pub wait: Duration,
    /// How long a failure is answered from memory.
    pub failure_kept: Duration,
}

/// What is made in the background, in this order.
const BETTER: [(Grade, Effort); 2] = [(Grade::Thorough, Effort::THOROUGH), (Grade::Smallest, Effort::SMALLEST)];

impl Default for PacksOptions {
    fn default() -> Self {
        let (wait, failure_kept) = (Duration::from_secs(2), Duration::from_secs(60));
        Self { at_once: 1, effort: Effort::QUICK, better: &BETTER, wait, failure_kept }
    }
}

/// From what, `None` for nothing, to what.
type Pair = (Option<ImageId>, ImageId);

/// The plans of one server.
#[derive(Debug)]
pub struct Packs {
    store: Arc<Store>,
    folder: PathBuf,
    options: PacksOptions,
    records: Mutex<HashMap<(Pair, Grade), Arc<PlanRecord>>>,
    jobs: Mutex<HashMap<Pair, Job>>,
    turns: Semaphore,
    better: better::Queue,
    made: std::sync::atomic::AtomicU64,
}

/// `plans/<base>-<target>`, and with `.thorough` or `.smallest` behind it
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PlanRecord {
    format: u32,
    base: Option<ImageId>,
    target: ImageId,
    grade: Grade,
    plan: Section,
    /// Of a cold plan: the layout of the image as it was then. Where it lies otherwise, the plan leads nowhere soon.
    #[serde(default)]
    layout: Option<Digest>,
    /// What the plan's packs lie in.
    objects: Vec<Section>,
}

type Outcome = Result<Section, PlanError>;

#[derive(Clone, Debug)]
struct Job {
    outcome: watch::Receiver<Option<(Outcome, Instant)>>,
}

impl Job {
    /// Whether a new job must take its place: it failed some time ago, or ended without a word.
    fn is_over(&self, failure_kept: Duration) -> bool {
        match &*self.outcome.borrow() {
            Some((Ok(_) | Err(PlanError::TooLarge { .. }), _)) => false,
            Some((Err(_), at)) => at.elapsed() >= failure_kept,
            None => self.outcome.has_changed().is_err(),
        }
    }
}

impl Packs {
    /// Opens the plans of a store, and removes objects that belong to nothing any more.
    pub async fn open(store: Arc<Store>, options: PacksOptions) -> Result<Arc<Self>, StoreError> {
        let folder = store.folder().join("plans");
        let plans = folder.clone();
        let records = blocking(move || read_records(&plans)).await?;
        let kept: HashSet<Digest> = records.values().flat_map(|record| record.names()).collect();
        match store.sweep(kept).await {
            Ok(swept) if swept.freed == 0 => {}
            Ok(swept) => tracing::info!(freed = swept.freed, "removed objects that belong to nothing"),
            // Nothing was removed: what cannot be read may still name what is needed.
            Err(error) => tracing::error!(%error, "objects that belong to nothing were not removed"),
        }
        let packs = Arc::new(Self {
            store,
            folder,
            options,
            records: Mutex::new(records),
            jobs: Mutex::default(),
            turns: Semaphore::new(options.at_once.max(1)),
            better: better::Queue::default(),
            made: Default::default(),
        });
        packs.take_up();
        Ok(packs)
    }

    /// The plan from `base` (`None`: from nothing) to `target`, made if need be. Who comes later gets a better one, of the kind that
    /// it prefers.
    pub async fn plan(
        self: &Arc<Self>,
        base: Option<ImageId>,
        target: ImageId,
        prefer: Prefer,
    ) -> Result<PlanState, PlanError> {
        let size = self.check(base, target)?;
        for grade in Grade::for_who(prefer) {
            if let Some(section) = self.made_before((base, target), *grade).await {
                return Ok(PlanState::Ready { name: section.name, length: section.length });
            }
        }
        let mut outcome = self.job((base, target)).outcome;
        let waited = tokio::time::timeout(self.options.wait, outcome.wait_for(Option::is_some)).await;
        match waited {
            Err(_) => Ok(PlanState::Making { retry_ms: (size / BYTES_PER_MS).clamp(500, 10_000) }),
            Ok(Ok(outcome)) => ready(&outcome),
            Ok(Err(_)) => Err(PlanError::Failed { reason: "the server gave it up; ask again".into() }),
        }
    }

    /// Makes the plan ahead of time and waits for it.
    pub async fn prepare(self: &Arc<Self>, base: Option<ImageId>, target: ImageId) -> Result<PlanState, PlanError> {
        self.check(base, target)?;
        let mut outcome = self.job((base, target)).outcome;
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => ready(&outcome),
            Err(_) => Err(PlanError::Failed { reason: "the server gave it up; ask again".into() }),
        }
    }

    /// How far the plan from `base` to `target` is. Asks for nothing to be made.
    pub fn progress(&self, base: Option<ImageId>, target: ImageId) -> Progress {
        let pair = (base, target);
        let made = |grade| {
            let record = self.records.lock().unwrap_or_else(PoisonError::into_inner).get(&(pair, grade)).cloned();
            record.map(|record| record.sections().map(|section| section.length).sum())
        };
        let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).get(&pair).cloned();
        let making = job.is_some_and(|job| job.outcome.borrow().is_none() && job.outcome.has_changed().is_ok());
        let under_way = making || self.better.holds(pair);
        let [quick, thorough, smallest] = [Grade::Quick, Grade::Thorough, Grade::Smallest].map(made);
        Progress { quick, thorough, smallest, under_way }
    }

    /// Forgets the cold plans of images that lie elsewhere by now. Who has such a plan in hand can carry it out for as long as
    /// the old segments stay.
    pub async fn forget_moved(&self) -> Result<(), StoreError> {
        self.retain(|_, _| true).await.map(drop)
    }

    /// The objects that plans between images need of which `keep` wants both.
    pub fn held(&self, keep: impl Fn(ImageId) -> bool) -> HashSet<Digest> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = records.values().filter(|record| record.base.is_some_and(&keep) && keep(record.target));
        pairs.flat_map(|record| record.names().collect::<Vec<_>>()).collect()
    }

    /// Forgets all plans that `keep` turns down or that lead to where an image does not lie any more, and answers which objects
    /// the others need.
    pub async fn retain(&self, keep: impl Fn(Option<ImageId>, ImageId) -> bool) -> Result<HashSet<Digest>, StoreError> {
        let kept = |record: &PlanRecord| {
            let lies = self.store.image(record.target).map(|image| image.layout.name);
            let moved = record.base.is_none() && record.layout != lies;
            keep(record.base, record.target) && !moved
        };
        let given_up: Vec<(Pair, Grade)> = {
            let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            records.iter().filter(|(_, record)| !kept(record)).map(|(key, _)| *key).collect()
        };
        for plan in given_up {
            #[cfg(test)]
            self.store.objects().broken()?;
            self.forget(plan).await?;
        }
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(records.values().flat_map(|record| record.names().collect::<Vec<_>>()).collect())
    }

    async fn forget(&self, (pair, grade): (Pair, Grade)) -> Result<(), StoreError> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).remove(&(pair, grade));
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&pair);
        let path = self.folder.join(file_name(pair, grade));
        blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
            _ => Ok(()),
        })
        .await
    }

    /// Plans made since the start, not counting those that were made before.
    pub fn made(&self) -> u64 {
        self.made.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn check(&self, base: Option<ImageId>, target: ImageId) -> Result<u64, PlanError> {
        if let Some(base) = base.filter(|base| self.store.image(*base).is_none()) {
            return Err(PlanError::UnknownBase { base });
        }
        self.store.image(target).map(|record| record.size).ok_or(PlanError::UnknownTarget { target })
    }

    /// The pair's job, started if there is none.
    fn job(self: &Arc<Self>, pair: Pair) -> Job {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = jobs.get(&pair).filter(|job| !job.is_over(self.options.failure_kept)) {
            return job.clone();
        }
        let (tell, outcome) = watch::channel(None);
        let packs = self.clone();
        tokio::spawn(async move {
            let outcome = packs.find_or_make(pair).await;
            if let Err(error) = &outcome {
                tracing::warn!(base = ?pair.0, target = %pair.1, %error, "no plan");
            }
            tell.send_replace(Some((outcome, Instant::now())));
        });
        let job = Job { outcome };
        jobs.insert(pair, job.clone());
        job
    }

    async fn find_or_make(self: &Arc<Self>, pair: Pair) -> Outcome {
        if let Some(section) = self.made_before(pair, Grade::Quick).await {
            return Ok(section);
        }
        let _turn = self.turns.acquire().await.map_err(|_| StoreError::Stopping)?;
        let (plan, layout) = match pair {
            (None, target) => self.make_cold(target).await?,
            (Some(base), target) => (self.make(base, target, self.options.effort).await?, None),
        };
        self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let section = self.keep(plan, layout, Grade::Quick).await?;
        self.improve_later(pair);
        Ok(section)
    }

    /// The plan from nothing, and the layout that it follows: once more if the image was moved meanwhile.
    async fn make_cold(&self, target: ImageId) -> Result<(Plan, Option<Digest>), PlanError> {
        let lies = || self.store.image(target).map(|image| image.layout.name);
        loop {
            let before = lies();
            let plan = cold::plan(&self.store, target).await?;
            if lies() == before {
                return Ok((plan, before));
            }
        }
    }

    /// The plan that is on disk, with all that it needs.
    async fn made_before(&self, pair: Pair, grade: Grade) -> Option<Section> {
        let found = self.records.lock().unwrap_or_else(PoisonError::into_inner).get(&(pair, grade)).cloned()?;
        self.is_whole(&found).await.then_some(found.plan)
    }

    /// Stores a plan, and answers with it from now on.
    async fn keep(&self, plan: Plan, layout: Option<Digest>, grade: Grade) -> Outcome {
        let record = Arc::new(self.record(plan, layout, grade).await?);
        let (key, section) = (record.key(), record.plan);
        self.records.lock().unwrap_or_else(PoisonError::into_inner).insert(key, record);
        Ok(section)
    }

    /// Whether all that a plan needs is still there.
    async fn is_whole(&self, record: &PlanRecord) -> bool {
        for section in record.sections() {
            if self.store.objects().len(section.name).await.ok() != Some(section.length) {
                return false;
            }
        }
        true
    }

    async fn make(&self, base: ImageId, target: ImageId, effort: Effort) -> Result<Plan, PlanError> {
        let base = self.image(base).await?;
        let target = self.image(target).await?;
        let draft = Draft::new(&self.folder)?;
        let images = [base.id, target.id];
        let work = move || make_pair(&base, &target, effort, draft);
        let made = if effort == self.options.effort { blocking(work).await } else { better::aside(work).await };
        if made.as_ref().is_err_and(|error| !matches!(error, PlanError::TooLarge { .. })) {
            // Whatever went wrong, the next attempt begins with files that are proven anew.
            images.into_iter().try_for_each(|image| self.store.forget_whole(image))?;
        }
        let (plan, draft) = made?;
        if let Some(name) = plan.objects.first() {
            let stored = self.store.objects().put_file(&draft.path).await?;
            if stored.name != *name {
                return Err(PlanError::Failed {
                    reason: format!("its packs were written as {}, not {name}", stored.name),
                });
            }
        }
        Ok(plan)
    }

    async fn image(&self, id: ImageId) -> Result<Mapped, StoreError> {
        let whole = self.store.materialise(id).await?;
        let derived = self.store.image(id).map(|record| record.derived.clone()).unwrap_or_default();
        Ok(Mapped { id, whole, hashes: self.store.block_hashes(id).await?, derived })
    }

    /// Stores a plan and makes it exist.
    async fn record(&self, plan: Plan, layout: Option<Digest>, grade: Grade) -> Result<PlanRecord, PlanError> {
        let (base, target, names) = (plan.base, plan.target, plan.objects.clone());
        let bytes = blocking(move || {
            let bytes = plan.encode()?;
            // What no node could read is no plan, however it came about.
            Plan::decode(&bytes)?;
            Ok::<_, PlanError>(bytes)
        });
        let plan = self.store.objects().put(bytes.await?).await?;
        let mut objects = Vec::with_capacity(names.len());
        for name in names {
            objects.push(Section { name, length: self.store.objects().len(name).await? });
        }
        let record = PlanRecord { format: FORMAT, base, target, grade, plan, layout, objects };
        let path = self.folder.join(file_name((base, target), grade));
        let text = serde_json::to_vec(&record).map_err(|error| PlanError::Failed { reason: error.to_string() })?;
        blocking(move || write_durable(&path, &text)).await?;
        Ok(record)
    }
}

fn ready(outcome: &Option<(Outcome, Instant)>) -> Result<PlanState, PlanError> {
    match outcome {
        Some((Ok(section), _)) => Ok(PlanState::Ready { name: section.name, length: section.length }),
        Some((Err(error), _)) => Err(error.clone()),
        None => Err(PlanError::Failed { reason: "it is still being made".into() }),
    }
}

impl PlanRecord {
    fn key(&self) -> (Pair, Grade) {
        ((self.base, self.target), self.grade)
    }

    fn sections(&self) -> impl Iterator<Item = &Section> {
        self.objects.iter().chain([&self.plan])
    }

    fn names(&self) -> impl Iterator<Item = Digest> {
        self.sections().map(|section| section.name)
    }
}

fn file_name((base, target): Pair, grade: Grade) -> String {
    let base = base.map_or("cold".to_owned(), |base| base.to_string());
    match grade {
        Grade::Quick => format!("{base}-{target}"),
        Grade::Thorough => format!("{base}-{target}.thorough"),
        Grade::Smallest => format!("{base}-{target}.smallest"),
    }
}

/// The plans made so far. A file that cannot be used is removed: its plan is made again when it is asked for.
fn read_records(folder: &Path) -> Result<HashMap<(Pair, Grade), Arc<PlanRecord>>, StoreError> {
    prepare_folder(folder)?;
    let mut records = HashMap::new();
    for path in list(folder)? {
        let text = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let good = serde_json::from_slice::<PlanRecord>(&text).ok().filter(|record| {
            let (pair, grade) = record.key();
            let name = file_name(pair, grade);
            record.format == FORMAT && path.file_name().is_some_and(|file| file == name.as_str())
        });
        match good {
            Some(record) => _ = records.insert(record.key(), Arc::new(record)),
            None => fs::remove_file(&path).map_err(StoreError::io("remove", &path))?,
        }
    }
    Ok(records)
}

/// An image at hand.
struct Mapped {
    id: ImageId,
    whole: Arc<Whole>,
    hashes: bytes::Bytes,
    derived: Vec<Derived>,
}

impl Mapped {
    fn with<'a>(&'a self, bytes: &'a [u8]) -> make::Image<'a> {
        let geometry = self.whole.geometry();
        make::Image { id: self.id, geometry, bytes, hashes: BlockHashes::new(&self.hashes), derived: &self.derived }
    }
}

/// The packs while they are being made; the file goes when this does.
struct Draft {
    file: File,
    path: PathBuf,
}

impl Draft {
    fn new(folder: &Path) -> Result<Self, StoreError> {
        let path = temporary(&folder.join("packs"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        Ok(Self { file, path })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn make_pair(base: &Mapped, target: &Mapped, effort: Effort, draft: Draft) -> Result<(Plan, Draft), PlanError> {
    let (base_bytes, target_bytes) = (base.whole.map()?, target.whole.map()?);
    let mut out = std::io::BufWriter::new(&draft.file);
    let (base, target) = (base.with(&base_bytes), target.with(&target_bytes));
    let write = |wire: &[u8]| out.write_all(wire).map_err(|error| StoreError::io("write", &draft.path)(error).into());
    let plan = make::pair::<PlanError>(base, target, effort, write)?;
    memory::give_back();
    out.flush().map_err(StoreError::io("write", &draft.path))?;
    drop(out);
    prove(&plan, [&base_bytes, &target_bytes], &draft, effort.threads)?;
    memory::give_back();
    Ok((plan, draft))
}

fn prove(plan: &Plan, images: [&[u8]; 2], draft: &Draft, threads: usize) -> Result<(), PlanError> {
    let empty = plan.objects.is_empty();
    // SAFETY: the draft is this job's own file, complete by now, and goes only after the map.
    let mapped = (!empty).then(|| unsafe { Mmap::map(&draft.file) }).transpose();
    let packs = mapped.map_err(StoreError::io("map", &draft.path))?;
    let got = prove::carry_out(plan, images, packs.as_deref().unwrap_or_default(), threads)
        .map_err(|why| PlanError::Failed { reason: format!("carried out, it breaks: {why}") })?;
    if got == plan.target {
        return Ok(());
    }
    Err(PlanError::Failed {
        reason: format!(
            "carried out, it gives image {got}: a file in cache/ was damaged and is made anew, or two blocks share a hash"
        ),
    })
}

#[cfg(test)]
mod tests;
