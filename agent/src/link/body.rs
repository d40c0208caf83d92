//! What arrives on a stream: frames, then raw bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use goldsync_proto::wire::{FRAME_HEAD, frame_len, unframe};
use quinn::{ReadError, ReadExactError, RecvStream};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{LinkError, NO_PROGRESS, broken, lost};

/// Below this rate, over at least [`SLOW_AFTER`], a server (or whoever sits between) is called slow in the log, once.
/// Bytes that trickle in keep a node from noticing that it is kept from an update.
const SLOW_RATE: u64 = 16 << 10;
const SLOW_AFTER: Duration = Duration::from_secs(60);

/// The receiving side of a stream. Every wait ends after [`NO_PROGRESS`].
#[derive(Debug)]
pub struct Body {
    recv: RecvStream,
    server: Arc<str>,
    begun: Instant,
    received: u64,
    called_slow: bool,
}

impl Body {
    pub(super) fn new(recv: RecvStream, server: Arc<str>) -> Self {
        Self { recv, server, begun: Instant::now(), received: 0, called_slow: false }
    }

    /// Fills `buffer`; an end of the stream within it is an error.
    pub async fn read_exact(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), LinkError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = buffer.get_mut(filled..).unwrap_or_default();
            let read = timeout(NO_PROGRESS, self.recv.read(rest)).await.map_err(|_| self.stalled(what))?;
            match read.map_err(|error| self.read_error(error))? {
                Some(count) => filled += count,
                None => {
                    let why = format!("{what} ends after {filled} of {} bytes", buffer.len());
                    return Err(LinkError::Protocol { server: self.server.to_string(), why });
                }
            }
        }
        self.count(filled as u64);
        Ok(())
    }

    /// The next bytes in order, at most `max`, as they come; `None` at the end. No copy.
    pub async fn chunk(&mut self, max: usize, what: &'static str) -> Result<Option<Bytes>, LinkError> {
        let read = timeout(NO_PROGRESS, self.recv.read_chunk(max, true)).await.map_err(|_| self.stalled(what))?;
        let chunk = read.map_err(|error| self.read_error(error))?.map(|chunk| chunk.bytes);
        self.count(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64));
        Ok(chunk)
    }

    /// Exactly `length` bytes, held against `max` before anything is allocated.
    pub async fn bytes(&mut self, length: u64, max: u64, what: &'static str) -> Result<Vec<u8>, LinkError> {
        if length > max {
            let why = format!("{what} of {length} bytes, at most {max} allowed");
            return Err(LinkError::Protocol { server: self.server.to_string(), why });
        }
        // Grown as it arrives, so that a length alone costs no memory.
        let mut bytes = Vec::with_capacity(length.min(256 << 10) as usize);
        while (bytes.len() as u64) < length {
            let left = (length - bytes.len() as u64).min(256 << 10) as usize;
            match self.chunk(left, what).await? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => {
                    let why = format!("{what} ends after {} of {length} bytes", bytes.len());
                    return Err(LinkError::Protocol { server: self.server.to_string(), why });
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
                Err(LinkError::Protocol { server: self.server.to_string(), why })
            }
        }
    }

    /// One frame.
    pub(super) async fn frame<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, LinkError> {
        let mut head = [0; FRAME_HEAD];
        self.read_exact(&mut head, what).await?;
        let length = frame_len(head).map_err(|error| broken(&self.server, &error))?;
        let mut json = vec![0; length];
        self.read_exact(&mut json, what).await?;
        unframe(&json).map_err(|error| broken(&self.server, &error))
    }

    /// The JSON of the next frame, whenever it comes; `None` when the peer has finished. The connection's own idle
    /// limit tells a dead peer from a silent one.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        let mut head = [0; FRAME_HEAD];
        match self.recv.read_exact(&mut head).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(ReadExactError::FinishedEarly(_)) => {
                let why = "the control stream ends within a frame".to_owned();
                return Err(LinkError::Protocol { server: self.server.to_string(), why });
            }
            Err(ReadExactError::ReadError(error)) => return Err(self.read_error(error)),
        }
        let length = frame_len(head).map_err(|error| broken(&self.server, &error))?;
        let mut json = vec![0; length];
        self.read_exact(&mut json, "a control message").await?;
        Ok(Some(json))
    }

    fn count(&mut self, bytes: u64) {
        self.received += bytes;
        let elapsed = self.begun.elapsed();
        let slow = elapsed >= SLOW_AFTER && self.received / elapsed.as_secs().max(1) < SLOW_RATE;
        if slow && bytes > 0 && !self.called_slow {
            self.called_slow = true;
            let rate = self.received / elapsed.as_secs().max(1);
            tracing::warn!(server = %self.server, rate, "slow retrieval: {rate} bytes/s over {} s", elapsed.as_secs());
        }
    }

    fn stalled(&self, what: &'static str) -> LinkError {
        LinkError::Stalled { server: self.server.to_string(), what }
    }

    fn read_error(&self, error: ReadError) -> LinkError {
        match error {
            ReadError::ConnectionLost(error) => lost(&self.server, error),
            ReadError::Reset(code) => LinkError::Lost {
                server: self.server.to_string(),
                why: format!("the server gave the stream up (code {code})"),
            },
            other => LinkError::Lost { server: self.server.to_string(), why: other.to_string() },
        }
    }
}
