//! Waiting until no packet in flight can hold an id that was given back.

use std::io;

/// `MEMBARRIER_CMD_GLOBAL` of `linux/membarrier.h`: returns after an RCU grace period, and so after every
/// BPF program that ran when it was called has ended.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for a grace period.
///
/// # Errors
/// What the kernel says: `EINVAL` on a CPU set with `nohz_full`, `ENOSYS` without `CONFIG_MEMBARRIER`.
pub(super) fn wait() -> io::Result<()> {
    let (flags, cpu) = (0_i32, 0_i32);
    // SAFETY: the call takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, flags, cpu) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
