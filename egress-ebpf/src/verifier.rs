//! What the kernel's verifier needs to come to an end.
//!
//! It follows a function of ours once for each state in which it is called, but a *global* one, which has a name that
//! is exported, only once (kernel commit 51c39bb1d5d1): it takes the context and numbers, and gives a number, of which
//! the caller then knows nothing. The heavy stages are such functions; what else they need is in maps of this CPU.

use egress_common::DropReason;

/// From here on what a global function gives is a reason, not a number.
const FAILED: u32 = 1 << 24;

/// What a global function gives for an outcome.
#[inline(always)]
pub(crate) fn told(outcome: Result<u32, DropReason>) -> u32 {
    match outcome {
        Ok(number) => number,
        Err(reason) => FAILED | reason as u32,
    }
}

/// The outcome that a global function has told of: numbers below 2^24.
#[inline(always)]
pub(crate) fn outcome(told: u32) -> Result<u32, DropReason> {
    if told < FAILED {
        return Ok(told);
    }
    #[expect(clippy::cast_possible_truncation, reason = "reasons are bytes")]
    let reason = DropReason::from_number(told as u8);
    Err(reason.unwrap_or(DropReason::StateMissing))
}

/// Has a place of this CPU's be taken for one that the next call may read and write: it does, by the map that it is in.
#[inline(always)]
pub(crate) fn escape<T>(place: &mut T) {
    let mut place: *mut T = place;
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) place, options(nostack));
    }
    let _ = place;
}

/// The same pointer, which no CPU has before it has the number: what is read there was written no earlier than what
/// the writer wrote before the number.
#[inline(always)]
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "it is a number here: nothing is read by it"
)]
pub(crate) fn after<T>(pointer: *const T, number: u64) -> *const T {
    let mut pointer = pointer;
    // SAFETY: a sum of registers; what is added is zero, and the verifier sees that.
    unsafe {
        core::arch::asm!(
            "{number} &= 0",
            "{pointer} += {number}",
            number = inout(reg) number => _,
            pointer = inout(reg) pointer,
            options(pure, nomem, nostack),
        );
    }
    pointer
}

/// The same number, of which the compiler does not know where it comes from: it would make branches of arithmetic.
#[inline(always)]
pub(crate) fn kept(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack));
    }
    number
}

/// A place where the verifier loses sight of a number.
///
/// It would follow every way through a search for itself. The upper half of a word of stack is one that it
/// does not follow, so all ways through a step lead to one state.
#[repr(C, align(8))]
pub(crate) struct Forgotten {
    lower: u32,
    number: u32,
}

impl Forgotten {
    #[inline(always)]
    pub(crate) fn new(number: u32) -> Self {
        let mut place = Self {
            lower: 0,
            number: 0,
        };
        place.set(number);
        place
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> u32 {
        // SAFETY: a field of our own.
        unsafe { core::ptr::read_volatile(&raw const self.number) }
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, number: u32) {
        // SAFETY: as in `get`.
        unsafe { core::ptr::write_volatile(&raw mut self.number, number) };
    }
}

/// The same for a number that fits a byte, such as an offset within options.
///
/// It would follow every sum of option lengths for itself, millions of them. A byte in the middle of a
/// word of stack is one that it does not follow either.
#[repr(align(8))]
pub(crate) struct ForgottenByte([u8; 8]);

impl ForgottenByte {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self([0; 8])
    }

    /// The number again; anything above a byte is as good as the largest byte, which no header reaches.
    #[inline(always)]
    pub(crate) fn forget(&mut self, number: u32) -> u32 {
        let byte = u8::try_from(number).unwrap_or(u8::MAX);
        // SAFETY: a byte of our own, written and read where it lies.
        unsafe {
            core::ptr::write_volatile(&raw mut self.0[3], byte);
            u32::from(core::ptr::read_volatile(&raw const self.0[3]))
        }
    }
}
