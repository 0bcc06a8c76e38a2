//! Counting what the tables of flows hold: a thread, at its own pace, so that neither an apply nor a scrape waits for it.
//!
//! Entries end by time and tell nobody, so there is no way to know but to look at every place.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;

use crate::kernel::CounterReader;

/// The pause between two counts.
const BETWEEN_COUNTS: Duration = Duration::from_secs(10);
/// The pause after each batch, which takes a fraction of a millisecond: tables of any size take about a hundredth of a CPU.
const BETWEEN_BATCHES: Duration = Duration::from_millis(20);

/// The thread; it ends with this.
#[derive(Debug)]
pub(super) struct Counting {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Counting {
    /// Counts once before it returns, and then again and again.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub(super) fn start(reader: Arc<CounterReader>) -> anyhow::Result<Self> {
        let mut failed = said(reader.count_tables(|| ()), false);
        let (stop, stopped) = mpsc::channel();
        let told_to_stop = move |pause| {
            // Nobody ever sends: the other end goes when it is time.
            let told: Result<(), _> = stopped.recv_timeout(pause);
            !matches!(told, Err(mpsc::RecvTimeoutError::Timeout))
        };
        let thread = std::thread::Builder::new()
            .name("fill".to_owned())
            .spawn(move || {
                let mut stop = false;
                while !stop && !told_to_stop(BETWEEN_COUNTS) {
                    let counted = reader.count_tables(|| {
                        stop = stop || told_to_stop(BETWEEN_BATCHES);
                    });
                    failed = said(counted, failed);
                }
            })
            .context("cannot start the thread that counts what the tables of flows hold")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that counts what the tables of flows hold has panicked");
        }
    }
}

/// Says once that counting fails, and whether it did.
fn said(counted: anyhow::Result<()>, failed: bool) -> bool {
    match counted {
        Ok(()) => false,
        Err(error) => {
            if failed {
                tracing::debug!("still: {error:#}");
            } else {
                tracing::warn!("how full tables of flows are is not known any more: {error:#}");
            }
            true
        }
    }
}
