//! The only raw access to an skb: its metadata, its bytes, and the few writes we make.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_skb_load_bytes},
    programs::TcContext,
};
use egress_common::{Addr, DropReason, Mac};

use crate::verifier::Forgotten;

/// Length of an Ethernet header: where the IP header starts, since a tagged frame never gets that far.
pub(crate) const L3: u32 = 14;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// Length of `struct bpf_redir_neigh`.
const NEIGHBOUR_LEN: i32 = 20;
const _: () = assert!(size_of::<bpf_redir_neigh>() == 20);
/// `PACKET_HOST` of `linux/if_packet.h`: the frame is addressed to this host.
const PACKET_HOST: u32 = 0;
/// Sent to everybody on the link, or to a group.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
/// How far [`Packet::byte`] looks by itself: the verifier wants a bound, and headers rarely go beyond.
const NEAR: u32 = 255;
/// Where the addresses lie in an Ethernet header.
const ETH_DESTINATION: u32 = 0;
const ETH_SOURCE: u32 = 6;
/// Where TTL and checksum lie in an IPv4 header, and the hop limit in an IPv6 header.
const IPV4_TTL: u32 = 8;
const IPV4_CHECKSUM: u32 = 10;
const IPV6_HOP_LIMIT: u32 = 7;

/// A packet at a TC hook.
pub(crate) struct Packet<'a> {
    pub(crate) ctx: &'a TcContext,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) const fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// The device that the hook is on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel passes a valid context; the verifier turns this into a checked read.
        unsafe { (*self.skb()).ifindex }
    }

    /// The ethertype in host byte order; 802.3 lengths appear as `ETH_P_802_2`.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        // SAFETY: as in `ifindex`.
        let wire = unsafe { (*self.skb()).protocol }.to_ne_bytes();
        // A `__be16` that the kernel widened as a number, so it lies in the low half.
        if cfg!(target_endian = "little") {
            u16::from_be_bytes([wire[0], wire[1]])
        } else {
            u16::from_be_bytes([wire[2], wire[3]])
        }
    }

    /// Whether the kernel took a VLAN tag off the frame and keeps it beside it.
    #[inline(always)]
    pub(crate) fn has_vlan_tag(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).vlan_present != 0 }
    }

    /// The mark that the packet carries within this host.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).mark }
    }

    /// Marks the packet.
    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        // SAFETY: a field of the context that TC programs may write.
        unsafe { (*self.skb()).mark = mark };
    }

    /// Whether the frame was sent to this host's MAC.
    #[inline(always)]
    pub(crate) fn is_for_this_host(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).pkt_type == PACKET_HOST }
    }

    /// Whether the frame was sent to many: the kernel sends none such on to a neighbour.
    #[inline(always)]
    pub(crate) fn is_for_many(&self) -> bool {
        // SAFETY: as in `ifindex`.
        let kind = unsafe { (*self.skb()).pkt_type };
        kind == PACKET_BROADCAST || kind == PACKET_MULTICAST
    }

    /// Bytes of the frame from the IP header on, Ethernet padding included.
    #[inline(always)]
    pub(crate) fn l3_len(&self) -> u32 {
        self.ctx.len().saturating_sub(L3)
    }

    /// Payload bytes of each segment that an aggregated skb will be cut into; zero when it is one packet.
    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).gso_size }
    }

    /// Segments of an aggregated skb; zero when it is one packet or nobody counted.
    #[inline(always)]
    pub(crate) fn gso_segs(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).gso_segs }
    }

    /// The bytes at `offset` as a `T`, which must be plain bytes; nothing when the packet ends before.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(&self, offset: u32) -> Option<T> {
        self.ctx.load(offset as usize).ok()
    }

    /// The byte at `offset`, read where it lies if the kernel has it in one piece: for what is asked of
    /// almost every packet, since the helper behind [`Packet::load`] costs more than all the rest of the question.
    #[inline(always)]
    pub(crate) fn byte(&self, offset: u32) -> Option<u8> {
        // As a bound of a pointer the offset would matter to the verifier wherever it came from.
        let offset = Forgotten::new(offset).get();
        if offset <= NEAR {
            let at = self.ctx.data() + offset as usize;
            // One more than is needed: of `at < end`, into which the compiler turns the other, the verifier
            // learns nothing.
            if at + 2 <= self.ctx.data_end() {
                // SAFETY: within the packet, as was just compared; the verifier checks it again.
                return Some(unsafe { *(at as *const u8) });
            }
        }
        self.load(offset)
    }

    /// Reads the bytes at `offset` into a place of the caller's, and says whether the packet has them.
    ///
    /// Where [`Packet::load`] would put one more copy on the stack.
    #[inline(always)]
    pub(crate) fn load_addr(&self, offset: u32, into: &mut Addr) -> bool {
        let place = into.0.as_mut_ptr().cast();
        // SAFETY: `into` is 16 bytes that the caller owns, and any 16 bytes are an address.
        unsafe { bpf_skb_load_bytes(self.skb().cast(), offset, place, 16) == 0 }
    }

    /// The MACs of the frame: destination, then source.
    #[inline(always)]
    pub(crate) fn macs(&self) -> Option<(Mac, Mac)> {
        let macs: [Mac; 2] = self.load(0)?;
        Some((macs[0], macs[1]))
    }

    /// Lowers an IPv4 TTL by one and mends the header checksum (RFC 1624).
    #[inline(always)]
    pub(crate) fn lower_ttl(&self, ttl: u8, protocol: u8) -> Result<(), DropReason> {
        let old = u16::from_ne_bytes([ttl, protocol]);
        let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
        self.ctx
            .l3_csum_replace((L3 + IPV4_CHECKSUM) as usize, old.into(), new.into(), 2)
            .map_err(|_| DropReason::RedirectFailed)?;
        // The header's sum stays what it was, so a CHECKSUM_COMPLETE skb needs no mending.
        self.ctx
            .store((L3 + IPV4_TTL) as usize, &ttl.wrapping_sub(1), 0)
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Lowers an IPv6 hop limit by one.
    #[inline(always)]
    pub(crate) fn lower_hop_limit(&self, hop_limit: u8) -> Result<(), DropReason> {
        // No checksum in the header: the skb's own, where it has one, changes.
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        self.ctx
            .store(
                (L3 + IPV6_HOP_LIMIT) as usize,
                &hop_limit.wrapping_sub(1),
                flags,
            )
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Writes both MACs.
    #[inline(always)]
    pub(crate) fn set_macs(&self, destination: Mac, source: Mac) -> Result<(), DropReason> {
        self.ctx
            .store(ETH_DESTINATION as usize, &destination, 0)
            .map_err(|_| DropReason::RedirectFailed)?;
        self.ctx
            .store(ETH_SOURCE as usize, &source, 0)
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Sends the packet out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(&self, ifindex: u32) -> Result<(), DropReason> {
        // SAFETY: a helper without pointers.
        redirected(unsafe { bpf_redirect(ifindex, 0) })
    }

    /// Sends the packet out of `ifindex` to an on-link neighbour, which the kernel resolves.
    #[inline(always)]
    pub(crate) fn redirect_to_neighbour(
        &self,
        ifindex: u32,
        next_hop: &Addr,
    ) -> Result<(), DropReason> {
        let mut neighbour = if next_hop.is_v4() {
            bpf_redir_neigh {
                nh_family: AF_INET,
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: [next_hop.words()[3], 0, 0, 0],
                },
            }
        } else {
            bpf_redir_neigh {
                nh_family: AF_INET6,
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: next_hop.words(),
                },
            }
        };
        // SAFETY: `neighbour` lives on the stack for the call and has the length that is given.
        redirected(unsafe { bpf_redirect_neigh(ifindex, &mut neighbour, NEIGHBOUR_LEN, 0) })
    }
}

#[inline(always)]
fn redirected(action: i64) -> Result<(), DropReason> {
    if action == i64::from(aya_ebpf::bindings::TC_ACT_REDIRECT) {
        Ok(())
    } else {
        Err(DropReason::RedirectFailed)
    }
}
