//! Packets through the kernel's test-run of the real programs, and rows that say what becomes of them.
//!
//! `build` makes frames, `seed` says what pods and policies there are, `lab` loads the programs in a
//! network namespace of its own, `test_run` says what one run takes and gives, `counts` reads every counter, and `row` compares;
//! `nat` is a lab that owns egress addresses; `stream` runs packets while something changes.
//! What the test-run cannot show: the device and neighbour of a redirect, and VLAN tags beside a frame.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail the test where they are, with the packet at hand"
)]

pub mod answer;
pub mod build;
mod counts;
pub mod flood;
pub(crate) mod lab;
pub mod narrow;
pub mod nat;
pub(crate) mod pinned;
pub mod places;
pub mod random;
mod row;
pub mod seed;
pub mod stream;
mod summed;
pub mod talk;
pub(crate) mod test_run;

pub(crate) use counts::added;
pub use counts::{Counts, Slot};
pub use lab::{Lab, Runner, with_lab};
pub use row::{Expect, Row, Step, check_all, mutate, run};
pub use test_run::{Action, Input, Seen};
