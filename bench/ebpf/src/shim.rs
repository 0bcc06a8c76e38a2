//! Makes the packet one of some flow, as cold as a flow's packet is in life, and hands over to the program under test.
//!
//! All of what a program may have changed is written again: the test-run goes on with what the run before left.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_tunnel_key,
    helpers::generated::{bpf_get_prandom_u32, bpf_skb_set_tunnel_key, bpf_skb_store_bytes},
    macros::map,
    maps::{Array, ProgramArray},
    programs::TcContext,
};

/// What no program under test returns.
const FAILED: i32 = 98;
/// A frame's headers: Ethernet, IPv4 or IPv6, ports.
type Template = [u64; 8];
const TUNNEL_KEY_LEN: u32 = 44;
const _: () = assert!(size_of::<bpf_tunnel_key>() == 44);

#[map]
static TEMPLATES: Array<Template> = Array::with_max_entries(1, 0);

/// Which flow is next, of those that come one after the other.
#[map]
static CURSOR: Array<u32> = Array::with_max_entries(1, 0);

/// The one program under test.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// How many templates there are.
#[unsafe(no_mangle)]
static FLOWS: u32 = 0;
/// How many bytes of each are written.
#[unsafe(no_mangle)]
static LENGTH: u32 = 0;
/// The network identifier of the tunnel that packets seem to come from; zero is none.
#[unsafe(no_mangle)]
static TUNNEL: u32 = 0;
/// The far end of that tunnel, in host order.
#[unsafe(no_mangle)]
static TUNNEL_SOURCE: u32 = 0;

/// Any flow.
#[inline(always)]
pub(crate) fn random(ctx: &TcContext) -> i32 {
    // SAFETY: a call without arguments.
    let number = unsafe { bpf_get_prandom_u32() };
    let flows = read(&raw const FLOWS);
    if flows == 0 {
        return FAILED;
    }
    run(ctx, number % flows)
}

/// The next flow, and after the last the first.
#[inline(always)]
pub(crate) fn in_order(ctx: &TcContext) -> i32 {
    let Some(cursor) = CURSOR.get_ptr_mut(0) else {
        return FAILED;
    };
    // SAFETY: an aligned word; only one thread runs this program.
    let index = unsafe { *cursor };
    // SAFETY: likewise.
    unsafe {
        *cursor = if index + 1 < read(&raw const FLOWS) {
            index + 1
        } else {
            0
        }
    };
    run(ctx, index)
}

#[inline(always)]
fn run(ctx: &TcContext, index: u32) -> i32 {
    let Some(template) = TEMPLATES.get(index) else {
        return FAILED;
    };
    let length = read(&raw const LENGTH);
    if length == 0 || length as usize > size_of::<Template>() {
        return FAILED;
    }
    let from = ptr::from_ref(template).cast();
    // SAFETY: the template is at least as long as is said.
    if unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, from, length, 0) } != 0 {
        return FAILED;
    }
    if read(&raw const TUNNEL) != 0 && !set_tunnel(ctx) {
        return FAILED;
    }
    // SAFETY: nothing here has to be dropped.
    unsafe { TARGET.tail_call(ctx, 0) };
    FAILED
}

/// Gives the packet what tells where it came from: a tunnel's own device leaves the same.
#[inline(always)]
fn set_tunnel(ctx: &TcContext) -> bool {
    // SAFETY: all zeroes are one of these.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = read(&raw const TUNNEL);
    key.tunnel_ttl = 64;
    key.__bindgen_anon_3.local_ipv4 = read(&raw const TUNNEL_SOURCE);
    // SAFETY: the key lives for the call, and is as long as is said.
    unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, &raw mut key, TUNNEL_KEY_LEN, 0) == 0 }
}

#[inline(always)]
fn read(number: *const u32) -> u32 {
    // SAFETY: a static of the read-only section, read as the loader left it.
    unsafe { ptr::read_volatile(number) }
}
