//! What each block of NEW costs on the wire, by the known base's packs.
//!
//! A pack says only what all its blocks cost together. So each is compressed once more, at a low level, with a flush after
//! every block: what comes out between two flushes is the block's weight, and the weights share out the pack's true bytes.

use goldsync_proto::limits::BLOCK;
use goldsync_proto::make::gather_bytes;
use goldsync_proto::pack::decompress;
use goldsync_proto::plan::{Pack, Step};
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::ways::{Known, on_threads};

/// The level of the weighing: what is dear at it is dear at any.
const LEVEL: i32 = 3;

/// Bytes on the wire for each block of NEW, in 1/256 of a byte so that sums stay whole.
#[derive(Debug)]
pub struct Costs {
    of: Vec<u32>,
    /// Bytes in the blocks' packs.
    pub total: u64,
}

impl Costs {
    /// Weighs all packs, on all cores.
    pub fn of(known: &Known, old: &[u8], new: &[u8]) -> Self {
        let blocks = known.plan.geometry.blocks();
        let weights = on_threads(&known.plan.packs, |pack| weigh(pack, old, &known.packs));
        let mut of = vec![0_u32; (new.len() / BLOCK as usize).max(blocks as usize)];
        let mut counted: Vec<Vec<bool>> = weights.iter().map(|weights| vec![false; weights.len()]).collect();
        for (at, step) in known.plan.placed() {
            if let Step::Patch { pack, from, count } = step {
                for index in 0..count {
                    let (pack, inner) = (pack as usize, (from + index) as usize);
                    let (Some(first), Some(weight)) = (
                        counted.get_mut(pack).and_then(|counted| counted.get_mut(inner)),
                        weights.get(pack).and_then(|weights| weights.get(inner)),
                    ) else {
                        continue;
                    };
                    // A block that is there twice travels once.
                    if !std::mem::replace(first, true)
                        && let Some(cost) = of.get_mut((at + index) as usize)
                    {
                        *cost = *weight;
                    }
                }
            }
        }
        Self { of, total: known.packs.len() as u64 }
    }

    /// All blocks' costs, in 1/256 of a byte; zero for what is not sent.
    pub fn all(&self) -> &[u32] {
        &self.of
    }

    /// Bytes that some blocks cost.
    pub fn bytes(&self, blocks: impl IntoIterator<Item = u32>) -> u64 {
        let sum: u64 =
            blocks.into_iter().filter_map(|block| self.of.get(block as usize)).map(|cost| u64::from(*cost)).sum();
        sum >> 8
    }
}

/// Each block's share of a pack.
fn weigh(pack: &Pack, old: &[u8], packs: &[u8]) -> Vec<u32> {
    let prefix = gather_bytes(old, pack.prefix.iter().copied());
    let wire = packs.get(pack.offset as usize..).and_then(|rest| rest.get(..pack.wire_len as usize)).unwrap_or(&[]);
    // It was carried out before: it does decode.
    let raw = decompress(pack.codec, wire, pack.raw_len as usize, &prefix).unwrap_or_default();
    let blocks = raw.len() / BLOCK as usize;
    let flushed = flushed(&raw, &prefix).filter(|weights| weights.len() == blocks).unwrap_or_else(|| vec![1; blocks]);
    let sum: u64 = flushed.iter().sum::<u64>().max(1);
    let share = |weight: &u64| ((u64::from(pack.wire_len) << 8) * weight / sum).clamp(1, u64::from(u32::MAX)) as u32;
    flushed.iter().map(share).collect()
}

/// Bytes that come out for each block.
fn flushed(raw: &[u8], prefix: &[u8]) -> Option<Vec<u64>> {
    let mut encoder = CCtx::create();
    let window = (raw.len() + prefix.len()).next_power_of_two().trailing_zeros().clamp(17, 23);
    encoder.set_parameter(CParameter::CompressionLevel(LEVEL)).ok()?;
    encoder.set_parameter(CParameter::WindowLog(window)).ok()?;
    encoder.ref_prefix(prefix).ok()?;
    let mut out = vec![0; 2 * BLOCK as usize + 1024];
    let mut weights = Vec::with_capacity(raw.len() / BLOCK as usize);
    for block in raw.chunks(BLOCK as usize) {
        let (mut input, mut bytes) = (InBuffer::around(block), 0);
        loop {
            let mut output = OutBuffer::around(out.as_mut_slice());
            let left = if input.pos < block.len() {
                encoder.compress_stream(&mut output, &mut input).ok()?;
                1
            } else {
                encoder.flush_stream(&mut output).ok()?
            };
            bytes += output.pos() as u64;
            if left == 0 {
                break;
            }
        }
        weights.push(bytes);
    }
    Some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::testing::noise;

    #[test]
    fn a_block_that_does_not_shrink_weighs_more_than_one_that_is_in_the_prefix() {
        let (fresh, known) = (noise(1, 1), noise(4, 2));
        let raw = [&fresh[..], &known[BLOCK as usize..2 * BLOCK as usize], &vec![0; BLOCK as usize]].concat();
        let weights = flushed(&raw, &known).unwrap();
        assert_eq!(weights.len(), 3);
        assert!(weights[0] > 4000 && weights[1] < 200 && weights[2] < 100, "{weights:?}");
    }
}
