//! `cargo bench`: what each stage of the engine costs, one thread, on real data.
//!
//! Every stage is shown in GB of image a second, beside rulers taken in the same run: copying memory, BLAKE3 over the whole, on one
//! thread and on as many as an agent takes, and fast_rsync's search where nothing matches. Only ratios to them can be compared
//! between machines. `cargo bench -- WORD` runs the stages whose name has
//! WORD in it; `GOLDSYNC_BENCH_PAIR=OLD:NEW` takes two images of your own in place of the toolchain's files.

use std::hint::black_box;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use goldsync_benches::agent_threads;
use goldsync_benches::stage::{Bench, Bytes};
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::grain::{ALL, GrainHash};
use goldsync_proto::image::{id_of_regions, region_hash};
use goldsync_proto::limits::{BLOCK, GRAIN, REGION};
use goldsync_proto::make::{self, Effort, Image};
use goldsync_proto::pack;
use goldsync_proto::plan::{Plan, PlanError};
use goldsync_proto::scan::aligned::BlockIndex;
use goldsync_proto::scan::grains::Grains;
use goldsync_proto::scan::rolling::{Rolling, Wanted};
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
    rulers(&mut bench, &data)?;
    hashing(&mut bench, &data);
    aligned(&mut bench, &data);
    rolling(&mut bench, &data)?;
    grains(&mut bench, &data);
    packs(&mut bench, &data)?;
    plans(&mut bench, &data)?;
    bench.print();
    Ok(())
}

struct Data {
    what: String,
    old: Vec<u8>,
    new: Vec<u8>,
    /// What a search looks through: up to 16 MiB of the old image without its zeros, which nobody searches.
    local: Vec<u8>,
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
        let (old, new) = (read(old)?, read(new)?);
        let blocks = old.as_chunks::<{ BLOCK as usize }>().0.iter().filter(|block| block.iter().any(|byte| *byte != 0));
        let local = blocks.take(4096).flatten().copied().collect();
        Ok(Self { what, old, new, local })
    }
}

fn geometry(bytes: &[u8]) -> Geometry {
    Geometry::new(bytes.len() as u64).expect("whole blocks")
}

fn rulers(bench: &mut Bench, data: &Data) -> Result<()> {
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
    let local = &data.local[..];
    let signature = librsync_signature(&noise(local.len(), 1))?;
    let index = signature.index();
    bench.ruler("fast_rsync: nothing matches, 4096 wanted", Bytes::of(local), || {
        let _ = fast_rsync::diff(&index, black_box(local), std::io::sink());
    });
    Ok(())
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

/// What the scan really gets: golden blocks that no aligned test found, and local data by the megabyte.
fn rolling(bench: &mut Bench, data: &Data) -> Result<()> {
    let local = &data.local[..];
    for count in [1 << 10, 16 << 10, 256 << 10] {
        let rolling = Rolling::new(unknown_blocks(count));
        bench.stage(&format!("rolling: nothing matches, {count} wanted"), Bytes::of(local), || {
            rolling.search(black_box(local), |_, _| ());
        });
    }
    let portable = Rolling::new(unknown_blocks(1 << 10)).portable();
    bench.stage("rolling: nothing matches, 1024 wanted, portable", Bytes::of(local), || {
        portable.search(black_box(local), |_, _| ());
    });
    // Each content is found once: every pass begins with a search made afresh, which is part of what is measured.
    let wanted = blocks_of(local)?;
    for (what, slice) in [("everything matches", local), ("everything matches, shifted", &local[1777..])] {
        bench.stage(&format!("rolling: {what}"), Bytes::of(slice), || {
            let rolling = Rolling::new(wanted.iter().copied());
            rolling.search(black_box(slice), |_, _| ());
            assert!(rolling.left() <= 1);
        });
        let signature = librsync_signature(local)?;
        let index = signature.index();
        bench.stage(&format!("fast_rsync: {what}"), Bytes::of(slice), || {
            let _ = fast_rsync::diff(&index, black_box(slice), std::io::sink());
        });
    }
    Ok(())
}

fn grains(bench: &mut Bench, data: &Data) {
    let (local, hash) = (&data.local[..], GrainHash::new(1, 5).expect("a width that is allowed"));
    for count in [1 << 10, 64 << 10, 512 << 10] {
        let wire = hash.sign(&noise(count * GRAIN as usize, 2), ALL);
        let grains = || Grains::new(hash, (0..).zip(hash.read(&wire)));
        let kernels = if count == 1 << 10 {
            vec![("", grains()), (", portable", grains().portable())]
        } else {
            vec![("", grains())]
        };
        for (kernel, grains) in kernels {
            bench.stage(&format!("grains: nothing matches, {count} wanted{kernel}"), Bytes::of(local), || {
                grains.search(black_box(local), |_, _| ());
            });
        }
    }
}

/// The blocks of some bytes, as the signature has them.
fn blocks_of(bytes: &[u8]) -> Result<Vec<Wanted>> {
    let signature = Signature::of(geometry(bytes), bytes).context("sign")?;
    let hashes = BlockHashes::new(&signature.blocks);
    let blocks = (0..).zip(signature.rolling.as_chunks().0).zip(hashes.iter());
    Ok(blocks.map(|((block, entry), hash)| Wanted { block, entry: *entry, hash }).collect())
}

/// So many blocks that are nowhere.
fn unknown_blocks(count: u32) -> Vec<Wanted> {
    let entries = noise(count as usize * 16, 3);
    let entries = (0..).zip(entries.as_chunks::<16>().0);
    entries
        .map(|(block, entry)| {
            let [entry, hash] = [0, 8].map(|at| *entry[at..].first_chunk().expect("half of sixteen"));
            Wanted { block, entry, hash: u64::from_le_bytes(hash) }
        })
        .collect()
}

fn librsync_signature(bytes: &[u8]) -> Result<fast_rsync::Signature> {
    let signature = Signature::of(geometry(bytes), bytes).context("sign")?;
    let head = [0x7273_0136, BLOCK as u32, 4].map(u32::to_be_bytes);
    fast_rsync::Signature::deserialize([head.as_flattened(), &signature.rolling].concat())
        .context("a signature of our own")
}

/// The same for the same seed.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
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
