//! What comes in from outside, as bytes, and what must hold whatever they are.
//!
//! Each [`Target`] is a function that panics when something is wrong. libFuzzer runs it (`fuzz/`, `cargo xtask test
//! --fuzz`), and so does an ordinary test, with what is kept in `fuzz/corpus` and changes of that ([`corpus`]).
#![expect(
    clippy::panic,
    reason = "a broken promise is a panic, with what broke it"
)]

mod cidr;
mod config;
pub mod corpus;
mod feedback;
mod packets;
mod selector;
mod steered;
mod yaml;

pub use feedback::{FEATURES, listen};

/// Something that reads what others write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file of resources, to the content of the maps.
    Yaml,
    /// Calico's selectors.
    Selector,
    /// Prefixes, as text and as what the longest of them decides.
    Cidr,
    /// The configuration file, the command line, the file with the overlay's keys.
    Config,
    /// Frames that a pod sends, gets, or has answered by a next hop.
    PodPacket,
    /// Frames that come out of the overlay, from nodes and from others.
    OverlayFrame,
    /// Frames that come in by the uplink of a node that translates.
    UplinkPacket,
}

impl Target {
    /// Every target.
    pub const ALL: &[Self] = &[
        Self::Yaml,
        Self::Selector,
        Self::Cidr,
        Self::Config,
        Self::PodPacket,
        Self::OverlayFrame,
        Self::UplinkPacket,
    ];

    /// Its name: of the fuzz target, and of its folder in the corpus.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Selector => "selector",
            Self::Cidr => "cidr",
            Self::Config => "config",
            Self::PodPacket => "pod_packet",
            Self::OverlayFrame => "overlay_frame",
            Self::UplinkPacket => "uplink_packet",
        }
    }

    /// Reads these bytes, and panics if something that must hold does not.
    pub fn run(self, data: &[u8]) {
        match self {
            Self::Yaml => yaml::run(data),
            Self::Selector => selector::run(data),
            Self::Cidr => cidr::run(data),
            Self::Config => config::run(data),
            Self::PodPacket => packets::run(packets::Side::Pod, data),
            Self::OverlayFrame => packets::run(packets::Side::Overlay, data),
            Self::UplinkPacket => packets::run(packets::Side::Uplink, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_target_is_one_of_libfuzzers() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap_or_default();
        for target in Target::ALL {
            let path = format!("fuzz_targets/{}.rs", target.name());
            let text = fs::read_to_string(fuzz.join(&path)).unwrap_or_default();
            assert!(
                text.contains(&format!("Target::{target:?}")),
                "{path}: {text}"
            );
            assert!(manifest.contains(&format!("path = \"{path}\"")), "{path}");
        }
        let files = fs::read_dir(fuzz.join("fuzz_targets")).map(Iterator::count);
        assert_eq!(
            files.ok(),
            Some(Target::ALL.len()),
            "a target that no test runs"
        );
    }
}
