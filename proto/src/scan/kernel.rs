//! Which instructions the scans' loops run on: chosen when a search is prepared, by what the processor has.
//!
//! AVX2 and portable are all there is: no path is kept that could not be run where this was written, and those two give the
//! same keys in the same order, so that everything after them is one piece of code. What is not AVX2 is portable.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;

/// Plain Rust, or a proof that the processor has more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl Kernel {
    /// The fastest one here.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::here() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }
}
