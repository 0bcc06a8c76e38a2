//! What the agent may do: what it needs, and nothing else from its start on.

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

use crate::kernel::{self, Paths};

/// The capabilities that the agent keeps, with what each is for. The unit and the manifest in `deploy` name the same.
pub const NEEDED: [(Capability, &str); 4] = [
    (
        Capability::CAP_BPF,
        "loading programs, making and reading maps",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "attaching programs, the overlay device, egress addresses, nftables",
    ),
    (
        Capability::CAP_PERFMON,
        "programs whose verification follows pointers",
    ),
    (
        Capability::CAP_NET_RAW,
        "announcing egress addresses to neighbours",
    ),
];

/// Does what takes more than the agent will keep, and gives the rest up: from all sets, for this thread and all that it
/// starts, and for whatever they execute.
///
/// What takes more is mounting the BPF file system (CAP_SYS_ADMIN) and, before Linux 5.11, a limit for maps
/// (CAP_SYS_RESOURCE); both last, and neither is needed where somebody else has seen to it.
///
/// # Errors
/// A capability that is needed is missing, or the kernel refuses.
pub fn keep_what_is_needed(paths: &Paths) -> Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read own capabilities")?;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(capability, _)| !permitted.contains(capability))
        .map(|(capability, what)| format!("{capability} ({what})"))
        .collect();
    if !missing.is_empty() {
        bail!(
            "{} missing: run with sudo, or `cargo xtask run -- …`, which elevates by itself, or give the service \
             these capabilities",
            missing.join(", ")
        );
    }
    paths.mount()?;
    kernel::raise_memlock_limit();

    let kept: CapsHashSet = NEEDED.iter().map(|(capability, _)| *capability).collect();
    let give_up = || -> std::result::Result<(), caps::errors::CapsError> {
        // What cannot be had again need not be taken from the bounding set, which takes CAP_SETPCAP: a container's
        // has been made small by whoever started it, and nothing that is executed gains anything below.
        if permitted.contains(&Capability::CAP_SETPCAP) {
            caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
            for capability in caps::runtime::thread_all_supported().difference(&kept) {
                caps::drop(None, CapSet::Bounding, *capability)?;
            }
        }
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        // In this order, since what is effective must be permitted.
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    };
    give_up().context("cannot give capabilities up")?;
    prctl::set_no_new_privs().context("cannot give up gaining privileges")
}
