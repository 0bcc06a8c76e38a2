//! What whoever waits sees.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of the whole run: set-up counts what it is expected to take, and measuring what it may.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Where the measuring of the group began.
    from: std::cell::Cell<u64>,
}

/// Steps of the bar to a second.
const PER_SECOND: u64 = 10;

impl Progress {
    /// For a run of about this long; nothing is drawn where nobody looks.
    pub(crate) fn new(expected: Duration) -> Self {
        let bar = ProgressBar::new(steps(expected));
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed_precise} {wide_msg}")
        {
            bar.set_style(style);
        }
        Self {
            bar,
            from: 0.into(),
        }
    }

    /// Something is made that takes about this long; called when it begins.
    pub(crate) fn making(&self, what: &str) {
        self.bar.set_message(format!("making {what}"));
        self.bar.tick();
    }

    /// It is made.
    pub(crate) fn made(&self, expected: Duration) {
        self.bar.inc(steps(expected));
        self.from.set(self.bar.position());
    }

    /// So many rounds are over, and so much of the time.
    pub(crate) fn measuring(&self, group: &str, rounds: usize, elapsed: Duration) {
        self.bar
            .set_message(format!("measuring {group}, round {rounds}"));
        self.bar.set_position(self.from.get() + steps(elapsed));
    }

    /// All is over.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn steps(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX) * PER_SECOND / 1000
}
