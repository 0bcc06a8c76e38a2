//! Tables of flows that no source can take for itself: arrays of buckets, which sources share fairly.
//!
//! A flow's bucket and its print are said by its hash. Who comes to a full bucket takes the place of what has
//! ended, of its own, or of a source that has more than its share there, and else gets none.

#![expect(
    clippy::cast_possible_truncation,
    reason = "words are cut to halves, a bucket's length fits a byte"
)]

use crate::{
    addr::{Addr, Mac, WireU16},
    gateway::GatewayId,
    keys::{ReplyKey, ReplyPath},
    map_type,
    pod::{Choice, FLOW_SECONDS, FlowKey},
};

/// Entries of a bucket.
pub const WAYS: usize = 8;
/// Words of a key; those that a key does not have are zero.
pub const KEY_WORDS: usize = 11;
/// Words of a value; those that a value does not have say nothing.
pub const VALUE_WORDS: usize = 5;
/// The word of a key that has a protocol's number in its lower half.
///
/// In the upper half a [`Record`] has the second at which the entry was found settled, and its time was set, the last
/// time; one of 18 hours. Whoever finds it to be the present one, and the flow to say what it said, has nothing to
/// note, and need not look at what the bucket knows beside the record.
pub const PROTOCOL_WORD: usize = 9;
/// The protocol's half.
pub const PROTOCOL_BITS: u32 = 0xffff;

/// What a flow is found by, in words whose bytes in memory are those of its fields.
pub type Key = [u32; KEY_WORDS];
/// What is remembered of it, likewise.
pub type Value = [u32; VALUE_WORDS];

/// The kernel's lock: it knows the type by its name (`linux/bpf.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct bpf_spin_lock {
    /// The kernel's business.
    pub val: u32,
}

/// An element of a table: ten lines of a cache, since tables begin at a page (`BPF_F_MMAPABLE`).
///
/// Whoever makes, moves or removes an entry, or changes its state, holds the lock. Times are written without it.
/// Where there is room, an entry has the place that its hash names ([`home`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// A part of each entry's hash; zero where there is none.
    pub prints: [u32; WAYS],
    /// The second of `CLOCK_MONOTONIC` at which each ends, unless it is used before.
    pub untils: [u32; WAYS],
    /// Whose each is, see [`owner`].
    pub owners: [u32; WAYS],
    /// The [`State`] of each.
    pub states: [u8; WAYS],
    /// Held by programs while they write.
    pub lock: bpf_spin_lock,
    /// Always zero.
    pub pad: [u32; 5],
    /// What the entries say.
    pub records: [Record; WAYS],
}
map_type!(Bucket, size = 640, align = 8);

/// What an entry of a bucket says: a line of a cache. Keys are compared by words of 64 bits.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The flow, and when it was seen ([`PROTOCOL_WORD`]).
    pub key: Key,
    /// What is remembered of it.
    pub value: Value,
}
map_type!(Record, size = 64, align = 8);

/// How far a flow got.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// One packet was seen of it, or only such as anybody can provoke.
    New = 0,
    /// Of a connection that came in: the pod has answered.
    Answered = 1,
    /// It is in use: it gives way only to its own source, or where its source has half of the bucket.
    Settled = 2,
    /// TCP: the pod has sent a FIN or a RST.
    Closing = 3,
}

/// Seconds that flows live after their last packet.
///
/// What has ended goes on to be found until another flow needs its place.
pub mod life {
    use super::{FLOW_SECONDS, State};

    /// TCP that is in use (RFC 5382, 5: at least 2 hours and 4 minutes).
    pub const TCP: u32 = 7440;
    /// TCP that is opened or closed (as `nf_conntrack` has it).
    pub const HALF_TCP: u32 = 120;
    /// All else.
    pub const OTHER: u32 = FLOW_SECONDS;
    /// What is remembered for fragments: no receiver waits longer (RFC 8200, 4.5; Linux: 30 seconds for IPv4),
    /// and the number may be that of another datagram next.
    pub const FRAGMENTS: u32 = 60;

    /// That of a flow of TCP or not in this state.
    #[inline(always)]
    pub const fn of(is_tcp: bool, state: State) -> u32 {
        match (is_tcp, matches!(state, State::Settled)) {
            (true, true) => TCP,
            (true, false) => HALF_TCP,
            (false, _) => OTHER,
        }
    }
}

/// A well-mixed number of a key: its upper bits say the bucket, all of them tell entries of a bucket apart.
///
/// A sum of products, none of which waits for another.
#[inline(always)]
pub const fn hash(key: &Key) -> u32 {
    let mut sum = 0_u64;
    let mut at = 0;
    while at < PAIRS {
        let high = if at * 2 + 1 < KEY_WORDS {
            key[at * 2 + 1]
        } else {
            0
        };
        sum = sum.wrapping_add(product(at, key[at * 2], high));
        at += 1;
    }
    folded(sum)
}

/// Pairs of words in a key.
pub const PAIRS: usize = KEY_WORDS.div_ceil(2);

/// What a pair of a key's words adds to the sum that [`folded`] makes the [`hash`] of.
#[inline(always)]
pub const fn product(pair: usize, low: u32, high: u32) -> u64 {
    // Odd; of the finalizers of `MurmurHash3` and `SplitMix64` (public domain), and the golden ratio.
    const FACTORS: [u64; PAIRS] = [
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
        0xc4ce_b9fe_1a85_ec53,
        0xff51_afd7_ed55_8ccd,
        0xd6e8_feb8_6659_fd93,
    ];
    (low as u64 | (high as u64) << 32).wrapping_mul(FACTORS[pair])
}

