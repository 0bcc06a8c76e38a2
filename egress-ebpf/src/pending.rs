//! Maps whose own modules are still to come.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::{maps::capacity, overlay::NodeState};

#[btf_map]
static NODE_STATE: Array<NodeState, { capacity::NODES as usize }> = Array::new();
