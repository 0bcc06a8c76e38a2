//! The writes: addresses, ports, and every checksum that covers them.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::bpf_csum_update,
};
use egress_common::{Addr, DropReason, Family};

use super::scratch::{Edit, SUM_NEVER_ZERO, SUM_PSEUDO};
use crate::{
    direct,
    packet::{L3, Packet},
};

const IPV4_CHECKSUM: u32 = 10;
pub(super) const IPV4_SOURCE: u32 = 12;
pub(super) const IPV4_DESTINATION: u32 = 16;
pub(super) const IPV6_SOURCE: u32 = 8;
pub(super) const IPV6_DESTINATION: u32 = 24;

/// Where the source address lies in a frame.
#[inline(always)]
pub(super) const fn source_at(family: Family) -> u32 {
    match family {
        Family::V4 => L3 + IPV4_SOURCE,
        Family::V6 => L3 + IPV6_SOURCE,
    }
}

/// Where the destination address lies in a frame.
#[inline(always)]
pub(super) const fn destination_at(family: Family) -> u32 {
    match family {
        Family::V4 => L3 + IPV4_DESTINATION,
        Family::V6 => L3 + IPV6_DESTINATION,
    }
}

/// Writes an address and a port, after which the packet may only be sent on or dropped.
///
/// The kernel keeps a sum of the packet beside it where the device computed one (`CHECKSUM_COMPLETE`), which
/// has to stay right. A change that one of the packet's own checksums makes up for leaves it as it is.
#[inline(never)]
pub(super) fn write(packet: &Packet<'_>, family: Family, edit: &Edit) -> Result<(), DropReason> {
    match family {
        Family::V4 => write_v4(packet, edit),
        Family::V6 => write_v6(packet, edit),
    }?;
    // Most keep their own port.
    if edit.port_at == 0 || edit.old_port.0 == edit.new_port.0 {
        return Ok(());
    }
    let flags = if edit.checksum_at == 0 {
        // Nothing in the packet makes up for it.
        u64::from(BPF_F_RECOMPUTE_CSUM)
    } else {
        let old = u16::from_ne_bytes(edit.old_port.0);
        let new = u16::from_ne_bytes(edit.new_port.0);
        mend(packet, edit, old.into(), new.into(), 2)?;
        0
    };
    packet
        .ctx
        .store(edit.port_at as usize, &edit.new_port, flags)
        .map_err(|_| DropReason::RedirectFailed)
}

#[inline(always)]
fn write_v4(packet: &Packet<'_>, edit: &Edit) -> Result<(), DropReason> {
    let (old, new) = (edit.old.words()[3], edit.new.words()[3]);
    // Only the helper knows whether a device is still to complete the sum (`CHECKSUM_PARTIAL`).
    if edit.checksum_at != 0 && edit.checksum & SUM_PSEUDO != 0 {
        let flags = 4 | u64::from(BPF_F_PSEUDO_HDR);
        mend(packet, edit, old.into(), new.into(), flags)?;
    }
    const SUM: usize = (L3 + IPV4_CHECKSUM) as usize;
    const SOURCE: usize = (L3 + IPV4_SOURCE) as usize;
    const DESTINATION: usize = (L3 + IPV4_DESTINATION) as usize;
    if let Some(header) = direct::start::<{ DESTINATION + 4 }>(packet) {
        header.set_half::<SUM>(direct::mended(header.half::<SUM>(), old, new));
        if edit.address_at == L3 + IPV4_SOURCE {
            header.set_word::<SOURCE>(new);
        } else {
            header.set_word::<DESTINATION>(new);
        }
        return Ok(());
    }
    packet
        .ctx
        .l3_csum_replace(SUM, old.into(), new.into(), 4)
        .and_then(|()| packet.ctx.store(edit.address_at as usize, &new, 0))
        .map_err(|_| DropReason::RedirectFailed)
}

#[inline(always)]
fn write_v6(packet: &Packet<'_>, edit: &Edit) -> Result<(), DropReason> {
    let (old, new) = (edit.old.words(), edit.new.words());
    let growth = direct::growth(old, new);
    if edit.checksum_at != 0 && edit.checksum & SUM_PSEUDO != 0 {
        mend(packet, edit, 0, growth.into(), u64::from(BPF_F_PSEUDO_HDR))?;
    }
    const SOURCE: usize = (L3 + IPV6_SOURCE) as usize;
    const DESTINATION: usize = (L3 + IPV6_DESTINATION) as usize;
    if let Some(header) = direct::start::<{ DESTINATION + 16 }>(packet) {
        let [a, b, c, d] = new;
        if edit.address_at == L3 + IPV6_SOURCE {
            header.set_word::<SOURCE>(a);
            header.set_word::<{ SOURCE + 4 }>(b);
            header.set_word::<{ SOURCE + 8 }>(c);
            header.set_word::<{ SOURCE + 12 }>(d);
        } else {
            header.set_word::<DESTINATION>(a);
            header.set_word::<{ DESTINATION + 4 }>(b);
            header.set_word::<{ DESTINATION + 8 }>(c);
            header.set_word::<{ DESTINATION + 12 }>(d);
        }
        // The kernel assumed above that an IPv4 header's checksum makes up for the address, and took the
        // difference off its own sum (`inet_proto_csum_replace_by_diff`): here it comes back.
        // SAFETY: the kernel passes a valid context; it refuses what has no such sum, and then there is nothing to do.
        unsafe { bpf_csum_update(packet.skb(), growth) };
        return Ok(());
    }
    // Likewise by recomputing.
    packet
        .ctx
        .store(
            edit.address_at as usize,
            &edit.new,
            u64::from(BPF_F_RECOMPUTE_CSUM),
        )
        .map_err(|_| DropReason::RedirectFailed)
}

#[inline(always)]
fn mend(
    packet: &Packet<'_>,
    edit: &Edit,
    old: u64,
    new: u64,
    flags: u64,
) -> Result<(), DropReason> {
    let never_zero = if edit.checksum & SUM_NEVER_ZERO == 0 {
        0
    } else {
        u64::from(BPF_F_MARK_MANGLED_0)
    };
    packet
        .ctx
        .l4_csum_replace(edit.checksum_at as usize, old, new, flags | never_zero)
        .map_err(|_| DropReason::RedirectFailed)
}

/// What a sum over all 16 bytes grows by.
#[inline(always)]
pub(super) fn difference(old: &Addr, new: &Addr) -> u64 {
    direct::growth(old.words(), new.words()).into()
}
