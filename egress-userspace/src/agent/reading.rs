//! Reading resources beside the loop: large files take seconds, and gateways that die meanwhile are left all the same.

use std::future::pending;

use anyhow::Context as _;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::sources::files::{Loaded, Loader};

/// Whoever reads, one reading at a time.
#[derive(Debug)]
pub(super) struct Reading {
    /// None while it reads.
    loader: Option<Loader>,
    task: Option<JoinHandle<(Loader, Loaded)>>,
    /// Whether what is being read has changed since.
    again: bool,
}

impl Reading {
    /// With a loader that reads nothing yet.
    pub(super) const fn by(loader: Loader) -> Self {
        Self {
            loader: Some(loader),
            task: None,
            again: false,
        }
    }

    /// Begins to read; where it is at it, it begins anew after that.
    pub(super) fn begin(&mut self) {
        let Some(mut loader) = self.loader.take() else {
            self.again = true;
            return;
        };
        self.again = false;
        self.task = Some(spawn_blocking(move || {
            let loaded = loader.load();
            (loader, loaded)
        }));
    }

    /// Waits for what was read, without end if nothing is being read. Whoever stops waiting may wait again.
    ///
    /// # Errors
    /// The reading thread has panicked.
    pub(super) async fn finished(&mut self) -> anyhow::Result<Loaded> {
        let Some(task) = &mut self.task else {
            return pending().await;
        };
        let (loader, loaded) = task
            .await
            .context("the resources cannot be read any more")?;
        self.loader = Some(loader);
        self.task = None;
        if self.again {
            self.begin();
        }
        Ok(loaded)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_changes_while_it_is_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut reading = Reading::by(Loader::new(vec![directory.path().to_owned()]));
        let nothing = timeout(Duration::from_millis(1), reading.finished()).await;
        assert!(nothing.is_err(), "nothing is being read");
        reading.begin();
        reading.begin();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: late}\n";
        fs::write(directory.path().join("late.yaml"), text).unwrap();
        reading.finished().await.unwrap();
        let last = reading.finished().await.unwrap();
        assert!(last.model.namespaces.contains_key("late"));
        let nothing = timeout(Duration::from_millis(1), reading.finished()).await;
        assert!(nothing.is_err(), "all is read");
    }
}
