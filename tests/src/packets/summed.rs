//! Test-runs of packets whose sum a device computed (`CHECKSUM_COMPLETE`), which the kernel keeps beside them.
//!
//! Every change of such a packet has to be made to that sum too, unless one of the packet's own checksums makes up for it.
//! Kernels since 6.11 compare both afterwards (kernel commit a3cfe84cca28). aya has no way to ask for that.
#![expect(unsafe_code, reason = "a call of the system that nothing wraps")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::programs::SchedClassifier;
use nix::libc;

/// A command and a flag of `bpf()` (`linux/bpf.h`).
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// The fields of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// What a program made of a frame and a context.
pub(super) struct Outcome {
    pub(super) returned: u32,
    pub(super) length: usize,
}

/// Runs a frame with its sum through a program once, and puts what becomes of frame and context into `out` and
/// `context_out`.
///
/// # Errors
/// `EINVAL` if the kernel does not know of such packets; `EBADMSG` if the sum is not that of the frame any more.
pub(super) fn run(
    program: &SchedClassifier,
    frame: &[u8],
    out: &mut [u8],
    context: &[u8],
    context_out: &mut [u8],
) -> io::Result<Outcome> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let fd = program.fd().map_err(io::Error::other)?;
    let mut attributes = Attributes {
        prog_fd: u32::try_from(fd.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        retval: 0,
        data_size_in: length(frame)?,
        data_size_out: length(out)?,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
        ctx_size_in: length(context)?,
        ctx_size_out: length(context_out)?,
        ctx_in: context.as_ptr() as u64,
        ctx_out: context_out.as_mut_ptr() as u64,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        cpu: 0,
        batch_size: 0,
        pad: 0,
    };
    // SAFETY: the attributes are as long as is said, and every place that they name lives in the caller's frame and is
    // as long as they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Outcome {
        returned: attributes.retval,
        length: usize::try_from(attributes.data_size_out).map_err(io::Error::other)?,
    })
}
