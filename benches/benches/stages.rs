//! `cargo bench`: what each stage of the engine costs, one thread, on real data.
//!
//! Every stage is shown in GB of image a second, beside rulers taken in the same run: copying memory, and BLAKE3 over the whole,
//! on one thread and on as many as an agent takes. Only ratios to them can be compared between machines. `cargo bench -- WORD` runs the stages whose name has
//! WORD in it; `GOLDSYNC_BENCH_PAIR=OLD:NEW` takes two images of your own in place of the toolchain's files.

use std::hint::black_box;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use goldsync_benches::agent_threads;
use goldsync_benches::stage::{Bench, Bytes};
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::image::{id_of_regions, region_hash};
use goldsync_proto::limits::{BLOCK, REGION};
use goldsync_proto::make::{self, Effort, Image};
use goldsync_proto::pack;
use goldsync_proto::plan::{Plan, PlanError};
use goldsync_proto::scan::aligned::BlockIndex;
use goldsync_proto::scan::rolling::Rolling;
use goldsync_proto::signature::{BlockHashes, Signature, block_hash, sign_blocks, sign_region};

/// Mebibytes of each image: out of every cache, and done in a minute.
const SIZE: u64 = 64;

/// The level that the server's own packs are made with, and the one for blocks on demand.
const LEVELS: [i32; 2] = [3, 9];

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let data = Data::load()?;
    let mut bench = Bench::new(filter);
    println!("data: {}", data.what);
    rulers(&mut bench, &data);
    hashing(&mut bench, &data);
    aligned(&mut bench, &data);
    rolling(&mut bench, &data)?;
    packs(&mut bench, &data)?;
    plans(&mut bench, &data)?;
    bench.print();
    Ok(())
}