/// The hash of a key by the sum of its products: their upper halves know most.
#[inline(always)]
pub const fn folded(sum: u64) -> u32 {
    let h = mix(sum, (sum >> 32) as u32, 0);
    (h ^ (h >> 29)) as u32
}

/// Where in its bucket an entry of that hash is, if nothing else was there before it.
#[inline(always)]
pub const fn home(hash: u32) -> usize {
    // The lowest bit is not in the print, and the upper ones name the bucket.
    (hash >> 1) as usize % WAYS
}

/// Multiply and fold, with a constant of `MurmurHash3`'s finalizer (Appleby, public domain).
#[inline(always)]
const fn mix(h: u64, low: u32, high: u32) -> u64 {
    let h = (h ^ (low as u64 | (high as u64) << 32)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 32)
}

/// The bucket of a hash among so many.
#[inline(always)]
pub const fn bucket(hash: u32, buckets: u32) -> u32 {
    ((hash as u64 * buckets as u64) >> 32) as u32
}

/// What tells an entry from others of its bucket: not zero.
#[inline(always)]
pub const fn print(hash: u32) -> u32 {
    hash | 1
}

/// Buckets with room for so many entries.
#[must_use]
pub const fn buckets(entries: u32) -> u32 {
    entries.div_ceil(WAYS as u32)
}

/// On whose account stands what an address, given as words, begins.
#[inline(always)]
pub const fn owner(source: &[u32; 4]) -> u32 {
    let w = source;
    let h = mix(0x9e37_79b9_7f4a_7c15, w[0], w[1]);
    (mix(h, w[2], w[3]) >> 32) as u32
}

impl Bucket {
    /// The entries, whether they have ended or not: index and what it says.
    pub fn entries(&self) -> impl Iterator<Item = (usize, &Record)> {
        let records = self.records.iter().enumerate();
        records.filter(|(index, _)| self.prints[*index] != 0)
    }

    /// How many of its flows go on at a second.
    #[must_use]
    pub fn alive(&self, second: u32) -> usize {
        self.entries()
            .filter(|(index, _)| self.untils[*index] > second)
            .count()
    }
}

impl ReplyKey {
    /// As the key of a table.
    #[inline(always)]
    pub const fn words(&self) -> Key {
        let (a, b) = (self.remote.words(), self.pod.words());
        let ports = ports(self.remote_port, self.pod_port);
        let protocol = self.protocol as u32;
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], ports, protocol, 0,
        ]
    }

    /// The key that has these words.
    #[must_use]
    pub fn from_words(words: &Key) -> Self {
        let (remote_port, pod_port) = halves(words[8]);
        Self {
            remote: address(words, 0),
            pod: address(words, 4),
            remote_port,
            pod_port,
            protocol: low(words[9]),
            pad: [0; 3],
        }
    }
}

impl FlowKey {
    /// As the key of a table.
    #[inline(always)]
    pub const fn words(&self) -> Key {
        let (a, b) = (self.source.words(), self.destination.words());
        let ports = ports(self.source_port, self.destination_port);
        let protocol = self.protocol as u32;
        [
            a[0],
            a[1],
            a[2],
            a[3],
            b[0],
            b[1],
            b[2],
            b[3],
            ports,
            protocol,
            self.ifindex,
        ]
    }

    /// The key that has these words.
    #[must_use]
    pub fn from_words(words: &Key) -> Self {
        let (source_port, destination_port) = halves(words[8]);
        Self {
            source: address(words, 0),
            destination: address(words, 4),
            source_port,
            destination_port,
            ifindex: words[10],
            protocol: low(words[9]),
            pad: [0; 3],
        }
    }
}

impl ReplyPath {
    /// As a value of a table.
    #[inline(always)]
    pub const fn words(&self) -> Value {
        let (p, h) = (&self.pod_mac.0, &self.host_mac.0);
        [
            self.ifindex,
            u32::from_ne_bytes([p[0], p[1], p[2], p[3]]),
            u32::from_ne_bytes([p[4], p[5], h[0], h[1]]),
            u32::from_ne_bytes([h[2], h[3], h[4], h[5]]),
            self.via,
        ]
    }

    /// The path that has these words.
    #[inline(always)]
    pub const fn from_words(words: &Value) -> Self {
        let (a, b, c) = (
            words[1].to_ne_bytes(),
            words[2].to_ne_bytes(),
            words[3].to_ne_bytes(),
        );
        Self {
            ifindex: words[0],
            pod_mac: Mac([a[0], a[1], a[2], a[3], b[0], b[1]]),
            host_mac: Mac([b[2], b[3], c[0], c[1], c[2], c[3]]),
            via: words[4],
        }
    }
}

impl Choice {
    /// As a value of a table.
    #[inline(always)]
    pub const fn words(&self) -> Value {
        [self.gateway.0, self.number, 0, 0, 0]
    }

    /// The choice that has these words.
    #[inline(always)]
    pub const fn from_words(words: &Value) -> Self {
        Self {
            gateway: GatewayId(words[0]),
            number: words[1],
        }
    }
}

fn address(words: &Key, at: usize) -> Addr {
    Addr::from_words([words[at], words[at + 1], words[at + 2], words[at + 3]])
}

/// Two ports as a word of a key.
#[inline(always)]
#[must_use]
pub const fn ports(first: WireU16, second: WireU16) -> u32 {
    let (a, b) = (first.0, second.0);
    u32::from_ne_bytes([a[0], a[1], b[0], b[1]])
}

fn halves(word: u32) -> (WireU16, WireU16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (WireU16([a, b]), WireU16([c, d]))
}

const fn low(word: u32) -> u8 {
    word as u8
}
