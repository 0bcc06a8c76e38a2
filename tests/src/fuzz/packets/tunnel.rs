//! What makes a frame one that came out of a tunnel: a program of a few instructions that goes on into ours.
//!
//! The kernel's test-run gives a packet no tunnel data. A program can, with `bpf_skb_set_tunnel_key`, and what it says
//! of the near end is what a receiver reads as the far one. So a program is assembled here that does so and ends in a
//! tail call of `egress_from_overlay`. It takes what to say from the fields of the context that nobody else uses. Kernels before
//! 6.0 do not let it say who the near end is; there every frame is one that came out of no tunnel.

use anyhow::{Context, Result, ensure};
use aya::{Ebpf, maps::ProgramArray, programs::SchedClassifier};

/// What the program returns if there is no program to go on into: nothing that ours return.
pub(super) const NOT_CALLED: u32 = 99;
/// Where the context has what is asked (`struct __sk_buff` of `linux/bpf.h`): flags, identifier, address.
pub(super) const FLAGS: usize = 32;
pub(super) const IDENTIFIER: usize = 48;
pub(super) const ADDRESS: usize = 52;
/// `BPF_F_TUNINFO_IPV6`.
pub(super) const IS_V6: u32 = 1;
/// Flags that the kernel refuses: the packet gets no tunnel data.
pub(super) const NO_TUNNEL: u32 = u32::MAX;

const PROGRAM: &str = "tunnelled";
const MAP: &str = "NEXT";
/// `struct bpf_tunnel_key` with the near end's address at its end (Linux 6.0, kernel commit 26101f5ab6bd).
const KEY_LEN: i32 = 44;
const KEY_ADDRESS: i16 = 28;
/// Where it lies on the stack.
const KEY: i16 = -48;

const SET_TUNNEL_KEY: i32 = 21;
const TAIL_CALL: i32 = 12;
/// `BPF_MAP_TYPE_PROG_ARRAY`.
const PROG_ARRAY: u32 = 3;

/// The program, and the array that names where it goes on.
pub(super) struct Tunnel {
    ebpf: Ebpf,
}

impl Tunnel {
    /// Loads the program; it goes on into `next`.
    pub(super) fn load(next: &SchedClassifier) -> Result<Self> {
        let mut ebpf =
            Ebpf::load(&object()).context("cannot load the program that makes tunnel data")?;
        let mut array: ProgramArray<_> = ebpf.map_mut(MAP).context("no array")?.try_into()?;
        array.set(0, next.fd()?, 0)?;
        let program: &mut SchedClassifier = ebpf
            .program_mut(PROGRAM)
            .context("no program")?
            .try_into()?;
        program.load()?;
        Ok(Self { ebpf })
    }

    /// The program.
    pub(super) fn program(&self) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(PROGRAM).context("no program")?;
        Ok(program.try_into()?)
    }
}

/// An instruction (`struct bpf_insn` of `linux/bpf.h`).
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let registers = if cfg!(target_endian = "little") {
        dst | src << 4
    } else {
        dst << 4 | src
    };
    let (offset, immediate) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    let [a, b, c, d] = immediate;
    [code, registers, offset[0], offset[1], a, b, c, d]
}