struct Data {
    what: String,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Data {
    fn load() -> Result<Self> {
        if let Ok(pair) = std::env::var("GOLDSYNC_BENCH_PAIR") {
            let (old, new) = pair.split_once(':').context("GOLDSYNC_BENCH_PAIR is OLD:NEW, two images")?;
            return Self::read(&PathBuf::from(old), &PathBuf::from(new), pair.clone());
        }
        let folder = tempfile::tempdir()?;
        let pair = goldsync_tests::images::from_toolchain(folder.path(), SIZE)?;
        Self::read(&pair.old, &pair.new, pair.what)
    }

    fn read(old: &PathBuf, new: &PathBuf, what: String) -> Result<Self> {
        let read = |path: &PathBuf| -> Result<Vec<u8>> {
            let mut bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            bytes.truncate((SIZE << 20) as usize);
            ensure!(bytes.len() as u64 >= 8 * REGION, "{} is too small: 8 MiB at least", path.display());
            Ok(bytes)
        };
        Ok(Self { what, old: read(old)?, new: read(new)? })
    }
}

fn geometry(bytes: &[u8]) -> Geometry {
    Geometry::new(bytes.len() as u64).expect("whole blocks")
}

fn rulers(bench: &mut Bench, data: &Data) {
    let mut target = vec![0_u8; data.new.len()];
    bench.ruler("copy memory", Bytes::of(&data.new), || {
        target.copy_from_slice(black_box(&data.new));
        black_box(&target);
    });
    bench.ruler("blake3, whole", Bytes::of(&data.new), || {
        black_box(blake3::hash(black_box(&data.new)));
    });
    let geometry = geometry(&data.new);
    let whole =
        || id_of_regions(geometry, &on_threads(&data.new, |index, region| region_hash(geometry, index, region)));
    assert_eq!(whole(), Some(ImageId::of(&data.new)), "what is called BLAKE3 over the whole");
    bench.ruler(&format!("blake3, whole, {} threads", agent_threads()), Bytes::of(&data.new), || {
        black_box(whole());
    });
}

/// `work` on every region of some bytes, on as many threads as an agent takes; the results in order.
fn on_threads<T: Send>(bytes: &[u8], work: impl Fn(u32, &[u8]) -> T + Sync) -> Vec<T> {
    let regions: Vec<(u32, &[u8])> = (0..).zip(bytes.chunks(REGION as usize)).collect();
    let share = regions.len().div_ceil(agent_threads()).max(1);
    let one = |part: &[(u32, &[u8])]| part.iter().map(|(index, region)| work(*index, region)).collect::<Vec<T>>();
    let one = &one;
    std::thread::scope(|scope| {
        let parts: Vec<_> = regions.chunks(share).map(|part| scope.spawn(move || one(part))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    })
}

fn hashing(bench: &mut Bench, data: &Data) {
    bench.stage("hash blocks of 4 KiB", Bytes::of(&data.new), || {
        black_box(sign_blocks(black_box(&data.new)));
    });
    let region = &data.new[..REGION as usize];
    bench.stage("sign a region (id, blocks, rolling)", Bytes::of(region), || {
        black_box(sign_region(geometry(&data.new), 0, black_box(region)));
    });
}

fn aligned(bench: &mut Bench, data: &Data) {
    let (old, new) = (sign_blocks(&data.old), sign_blocks(&data.new));
    let (old, new) = (BlockHashes::new(&old), BlockHashes::new(&new));
    bench.stage("aligned: make the index", Bytes::of(&data.new), || {
        black_box(BlockIndex::new(new, 0..new.len()).len());
    });
    let index = BlockIndex::new(new, 0..new.len());
    bench.stage("aligned: look every block up", Bytes::of(&data.old), || {
        black_box(old.iter().filter(|hash| !index.find(*hash).is_empty()).count());
    });
    // The whole pass, as an agent makes it over its active slot. Its aim: 0.6 of BLAKE3 over the same bytes on as many threads.
    let found = |_: u32, region: &[u8]| {
        let blocks = region.chunks_exact(BLOCK as usize).map(block_hash);
        blocks.filter(|hash| !index.find(*hash).is_empty()).count()
    };
    bench.stage(&format!("aligned: hash and look up, {} threads", agent_threads()), Bytes::of(&data.old), || {
        black_box(on_threads(black_box(&data.old), found));
    });
}

fn rolling(bench: &mut Bench, data: &Data) -> Result<()> {
    // What the scan really gets: some hundred golden blocks that no aligned test found, and local data by the megabyte.
    let slice = &data.old[..(8 * REGION) as usize];
    let all = entries(slice)?;
    let noise = noise(8 * REGION as usize);
    let search = |wanted: &[(u32, [u8; 8])]| Rolling::new(wanted).context("a signature of its own");
    let hit = search(&all)?;
    let hit = hit.index();
    let found = hit.search(slice).len();
    bench.stage("rolling: everything matches", Bytes::of(slice), || {
        assert_eq!(hit.search(black_box(slice)).len(), found);
    });
    let none = search(&entries(&noise)?)?;
    let none = none.index();
    bench.stage("rolling: nothing matches", Bytes::of(slice), || {
        assert!(none.search(black_box(slice)).is_empty());
    });
    Ok(())
}

/// The entries of the section `rolling` of some bytes.
fn entries(bytes: &[u8]) -> Result<Vec<(u32, [u8; 8])>> {
    let signature = Signature::of(geometry(bytes), bytes).context("sign")?;
    Ok((0..).zip(signature.rolling.as_chunks().0.iter().copied()).collect())
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn packs(bench: &mut Bench, data: &Data) -> Result<()> {
    let raw = &data.new[(4 * REGION) as usize..(5 * REGION) as usize];
    let prefix = &data.old[(3 * REGION) as usize..(7 * REGION) as usize];
    for level in LEVELS {
        for (with, prefix) in [("", &[][..]), (", prefix of 4 MiB", prefix)] {
            let (codec, wire) = pack::compress(raw, prefix, level);
            let note = format!("{:.1} % on the wire", 100.0 * wire.len() as f64 / raw.len() as f64);
            bench.stage(&format!("pack: compress, level {level}{with}"), Bytes::of(raw).note(&note), || {
                black_box(pack::compress(black_box(raw), prefix, level));
            });
            if pack::decompress(codec, &wire, raw.len(), prefix)? != raw {
                anyhow::bail!("a pack does not decode to what was packed");
            }
            bench.stage(&format!("pack: decompress, level {level}{with}"), Bytes::of(raw), || {
                black_box(pack::decompress(codec, black_box(&wire), raw.len(), prefix).is_ok());
            });
        }
    }
    Ok(())
}

fn plans(bench: &mut Bench, data: &Data) -> Result<()> {
    let (old, new) = (sign_blocks(&data.old), sign_blocks(&data.new));
    let image = |bytes, hashes| Image {
        id: ImageId::of(bytes),
        geometry: geometry(bytes),
        bytes,
        hashes: BlockHashes::new(hashes),
        derived: &[],
    };
    let (base, target) = (image(&data.old, &old), image(&data.new, &new));
    let mut wire = 0;
    let made = make::pair(base, target, Effort::QUICK, |pack| {
        wire += pack.len();
        Ok::<_, PlanError>(())
    });
    let plan = made?;
    let encoded = plan.encode()?;
    let note = format!("{} KiB of plan, {} KiB of packs", encoded.len() >> 10, wire >> 10);
    bench.stage("plan: make, all threads, hashes given", Bytes::of(&data.new).note(&note), || {
        black_box(make::pair(base, target, Effort::QUICK, |_| Ok::<_, PlanError>(())).is_ok());
    });
    let note = format!("{} steps, {} packs", plan.steps.len(), plan.packs.len());
    bench.stage("plan: encode", Bytes::of(&data.new).note(&note), || {
        black_box(plan.encode().is_ok());
    });
    bench.stage("plan: decode and check", Bytes::of(&data.new), || {
        black_box(Plan::decode(black_box(&encoded)).is_ok());
    });
    ensure!(
        Plan::decode(&encoded)? == plan && (data.new.len() as u64).is_multiple_of(BLOCK),
        "a plan does not read back"
    );
    Ok(())
}
