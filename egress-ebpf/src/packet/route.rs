//! What the kernel's routes say.

use aya_ebpf::helpers::bpf_fib_lookup;

use super::Packet;

/// `struct bpf_fib_lookup`; what neither the kernel nor we read is not named. Addresses are as on the wire, IPv4 in the
/// first word. The answer is put into it: family, interface, and in `destination` the next hop.
#[repr(C)]
pub(crate) struct Question {
    /// `AF_INET` or `AF_INET6`.
    pub(crate) family: u8,
    /// The protocol above IP.
    pub(crate) protocol: u8,
    /// Source and destination port, in the order of the wire.
    pub(crate) ports: [u16; 2],
    /// Zero: whether the packet fits is not asked.
    pub(crate) length: u16,
    /// The interface that the packet comes in by or, with `BPF_FIB_LOOKUP_OUTPUT`, leaves by.
    pub(crate) ifindex: u32,
    /// Traffic class; for IPv6 the flow label, too.
    pub(crate) class: u32,
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    /// Tags and MACs of the answer.
    pub(crate) link: [u32; 4],
}
const LENGTH: i32 = 64;
const _: () = assert!(size_of::<Question>() == LENGTH as usize);

impl Packet<'_> {
    /// Asks the kernel's routes as `bpf_fib_lookup` does, and gives what that returns.
    #[inline(always)]
    pub(crate) fn look_up_route(&self, question: &mut Question, flags: u32) -> i64 {
        let question = core::ptr::from_mut(question).cast();
        // SAFETY: the kernel passes a valid context; the question is as long as is said, and any bytes are an answer.
        unsafe { bpf_fib_lookup(self.skb().cast(), question, LENGTH, flags) }
    }
}
