//! Makes the packet one of some flow, as cold as a flow's packet is in life, and hands over to the program under test.
//!
//! Of a flow no more is kept than the words that tell it from others: tables of whole headers would push out of the
//! caches what the programs look up, and those of IPv6 more than those of IPv4. It is written word by word, as programs
//! read it: a processor hands on what was just stored only to loads of no more than one store wrote, and packets in
//! life were stored long ago.
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
/// Two words of a frame: a map's smallest value.
type Pair = [u32; 2];
/// How many of them a flow has at most.
const PAIRS: usize = 4;
/// How many words there are at most that all flows share.
const SHARED: usize = 16;
/// Bytes of a frame that words may lie in.
const REACH: usize = 80;
const TUNNEL_KEY_LEN: u32 = 44;
const _: () = assert!(size_of::<bpf_tunnel_key>() == 44);

/// [`FLOW_PAIRS`] for each flow.
#[map]
static WORDS: Array<Pair> = Array::with_max_entries(1, 0);

/// The MACs of frames, where they are not all the same: destination, then source, in the first three words.
#[map]
static HEADS: Array<[u32; 4]> = Array::with_max_entries(1, 0);

/// Which flow is next, of those that come one after the other.
#[map]
static CURSOR: Array<u32> = Array::with_max_entries(1, 0);

/// The one program under test.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// How many flows there are.
#[unsafe(no_mangle)]
static FLOWS: u32 = 0;
/// How many pairs of words each has.
#[unsafe(no_mangle)]
static FLOW_PAIRS: u32 = 0;
/// Where in a frame these words lie.
#[unsafe(no_mangle)]
static FLOW_PLACES: [u32; PAIRS * 2] = [0; PAIRS * 2];
/// How many words are the same in all flows, and are written each time.
#[unsafe(no_mangle)]
static SHARED_COUNT: u32 = 0;
/// Where in a frame these lie.
#[unsafe(no_mangle)]
static SHARED_PLACES: [u32; SHARED] = [0; SHARED];
/// What they are.
#[unsafe(no_mangle)]
static SHARED_WORDS: [u32; SHARED] = [0; SHARED];
/// Which of a flow's words has, as its first byte, which head the flow has, in place of what all frames have there,
/// [`FIRST_BYTE`]: a few gateways' MACs are not worth eight bytes more for each flow. No word of any flow's if all frames
/// have the same MACs.
#[unsafe(no_mangle)]
static HEAD_WORD: u32 = u32::MAX;
/// See [`HEAD_WORD`].
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
    let frame = ctx.data();
    if frame + REACH > ctx.data_end() {
        return None;
    }
    let shared = read(&raw const SHARED_COUNT) as usize;
    for number in 0..SHARED {
        if number >= shared {
            break;
        }
        let place = place(read(&raw const SHARED_PLACES[number]))?;
        // SAFETY: the frame is that long.
        unsafe { set_word(frame + place, read(&raw const SHARED_WORDS[number])) };
    }
    let pairs = read(&raw const FLOW_PAIRS);
    let first = index.checked_mul(pairs)?;
    for (number, pair) in (0..PAIRS).zip(first..) {
        if pair - first >= pairs {
            break;
        }
        for (half, word) in WORDS.get(pair)?.iter().enumerate() {
            let mut word = *word;
            if number * 2 + half == read(&raw const HEAD_WORD) as usize {
                let [head, b, c, d] = word.to_ne_bytes();
                set_macs(frame, HEADS.get(head.into())?);
                word = u32::from_ne_bytes([read(&raw const FIRST_BYTE), b, c, d]);
            }
            let place = place(read(&raw const FLOW_PLACES[number * 2 + half]))?;
            // SAFETY: likewise.
            unsafe { set_word(frame + place, word) };
        }
    }
    Some(())
}

/// Writes the MACs of a frame that is long enough.
#[inline(always)]
fn set_macs(frame: usize, head: &[u32; 4]) {
    for (number, word) in head.iter().take(3).enumerate() {
        // SAFETY: the caller says so, and the verifier checks it again.
        unsafe { set_word(frame + number * 4, *word) };
    }
}

/// A word's place, if the word lies within [`REACH`].
#[inline(always)]
fn place(place: u32) -> Option<usize> {
    let place = place as usize;
    (place <= REACH - 4).then_some(place)
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
