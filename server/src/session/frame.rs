//! Frames on a stream: the head, held against its bound, then the body, both within a time.

use std::time::Duration;

use bytes::Bytes;
use goldsync_proto::codec::CodecError;
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::wire::{FRAME_HEAD, FrameError, frame, frame_len};
use quinn::{ReadExactError, RecvStream, SendStream};
use serde::Serialize;
use tokio::time::timeout;

/// A piece of a body that is handed to the stream at once, so that the time allowed is for so many bytes.
const PIECE: usize = 64 << 10;

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer, or the connection, is gone. Nobody is left to tell.
    #[error("the peer is gone")]
    Gone,
    /// The peer is too slow.
    #[error("nothing moved for {} s", .0.as_secs())]
    Slow(Duration),
    /// The frame is not one.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl StreamError {
    /// What to answer, if there is anybody to answer to.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Gone => None,
            Self::Slow(_) | Self::Frame(_) => Some(Refusal::new(Reason::BadRequest, self.to_string())),
        }
    }
}

/// A frame's JSON. All of it, its first byte included, must be there within `within`.
pub async fn read_frame(recv: &mut RecvStream, within: Duration) -> Result<Vec<u8>, StreamError> {
    let read = async {
        let mut head = [0; FRAME_HEAD];
        exactly(recv, &mut head).await?;
        body(recv, head).await
    };
    timeout(within, read).await.map_err(|_| StreamError::Slow(within))?
}

/// Like [`read_frame`], but waits for the first byte for as long as it takes. `None`: the peer said its last.
pub async fn next_frame(recv: &mut RecvStream, within: Duration) -> Result<Option<Vec<u8>>, StreamError> {
    let mut head = [0; FRAME_HEAD];
    match recv.read_exact(&mut head[..1]).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(_)) => return Ok(None),
        Err(ReadExactError::ReadError(_)) => return Err(StreamError::Gone),
    }
    let read = async {
        exactly(recv, &mut head[1..]).await?;
        body(recv, head).await.map(Some)
    };
    timeout(within, read).await.map_err(|_| StreamError::Slow(within))?
}

/// A request's body of `length` bytes, which must be there within `within`.
pub async fn read_body(
    recv: &mut RecvStream,
    length: u64,
    max: usize,
    within: Duration,
) -> Result<Vec<u8>, StreamError> {
    let too_large = CodecError::TooLarge { field: "the request's body", got: length, max: max as u64 };
    let length = usize::try_from(length).ok().filter(|length| *length <= max);
    let mut bytes = vec![0; length.ok_or_else(|| StreamError::Frame(too_large.into()))?];
    timeout(within, exactly(recv, &mut bytes)).await.map_err(|_| StreamError::Slow(within))??;
    Ok(bytes)
}

async fn body(recv: &mut RecvStream, head: [u8; FRAME_HEAD]) -> Result<Vec<u8>, StreamError> {
    let mut json = vec![0; frame_len(head)?];
    exactly(recv, &mut json).await?;
    Ok(json)
}

async fn exactly(recv: &mut RecvStream, into: &mut [u8]) -> Result<(), StreamError> {
    recv.read_exact(into).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(had) => {
            let needed = into.len();
            StreamError::Frame(CodecError::Truncated { field: "message", needed, had }.into())
        }
        ReadExactError::ReadError(_) => StreamError::Gone,
    })
}

/// Sends a message.
pub async fn write_frame<T: Serialize>(
    send: &mut SendStream,
    message: &T,
    within: Duration,
) -> Result<(), StreamError> {
    write(send, frame(message)?.into(), within).await
}

/// Sends bytes; each [`PIECE`] must be taken within `within`.
pub async fn write(send: &mut SendStream, mut bytes: Bytes, within: Duration) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        let written = timeout(within, send.write_chunk(piece)).await.map_err(|_| StreamError::Slow(within))?;
        written.map_err(|_| StreamError::Gone)?;
    }
    Ok(())
}
