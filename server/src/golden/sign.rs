//! Signing an image in a file, on all cores.

use std::io;

use goldsync_proto::block::Geometry;
use goldsync_proto::signature::{Signature, Signer, sign_region};

use crate::store::regions::{ReadAt, each_region};

/// Signs the first `geometry.size()` bytes. `look` sees each region's, in no order; `progress` hears how many regions are done.
pub(crate) fn sign_file(
    file: &impl ReadAt,
    geometry: Geometry,
    look: impl Fn(&[u8]) + Sync,
    mut progress: impl FnMut(u32),
) -> io::Result<Signature> {
    let (mut signer, mut done) = (Signer::new(geometry), 0);
    each_region(
        file,
        geometry,
        |index, bytes| {
            look(bytes);
            sign_region(geometry, index, bytes)
        },
        |region| {
            signer.push(region);
            done += 1;
            progress(done);
            Ok::<_, io::Error>(())
        },
    )?;
    signer.finish().ok_or_else(|| io::Error::other("regions are missing from the signature"))
}
