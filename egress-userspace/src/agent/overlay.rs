//! The overlay's device: made, opened once its program is attached, made again, removed.
//!
//! That it is ours is written down before it is made, so that a crash leaves nothing that nobody removes, and
//! a device that somebody else made is left alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::{
    node::{Netlink, NodeView, OverlayDevice},
    settings::OverlayOptions,
    state_dir::keep,
};

/// The device of an agent.
#[derive(Debug)]
pub(super) struct Overlay {
    options: Option<OverlayOptions>,
    file: PathBuf,
    /// Its index, once it was seen or made.
    ifindex: Option<u32>,
    /// Whether IPsec policies may encrypt what leaves the node, once that is known.
    may_encrypt: Option<bool>,
}

/// What is written down of the device that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    device: String,
    /// None while it is being made.
    ifindex: Option<u32>,
}

impl Overlay {
    /// The device that these options ask for; `file` is where it is written down.
    pub(super) fn new(options: Option<OverlayOptions>, file: PathBuf) -> Self {
        Self {
            options,
            file,
            ifindex: None,
            may_encrypt: None,
        }
    }

    /// Hears whether IPsec policies may encrypt what leaves the node: what goes past the kernel's stack would go past them.
    pub(super) fn heed_ipsec(&mut self, may_encrypt: bool) {
        let before = self.may_encrypt.replace(may_encrypt).unwrap_or(false);
        let is_asked_for = self
            .options
            .as_ref()
            .is_some_and(|options| options.fast_path);
        if is_asked_for && before != may_encrypt {
            if may_encrypt {
                tracing::info!(
                    "IPsec policies may encrypt what leaves this node: all frames of the overlay take its device"
                );
            } else {
                tracing::info!(
                    "no IPsec policies any more: plain frames of the overlay go past the kernel's stack"
                );
            }
        }
    }

    /// The device's name and the network's identifier, if there is to be one.
    pub(super) fn options(&self) -> Option<(&str, u32)> {
        let options = self.options.as_ref()?;
        Some((&options.device, options.vni))
    }

    /// The overlay's UDP port, if plain frames go past the kernel's stack.
    pub(super) fn fast_path_port(&self) -> Option<u16> {
        let options = self.options.as_ref().filter(|options| options.fast_path)?;
        (self.may_encrypt == Some(false)).then_some(options.port)
    }

    /// The index of the device, if it was there when it was last looked at, and still is.
    pub(super) fn index_in(&self, view: &NodeView) -> Option<u32> {
        self.ifindex.filter(|index| view.links.contains_key(index))
    }

    /// Makes the device, closed, unless it is there, and gives its index.
    ///
    /// `has_pin` tells of an interface whether our program is, or was, attached to it.
    ///
    /// # Errors
    /// The name is another device's, or the kernel refuses.
    pub(super) async fn ensure(
        &mut self,
        has_pin: impl Fn(u32) -> bool,
    ) -> anyhow::Result<Option<u32>> {
        let Some(options) = &self.options else {
            return Ok(None);
        };
        let netlink = Netlink::connect()?;
        let name = &options.device;
        let mut record = read(&self.file)?;
        if record.as_ref().is_some_and(|record| record.device != *name) {
            remove_recorded(&netlink, &self.file).await?;
            record = None;
        }
        let found = netlink.overlay_device(name).await?;
        let device = match found {
            Some(device) => {
                if !has_pin(device.ifindex) && !is_ours(record.as_ref(), device) {
                    bail!(
                        "there is a device {name} already, and this agent did not make it: choose another name \
                         with --overlay-device, or remove it with `ip link delete {name}`"
                    );
                }
                if device.port == Some(options.port) {
                    Some(device)
                } else {
                    tracing::info!(device = %name, "making the overlay device anew: its settings changed");
                    netlink.remove_overlay_device(device.ifindex).await?;
                    None
                }
            }
            None => None,
        };
        let device = match device {
            Some(device) => device,
            None => {
                if self.ifindex.is_some() {
                    tracing::warn!(device = %name, "the overlay device is gone; making it again");
                }
                make(&netlink, options, &self.file).await?
            }
        };
        let now = Record {
            device: name.clone(),
            ifindex: Some(device.ifindex),
        };
        if record.as_ref() != Some(&now) {
            keep(&now, &self.file)?;
        }
        self.ifindex = Some(device.ifindex);
        Ok(self.ifindex)
    }

