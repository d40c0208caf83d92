//! The UDP socket of the QUIC listener, with buffers large enough for a whole fleet's answers in flight.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Bytes asked for in each direction. The kernel's default of 208 KiB loses packets as soon as two nodes fetch at
/// once, and each loss halves a connection's speed.
const BUFFER: libc::c_int = 8 << 20;

/// Binds the listener. `[::]` takes IPv4 too, and falls back to `0.0.0.0` where the machine has no IPv6.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match UdpSocket::bind(address) {
        Err(error) if no_ipv6(address, &error) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address.port()))?,
        bound => bound?,
    };
    socket.set_nonblocking(true)?;
    enlarge(&socket, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE);
    enlarge(&socket, libc::SO_SNDBUF, libc::SO_SNDBUFFORCE);
    Ok(socket)
}

/// Whether binding failed only because there is no IPv6 here.
pub fn no_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let absent = [Some(libc::EAFNOSUPPORT), Some(libc::EADDRNOTAVAIL)].contains(&error.raw_os_error());
    absent && address.is_ipv6() && address.ip().is_unspecified()
}

/// Asks for [`BUFFER`] bytes: beyond the system's limit if we may, up to it otherwise. Smaller buffers work, slower.
fn enlarge(socket: &UdpSocket, option: libc::c_int, forced: libc::c_int) {
    let bytes = BUFFER;
    for option in [forced, option] {
        // SAFETY: the descriptor is open as long as `socket` is borrowed; the value is a `c_int` and so is the length
        // given for it, and the kernel only reads it.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if done == 0 {
            return;
        }
    }
    let error = io::Error::last_os_error();
    tracing::warn!(%error, "the socket's buffers stay small; raise net.core.rmem_max and net.core.wmem_max to 8 MiB");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_an_error_and_no_ipv6_is_told_apart() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let first = bind(any).unwrap();
        let taken = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let absent = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        assert!(no_ipv6("[::]:7400".parse().unwrap(), &absent));
        assert!(!no_ipv6("[::1]:7400".parse().unwrap(), &absent) && !no_ipv6(any, &absent));
        assert!(!no_ipv6("[::]:7400".parse().unwrap(), &taken));
    }
}
