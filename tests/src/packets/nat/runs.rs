//! Programs that run often, at once, or on keys: nobody looks at what they count.

use std::{collections::BTreeMap, thread, time::Duration};

use aya::{TestRun, TestRunOptions, programs::SchedClassifier};
use egress_common::{Addr, nat::NatBackKey};
use egress_userspace::kernel::{NAT_SWEEP, NatMaps, Program};

use super::Node;
use crate::packets::{
    Input,
    build::{L3, hex},
    flood::Varied,
    test_run::LARGEST,
};

impl Node<'_> {
    /// Has the sweep look at these connections, and gives how many it removed.
    pub fn sweep(&mut self, keys: &[NatBackKey]) -> u32 {
        sweep(self.lab.datapath().nat_sweep().unwrap(), keys)
    }

    /// Mends the pods' halves that are alone, as the agent does. Gives how many of each source went because
    /// another connection has their port: they stay in the source's count.
    pub fn mend(&mut self) -> BTreeMap<Addr, i64> {
        let mut maps = NatMaps::open(self.lab.paths()).unwrap();
        let mut gone = BTreeMap::new();
        for (key, _) in self.all_outs() {
            let mended = maps.mend_orphaned_out(&key).unwrap();
            if mended && maps.out(&key).unwrap().is_none() {
                *gone.entry(key.pod).or_default() += 1;
            }
        }
        gone
    }

    /// Runs these frames again and again on one thread for each list, while another one sweeps the keys as often.
    pub fn at_once(&mut self, lists: &[Vec<Input>], keys: &[NatBackKey], times: usize) {
        let datapath = self.lab.datapath();
        datapath.require(Program::ALL.iter().copied()).unwrap();
        let ebpf = datapath.ebpf();
        let program =
            |name| -> &SchedClassifier { ebpf.program(name).unwrap().try_into().unwrap() };
        let sweeper = program(NAT_SWEEP);
        let programs = Program::ALL
            .iter()
            .map(|known| (*known, program(known.name())));
        let programs: BTreeMap<Program, &SchedClassifier> = programs.collect();
        thread::scope(|scope| {
            for inputs in lists {
                let programs = &programs;
                scope.spawn(move || {
                    for input in (0..times).flat_map(|_| inputs) {
                        run_once(programs[&input.program], input);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..times {
                    for keys in keys.chunks(32) {
                        sweep(sweeper, keys);
                    }
                }
            });
        });
        // What was counted is not asked here.
        self.lab.moved();
    }

    /// Runs a packet of each of `count` flows through its program.
    pub fn flood(&mut self, input: &Input, varied: Varied, count: u32) {
        self.lab.flood(input, varied, count);
    }

    /// Nanoseconds that a program takes for a frame, on average.
    pub fn measure(&mut self, input: &Input, repeat: u32) -> Duration {
        let program = self.lab.datapath().program(input.program).unwrap();
        run_repeatedly(program, input, repeat)
    }

    /// Instructions that the verifier looked at, by program, where the kernel tells.
    pub fn verified(&mut self) -> BTreeMap<String, u32> {
        let datapath = self.lab.datapath();
        datapath.require(Program::ALL.iter().copied()).unwrap();
        datapath
            .ebpf()
            .programs()
            .filter_map(|(name, program)| {
                let count = program.info().ok()?.verified_instruction_count()?;
                Some((name.to_owned(), count))
            })
            .collect()
    }
}

fn run_once(program: &SchedClassifier, input: &Input) {
    run_repeatedly(program, input, 1);
}

fn run_repeatedly(program: &SchedClassifier, input: &Input, repeat: u32) -> Duration {
    let mut out = vec![0; LARGEST];
    let options = TestRunOptions {
        data_in: Some(&input.frame),
        data_out: Some(&mut out),
        ctx_in: Some(&input.context()),
        repeat,
        ..TestRunOptions::default()
    };
    program.test_run(options).unwrap().duration
}

fn sweep(program: &SchedClassifier, keys: &[NatBackKey]) -> u32 {
    let mut frame = vec![0; L3];
    // An ethertype for experiments (RFC 5342, B): the test-run looks into what claims to be IP.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    for key in keys {
        frame.extend(key.egress.0);
        frame.extend(key.remote.0);
        frame.extend(key.egress_port.0);
        frame.extend(key.remote_port.0);
        frame.extend([key.protocol, 0, 0, 0]);
    }
    let mut out = vec![0; LARGEST];
    let options = TestRunOptions {
        data_in: Some(&frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).unwrap();
    out.truncate(result.data_size_out.try_into().unwrap());
    assert_eq!(hex(&out), hex(&frame), "the sweep changes no frame");
    result.return_value
}
