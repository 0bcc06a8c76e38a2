//! Floods: a million packets, each of another flow, as fast as the kernel runs a program.

use std::{array, thread};

use aya::{TestRun, TestRunOptions, programs::SchedClassifier};

use super::{Input, Lab};

/// CPUs that a flood comes in by, so that buckets are locked.
const CPUS: u32 = 2;

/// How a frame is made another flow's: what stands where.
#[derive(Clone, Copy, Debug)]
pub struct Varied {
    /// Where the lower half of the flow's number goes in the frame: a port, an identifier.
    pub low: usize,
    /// Where its next byte goes: a part of the far end's address.
    pub high: usize,
    /// How often each packet is sent: twice makes a flow without states one that is in use.
    pub often: u32,
}

impl Varied {
    /// One packet of each flow.
    #[must_use]
    pub const fn once(low: usize, high: usize) -> Self {
        Self {
            low,
            high,
            often: 1,
        }
    }

    /// Two packets of each.
    #[must_use]
    pub const fn twice(self) -> Self {
        Self { often: 2, ..self }
    }
}

impl Lab {
    /// Runs packets of each of `count` flows through their program; nobody looks at what becomes of them.
    pub fn flood(&mut self, input: &Input, varied: Varied, count: u32) {
        let program: &SchedClassifier = self.datapath().program(input.program).unwrap();
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                scope.spawn(move || {
                    let context = input.context();
                    let mut frame = input.frame.clone();
                    for number in (cpu..count).step_by(CPUS.try_into().unwrap()) {
                        let [_, high, low @ ..]: [u8; 4] = number.to_be_bytes();
                        let low: [u8; 2] = array::from_fn(|index| low[index]);
                        frame[varied.low..varied.low + 2].copy_from_slice(&low);
                        frame[varied.high] = high;
                        let options = TestRunOptions {
                            data_in: Some(&frame),
                            ctx_in: Some(&context),
                            repeat: varied.often,
                            ..TestRunOptions::default()
                        };
                        program.test_run(options).unwrap();
                    }
                });
            }
        });
        // What was counted is not asked here.
        self.moved();
    }
}
