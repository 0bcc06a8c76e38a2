//! What the whole node is told.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::gateway::Settings;

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// The settings; an array's element is always there.
#[inline(always)]
pub(crate) fn get() -> Option<&'static Settings> {
    SETTINGS.get(0)
}
