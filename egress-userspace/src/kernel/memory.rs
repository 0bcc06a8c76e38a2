//! Memory of the process that is not in use, and yet its own.

/// Gives back to the kernel what the allocator keeps for later: after much was built and dropped, that is most of it.
pub fn give_back() {
    // Other C libraries keep less, and have no such call.
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes a number, and touches nothing that is in use; it may be made from any thread.
        let _whether_any = unsafe { libc::malloc_trim(0) };
    }
}
