//! Where a lab pins its maps.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pin directory that is removed whatever happens.
pub(super) struct Pins(PathBuf);

impl Pins {
    pub(super) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("/sys/fs/bpf/egress-test-{}-{number}", process::id()).into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn remove(&self) {
        // What was never made need not be removed.
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.remove();
    }
}
