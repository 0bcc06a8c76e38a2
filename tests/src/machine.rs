//! The machine that the tests run on: this one, or a virtual one whose processor is emulated.
//!
//! `EGRESS_TESTS_REPORT` says that it is a virtual one, and names the file that is told what was measured:
//! lines of a word and what it is, of which the last counts. Emulated, everything takes some twenty times as
//! long and loading the programs up to a minute.

use std::{
    env,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

/// How much slower an emulated machine may be before it counts as broken.
const SLOWER: u32 = 20;

/// Packets whose fate was compared with what it should be.
static PACKETS: AtomicU64 = AtomicU64::new(0);

/// Where to say what is measured; nothing on a machine that is not emulated.
#[must_use]
pub fn report() -> Option<&'static Path> {
    static REPORT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let named = || env::var_os("EGRESS_TESTS_REPORT").map(PathBuf::from);
    REPORT.get_or_init(named).as_deref()
}

/// Reports a measure, where that is wanted.
pub fn measured(what: &str, value: &str) -> Result<()> {
    let Some(path) = report() else { return Ok(()) };
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write to {}", path.display()))?;
    Ok(writeln!(file, "{what} {value}")?)
}

/// How long to wait here for what may take so long.
#[must_use]
pub fn patience(usual: Duration) -> Duration {
    if report().is_some() {
        usual * SLOWER
    } else {
        usual
    }
}

/// How often to try here what is tried at random so often.
#[must_use]
pub fn fewer(usual: usize) -> usize {
    if report().is_some() {
        usual / 40
    } else {
        usual
    }
}

/// How far apart those are that are tried here of many that are much alike.
#[must_use]
pub fn stride() -> usize {
    if report().is_some() { 101 } else { 1 }
}

/// Counts a packet whose fate is compared.
pub fn count_packet() {
    PACKETS.fetch_add(1, Ordering::Relaxed);
}

/// How many packets' fates were compared so far.
#[must_use]
pub fn packets() -> u64 {
    PACKETS.load(Ordering::Relaxed)
}
