//! Frames through the programs in the kernel, by its test-run, and a judge that does not know how they work.
//!
//! A script of frames begins on a node that remembers nothing. After each frame the judge (`judge`) sees what became of
//! it and every counter that moved. What it accepts is less exact than what the tables of the ordinary tests say, and
//! holds for any frame: what leaves has a source that it may have, and each frame is counted once.

mod bench;
mod judge;
mod script;
mod sight;
mod tunnel;
mod world;

use std::cell::RefCell;

use self::{bench::Bench, judge::Story, script::Script};

/// Which programs a script is mostly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Those of pods' interfaces, and replies of next hops.
    Pod,
    /// That of the overlay's device.
    Overlay,
    /// That of an uplink.
    Uplink,
}

thread_local! {
    /// The programs are loaded once for a thread, which then is in a network namespace of its own.
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

pub(super) fn run(side: Side, data: &[u8]) {
    BENCH.with_borrow_mut(|slot| {
        let bench = slot.get_or_insert_with(|| {
            Bench::new().unwrap_or_else(|error| panic!("no programs to run frames: {error:#}"))
        });
        bench.forget();
        let mut story = Story::default();
        let mut script = Script::new(side, data);
        while let Some(step) = script.next(&story.last) {
            if let Some(outcome) = bench.play(&step) {
                story.judge(bench, &step, &outcome);
            }
        }
    });
}
