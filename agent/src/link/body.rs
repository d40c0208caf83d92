//! What arrives on a stream: frames, then raw bytes.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use futures::poll;
use goldsync_proto::wire::{FRAME_HEAD, frame_len, unframe};
use quinn::{ReadError, RecvStream};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::pace::{Found, Pace};
use super::{LinkError, Peer, broken, lost};

/// The receiving side of a stream. Every wait ends: after `limits.silence`, or when what comes is less than `limits.slowest`.
#[derive(Debug)]
pub struct Body {
    recv: RecvStream,
    peer: Arc<Peer>,
    /// Whether anything has come: before that, the peer thinks.
    begun: bool,
}

impl Body {
    pub(super) fn new(recv: RecvStream, peer: Arc<Peer>) -> Self {
        Self { recv, peer, begun: false }
    }

    /// Fills `buffer`; an end of the stream within it is an error.
    pub async fn read_exact(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), LinkError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = buffer.get_mut(filled..).unwrap_or_default();
            let read = due(&self.peer, self.begun, what, self.recv.read(rest)).await?;
            match read.map_err(|error| self.read_error(error))? {
                Some(count) => {
                    self.count(count);
                    filled += count;
                }
                None => {
                    let why = format!("{what} ends after {filled} of {} bytes", buffer.len());
                    return Err(LinkError::Protocol { server: self.peer.server(), why });
                }
            }
        }
        Ok(())
    }

    /// The next bytes in order, at most `max`, as they come; `None` at the end. No copy.
    pub async fn chunk(&mut self, max: usize, what: &'static str) -> Result<Option<Bytes>, LinkError> {
        let read = due(&self.peer, self.begun, what, self.recv.read_chunk(max, true)).await?;
        let chunk = read.map_err(|error| self.read_error(error))?.map(|chunk| chunk.bytes);
        self.count(chunk.as_ref().map_or(0, Bytes::len));
        Ok(chunk)
    }

    /// Exactly `length` bytes, held against `max` before anything is allocated.
    pub async fn bytes(&mut self, length: u64, max: u64, what: &'static str) -> Result<Vec<u8>, LinkError> {
        if length > max {
            let why = format!("{what} of {length} bytes, at most {max} allowed");
            return Err(LinkError::Protocol { server: self.peer.server(), why });
        }
        // Grown as it arrives, so that a length alone costs no memory.
        let mut bytes = Vec::with_capacity(length.min(256 << 10) as usize);
        while (bytes.len() as u64) < length {
            let left = (length - bytes.len() as u64).min(256 << 10) as usize;
            match self.chunk(left, what).await? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => {
                    let why = format!("{what} ends after {} of {length} bytes", bytes.len());
                    return Err(LinkError::Protocol { server: self.peer.server(), why });
                }
            }
        }
        Ok(bytes)
    }

    /// Nothing may follow.
    pub async fn end(&mut self, what: &'static str) -> Result<(), LinkError> {
        match self.chunk(1, what).await? {
            None => Ok(()),
            Some(_) => {
                let why = format!("bytes follow the end of {what}");
                Err(LinkError::Protocol { server: self.peer.server(), why })
            }
        }
    }

    /// One frame.
    pub(super) async fn frame<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, LinkError> {
        let mut head = [0; FRAME_HEAD];
        self.read_exact(&mut head, what).await?;
        let length = frame_len(head).map_err(|error| broken(&self.peer.name, &error))?;
        let mut json = vec![0; length];
        self.read_exact(&mut json, what).await?;
        unframe(&json).map_err(|error| broken(&self.peer.name, &error))
    }

    /// The JSON of the next frame, whenever it comes; `None` when the peer has finished. The connection's own idle
    /// limit tells a dead peer from a silent one.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        let mut head = [0; FRAME_HEAD];
        let (first, rest) = head.split_at_mut(1);
        if self.recv.read(first).await.map_err(|error| self.read_error(error))?.is_none() {
            return Ok(None);
        }
        self.count(1);
        self.read_exact(rest, "a control message").await?;
        let length = frame_len(head).map_err(|error| broken(&self.peer.name, &error))?;
        let mut json = vec![0; length];
        self.read_exact(&mut json, "a control message").await?;
        Ok(Some(json))
    }

    fn count(&mut self, bytes: usize) {
        self.begun |= bytes > 0;
        self.peer.pace.got(bytes as u64);
    }

    fn read_error(&self, error: ReadError) -> LinkError {
        match error {
            ReadError::ConnectionLost(error) => lost(&self.peer.name, error),
            ReadError::Reset(code) => LinkError::Lost {
                server: self.peer.server(),
                why: format!("the server gave the stream up (code {code})"),
            },
            other => LinkError::Lost { server: self.peer.server(), why: other.to_string() },
        }
    }
}

/// Waits for what is due. Once something has come, the time counts.
async fn due<T>(peer: &Peer, counts: bool, what: &'static str, read: impl Future<Output = T>) -> Result<T, LinkError> {
    let mut read = pin!(read);
    // Most of what is asked for has arrived when it is looked at.
    if let Poll::Ready(done) = poll!(&mut read) {
        return Ok(done);
    }
    let silence = peer.patience.silence;
    let stalled = |_| LinkError::Stalled { server: peer.server(), what, silence };
    let mut read = pin!(timeout(silence, read));
    if !counts {
        return read.await.map_err(stalled);
    }
    let pace: &Pace = &peer.pace;
    let _waiting = pace.wait(Instant::now());
    loop {
        if let Ok(read) = timeout(pace.left(Instant::now()), &mut read).await {
            return read.map_err(stalled);
        }
        match pace.judge(Instant::now()) {
            Found::Enough => {}
            Found::Slow(rate) => {
                tracing::warn!(server = %peer.name, rate, "slow retrieval: {rate} B/s while {what} was due")
            }
            Found::TooSlow(rate) => {
                return Err(LinkError::Slow { server: peer.server(), what, rate, slowest: pace.slowest() });
            }
        }
    }
}