    /// Opens the device if our program is `attached` to it, and closes it if not: nothing that arrives there
    /// is the kernel's. Without an overlay the device of an earlier run is removed. Says whether anything was done.
    ///
    /// # Errors
    /// The port is taken, or the kernel refuses.
    pub(super) async fn settle(&self, attached: bool) -> anyhow::Result<bool> {
        if self.options.is_none() && !self.file.exists() {
            return Ok(false);
        }
        let netlink = Netlink::connect()?;
        let Some(options) = &self.options else {
            let removed = remove_recorded(&netlink, &self.file).await?;
            if let Some(device) = &removed {
                tracing::info!(
                    device,
                    "removed the overlay device: there is no overlay any more"
                );
            }
            return Ok(removed.is_some());
        };
        let found = netlink.overlay_device(&options.device).await?;
        let ours = found.filter(|device| Some(device.ifindex) == self.ifindex);
        let Some(device) = ours.filter(|device| device.up != attached) else {
            return Ok(false);
        };
        netlink
            .open_overlay_device(device, attached)
            .await
            .with_context(|| {
                let what = if attached { "open" } else { "close" };
                format!("cannot {what} the overlay device {}", options.device)
            })?;
        let state = if attached { "open" } else { "closed" };
        tracing::info!(device = %options.device, port = options.port, state, "overlay");
        Ok(true)
    }
}

/// What is written down of a device that is being made says nothing of its index.
fn is_ours(record: Option<&Record>, device: OverlayDevice) -> bool {
    record.is_some_and(|record| match record.ifindex {
        Some(ifindex) => ifindex == device.ifindex,
        None => device.port.is_some(),
    })
}

async fn make(
    netlink: &Netlink,
    options: &OverlayOptions,
    file: &Path,
) -> anyhow::Result<OverlayDevice> {
    let name = &options.device;
    keep(
        &Record {
            device: name.clone(),
            ifindex: None,
        },
        file,
    )?;
    netlink
        .make_overlay_device(name, options.port)
        .await
        .with_context(|| format!("cannot make the overlay device {name}"))?;
    let device = netlink.overlay_device(name).await?;
    device.with_context(|| format!("the overlay device {name} is gone as soon as it is made"))
}

/// Removes the device that is written down, if it is still the same, and gives its name.
///
/// # Errors
/// The kernel refuses, or the file cannot be read or removed.
pub(crate) async fn remove_recorded(
    netlink: &Netlink,
    file: &Path,
) -> anyhow::Result<Option<String>> {
    let Some(record) = read(file)? else {
        return Ok(None);
    };
    let found = netlink.overlay_device(&record.device).await?;
    let ours = found.filter(|device| is_ours(Some(&record), *device));
    if let Some(device) = ours {
        netlink.remove_overlay_device(device.ifindex).await?;
    }
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(ours.map(|_| record.device))
}

fn read(file: &Path) -> anyhow::Result<Option<Record>> {
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            anyhow!(
                "cannot understand {}, which tells which overlay device is ours: {error}; remove it",
                file.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_ours_by_its_index_or_while_it_is_made() {
        let device = |ifindex, port| OverlayDevice {
            ifindex,
            up: false,
            port,
        };
        let record = |ifindex| Record {
            device: "egress.vxlan".to_owned(),
            ifindex,
        };
        for (record, device, ours) in [
            (None, device(7, Some(4790)), false),
            (Some(record(Some(7))), device(7, Some(4790)), true),
            (Some(record(Some(7))), device(7, None), true),
            (Some(record(Some(7))), device(8, Some(4790)), false),
            (Some(record(None)), device(8, Some(4790)), true),
            (Some(record(None)), device(8, None), false),
        ] {
            assert_eq!(
                is_ours(record.as_ref(), device),
                ours,
                "{record:?} {device:?}"
            );
        }
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("overlay.json");
        assert_eq!(read(&file).unwrap(), None);
        let record = Record {
            device: "egress.vxlan".to_owned(),
            ifindex: Some(3),
        };
        keep(&record, &file).unwrap();
        assert_eq!(read(&file).unwrap(), Some(record));
        fs::write(&file, "{").unwrap();
        assert!(read(&file).is_err());
    }
}
