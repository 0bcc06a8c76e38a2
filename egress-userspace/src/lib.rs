//! The egress gateway's userspace: policies in, BPF maps and counters out.
//!
//! Data flows one way: `sources` → `resources` → `model` → `resolve` → `compile` → `state` → `diff` →
//! `kernel`. ARCHITECTURE.md walks through it.

pub mod commands;
pub mod counters;
pub mod explain;
pub mod http;
pub mod metrics;
pub mod model;
pub mod node;
pub mod resolve;
pub mod selector;
pub mod snapshot;
pub mod state;
