//! Noticing that somebody else changed the state folder: `goldsync-agent rollback` or `enroll` beside a running daemon.
//!
//! inotify on the folder: it costs nothing while nothing happens. Where it cannot be had, the daemon learns of the change
//! with its next update; nothing else depends on it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// A watch over a folder.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Watches the names in `folder`.
    pub(super) fn over(folder: &Path) -> Self {
        let inotify = begin(folder).inspect_err(|error| {
            tracing::warn!(folder = %folder.display(), %error, "changes by other runs will be noticed late");
        });
        Self { inotify: inotify.ok() }
    }

    /// Waits until names in the folder have changed. Safe to give up at any time.
    pub(super) async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut guard) = inotify.ready(Interest::READABLE).await else { return std::future::pending().await };
            let any = drain(inotify.get_ref());
            guard.clear_ready_matching(Ready::READABLE);
            if any {
                return;
            }
        }
    }
}

fn begin(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&inotify, folder, WatchFlags::MOVED_TO | WatchFlags::DELETE)?;
    // SAFETY: the descriptor is owned by what it is registered in, is the same at every look, and is closed after it.
    Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?)
}

/// Reads all events there are; whether there were any.
fn drain(inotify: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut any = false;
    while reader.next().is_ok() {
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_takes_its_place_is_noticed_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::over(folder.path());
        crate::journal::replace(&folder.path().join("last.json"), b"{}").unwrap();
        watch.changed().await;
        assert!(futures::FutureExt::now_or_never(watch.changed()).is_none());
        std::fs::remove_file(folder.path().join("last.json")).unwrap();
        watch.changed().await;
    }
}
