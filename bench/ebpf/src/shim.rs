//! Makes the packet one of some flow, as cold as a flow's packet is in life, and hands over to the program under test.
//!
//! Of a flow no more is kept than what tells it from others: tables of whole headers would push out of the caches what
//! the programs look up. It is written word by word, as programs read it: a processor hands on what was just stored
//! only to loads of no more than one store wrote, and packets in life were stored long ago.
//!
//! All of what a program may have changed is written again: the test-run goes on with what the run before left.

use core::{arch::asm, ptr};

use aya_ebpf::{
    bindings::bpf_tunnel_key,
    helpers::generated::{bpf_get_prandom_u32, bpf_skb_set_tunnel_key},
    macros::map,
    maps::{Array, ProgramArray},
    programs::TcContext,
};

/// What no program under test returns.
const FAILED: i32 = 98;
/// Sixteen bytes of a frame.
type Piece = [u32; 4];
/// How many of them a flow has at most.
const MOST: usize = 4;
/// Bytes of a frame's two MACs.
const MACS: usize = 12;
const TUNNEL_KEY_LEN: u32 = 44;
const _: () = assert!(size_of::<bpf_tunnel_key>() == 44);

/// [`FLOW_PIECES`] for each flow.
#[map]
static PIECES: Array<Piece> = Array::with_max_entries(1, 0);

/// The MACs of frames, where they are not all the same: destination, then source, in the first three words.
#[map]
static HEADS: Array<Piece> = Array::with_max_entries(1, 0);

/// Which flow is next, of those that come one after the other.
#[map]
static CURSOR: Array<u32> = Array::with_max_entries(1, 0);

/// The one program under test.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// How many flows there are.
#[unsafe(no_mangle)]
static FLOWS: u32 = 0;
/// How many pieces each has.
#[unsafe(no_mangle)]
static FLOW_PIECES: u32 = 0;
/// Where in a frame they begin.
#[unsafe(no_mangle)]
static FROM: u32 = 0;
/// The MACs of all frames, if they are the same.
#[unsafe(no_mangle)]
static FRAME_MACS: [u32; 3] = [0; 3];
/// How many heads there are. Where there is more than one, the first byte of a flow's first piece says which it has, in place
/// of what all frames have there, `FIRST_BYTE`: eight gateways' MACs are not worth another sixteen bytes for each flow.
#[unsafe(no_mangle)]
static FRAME_HEADS: u32 = 1;
/// See `FRAME_HEADS`.
#[unsafe(no_mangle)]
static FIRST_BYTE: u8 = 0;
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
    if write(ctx, index).is_none() {
        return FAILED;
    }
    if read(&raw const TUNNEL) != 0 && !set_tunnel(ctx) {
        return FAILED;
    }
    // SAFETY: nothing here has to be dropped.
    unsafe { TARGET.tail_call(ctx, 0) };
    FAILED
}

/// Writes a flow's headers.
#[inline(always)]
fn write(ctx: &TcContext, index: u32) -> Option<()> {
    let from = read(&raw const FROM) as usize;
    let pieces = read(&raw const FLOW_PIECES);
    let frame = ctx.data();
    if from > size_of::<Piece>() * 2 || frame + from + MOST * size_of::<Piece>() > ctx.data_end() {
        return None;
    }
    let first = index.checked_mul(pieces)?;
    let has_heads = read(&raw const FRAME_HEADS) > 1;
    if !has_heads {
        set_macs(
            frame,
            [0, 1, 2].map(|word| read(&raw const FRAME_MACS[word])),
        );
    }
    for (number, piece) in (0..MOST).zip(first..) {
        if piece - first >= pieces {
            break;
        }
        for (place, word) in PIECES.get(piece)?.iter().enumerate() {
            let mut word = *word;
            if has_heads && number == 0 && place == 0 {
                let [head, rest @ ..] = word.to_ne_bytes();
                let [a, b, c, _] = *HEADS.get(head.into())?;
                set_macs(frame, [a, b, c]);
                let [b, c, d] = rest;
                word = u32::from_ne_bytes([read(&raw const FIRST_BYTE), b, c, d]);
            }
            let at = frame + from + number * size_of::<Piece>() + place * 4;
            // SAFETY: the frame is that long.
            unsafe { set_word(at, word) };
        }
    }
    Some(())
}

/// Writes the MACs of a frame that is long enough.
#[inline(always)]
fn set_macs(frame: usize, words: [u32; MACS / 4]) {
    for (number, word) in words.into_iter().enumerate() {
        // SAFETY: the caller says so, and the verifier checks it again.
        unsafe { set_word(frame + number * 4, word) };
    }
}

/// Stores a word with one instruction, whatever the address: the compiler would store its bytes.
///
/// # Safety
/// The packet must have four bytes there.
#[inline(always)]
unsafe fn set_word(at: usize, word: u32) {
    // SAFETY: the caller says so, and the verifier checks it again.
    unsafe {
        asm!(
            "*(u32 *)({at} + 0) = {word}",
            at = in(reg) at,
            word = in(reg) u64::from(word),
            options(nostack),
        );
    }
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
fn read<T: Copy>(number: *const T) -> T {
    // SAFETY: a static of the read-only section, read as the loader left it.
    unsafe { ptr::read_volatile(number) }
}
