//! How many connections the API holds at once, before anybody has shown who he is.
//!
//! A client that connects and says nothing, or says it a byte a minute, costs a file descriptor for as long as it is waited
//! for. So there are only so many at once, and fewer for one address: one machine gone wrong takes its own share, not the
//! operators'. Who is over a limit is hung up on before TLS; the tool tries again.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Connections at once: half of the 1024 files that a process may open unless it is told otherwise.
const ALL: usize = 512;

/// From one address: an operator's tool takes half a dozen, and several may sit behind one.
const PER_ADDRESS: usize = 64;

/// Counts connections; clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Limit {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place; dropping it makes room.
#[derive(Debug)]
pub(super) struct Place {
    limit: Limit,
    peer: IpAddr,
}

impl Limit {
    /// A place for a connection from this address, if there is one.
    fn take(&self, address: IpAddr) -> Option<Place> {
        let peer = network(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let own = open.get(&peer).copied().unwrap_or(0);
        if all >= ALL || own >= PER_ADDRESS {
            tracing::debug!(%peer, all, own, "a connection over the API's limits was hung up on");
            return None;
        }
        open.insert(peer, own + 1);
        Some(Place { limit: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limit.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.peer) {
            Some(own) if *own > 1 => *own -= 1,
            _ => _ = open.remove(&self.peer),
        }
    }
}

/// What one peer can choose its addresses from: of IPv6 the first half of the bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

impl<S> Accept<TcpStream, S> for Limit {
    type Stream = Placed;
    type Service = S;
    type Future = Ready<io::Result<(Placed, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let placed = stream.peer_addr().and_then(|peer| {
            let place = self.take(peer.ip()).ok_or(io::ErrorKind::QuotaExceeded)?;
            Ok((Placed { stream, _place: place }, service))
        });
        ready(placed)
    }
}

/// A connection that has a place.
#[derive(Debug)]
pub(super) struct Placed {
    stream: TcpStream,
    _place: Place,
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_has_its_share_and_all_have_theirs() {
        let limit = Limit::default();
        let take = |address: &str| limit.take(from(address));
        let mut held: Vec<_> = (0..PER_ADDRESS).map(|_| take("192.0.2.1").unwrap()).collect();
        assert!(take("192.0.2.1").is_none() && take("::ffff:192.0.2.1").is_none());
        held.push(take("192.0.2.2").unwrap());
        // One machine's IPv6 addresses are one.
        held.extend((0..PER_ADDRESS).map(|n| take(&format!("2001:db8::{n:x}")).unwrap()));
        assert!(take("2001:db8::ffff").is_none());
        let others = (0..ALL).map_while(|n| take(&format!("198.51.{}.{}", n / 250, n % 250)));
        held.extend(others.collect::<Vec<_>>());
        assert_eq!(held.len(), ALL);
        assert!(take("203.0.113.9").is_none());
        drop(held.swap_remove(0));
        held.push(take("192.0.2.1").unwrap());
        assert!(take("192.0.2.1").is_none());
        held.clear();
        assert!(limit.open.lock().unwrap().is_empty());
    }
}
