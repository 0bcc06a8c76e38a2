//! How many connections each source has: no more than it may.

use core::arch::asm;

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use egress_common::{Addr, DropReason, maps::capacity};

use super::state::{EXISTS, NOEXIST};
use crate::settings;

/// Signed: where a count is deleted while another CPU adds to it, it may fall below zero for a time.
#[btf_map]
static NAT_SOURCES: HashMap<Addr, i64, { capacity::NAT_SOURCES as usize }> = HashMap::new();

/// Whether the pod may have one more connection.
#[inline(always)]
pub(super) fn check_quota(pod: &Addr) -> Result<(), DropReason> {
    let settings = settings::get().ok_or(DropReason::StateMissing)?;
    let count = match NAT_SOURCES.get_ptr_mut(pod) {
        // SAFETY: an aligned word that is only added to.
        Some(count) => unsafe { core::ptr::read_volatile(count) },
        None => 0,
    };
    if count >= i64::from(settings.source_quota) {
        return Err(DropReason::SourceQuota);
    }
    Ok(())
}

/// Counts a connection of a source, unless there is no room for one more source.
#[inline(always)]
pub(super) fn add_to_source(pod: &Addr) -> bool {
    if add(pod, 1) {
        return true;
    }
    match NAT_SOURCES.insert(pod, &1, NOEXIST) {
        Ok(()) => true,
        // Another CPU was first, and may have removed it again: then one is not counted.
        Err(EXISTS) => {
            add(pod, 1);
            true
        }
        Err(_) => false,
    }
}

/// Counts one connection less, and makes room where the source has none any more.
#[inline(always)]
pub(super) fn take_from_source(pod: &Addr) {
    add(pod, -1);
    if let Some(count) = NAT_SOURCES.get_ptr_mut(pod) {
        // SAFETY: an aligned word that is only added to.
        if unsafe { core::ptr::read_volatile(count) } <= 0 {
            let _ = NAT_SOURCES.remove(pod);
        }
    }
}

/// Adds to a source's count, if it has one.
#[inline(always)]
fn add(pod: &Addr, difference: i64) -> bool {
    match NAT_SOURCES.get_ptr_mut(pod) {
        Some(count) => {
            // The target has no atomics in `core`, for kernels before 5.12 know no other than this one.
            // SAFETY: `BPF_XADD` to an aligned word of the map's value.
            unsafe {
                asm!(
                    "lock *(u64 *)({count} + 0) += {difference}",
                    count = in(reg) count,
                    difference = in(reg) difference,
                    options(nostack),
                );
            }
            true
        }
        None => false,
    }
}
