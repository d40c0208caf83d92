//! What boot loaders keep their decisions in: bytes to values and back, and nothing else.
//!
//! No path, no clock, no word of goldsync's own: each file stands alone, so that the fuzz targets can take it as it is. Every
//! decoder is total: any bytes end in a value or an error, in time and memory that their length pays for.

pub mod entry;
pub mod grubenv;
pub mod load_option;
pub mod uboot_env;
