//! A loop device over a file: read-only, and gone when its last user is.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Device, VolumeError};

const CONTROL: &str = "/dev/loop-control";

// <linux/loop.h>
const LOOP_CTL_GET_FREE: u32 = 0x4c82;
const LOOP_CONFIGURE: u32 = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Past the file's page cache, where that can be: else everything is kept twice.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Others take the device that was free a moment ago; nobody is that unlucky so often.
const TRIES: u32 = 64;

/// `struct loop_config` with the `struct loop_info64` in it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Configuration {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Configuration>() == 304, "as the kernel has it");

/// Finds a free loop device and puts it over `file`, which is at `path`.
pub(super) fn attach(path: &Path, file: &File) -> Result<Device, VolumeError> {
    let control = File::open(CONTROL).map_err(VolumeError::io("opening", Path::new(CONTROL)))?;
    let configuration = configuration(path, file);
    for _ in 0..TRIES {
        let number = free(&control).map_err(VolumeError::io("finding a loop device by", Path::new(CONTROL)))?;
        let node = PathBuf::from(format!("/dev/loop{number}"));
        let device = match File::open(&node) {
            // Made by the kernel a moment ago; who keeps /dev may be slower.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::thread::sleep(std::time::Duration::from_millis(20));
                continue;
            }
            opened => opened.map_err(VolumeError::io("opening", &node))?,
        };
        match configure(&device, &configuration) {
            Ok(()) => return Ok(Device { node, file: device }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(VolumeError::io("putting a loop device over", path)(error)),
        }
    }
    Err(VolumeError::io("putting a loop device over", path)(io::ErrorKind::ResourceBusy.into()))
}

fn configuration(path: &Path, file: &File) -> Configuration {
    let mut file_name = [0; 64];
    // For `losetup`; the last byte stays zero.
    for (place, byte) in file_name.iter_mut().take(63).zip(path.as_os_str().as_bytes()) {
        *place = *byte;
    }
    Configuration {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    }
}

fn free(control: &File) -> io::Result<u32> {
    // SAFETY: the call takes no argument; what it returns is a number or -1.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

fn configure(device: &File, configuration: &Configuration) -> io::Result<()> {
    // SAFETY: the kernel reads one `struct loop_config`, whose layout and size these are, during the call only; the descriptor in
    // it is open, because its owner outlives this call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, configuration) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
