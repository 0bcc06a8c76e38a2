//! The egress gateway's userspace: policies in, BPF maps and counters out.
//!
//! Data flows one way: `sources` → `resources` → `model` → `resolve` → `compile` → `state` → `diff` →
//! `kernel`. ARCHITECTURE.md walks through it.

pub mod commands;
<<<<<<< HEAD
pub mod compile;
pub mod diagnostic;
pub mod diff;
pub mod kernel;
pub mod lint;
=======
pub mod counters;
pub mod explain;
pub mod http;
pub mod metrics;
>>>>>>> refs/heads/obs
pub mod model;
pub mod node;
pub mod resolve;
pub mod resources;
pub mod selector;
<<<<<<< HEAD
pub mod sources;
=======
pub mod snapshot;
>>>>>>> refs/heads/obs
pub mod state;
