//! A peer's address as people know it.
//!
//! One socket takes both families, and then the system shows IPv4 peers as `::ffff:192.0.2.1`. In the log, the audit log and
//! messages they are what everybody else calls them: somebody will search for `192.0.2.1`.

use std::net::SocketAddr;

/// The address, IPv4 as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_peer_is_shown_as_one() {
        for (shown, expected) in [
            ("[::ffff:192.0.2.1]:7400", "192.0.2.1:7400"),
            ("192.0.2.1:7400", "192.0.2.1:7400"),
            ("[2001:db8::1]:7400", "[2001:db8::1]:7400"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(canonical(shown.parse().unwrap()).to_string(), expected);
        }
    }
}
