//! Programs in the kernel, ours and the references, with the maps that a world fills them with.

mod network;
mod ours;
mod references;
mod shim;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::Map,
    programs::{SchedClassifier, TcAttachType},
};

pub(crate) use self::{
    network::{Network, OVERLAY, POD, UPLINK},
    ours::{Capacity, Ours, gateway_name, next_hop, resolved},
    references::{Connection, Reference, References, verdict},
    shim::{Shim, Tunnel},
};

/// The reference programs and the shim.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.bpf.o"));

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `TC_ACT_UNSPEC`.
    Pass,
    /// `TC_ACT_SHOT`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Anything else: nothing that is measured here returns it.
    Other(u32),
}

impl From<u32> for Action {
    fn from(value: u32) -> Self {
        match value {
            u32::MAX => Self::Pass,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// Loads a program of the references' object.
fn load<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .with_context(|| format!("the object of the references has no program {name}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel's verifier refuses the reference program {name}"))?;
    Ok(program)
}

/// Attaches a program, for as long as it is loaded, to what the calling thread's namespace knows by that name.
fn attach(program: &mut SchedClassifier, interface: &str, direction: TcAttachType) -> Result<()> {
    let attached = program.attach(interface, direction);
    attached.with_context(|| format!("cannot attach a program to {interface}"))?;
    Ok(())
}

/// A map of that object, to be held on its own.
pub(crate) fn taken<T>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<Map, Error: std::error::Error + Send + Sync + 'static>,
{
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the object of the references has no map {name}"))?;
    Ok(map.try_into()?)
}
