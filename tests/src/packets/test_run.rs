//! One run of a program: what it is given, and what it made of that.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::{TestRun, TestRunOptions, programs::SchedClassifier};
use egress_userspace::kernel::Program;
use nix::libc;

use super::{build::hex, seed::POD, summed};

/// Room for a frame: what the kernel takes is less than a page.
pub(super) const LARGEST: usize = 4096;

/// Offsets within `struct __sk_buff`, and its length (`linux/bpf.h`).
pub(crate) const MARK: usize = 8;
const RECEIVED_BY: usize = 36;
pub(crate) const IFINDEX: usize = 40;
pub(crate) const GSO_SEGS: usize = 164;
pub(crate) const GSO_SIZE: usize = 176;
pub(crate) const CONTEXT: usize = 192;

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `TC_ACT_UNSPEC`: the kernel goes on with the packet.
    Pass,
    /// `TC_ACT_SHOT`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Anything else.
    Other(u32),
}

/// A packet with what the kernel keeps beside it.
#[derive(Clone, Debug)]
pub struct Input {
    /// Which program sees it.
    pub program: Program,
    /// The interface it comes in by.
    pub ifindex: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// `gso_size` and `gso_segs`.
    pub gso: (u32, u32),
    /// The mark that it carries.
    pub mark: u32,
    /// The interface that it was received by, where it is on its way out; zero if nobody received it.
    pub received_by: u32,
}

impl Input {
    /// A frame from a pod.
    #[must_use]
    pub fn from_pod(frame: &[u8]) -> Self {
        Self {
            program: Program::FromPod,
            ifindex: POD,
            frame: frame.to_vec(),
            gso: (0, 0),
            mark: 0,
            received_by: 0,
        }
    }

    /// A frame that the node hands to a pod.
    #[must_use]
    pub fn to_pod(frame: &[u8]) -> Self {
        Self {
            program: Program::ToPod,
            ..Self::from_pod(frame)
        }
    }

    /// The `struct __sk_buff` that the kernel is given beside the frame.
    pub(super) fn context(&self) -> [u8; CONTEXT] {
        let mut context = [0; CONTEXT];
        for (offset, value) in [
            (MARK, self.mark),
            (RECEIVED_BY, self.received_by),
            (IFINDEX, self.ifindex),
            (GSO_SIZE, self.gso.0),
            (GSO_SEGS, self.gso.1),
        ] {
            set(&mut context, offset, value);
        }
        context
    }

    /// The packet for a panic's message.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} on interface {}, gso {:?}, {} bytes: {}",
            self.program.name(),
            self.ifindex,
            self.gso,
            self.frame.len(),
            hex(&self.frame)
        )
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What the program returned.
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The mark afterwards.
    pub mark: u32,
}

/// Sets a word of a context.
pub(crate) fn set(context: &mut [u8; CONTEXT], offset: usize, value: u32) {
    context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Runs a frame through a program, with the sum that a device has computed of it if the kernel knows such packets; the
/// context is a `struct __sk_buff`.
pub(crate) fn test_run_summed(
    program: &SchedClassifier,
    frame: &[u8],
    context: &[u8; CONTEXT],
) -> Result<Seen> {
    let mut out = vec![0; LARGEST];
    let mut context_out = [0_u8; CONTEXT];
    match summed::run(program, frame, &mut out, context, &mut context_out) {
        Ok(outcome) => {
            out.truncate(outcome.length);
            seen(outcome.returned, out, &context_out)
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(test_run(program, frame, context, 1)?.0)
        }
        Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => {
            Err(error).context("the sum that a device has computed was not kept right")
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs a frame through a program so often, and tells how long a run took; the context is a `struct __sk_buff`.
pub(crate) fn test_run(
    program: &SchedClassifier,
    frame: &[u8],
    context: &[u8; CONTEXT],
    repeat: u32,
) -> Result<(Seen, Duration)> {
    let mut out = vec![0; LARGEST];
    let mut context_out = [0_u8; CONTEXT];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(context),
        ctx_out: Some(&mut context_out),
        repeat,
        ..TestRunOptions::default()
    })?;
    out.truncate(usize::try_from(result.data_size_out)?);
    Ok((
        seen(result.return_value, out, &context_out)?,
        result.duration,
    ))
}

fn seen(returned: u32, frame: Vec<u8>, context: &[u8; CONTEXT]) -> Result<Seen> {
    Ok(Seen {
        action: match returned {
            u32::MAX => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => Action::Other(other),
        },
        frame,
        mark: u32::from_ne_bytes(context[MARK..MARK + 4].try_into()?),
    })
}
