//! All offset arithmetic: blocks of 4 KiB, regions of 1 MiB, and the geometry of one image.
//!
//! An image's size is a whole number of blocks, not zero, and at most [`IMAGE_MAX`]; [`Geometry::new`] is the only
//! door, so that nothing behind it has to ask again. The last region may be short, no block is.

use std::ops::Range;

use crate::limits::{BLOCK, IMAGE_MAX, REGION, REGION_BLOCKS};

/// The size of an image, proven to be usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    size: u64,
}

/// Why a number of bytes cannot be an image's size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Nothing to boot.
    #[error("an image of 0 bytes holds nothing; publish a file system or a disk")]
    Empty,
    /// Off the grid.
    #[error(
        "an image of {size} bytes is not a whole number of {BLOCK}-byte blocks: {over} bytes too many; pad it with `truncate -s %{BLOCK} IMAGE`",
        over = size % BLOCK
    )]
    Ragged {
        /// Bytes.
        size: u64,
    },
    /// Beyond [`IMAGE_MAX`].
    #[error("an image of {size} bytes is larger than the limit of {IMAGE_MAX} bytes (1 TiB)")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
}

impl Geometry {
    /// Checks `size` in bytes.
    pub const fn new(size: u64) -> Result<Self, GeometryError> {
        if size == 0 {
            Err(GeometryError::Empty)
        } else if !size.is_multiple_of(BLOCK) {
            Err(GeometryError::Ragged { size })
        } else if size > IMAGE_MAX {
            Err(GeometryError::TooLarge { size })
        } else {
            Ok(Self { size })
        }
    }

    /// Bytes in the image.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Blocks in the image; fits a `u32`.
    pub const fn blocks(self) -> u32 {
        (self.size / BLOCK) as u32
    }

    /// Regions in the image, the short last one included; fits a `u32`.
    pub const fn regions(self) -> u32 {
        self.size.div_ceil(REGION) as u32
    }

    /// The blocks of region `index`, empty beyond the image.
    pub fn region_blocks(self, index: u32) -> Range<u32> {
        let first = (u64::from(index) * REGION_BLOCKS).min(u64::from(self.blocks()));
        let end = (first + REGION_BLOCKS).min(u64::from(self.blocks()));
        first as u32..end as u32
    }

    /// The bytes of region `index`, empty beyond the image.
    pub fn region_bytes(self, index: u32) -> Range<u64> {
        bytes_of(&self.region_blocks(index))
    }

    /// Whether `count` blocks from `first` lie inside the image.
    pub fn holds(self, first: u32, count: u32) -> bool {
        u64::from(first) + u64::from(count) <= u64::from(self.blocks())
    }
}

/// The byte offset of block `index`.
pub const fn byte_of(index: u32) -> u64 {
    index as u64 * BLOCK
}

/// The bytes of a run of blocks.
pub fn bytes_of(blocks: &Range<u32>) -> Range<u64> {
    byte_of(blocks.start)..byte_of(blocks.end)
}

/// A run of blocks as `(first, count)`, the form in which runs travel.
pub type Run = (u32, u32);

/// Gathers ascending block numbers into runs.
pub fn runs_of(blocks: impl IntoIterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(block) => *count += 1,
            _ => runs.push((block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_off_the_grid_are_refused_with_the_cure() {
        assert_eq!(Geometry::new(0), Err(GeometryError::Empty));
        let ragged = Geometry::new(4097).unwrap_err().to_string();
        assert!(ragged.contains("4097") && ragged.contains("1 bytes too many") && ragged.contains("truncate"));
        assert!(Geometry::new(IMAGE_MAX).is_ok());
        assert_eq!(Geometry::new(IMAGE_MAX + BLOCK), Err(GeometryError::TooLarge { size: IMAGE_MAX + BLOCK }));
    }

    #[test]
    fn the_last_region_may_be_short() {
        let geometry = Geometry::new(REGION + BLOCK).unwrap();
        assert_eq!((geometry.blocks(), geometry.regions()), (257, 2));
        assert_eq!(geometry.region_blocks(0), 0..256);
        assert_eq!(geometry.region_blocks(1), 256..257);
        assert_eq!(geometry.region_blocks(2), 257..257);
        assert_eq!(geometry.region_bytes(1), REGION..REGION + BLOCK);
    }

    #[test]
    fn runs_join_neighbours_only() {
        assert_eq!(runs_of([1, 2, 3, 7, 9, 10]), vec![(1, 3), (7, 1), (9, 2)]);
    }
}
