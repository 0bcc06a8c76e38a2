//! The egress addresses that this node owns.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use egress_common::{
    Addr, Family,
    gateway::{Egress, GatewayId, GatewayKey},
    maps::capacity,
};

#[btf_map]
static GATEWAYS: HashMap<GatewayKey, u32, { capacity::EGRESS as usize }> = HashMap::new();

#[btf_map]
static EGRESS: Array<Egress, { capacity::EGRESS as usize }> = Array::new();

/// The address of that family that the gateway has on this node.
#[inline(always)]
pub(crate) fn by_id(gateway: GatewayId, family: Family) -> Option<&'static Egress> {
    let key = GatewayKey::new(gateway, family);
    // SAFETY: copied at once, and what it names is compared.
    let index = unsafe { GATEWAYS.get(&key) }.copied()?;
    EGRESS
        .get(index)
        .filter(|egress| egress.gateway == gateway && egress.address != Addr([0; 16]))
}
