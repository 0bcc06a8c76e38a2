//! A road that frames are sent along: from the pods' end of a cable to where they are counted.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray},
    programs::{Xdp, xdp::XdpMode},
};
use nix::net::if_::if_nametoindex;

use super::{
    core::Core,
    host::Host,
    laid::{CABLE, ENTRY},
};
use crate::{
    lab::{OBJECT, taken},
    world::{FRAME, Flow, Template},
};

const RANDOM: &str = "send";
const IN_ORDER: &str = "send_in_order";
/// Frames that are on their way at once: what a device hands over in one go.
const BATCH: u32 = 64;
/// How much of a busy core's time has to be counted as its thread's: sending alone is less than that.
const COUNTED: f64 = 0.5;
/// How many that arrive first are kept.
pub(super) const KEPT: u32 = 2000;

/// A road.
pub(super) struct Road {
    pod: Host,
    sender: Ebpf,
    frame: Vec<u8>,
    sink: Sink,
}

/// Its far end.
struct Sink {
    _ebpf: Ebpf,
    arrived: PerCpuArray<MapData, u64>,
    kept: Array<MapData, Template>,
    // What has the program is what it is attached to.
    _host: Host,
}

/// What became of frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) sent: u32,
    pub(super) arrived: u64,
    /// Nanoseconds of the core for each that arrived.
    pub(super) each: f64,
}

impl Road {
    /// From the cable of `pod` over `node` to the cable of `sink`.
    pub(super) fn new(pod: Host, node: &Host, sink: Host, flows: &[Flow]) -> Result<Self> {
        let count = u32::try_from(flows.len())?;
        ensure!(count > 0, "there are no flows to draw from");
        let pod_end = pod.enter(|| Ok(if_nametoindex(CABLE)?))?;
        let mut sender = EbpfLoader::new()
            .override_global("SENT_FLOWS", &count, true)
            .override_global("POD_END", &pod_end, true)
            .map_max_entries("FRAMES", count)
            .load(OBJECT)
            .context("cannot load what sends frames")?;
        let mut frames: Array<MapData, Template> = taken(&mut sender, "FRAMES")?;
        for (index, flow) in (0..count).zip(flows) {
            frames.set(index, flow.template(), 0)?;
        }
        for name in [RANDOM, IN_ORDER] {
            load(&mut sender, name)?;
        }
        // Sending is possible to where there is a program.
        let come_in = load(&mut sender, "come_in")?;
        node.enter(|| attach(come_in, ENTRY))?;
        let mut frame = flows[0].template().to_vec();
        frame.resize(FRAME, 0);
        Ok(Self {
            sink: Sink::new(sink)?,
            pod,
            sender,
            frame,
        })
    }

    /// Sends one frame of each of the first flows, and tells what the first that arrived look like.
    pub(super) fn in_order(&self, frames: u32) -> Result<Vec<Template>> {
        let before = self.sink.arrived()?;
        ensure!(before == 0, "something arrived that nobody sent");
        self.send(IN_ORDER, frames)?;
        let arrived = self.sink.arrived()?.min(u64::from(KEPT));
        (0..u32::try_from(arrived)?)
            .map(|index| Ok(self.sink.kept.get(&index, 0)?))
            .collect()
    }

    /// Sends so many frames of any flows.
    #[expect(
        clippy::cast_precision_loss,
        reason = "nobody sends so many that it would matter"
    )]
    pub(super) fn run(&self, core: &Core, frames: u32) -> Result<Run> {
        let arrived = self.sink.arrived()?;
        let start = core.moment()?;
        self.send(RANDOM, frames)?;
        let took = start.until(core.moment()?);
        let arrived = self.sink.arrived()? - arrived;
        Ok(Run {
            sent: frames,
            arrived,
            each: took / arrived as f64,
        })
    }

    /// Sees that what packets cost is counted as this core's time at all, over so many frames.
    pub(super) fn is_counted(&self, core: &Core, frames: u32) -> Result<()> {
        let start = core.moment()?;
        self.send(RANDOM, frames)?;
        let share = start.share(core.moment()?);
        ensure!(
            share >= COUNTED,
            "only {:.0} % of a busy core's time are counted as a thread's: this kernel counts that of interrupts, \
             which all packets are, elsewhere (CONFIG_IRQ_TIME_ACCOUNTING; `tsc=noirqtime` turns it off)",
            share * 100.0
        );
        Ok(())
    }

    fn send(&self, name: &str, frames: u32) -> Result<()> {
        let program = self.sender.program(name).context("no such program")?;
        let program: &Xdp = program.try_into()?;
        let sent = self.pod.enter(|| {
            let options = TestRunOptions {
                data_in: Some(&self.frame),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            };
            Ok(program.test_run(options)?)
        });
        sent.context("cannot send frames of XDP: this needs Linux 5.18")?;
        Ok(())
    }
}

impl Sink {
    fn new(host: Host) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .override_global("KEEP", &KEPT, true)
            .map_max_entries("KEPT", KEPT)
            .load(OBJECT)
            .context("cannot load what counts frames")?;
        let arrive = load(&mut ebpf, "arrive")?;
        host.enter(|| attach(arrive, CABLE))?;
        Ok(Self {
            arrived: taken(&mut ebpf, "ARRIVED")?,
            kept: taken(&mut ebpf, "KEPT")?,
            _ebpf: ebpf,
            _host: host,
        })
    }

    fn arrived(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0)?.iter().sum())
    }
}

fn load<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    let program: &mut Xdp = program
        .with_context(|| format!("the object of the references has no program {name}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel's verifier refuses the program {name}"))?;
    Ok(program)
}

fn attach(program: &mut Xdp, interface: &str) -> Result<()> {
    program
        .attach(interface, XdpMode::Driver)
        .with_context(|| format!("cannot attach an XDP program to {interface}"))?;
    Ok(())
}
