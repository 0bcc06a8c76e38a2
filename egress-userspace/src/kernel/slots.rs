//! `POD_STATE`, mapped into memory, so that a pod is turned by one store.

use anyhow::Context;
use aya::maps::MapData;
use egress_common::{maps::POD_STATE, verdict::PodState};

use super::words::Words;

/// The mapped array.
pub(super) struct Slots(Words);

impl Slots {
    pub(super) fn map(data: &MapData, len: u32) -> anyhow::Result<Self> {
        let words = Words::map(data, usize::try_from(len)?)
            .with_context(|| format!("cannot map {POD_STATE} into memory"))?;
        Ok(Self(words))
    }

    pub(super) fn get(&self, slot: u32) -> anyhow::Result<PodState> {
        let word = self.0.get(usize::try_from(slot)?);
        let word = word.with_context(|| format!("slot {slot} is beyond {POD_STATE}"))?;
        Ok(PodState(word))
    }

    /// Turns a pod. Everything written before is seen by a packet that sees this.
    pub(super) fn set(&self, slot: u32, state: PodState) -> anyhow::Result<()> {
        self.0
            .set(usize::try_from(slot)?, state.0)
            .with_context(|| format!("cannot turn slot {slot} of {POD_STATE}"))
    }
}
