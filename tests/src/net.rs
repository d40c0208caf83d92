//! A machine's own network: a namespace and a cable to it, where this process may have them.
//!
//! ```text
//! this process ─ fd47:…::1 ═══ veth, of some MTU ═══ fd47:…::2 ─ a namespace: an agent in a process of its own
//! ```
//! The proxy makes faults by number; this one makes those that only a kernel has: an interface's MTU, an address that is
//! taken away and another one that takes its place, a cable that is pulled.

use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::machine::Machine;
use crate::tools::{self, AGENT};

/// Networks of this process.
static MADE: AtomicU16 = AtomicU16::new(0);

/// A namespace with its cable; gone when dropped.
#[derive(Debug)]
pub struct Net {
    name: String,
    prefix: [u16; 3],
}

fn ip(line: &str) -> Result<(), String> {
    let output = Command::new("ip").args(line.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Net {
    /// Makes one whose cable takes packets of so many bytes.
    pub fn new(mtu: u16) -> Result<Self, String> {
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let name = format!("gs{process:x}-{number}");
        ip(&format!("netns add {name}"))?;
        // From here on, dropping it removes what was made.
        let net = Self { name, prefix: [0xfd47, process as u16, number] };
        let Self { name, .. } = &net;
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("addr add {}/64 dev {name} nodad", net.outside()))?;
        ip(&format!("link set {name} mtu {mtu} up"))?;
        ip(&format!("-n {name} addr add {}/64 dev eth0 nodad", net.at(2)))?;
        ip(&format!("-n {name} link set eth0 mtu {mtu} up"))?;
        Ok(net)
    }

    fn at(&self, host: u16) -> Ipv6Addr {
        let [a, b, c] = self.prefix;
        Ipv6Addr::new(a, b, c, 0, 0, 0, 0, host)
    }

    /// This process's end.
    pub fn outside(&self) -> IpAddr {
        self.at(1).into()
    }

    /// The machine's address becomes another one: it moved to another network.
    pub fn move_on(&self) {
        let change = || {
            ip(&format!("-n {} addr add {}/64 dev eth0 nodad", self.name, self.at(3)))?;
            ip(&format!("-n {} addr del {}/64 dev eth0", self.name, self.at(2)))
        };
        change().expect("another address");
    }

    /// Pulls the cable, or puts it back.
    pub fn cable(&self, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("link set {} {state}", self.name)).expect("the cable");
        // An interface that goes down loses its IPv6 addresses.
        if plugged {
            ip(&format!("addr replace {}/64 dev {} nodad", self.outside(), self.name)).expect("its address");
        }
    }

    /// An agent's verb in there, begun and not waited for; see [`Machine::finish`].
    pub fn spawn(&self, machine: &Machine, args: &[&str]) -> tokio::process::Child {
        let config = machine.config();
        let args = ["--config".as_ref(), config.as_os_str()].into_iter().chain(args.iter().map(|arg| arg.as_ref()));
        tools::command_in(&self.name, AGENT, args).spawn().expect("goldsync-agent in a namespace")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // The cable goes with either end.
        if let Err(error) = ip(&format!("netns del {}", self.name)) {
            eprintln!("left: {error}");
        }
        let _ = ip(&format!("link del {}", self.name));
    }
}