/// The program, and the place in it where the array's address belongs.
fn program() -> (Vec<u8>, u64) {
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x63;
    const STORE_ZEROS: u8 = 0x7a;
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const CALL: u8 = 0x85;
    const LOAD_WIDE: u8 = 0x18;
    const EXIT: u8 = 0x95;
    let at = |offset: usize| i16::try_from(offset).unwrap_or_default();
    let mut code = vec![instruction(MOVE, 6, 1, 0, 0)];
    code.extend((0..6).map(|word| instruction(STORE_ZEROS, 10, 0, KEY + 8 * word, 0)));
    code.push(instruction(LOAD, 1, 6, at(IDENTIFIER), 0));
    code.push(instruction(STORE, 10, 1, KEY, 0));
    for word in 0..4 {
        code.push(instruction(LOAD, 1, 6, at(ADDRESS) + 4 * word, 0));
        code.push(instruction(STORE, 10, 1, KEY + KEY_ADDRESS + 4 * word, 0));
    }
    code.extend([
        instruction(LOAD, 4, 6, at(FLAGS), 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, KEY.into()),
        instruction(SET, 3, 0, 0, KEY_LEN),
        instruction(CALL, 0, 0, 0, SET_TUNNEL_KEY),
        instruction(MOVE, 1, 6, 0, 0),
    ]);
    let place = u64::try_from(code.len() * 8).unwrap_or_default();
    code.extend([
        instruction(LOAD_WIDE, 2, 0, 0, 0),
        [0; 8],
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TAIL_CALL),
        instruction(SET, 0, 0, 0, NOT_CALLED.cast_signed()),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    (code.concat(), place)
}

/// A section of an object file.
#[derive(Default)]
struct Section {
    /// Which of the names.
    name: usize,
    /// Its type.
    kind: u32,
    flags: u64,
    content: Vec<u8>,
    link: u32,
    info: u32,
    /// The size of its entries.
    entry: u64,
}

/// The object file that a compiler would have made of it (ELF-64, gABI chapter 4).
fn object() -> Vec<u8> {
    const HEADER: usize = 64;
    let (code, place) = program();
    let names = names(&[
        "",
        "classifier",
        ".relclassifier",
        "license",
        "maps",
        ".symtab",
        ".strtab",
        PROGRAM,
        MAP,
    ]);
    let name = |index: usize| names.1[index];
    let word = |number: usize| u64::try_from(number).unwrap_or_default();
    // struct bpf_map_def: type, sizes of key and value, entries, flags.
    let map: Vec<u8> = [PROG_ARRAY, 4, 4, 1, 0].map(u32::to_ne_bytes).concat();
    let mut symbols = vec![0; 24];
    // Global, a function and an object: name, kind, section, offset, size.
    for (text, kind, section, size) in [(7, 0x12, 1_u16, code.len()), (8, 0x11, 4, map.len())] {
        symbols.extend(name(text).to_ne_bytes());
        symbols.extend([kind, 0]);
        symbols.extend(section.to_ne_bytes());
        symbols.extend(0_u64.to_ne_bytes());
        symbols.extend(word(size).to_ne_bytes());
    }
    // R_BPF_64_64 of the second symbol.
    let relocation = [place, (2 << 32) | 1].map(u64::to_ne_bytes).concat();
    let section = |name: usize, kind: u32, content: &[u8]| Section {
        name,
        kind,
        content: content.to_vec(),
        ..Section::default()
    };
    // Program, relocations of section 1 by the symbols of 5, data, data, symbols of which one is local, strings.
    let sections = [
        Section {
            flags: 6,
            ..section(1, 1, &code)
        },
        Section {
            link: 5,
            info: 1,
            entry: 16,
            ..section(2, 9, &relocation)
        },
        Section {
            flags: 3,
            ..section(3, 1, b"GPL\0")
        },
        Section {
            flags: 3,
            ..section(4, 1, &map)
        },
        Section {
            link: 6,
            info: 1,
            entry: 24,
            ..section(5, 2, &symbols)
        },
        section(6, 3, &names.0),
    ];
    let mut content = Vec::new();
    let mut table = vec![0; HEADER];
    for it in sections {
        content.resize(content.len().next_multiple_of(8), 0);
        table.extend(name(it.name).to_ne_bytes());
        table.extend(it.kind.to_ne_bytes());
        let place = word(HEADER + content.len());
        for number in [it.flags, 0, place, word(it.content.len())] {
            table.extend(number.to_ne_bytes());
        }
        table.extend(it.link.to_ne_bytes());
        table.extend(it.info.to_ne_bytes());
        table.extend([8, it.entry].map(u64::to_ne_bytes).concat());
        content.extend(it.content);
    }
    content.resize(content.len().next_multiple_of(8), 0);
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    let mut file = vec![
        0x7f, b'E', b'L', b'F', 2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    // Relocatable, for EM_BPF.
    file.extend(1_u16.to_ne_bytes());
    file.extend(247_u16.to_ne_bytes());
    file.extend(1_u32.to_ne_bytes());
    for number in [0, 0, word(HEADER + content.len())] {
        file.extend(number.to_ne_bytes());
    }
    file.extend(0_u32.to_ne_bytes());
    for number in [64_u16, 0, 0, 64, 7, 6] {
        file.extend(number.to_ne_bytes());
    }
    file.extend(content);
    file.extend(table);
    file
}

/// A table of these strings, and where each is.
fn names(texts: &[&str]) -> (Vec<u8>, Vec<u32>) {
    let mut table = Vec::new();
    let mut places = Vec::new();
    for text in texts {
        places.push(u32::try_from(table.len()).unwrap_or_default());
        table.extend(text.as_bytes());
        table.push(0);
    }
    (table, places)
}

/// Fails if the program did not get as far as ours.
pub(super) fn ensure_called(returned: u32) -> Result<()> {
    ensure!(returned != NOT_CALLED, "the tail call went nowhere");
    Ok(())
}
