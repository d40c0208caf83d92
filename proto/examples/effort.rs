//! What each effort buys for two images: `cargo run --release -p goldsync-proto --example effort OLD NEW`.
//!
//! Sizes are of the packs and the plan together; times are this process's own in user mode, on one thread.

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::make::{Effort, Image, gather_bytes, pair};
use goldsync_proto::pack::{Codec, decompress, hash16};
use goldsync_proto::plan::PlanError;
use goldsync_proto::signature::{BlockHashes, sign_blocks};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let paths: Vec<_> = std::env::args().skip(1).take(2).collect();
    let [old, new] = &paths[..] else { return Err("effort OLD NEW: two images".into()) };
    let (old, new) = (std::fs::read(old)?, std::fs::read(new)?);
    let hashes = (sign_blocks(&old), sign_blocks(&new));
    let (base, target) = (image(&old, &hashes.0)?, image(&new, &hashes.1)?);
    let one = |effort| Effort { threads: 1, ..effort };
    let efforts = [
        ("zstd 5", Effort { level: 5, ..Effort::QUICK }),
        ("zstd 7", Effort { level: 7, ..Effort::QUICK }),
        ("quick: zstd 9", Effort::QUICK),
        ("zstd 12", Effort { level: 12, ..Effort::QUICK }),
        ("zstd 19", Effort { level: 19, ..Effort::QUICK }),
        ("thorough: patch", Effort::THOROUGH),
        ("delta, prefix 1 MiB", Effort { prefix: 1 << 20, ..Effort::SMALLEST }),
        ("delta, packs of 256 KiB", Effort { pack: 256 << 10, ..Effort::SMALLEST }),
        ("delta, packs of 512 KiB", Effort { pack: 512 << 10, ..Effort::SMALLEST }),
        ("smallest: delta", Effort::SMALLEST),
    ];
    let wanted = std::env::args().nth(3).unwrap_or_default();
    for (name, effort) in efforts.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        measure(name, base, target, one(effort))?;
    }
    Ok(())
}

fn image<'a>(bytes: &'a [u8], hashes: &'a [u8]) -> Result<Image<'a>, Error> {
    let geometry = Geometry::new(bytes.len() as u64)?;
    Ok(Image { id: ImageId::of(bytes), geometry, bytes, hashes: BlockHashes::new(hashes), derived: &[] })
}

fn measure(name: &str, base: Image<'_>, target: Image<'_>, effort: Effort) -> Result<(), Error> {
    let (mut packs, start) = (Vec::new(), cpu()?);
    let plan = pair(base, target, effort, |wire| {
        packs.extend_from_slice(wire);
        Ok::<_, PlanError>(())
    })?;
    let made = cpu()? - start;
    let (mut unpacking, mut raw_len, mut near) = (0.0, 0, 0);
    for pack in &plan.packs {
        let wire = packs.get(pack.offset as usize..).and_then(|rest| rest.get(..pack.wire_len as usize));
        let prefix = gather_bytes(base.bytes, pack.prefix.iter().copied());
        let start = cpu()?;
        let raw = decompress(pack.codec, wire.ok_or("a pack is outside")?, pack.raw_len as usize, &prefix)?;
        unpacking += cpu()? - start;
        if hash16(&raw) != pack.raw_hash {
            return Err("a pack does not decode to what was packed".into());
        }
        raw_len += raw.len();
        near += usize::from(matches!(pack.codec, Codec::Delta | Codec::Patch));
    }
    let gib = target.geometry.blocks() as f64 * BLOCK as f64 / (1 << 30) as f64;
    let bytes = packs.len() + plan.encode()?.len();
    println!(
        "{name:24} {bytes:>10} bytes  {made:>7.2} s of CPU, {:>6.1} s a GiB  {:>3} packs, {near:>3} of near copies, unpacked at {:>6.1} MB/s",
        made / gib,
        plan.packs.len(),
        raw_len as f64 / f64::max(unpacking, 0.01) / 1e6
    );
    Ok(())
}

/// Processor time of this process so far, in user mode: what the system adds depends on who else is at work.
fn cpu() -> Result<f64, Error> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = fields.get(11).and_then(|ticks| ticks.parse::<f64>().ok()).ok_or("no processor time")?;
    Ok(ticks / 100.0)
}
