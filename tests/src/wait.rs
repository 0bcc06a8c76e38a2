//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::machine;

/// How long anything here may take on a loaded machine before it counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Asks until `condition` holds; its last refusal is the error when `patience` ends.
pub fn until_within<T>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + machine::patience(patience);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(refusal) if Instant::now() >= deadline => {
                return Err(refusal).with_context(|| {
                    format!("waited {} s for this in vain: {what}", patience.as_secs())
                });
            }
            // The pause only spares the processor: nothing depends on its length.
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Asks until `condition` holds, as long as [`PATIENCE`].
pub fn until<T>(what: &str, condition: impl FnMut() -> Result<T>) -> Result<T> {
    until_within(what, PATIENCE, condition)
}
