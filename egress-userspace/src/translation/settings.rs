//! What the whole node is told.

use std::net::IpAddr;

use egress_common::{Addr, gateway::Settings};

use crate::{settings::NatOptions, state::Translation};

/// The content of `SETTINGS`; `overlay` is the device's index and the network's identifier, `local_mark` one bit or none,
/// `guarded` whether somebody looks at it wherever packets may leave the cluster.
#[must_use]
pub fn settings(
    translation: &Translation,
    overlay: Option<(u32, u32)>,
    nat: &NatOptions,
    local_mark: u32,
    guarded: bool,
) -> Settings {
    let own = |family: fn(&IpAddr) -> bool| {
        let address = translation.own.iter().copied().find(family);
        address.map_or_else(Addr::default, Addr::from)
    };
    let (overlay_ifindex, vni) = overlay.unwrap_or_default();
    Settings {
        node4: own(IpAddr::is_ipv4),
        node6: own(IpAddr::is_ipv6),
        overlay_ifindex,
        vni,
        source_quota: nat.source_quota,
        timeouts: nat.timeouts,
        local_mark,
        unguarded: u32::from(!guarded),
        ..Settings::default()
    }
}
