//! The shim before a program under test, and what it costs to run both.

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

/// Two words, as the shim keeps them.
type Pair = [u32; 2];
/// How many pairs it can keep of a flow, and how many words of all flows.
const PAIRS: usize = 4;
const SHARED: usize = 16;
/// Where the words of both MACs lie.
const MACS: [usize; 3] = [0, 4, 8];
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
        let Words { own, shared } = Words::of(templates);
        ensure!(
            own.len() <= PAIRS * 2 && shared.len() <= SHARED,
            "flows differ in more than the shim keeps of each"
        );
        let pairs: Vec<Pair> = templates
            .iter()
            .flat_map(|template| {
                own.chunks(2)
                    .map(|two| [0, 1].map(|half| word(template, two[half])))
            })
            .collect();
        let for_each = u32::try_from(own.len() / 2)?;
        let shared_count = u32::try_from(shared.len())?;
        let shared_words: [u32; SHARED] = filled(shared.iter().map(|at| word(&templates[0], *at)));
        let own: [u32; PAIRS * 2] = filled(places(&own)?);
        let shared: [u32; SHARED] = filled(places(&shared)?);
        let tunnel = tunnel.unwrap_or(Tunnel { vni: 0, source: 0 });
        let room = u32::try_from(pairs.len())?;
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOWS", &count, true)
            .override_global("FLOW_PAIRS", &for_each, true)
            .override_global("FLOW_PLACES", &own, true)
            .override_global("SHARED_COUNT", &shared_count, true)
            .override_global("SHARED_PLACES", &shared, true)
            .override_global("SHARED_WORDS", &shared_words, true)
            .override_global("TUNNEL", &tunnel.vni, true)
            .override_global("TUNNEL_SOURCE", &tunnel.source, true)
            .map_max_entries("WORDS", room)
            .load(OBJECT)
            .context("cannot load the shim")?;
        for name in [RANDOM, IN_ORDER] {
            load(&mut ebpf, name)?;
        }
        let mut map: Array<MapData, Pair> = taken(&mut ebpf, "WORDS")?;
        for (index, pair) in (0..room).zip(pairs) {
            map.set(index, pair, 0)?;
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

/// Where the words lie that the shim writes.
struct Words {
    /// Those that are not the same in all templates; an even number.
    own: Vec<usize>,
    /// Those that are, but that programs write to.
    shared: Vec<usize>,
}

impl Words {
    fn of(templates: &[Template]) -> Self {
        let first = &templates[0];
        let differs = |at: &usize| {
            templates
                .iter()
                .any(|other| word(other, *at) != word(first, *at))
        };
        let written = WRITTEN_FROM[usize::from(first[12..14] == IPV6)];
        // As words lie for programs that read them.
        let (mut own, mut shared): (Vec<usize>, Vec<usize>) =
            (14..TEMPLATE).step_by(4).partition(differs);
        shared.retain(|at| *at >= written);
        shared.extend(MACS);
        if !own.len().is_multiple_of(2) {
            own.extend(shared.pop());
        }
        Self { own, shared }
    }
}

fn places(places: &[usize]) -> Result<Vec<u32>> {
    Ok(places
        .iter()
        .map(|at| u32::try_from(*at))
        .collect::<Result<_, _>>()?)
}

/// These, and zeroes.
fn filled<const N: usize>(words: impl IntoIterator<Item = u32>) -> [u32; N] {
    let mut filled = [0; N];
    for (place, word) in filled.iter_mut().zip(words) {
        *place = word;
    }
    filled
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
