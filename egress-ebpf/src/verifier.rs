//! What the kernel's verifier needs to come to an end.

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
