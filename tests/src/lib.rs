//! The harness: a whole fleet on this machine, made of the real rooms.
//!
//! Two ways to have one. *Processes*, for the demo, the benchmark and the stories that people could type:
//! ```text
//! Programs   this executable, started again as `goldsync` or `goldsync-agent`
//!    │
//!    ├─▶ Server   a data folder, an operator's folder, a process that can be stopped, killed and started again
//!    └─▶ Node     two slots, a link, a configuration, a state folder; verbs, and a daemon likewise
//! Scene      a server and its folder, for one story
//! images     two images of real data that is on any machine with Rust
//! ```
//! *This process*, for the stories in which something goes wrong at a chosen moment:
//! ```text
//! Operator ── goldsync, a process ──HTTPS──▶ Fleet (the server) ◀──QUIC──┬── Machine: verbs by the library, as a process,
//!                                                   Proxy loses, delays, cuts, counts ┤   or as the daemon
//!                                                   Liar has the fleet's CA and lies  ┘
//! Image      made from a seed, and changed by one      damage   what happens to bytes on disks
//! disk       small file systems and loop devices       stamp    was anything written?
//! simdisk    a simulated disk under a Machine: power cuts after any operation, errors, rot
//! net        a namespace and a cable to it
//! volumes    images that can be mounted; bench: two slots with them     namespace   mounts that end with their test
//! ```
//! *A virtual machine* ([`vm`]), for the stories that need a boot loader, a kernel, or a plug to pull.
//!
//! Everything lies in one scratch folder and listens on loopback, on ports that the kernel chose. A process that is
//! still running when its owner is dropped is killed. What a program printed is part of every complaint. The second kind
//! panics when the harness itself fails: a test that cannot be set up is a failed test. `GOLDSYNC_TESTS_KEEP=1` keeps its
//! scratch folder.

pub mod bench;
pub mod damage;
pub mod demo;
pub mod disk;
pub mod fleet;
pub mod image;
pub mod images;
pub mod liar;
pub mod machine;
pub mod namespace;
pub mod net;
pub mod node;
pub mod operator;
pub mod programs;
pub mod proxy;
pub mod scene;
pub mod seed;
pub mod server;
pub mod simdisk;
pub mod stamp;
pub mod tools;
pub mod vm;
pub mod volumes;
pub mod wait;

pub use fleet::Fleet;
pub use image::Image;
pub use liar::{Liar, Say};
pub use machine::Machine;
pub use node::Node;
pub use operator::Operator;
pub use programs::{Programs, Run};
pub use proxy::{Proxy, Way};
pub use server::Server;
pub use simdisk::SimDisk;
pub use wait::eventually;
