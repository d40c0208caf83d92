//! Keeping no more memory than is worked with.
//!
//! Making packs takes tables of tens of MiB for each thread, and the allocator keeps what a thread gave back, for each of up to
//! eight heaps a core. So there are fewer heaps, and after large work what is free goes back to the system.

/// One heap a core at most, two at least. Before any thread is started.
pub(crate) fn bound_heaps() {
    #[cfg(target_env = "gnu")]
    {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 64));
        // SAFETY: sets one number in the allocator, before any thread is started.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, cores as libc::c_int);
        }
    }
}

/// Gives free memory back to the system.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments but a number, no effect but on the allocator's own free lists; safe from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
