//! The shim before a program under test, and what it costs to run both.

use std::{collections::BTreeSet, ops::Range};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, MapData, ProgramArray},
    programs::SchedClassifier,
};
use nix::time::{ClockId, clock_gettime};

use super::{Action, OBJECT, load, taken};
use crate::world::{FRAME, TEMPLATE, Template};

const RANDOM: &str = "shim";
const IN_ORDER: &str = "shim_in_order";
/// Room for a frame that comes back.
const LARGEST: usize = 2048;
/// Length of `struct __sk_buff`, and where the interface stands in it (`linux/bpf.h`).
const CONTEXT: usize = 192;
const IFINDEX: usize = 40;

/// What the shim writes at once.
type Piece = [u32; 4];
const PIECE: usize = size_of::<Piece>();
/// Bytes of a frame's two MACs.
const MACS: usize = 12;
/// Where programs may write from, but for MACs: the word with an IPv4 header's TTL, or an IPv6 header's hop limit.
const WRITTEN_FROM: [usize; 2] = [22, 18];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// What packets seem to have come by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    /// The network's identifier.
    pub(crate) vni: u32,
    /// The far end's IPv4 address, in host order.
    pub(crate) source: u32,
}

/// Draws packets for one program.
pub(crate) struct Shim {
    ebpf: Ebpf,
    cursor: Array<MapData, u32>,
    // The kernel forgets the program that an array names when nobody holds the array.
    _target: ProgramArray<MapData>,
    frame: Vec<u8>,
    context: [u8; CONTEXT],
}

impl Shim {
    /// A shim before `program`, for packets of these templates on this interface.
    pub(crate) fn new(
        program: &SchedClassifier,
        templates: &[Template],
        ifindex: u32,
        tunnel: Option<Tunnel>,
    ) -> Result<Self> {
        let count = u32::try_from(templates.len())?;
        ensure!(count > 0, "there are no flows to draw from");
        let heads: BTreeSet<Piece> = templates.iter().map(head).collect();
        let span = differing(templates);
        let first_byte = templates[0][span.start];
        if heads.len() > 1 {
            ensure!(
                heads.len() <= 256 && templates.iter().all(|it| it[span.start] == first_byte),
                "the shim has no room for so many MACs"
            );
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for template in templates {
            let mut own = span.clone().step_by(PIECE).map(|at| piece(template, at));
            let mut first = own.next().context("flows are all the same")?;
            if heads.len() > 1 {
                let number = heads.range(..head(template)).count();
                let [_, b, c, d] = first[0].to_ne_bytes();
                first[0] = u32::from_ne_bytes([u8::try_from(number)?, b, c, d]);
            }
            pieces.push(first);
            pieces.extend(own);
        }
        let for_each = u32::try_from(span.clone().step_by(PIECE).count())?;
        let from = u32::try_from(span.start)?;
        let macs = [0, 4, 8].map(|at| word(&templates[0], at));
        let head_count = u32::try_from(heads.len())?;
        let tunnel = tunnel.unwrap_or(Tunnel { vni: 0, source: 0 });
        let room = u32::try_from(pieces.len())?;
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOWS", &count, true)
            .override_global("FLOW_PIECES", &for_each, true)
            .override_global("FROM", &from, true)
            .override_global("FRAME_MACS", &macs, true)
            .override_global("FRAME_HEADS", &head_count, true)
            .override_global("FIRST_BYTE", &first_byte, true)
            .override_global("TUNNEL", &tunnel.vni, true)
            .override_global("TUNNEL_SOURCE", &tunnel.source, true)
            .map_max_entries("PIECES", room)
            .map_max_entries("HEADS", head_count)
            .load(OBJECT)
            .context("cannot load the shim")?;
        for name in [RANDOM, IN_ORDER] {
            load(&mut ebpf, name)?;
        }
        let mut map: Array<MapData, Piece> = taken(&mut ebpf, "PIECES")?;
        for (index, piece) in (0..room).zip(pieces) {
            map.set(index, piece, 0)?;
        }
        let mut map: Array<MapData, Piece> = taken(&mut ebpf, "HEADS")?;
        for (index, head) in (0..).zip(heads) {
            map.set(index, head, 0)?;
        }
        let mut target: ProgramArray<MapData> = taken(&mut ebpf, "TARGET")?;
        target
            .set(0, program.fd()?, 0)
            .context("the program under test cannot be called by the shim")?;
        let mut frame = templates[0].to_vec();
        frame.resize(FRAME, 0);
        let mut context = [0; CONTEXT];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        Ok(Self {
            cursor: taken(&mut ebpf, "CURSOR")?,
            ebpf,
            _target: target,
            frame,
            context,
        })
    }

    /// Runs a packet of the flow `index`, and gives what became of it.
    pub(crate) fn one(&mut self, index: usize) -> Result<(Action, Vec<u8>)> {
        self.cursor.set(0, u32::try_from(index)?, 0)?;
        let mut out = vec![0; LARGEST];
        let mut context_out = [0; CONTEXT];
        let result = program(&self.ebpf, IN_ORDER)?.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(&mut out),
            ctx_in: Some(&self.context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out)?);
        Ok((result.return_value.into(), out))
    }

    /// Runs a packet of each flow, `times` over.
    pub(crate) fn all(&mut self, flows: usize, times: usize) -> Result<Action> {
        self.cursor.set(0, 0, 0)?;
        Ok(self.run(IN_ORDER, u32::try_from(flows * times)?)?.0)
    }

    /// Runs so many packets of any flows: what became of the last, and nanoseconds of this thread for each.
    pub(crate) fn many(&self, packets: u32) -> Result<(Action, f64)> {
        self.run(RANDOM, packets)
    }

    fn run(&self, name: &str, packets: u32) -> Result<(Action, f64)> {
        let program = program(&self.ebpf, name)?;
        let before = thread_time()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat: packets,
            ..TestRunOptions::default()
        })?;
        let took = thread_time()? - before;
        Ok((result.return_value.into(), took / f64::from(packets)))
    }
}

/// The MACs of a frame, and nothing.
fn head(template: &Template) -> Piece {
    let [a, b, c] = [0, 4, 8].map(|at| word(template, at));
    [a, b, c, 0]
}

/// The bytes that the shim writes of each flow: what is not the same in all templates, and what programs write to, but for MACs.
fn differing(templates: &[Template]) -> Range<usize> {
    let first = &templates[0];
    let differs = |at: &usize| templates.iter().any(|other| other[*at] != first[*at]);
    let written = WRITTEN_FROM[usize::from(first[12..14] == IPV6)];
    let from = (MACS..written).find(differs).unwrap_or(written);
    // So that words lie as programs read them.
    let from = from - (from + 2) % 4;
    let last = (from..TEMPLATE).rev().find(differs).unwrap_or(from);
    let to = from + (last + 1 - from).next_multiple_of(PIECE);
    from..to
}

fn piece(template: &Template, at: usize) -> Piece {
    [0, 4, 8, 12].map(|word_at| word(template, at + word_at))
}

/// Four bytes as they lie in memory; what is behind the template is zero, as in the frame.
fn word(template: &Template, at: usize) -> u32 {
    let byte = |at: usize| template.get(at).copied().unwrap_or(0);
    u32::from_ne_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    Ok(ebpf.program(name).context("no such program")?.try_into()?)
}

/// Nanoseconds of a core that this thread has had: the test-run's own clock would count what interrupts it.
#[expect(
    clippy::cast_precision_loss,
    reason = "hours of nanoseconds are counted exactly"
)]
fn thread_time() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}
