//! Numbers and bytes from a seed: the same on every machine and in every run.

/// A small generator (SplitMix64). Not for secrets.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// From a number; different numbers give unrelated sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    /// Whether a thing of this probability (0 to 1) happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        ((self.word() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    /// Bytes that do not compress.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&self.word().to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Bytes that compress about as text does.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "image",
            "release",
            "channel",
            "node",
            "slot",
            "block",
            "signature",
            "source",
            "plan",
            "pack",
            "drift",
            "golden",
            "rollout",
            "0x7f",
            "usr/lib",
            "\n",
        ];
        let mut text = Vec::with_capacity(len + 32);
        while text.len() < len {
            let number = self.word();
            text.extend_from_slice(WORDS[(number % 16) as usize].as_bytes());
            text.extend_from_slice(format!(" {:x} ", (number >> 8) & 0xffff).as_bytes());
        }
        text.truncate(len);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_always() {
        assert_eq!(Seed::new(1).word(), Seed::new(1).word());
        assert_ne!(Seed::new(1).word(), Seed::new(2).word());
        assert_eq!(Seed::new(7).noise(5000), Seed::new(7).noise(5000));
        assert_eq!(Seed::new(7).text(5000).len(), 5000);
        let mut seed = Seed::new(3);
        let happened = (0..10_000).filter(|_| seed.happens(0.25)).count();
        assert!((2300..2700).contains(&happened), "{happened}");
    }
}
