//! The harness: a whole fleet on this machine, made of the real programs.
//!
//! ```text
//! Programs   this executable, started again as `goldsync` or `goldsync-agent`
//!    │
//!    ├─▶ Server   a data folder, an operator's folder, a process that can be stopped, killed and started again
//!    └─▶ Node     two slots, a link, a configuration, a state folder; verbs, and a daemon likewise
//! Scene      a server and its folder, for one story
//! images     two images of real data that is on any machine with Rust
//! ```
//! Everything lies in one scratch folder and listens on loopback, on ports that the kernel chose. A process that is
//! still running when its owner is dropped is killed. What a program printed is part of every complaint.

pub mod demo;
pub mod images;
pub mod node;
pub mod programs;
pub mod scene;
pub mod server;

pub use node::Node;
pub use programs::{Programs, Run};
pub use server::Server;
