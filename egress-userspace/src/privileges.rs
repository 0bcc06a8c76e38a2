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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use std::collections::BTreeSet;

    use clap::Parser as _;
    use serde_json::Value;

    use super::*;
    use crate::cli::Cli;

    const UNIT: &str = include_str!("../../deploy/egress.service");
    const MANIFEST: &str = include_str!("../../deploy/daemonset.yaml");

    fn needed() -> BTreeSet<String> {
        let names = NEEDED.iter().map(|(capability, _)| capability.to_string());
        names.collect()
    }

    fn setting(name: &str) -> &'static str {
        let mut found = UNIT
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let value = found.next().unwrap();
        assert_eq!(found.next(), None, "{name} is there twice");
        value
    }

    fn agent() -> Value {
        let manifest: Value = serde_saphyr::from_str(MANIFEST).unwrap();
        manifest["spec"]["template"]["spec"]["containers"][0].clone()
    }

    #[test]
    fn the_unit_names_the_same_capabilities() {
        let named = setting("CapabilityBoundingSet").split(' ');
        assert_eq!(named.map(str::to_owned).collect::<BTreeSet<_>>(), needed());
        assert_eq!(setting("NoNewPrivileges"), "yes");
        assert!(
            !UNIT.contains("\nAmbientCapabilities"),
            "the service is root's and needs none"
        );
    }

    #[test]
    fn the_unit_is_started_however_often_it_fails_and_never_stopped_for_not_being_ready() {
        assert_eq!(setting("Restart"), "always");
        assert_eq!(setting("StartLimitIntervalSec"), "0");
        // `DefaultTimeoutStartSec`, which the unit leaves as it is.
        assert!(!UNIT.contains("\nTimeoutStartSec"));
        assert!(crate::agent::SUPERVISOR_WAITS < std::time::Duration::from_secs(90));
    }

    #[test]
    fn the_manifest_names_the_same_capabilities() {
        let context = &agent()["securityContext"];
        let named = context["capabilities"]["add"].as_array().unwrap();
        let named = named
            .iter()
            .map(|name| format!("CAP_{}", name.as_str().unwrap()));
        assert_eq!(named.collect::<BTreeSet<_>>(), needed());
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["privileged"], false);
    }

    #[test]
    fn both_start_an_agent_that_understands_its_arguments() {
        let command = agent()["command"].clone();
        let command = command.as_array().unwrap().iter();
        let manifest: Vec<_> = command.map(|word| word.as_str().unwrap()).collect();
        let unit: Vec<_> = setting("ExecStart").split(' ').collect();
        for words in [manifest, unit] {
            let parsed = Cli::try_parse_from(&words);
            assert!(parsed.is_ok(), "{words:?}: {}", parsed.unwrap_err());
        }
    }
}
