//! The overlay between nodes: its flags, checked.

use std::path::PathBuf;

use anyhow::{bail, ensure};

use super::Flags;
use crate::{
    overlay_keys::{KeyError, OverlayKeys},
    resolve,
    resources::interface_fault,
};

/// The overlay's device unless a flag says otherwise.
pub const OVERLAY_DEVICE: &str = "egress.vxlan";
/// Its UDP port.
pub const OVERLAY_PORT: u16 = 4790;
/// Its network identifier.
pub const OVERLAY_VNI: u32 = 4097;
/// Network identifiers have 24 bits (RFC 7348, 5).
const LAST_VNI: u32 = (1 << 24) - 1;

/// The overlay between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayOptions {
    /// The name of the VXLAN device.
    pub device: String,
    /// Its UDP port.
    pub port: u16,
    /// Its network identifier.
    pub vni: u32,
    /// Where the keys are.
    pub key_file: PathBuf,
    /// Whether plain frames go past the kernel's stack.
    pub fast_path: bool,
}

impl OverlayOptions {
    /// Reads the keys, and gives what `resolve` needs to know: its settings have no overlay until then.
    ///
    /// # Errors
    /// If there are no good keys in the file.
    pub fn with_keys(&self) -> Result<resolve::Overlay, KeyError> {
        Ok(resolve::Overlay {
            device: self.device.clone(),
            port: self.port,
            vni: self.vni,
            keys: OverlayKeys::read(&self.key_file)?,
        })
    }
}

impl Flags {
    /// The overlay, if there is a key; what is wrong with its other flags is said in any case.
    pub(super) fn overlay(&self) -> anyhow::Result<Option<OverlayOptions>> {
        let device = self.overlay_device.as_deref().unwrap_or(OVERLAY_DEVICE);
        if let Some(fault) = interface_fault(device) {
            bail!("--overlay-device: {device:?} {fault}");
        }
        let port = self.overlay_port.unwrap_or(OVERLAY_PORT);
        ensure!(port > 0, "--overlay-port: 0 is no port");
        let vni = self.overlay_vni.unwrap_or(OVERLAY_VNI);
        ensure!(
            (1..=LAST_VNI).contains(&vni),
            "--overlay-vni {vni} is out of range: choose one from 1 to {LAST_VNI}"
        );
        Ok(self
            .overlay_key_file
            .clone()
            .map(|key_file| OverlayOptions {
                device: device.to_owned(),
                port,
                vni,
                key_file,
                fast_path: self.overlay_fast_path.unwrap_or(true),
            }))
    }
}
