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
static EGRESS_ADDRS: HashMap<Addr, u32, { capacity::EGRESS as usize }> = HashMap::new();

#[btf_map]
static EGRESS: Array<Egress, { capacity::EGRESS as usize }> = Array::new();

/// The egress address of that family which the gateway has on this node, and its index: one that changes in any way gets
/// another.
#[inline(always)]
pub(crate) fn by_id(gateway: GatewayId, family: Family) -> Option<(u32, &'static Egress)> {
    let key = GatewayKey::new(gateway, family);
    // SAFETY: a word; if the key is removed and reused meanwhile, the comparison below tells.
    let index = *unsafe { GATEWAYS.get(&key) }?;
    let egress = EGRESS.get(index)?;
    let found = egress.gateway == gateway
        && !same(&egress.address, &Addr::v6([0; 16]))
        && egress.address.is_v4() == (family == Family::V4);
    found.then_some((index, egress))
}

/// The egress address that this is.
#[inline(always)]
pub(crate) fn by_address(address: &Addr) -> Option<&'static Egress> {
    // SAFETY: as in `by_id`.
    let index = *unsafe { EGRESS_ADDRS.get(address) }?;
    EGRESS
        .get(index)
        .filter(|egress| same(&egress.address, address))
}

/// Whether two addresses are one: by words, where a derived comparison would be a call for each byte.
#[inline(always)]
pub(crate) fn same(a: &Addr, b: &Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// Copies an address by words: between two places that might overlap it would be moved byte by byte.
#[inline(always)]
pub(crate) fn copy(into: &mut Addr, from: &Addr) {
    let words = from.words();
    // SAFETY: an `Addr` is 16 bytes that are aligned to four, as the words are.
    unsafe { core::ptr::from_mut(into).cast::<[u32; 4]>().write(words) }
}
