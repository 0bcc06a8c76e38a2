//! Maps whose own modules are still to come.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap},
    macros::btf_map,
};
use egress_common::{
    Addr,
    gateway::{Egress, GatewayKey},
    keys::ReplyKey,
    maps::capacity,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey},
    overlay::NodeState,
    pod::{Choice, FlowKey, Inbound, PodNote, PodPlace, UdpPorts},
};

#[btf_map]
static POD_UDP_PORTS: Array<UdpPorts, { capacity::PODS as usize }> = Array::new();

#[btf_map]
static FLOWS: LruHashMap<FlowKey, Choice, { capacity::FLOWS as usize }> = LruHashMap::new();

#[btf_map]
static INBOUND: LruHashMap<ReplyKey, Inbound, { capacity::INBOUND as usize }> = LruHashMap::new();

#[btf_map]
static OWN_UDP: LruHashMap<ReplyKey, u64, { capacity::INBOUND as usize }> = LruHashMap::new();
