//! The tables of the reference programs: filled by the benchmark, of the size that a scene needs.

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::map,
    maps::{
        HashMap, LruHashMap, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::TcContext,
};

use crate::packet::{self, Flow};

/// What a trie says of what is the kernel's to route; every other number is a gateway's.
const LOCAL: u32 = 0;

#[repr(C)]
struct PodKey {
    ifindex: u32,
    address: u32,
}

#[repr(C)]
struct Count {
    packets: u64,
    bytes: u64,
}

/// What a connection's source becomes, in the order of the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub(crate) address: u32,
    pub(crate) port: u16,
    pad: u16,
}

/// Pod → its number and its policy's.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pod {
    number: u32,
    policy: u32,
}

#[map]
static PODS: HashMap<PodKey, Pod> = HashMap::with_max_entries(1, 0);

/// By pod, or by verdict.
#[map]
static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(1, 0);

#[map]
static BY_POLICY: LpmTrie<[u32; 2], u32> = LpmTrie::with_max_entries(1, 0);

#[map]
static BY_SOURCE: LpmTrie<[u32; 2], u32> = LpmTrie::with_max_entries(1, 0);

#[map]
static CONNECTIONS: LruHashMap<Flow, Source> = LruHashMap::with_max_entries(1, 0);

/// Bits of a trie's key: two words.
const WHOLE: u32 = 64;

/// Whose packet it is.
#[inline(always)]
pub(crate) fn pod(ctx: &TcContext, flow: &Flow) -> Option<Pod> {
    // SAFETY: the context is the kernel's, for as long as the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let key = PodKey {
        ifindex,
        address: flow.source,
    };
    // SAFETY: nobody changes the map while the programs run.
    unsafe { PODS.get(&key) }.copied()
}

/// What the pod's policy says.
#[inline(always)]
pub(crate) fn by_policy(pod: Pod, flow: &Flow) -> Option<u32> {
    let key = Key::new(WHOLE, [pod.policy, flow.destination]);
    BY_POLICY.get(&key).copied()
}

/// What is said of source and destination.
#[inline(always)]
pub(crate) fn by_source(flow: &Flow) -> Option<u32> {
    let key = Key::new(WHOLE, [flow.source, flow.destination]);
    BY_SOURCE.get(&key).copied()
}

/// What the connection's source becomes.
#[inline(always)]
pub(crate) fn connection(flow: &Flow) -> Option<Source> {
    // SAFETY: nobody changes the map while the programs run.
    unsafe { CONNECTIONS.get(flow) }.copied()
}

/// Counts a packet of a pod.
#[inline(always)]
pub(crate) fn count(ctx: &TcContext, pod: Pod) {
    count_at(ctx, pod.number);
}

/// Counts the packet and does what a trie said; what it knows nothing of is the kernel's.
#[inline(always)]
pub(crate) fn act(ctx: &TcContext, verdict: Option<u32>) -> i32 {
    let Some(verdict) = verdict else {
        return TC_ACT_UNSPEC;
    };
    count_at(ctx, verdict);
    if verdict == LOCAL {
        TC_ACT_UNSPEC
    } else {
        packet::redirect()
    }
}

#[inline(always)]
fn count_at(ctx: &TcContext, index: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element, and the program is not interrupted by itself.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(ctx.len());
        }
    }
}
