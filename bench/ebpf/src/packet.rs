//! What is read of a packet, and written to it: as fast as can be, in place.

use core::ptr;

use aya_ebpf::{
    bindings::{bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};

/// Where the IPv4 header starts.
const L3: usize = 14;
const AF_INET: u32 = 2;
/// Length of `struct bpf_redir_neigh`.
const NEIGHBOUR_LEN: i32 = 20;

/// The interface that packets leave by.
#[unsafe(no_mangle)]
static UPLINK: u32 = 0;

/// An IPv4 header without options, and the ports behind it, as they lie in a frame: aligned to two bytes.
#[repr(C, packed(2))]
struct Headers {
    _version: [u8; 8],
    _ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
    source_port: u16,
    destination_port: u16,
}

/// What tells a flow from others, in the order of the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u32,
}

#[inline(always)]
fn headers(ctx: &TcContext) -> Option<*mut Headers> {
    let at = ctx.data() + L3;
    (at + size_of::<Headers>() <= ctx.data_end()).then_some(at as *mut Headers)
}

/// Whose packet it is; nothing of what is too short.
#[inline(always)]
pub(crate) fn flow(ctx: &TcContext) -> Option<Flow> {
    let headers = headers(ctx)?;
    // SAFETY: the packet is that long, and its data stay where they are.
    let headers = unsafe { &*headers };
    Some(Flow {
        source: headers.source,
        destination: headers.destination,
        source_port: headers.source_port,
        destination_port: headers.destination_port,
        protocol: headers.protocol.into(),
    })
}

/// Replaces source address and port, both in the order of the wire; the packet has no checksum but IPv4's.
#[inline(always)]
pub(crate) fn write_source(ctx: &TcContext, address: u32, port: u16) -> Option<()> {
    let headers = headers(ctx)?;
    // SAFETY: as above, and nobody else has the packet.
    let headers = unsafe { &mut *headers };
    headers.checksum = changed(headers.checksum, headers.source, address);
    headers.source = address;
    headers.source_port = port;
    Some(())
}

/// A checksum after a word has changed (RFC 1624).
#[expect(
    clippy::cast_possible_truncation,
    reason = "what was above has been added"
)]
#[inline(always)]
const fn changed(checksum: u16, old: u32, new: u32) -> u16 {
    let mut sum = !checksum as u32;
    sum += (!old & 0xffff) + (!old >> 16);
    sum += (new & 0xffff) + (new >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Sends the packet out of the uplink.
#[inline(always)]
pub(crate) fn redirect() -> i32 {
    // SAFETY: a call without pointers.
    action(unsafe { bpf_redirect(uplink(), 0) })
}

/// Sends it to a next hop there.
#[inline(always)]
pub(crate) fn redirect_to_neighbour() -> i32 {
    let mut next_hop = bpf_redir_neigh {
        nh_family: AF_INET,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
            ipv6_nh: [u32::from_ne_bytes([198, 51, 100, 1]), 0, 0, 0],
        },
    };
    // SAFETY: the next hop lives for the call, and is as long as is said.
    action(unsafe { bpf_redirect_neigh(uplink(), &raw mut next_hop, NEIGHBOUR_LEN, 0) })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the helpers return actions, which are small"
)]
#[inline(always)]
const fn action(returned: i64) -> i32 {
    returned as i32
}

#[inline(always)]
fn uplink() -> u32 {
    // SAFETY: a static of the read-only section, read as the loader left it.
    unsafe { ptr::read_volatile(&raw const UPLINK) }
}
