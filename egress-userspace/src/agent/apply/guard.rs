//! The programs that see packets leave the cluster: until they are wherever packets may, those are not let through.

use std::collections::BTreeSet;

use egress_common::gateway;

use super::Kernel;
use crate::{
    kernel::{Hook, Program},
    translation,
};

/// What became of the programs that see packets leave the cluster.
#[derive(Default)]
pub(in crate::agent) struct Guard {
    /// Whether they are wherever packets may leave it.
    pub(in crate::agent) guarded: bool,
    /// How many came to be there.
    pub(in crate::agent) attached: usize,
    /// Why others did not.
    pub(in crate::agent) errors: Vec<anyhow::Error>,
}

impl Kernel {
    /// Has packets looked at wherever they may leave the cluster, whatever else of an apply works. Where that cannot be, what
    /// pods send to the cluster is dropped from now on; letting it pass again is part of the next plan.
    ///
    /// # Errors
    /// The maps could not be changed. Hooks that failed are part of what is said.
    pub(in crate::agent) fn guard(&mut self, hooks: &BTreeSet<Hook>) -> anyhow::Result<Guard> {
        // An earlier run's programs go on. Those that are swapped for them begin with nobody who looks.
        if self.earlier.is_some() {
            return Ok(Guard::default());
        }
        self.be_sure()?;
        let before = self.datapath.attachments.attached().len();
        let (guarded, errors) = self.attach_guards(hooks);
        if !guarded {
            self.set_guarded(false)?;
        }
        Ok(Guard {
            guarded,
            attached: self.datapath.attachments.attached().len() - before,
            errors,
        })
    }

    pub(super) fn attach_guards(&mut self, hooks: &BTreeSet<Hook>) -> (bool, Vec<anyhow::Error>) {
        let (attachments, ebpf) = self.datapath.attaching();
        let errors = attachments.attach(ebpf, Program::ToUplink, hooks);
        let guarded = !attachments.is_missing(Program::ToUplink, hooks);
        let errors = errors.into_iter().map(|error| {
            error.context(
                "nobody would see packets leave the cluster there: until somebody does, what pods send to the cluster's \
                 own addresses is dropped (LocalUnguarded); remove what is in the way, or start with --mark off",
            )
        });
        (guarded, errors.collect())
    }

    pub(super) fn set_guarded(&mut self, guarded: bool) -> anyhow::Result<()> {
        let unguarded = u32::from(!guarded);
        if self.translation.settings.unguarded == unguarded {
            return Ok(());
        }
        let change = translation::Change::WriteSettings(Box::new(gateway::Settings {
            unguarded,
            ..self.translation.settings
        }));
        self.translate(std::slice::from_ref(&change))?;
        self.translation.apply(&change);
        Ok(())
    }
}
