//! The cross-check of every count of bytes: what the loopback interface itself counted.
//!
//! The comparison moves into a network name space of its own, where nobody else's packets are, and reads the interface's
//! counter around each run. That counts every packet of both directions once, with IP and UDP or TCP heads,
//! acknowledgements and handshakes, and is the same ruler for every tool. Where no name space may be made, the column
//! stays empty.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde::Serialize;

/// Set in the process that is in its own name space already.
const INSIDE: &str = "GOLDSYNC_COMPARE_INSIDE";

/// Starts this program again in a network name space of its own; returns if that cannot be, or is done already.
pub fn enter() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let Ok(this) = std::env::current_exe() else { return };
    for flags in ["-n", "-rn"] {
        let up = ["unshare", flags, "sh", "-c", "ip link set lo up"];
        if !Command::new(up[0]).args(&up[1..]).output().is_ok_and(|output| output.status.success()) {
            continue;
        }
        let script = "ip link set lo up && exec \"$0\" \"$@\"";
        let own = std::env::args_os().skip(1);
        let words = ["sh", "-c", script].map(OsStr::new).map(OsStr::to_owned);
        let error = Command::new("unshare").arg(flags).args(words).arg(&this).args(own).env(INSIDE, "1").exec();
        eprintln!("goldsync-compare: cannot start again in a name space: {error}");
    }
}

/// What crossed the loopback interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Crossed {
    /// Bytes, heads of IP and UDP or TCP included.
    pub bytes: u64,
    /// Packets as the kernel counts them: a batch that was handed over as one is one.
    pub packets: u64,
}

impl Crossed {
    /// What crossed since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { bytes: self.bytes - earlier.bytes, packets: self.packets - earlier.packets }
    }

    /// Without the heads of IPv4 and UDP: what a QUIC connection counts as its datagrams.
    pub fn udp_payload(self) -> u64 {
        self.bytes.saturating_sub(28 * self.packets)
    }
}

/// What crossed the loopback interface so far; `None` outside a name space of our own.
pub fn crossed() -> Option<Crossed> {
    std::env::var_os(INSIDE)?;
    received(&fs::read_to_string("/proc/self/net/dev").ok()?)
}

/// What crossed since `before`, if that was known.
pub fn since(before: Option<Crossed>) -> Option<Crossed> {
    Some(crossed()?.since(before?))
}

/// What goes out on loopback comes in on it: one of the two halves is all of it.
fn received(table: &str) -> Option<Crossed> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
    Some(Crossed { bytes: numbers.next()?, packets: numbers.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found() {
        let table =
            "Inter-|   Receive |\n face |bytes packets\n  eth0: 7 1 0\n    lo: 1234567 89 0 0 0 0 0 0 1234567 89\n";
        let crossed = received(table).unwrap();
        assert_eq!(crossed, Crossed { bytes: 1_234_567, packets: 89 });
        let earlier = Crossed { bytes: 1_234_467, packets: 87 };
        assert_eq!(crossed.since(earlier).udp_payload(), 100 - 2 * 28);
        assert_eq!(received("eth0: 7"), None);
    }
}
