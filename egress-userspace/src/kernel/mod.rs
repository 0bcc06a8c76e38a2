//! The only place that knows aya: loading, attaching, and the live maps.
#![expect(
    unsafe_code,
    reason = "mapping a BPF array into memory, and some calls of the system and its library, have no safe wrapper"
)]

mod attach;
mod claims;
mod clsact;
mod counters;
pub(crate) mod fault;
mod generation;
mod grace;
mod held;
mod load;
mod maps;
mod member_counts;
mod memory;
mod nat;
mod object;
mod paths;
mod pins;
mod pod_index;
mod pods;
mod probes;
mod reader;
mod segments;
mod slots;
mod sums;
mod syscall;
mod tables;
mod tcx;
mod translation;
mod trie;
mod verdicts;
mod ways;
mod words;

pub use attach::{AttachMode, Attachments, Hook};
pub use claims::OwnConnections;
pub use counters::CounterMaps;
pub use load::{Capacities, Datapath, LoadOptions, ProgramLog, raise_memlock_limit};
pub use maps::Maps;
pub use memory::give_back;
pub use nat::{Batches, NatMaps, NatSweep, SWEEP_KEYS};
pub use object::{NAT_SWEEP, OBJECT, PROBE, Program, ebpf_object};
pub use paths::Paths;
pub use pins::{detach_all, programmed};
pub use probes::GatewayProbes;
pub use reader::CounterReader;
pub use tables::FlowTable;
