//! What both sides of the kernel boundary share: keys, values, reasons, names and capacities.
//!
//! Every type here that lives in a BPF map is `repr(C)` without padding, which the const assertions
//! beside it prove. Multi-byte fields are in host byte order unless their type says "wire".
#![no_std]

pub mod addr;
pub mod cells;
pub mod counter;
pub mod drop;
pub mod flow;
pub mod gateway;
pub mod keys;
pub mod maps;
pub mod nat;
pub mod overlay;
pub mod pod;
pub mod probe;
pub mod table;
pub mod trie;
pub mod verdict;

pub use addr::{Addr, Family, Mac, WireU16};
pub use drop::DropReason;

/// Implements aya's `Pod` where the loader needs it, after proving the layout.
macro_rules! map_type {
    ($ty:ty, size = $size:literal, align = $align:literal) => {
        const _: () = assert!(size_of::<$ty>() == $size && align_of::<$ty>() == $align);
        // SAFETY: `repr(C)` or `repr(transparent)` over integers, and the assertion above leaves no
        // room for padding: every bit pattern is a value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $ty {}
    };
}
pub(crate) use map_type;
