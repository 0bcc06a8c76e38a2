//! The rules of the standing table, as nftables' expressions (`enum nft_*_attributes` of `linux/netfilter/nf_tables.h`).

use super::wire::{Attributes, Family};
use super::{Pattern, SET, SET_ID, counter};

/// The chain that every packet meets first.
pub(super) const HOOKED: &str = "prerouting";
/// The chain for packets from interfaces that a pattern names.
pub(super) const CLOSED: &str = "closed";

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// The register that every comparison here uses, of 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_SET_ID: u16 = 4;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const OBJREF_TYPE: u16 = 1;
const OBJREF_NAME: u16 = 2;
/// `NFT_OBJECT_COUNTER`.
pub(super) const OBJECT_COUNTER: u32 = 1;
/// The kernel's limit of an interface's name, with the zero at its end (`IFNAMSIZ`).
const NAME: usize = 16;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Router solicitation, and the last of neighbour discovery that a host needs (RFC 4861, 4).
const DISCOVERY: (u8, u8) = (133, 136);

/// What a packet is asked for.
#[derive(Clone, Copy)]
enum Meta {
    Protocol = 1,
    InterfaceIndex = 4,
    InterfaceName = 6,
    Layer4 = 16,
}

#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

/// Where in a packet something stands.
#[derive(Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// What becomes of a packet (`NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`).
enum Verdict<'a> {
    Drop,
    Accept,
    Jump(&'a str),
}

/// The rules: chain, and expressions.
///
/// A held pod can still find its neighbours and its address, or it would be deaf for seconds once it is let go: ARP
/// (which only a bridge sees here), DHCP's broadcasts, and neighbour discovery that stays on the link. None of those
/// is ever routed.
pub(super) fn rules(family: Family, patterns: &[Pattern]) -> Vec<(&'static str, Attributes)> {
    let mut rules: Vec<_> = patterns
        .iter()
        .map(|pattern| (HOOKED, named(pattern)))
        .collect();
    rules.push((
        CLOSED,
        all([
            meta(Meta::InterfaceIndex),
            expression(
                "lookup",
                Attributes::new()
                    .text(LOOKUP_SET, SET)
                    .number(LOOKUP_SREG, REGISTER)
                    .number(LOOKUP_SET_ID, SET_ID),
            ),
            verdict(&Verdict::Accept),
        ]),
    ));
    if family == Family::Bridge {
        rules.push((
            CLOSED,
            all([
                meta(Meta::Protocol),
                compare(Compare::Equal, &ETHERTYPE_ARP.to_be_bytes()),
                verdict(&Verdict::Accept),
            ]),
        ));
    }
    rules.push((CLOSED, dhcp()));
    // ff02::/16 and fe80::/16: what a router does not send on.
    rules.extend([[0xff, 0x02], [0xfe, 0x80]].map(|prefix| (CLOSED, discovery(prefix))));
    rules.push((
        CLOSED,
        all([
            expression(
                "objref",
                Attributes::new()
                    .number(OBJREF_TYPE, OBJECT_COUNTER)
                    .text(OBJREF_NAME, counter(family)),
            ),
            verdict(&Verdict::Drop),
        ]),
    ));
    rules
}

fn named(pattern: &Pattern) -> Attributes {
    let mut name = pattern.stem().as_bytes().to_vec();
    if !pattern.is_prefix() {
        name.resize(NAME, 0);
    }
    all([
        meta(Meta::InterfaceName),
        compare(Compare::Equal, &name),
        verdict(&Verdict::Jump(CLOSED)),
    ])
}

/// UDP from 0.0.0.0 port 68 to 255.255.255.255 port 67 (RFC 2131, 4.1).
fn dhcp() -> Attributes {
    all([
        meta(Meta::Protocol),
        compare(Compare::Equal, &ETHERTYPE_IPV4.to_be_bytes()),
        payload(Base::Network, 12, 8),
        compare(Compare::Equal, &[0, 0, 0, 0, 255, 255, 255, 255]),
        meta(Meta::Layer4),
        compare(Compare::Equal, &[UDP]),
        payload(Base::Transport, 0, 4),
        compare(Compare::Equal, &[0, 68, 0, 67]),
        verdict(&Verdict::Accept),
    ])
}

fn discovery(destination: [u8; 2]) -> Attributes {
    all([
        meta(Meta::Protocol),
        compare(Compare::Equal, &ETHERTYPE_IPV6.to_be_bytes()),
        payload(Base::Network, 24, 2),
        compare(Compare::Equal, &destination),
        meta(Meta::Layer4),
        compare(Compare::Equal, &[ICMPV6]),
        payload(Base::Transport, 0, 1),
        compare(Compare::AtLeast, &[DISCOVERY.0]),
        compare(Compare::AtMost, &[DISCOVERY.1]),
        verdict(&Verdict::Accept),
    ])
}

fn all<const N: usize>(expressions: [Attributes; N]) -> Attributes {
    expressions.iter().fold(Attributes::new(), |list, one| {
        list.nested(LIST_ELEMENT, one)
    })
}

fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::new()
        .text(EXPRESSION_NAME, name)
        .nested(EXPRESSION_DATA, &data)
}

fn meta(key: Meta) -> Attributes {
    expression(
        "meta",
        Attributes::new()
            .number(META_KEY, key as u32)
            .number(META_DREG, REGISTER),
    )
}

fn payload(base: Base, offset: u32, length: u32) -> Attributes {
    expression(
        "payload",
        Attributes::new()
            .number(PAYLOAD_DREG, REGISTER)
            .number(PAYLOAD_BASE, base as u32)
            .number(PAYLOAD_OFFSET, offset)
            .number(PAYLOAD_LEN, length),
    )
}

fn compare(how: Compare, value: &[u8]) -> Attributes {
    expression(
        "cmp",
        Attributes::new()
            .number(CMP_SREG, REGISTER)
            .number(CMP_OP, how as u32)
            .nested(CMP_DATA, &Attributes::new().bytes(DATA_VALUE, value)),
    )
}

fn verdict(verdict: &Verdict<'_>) -> Attributes {
    let code = |code: i32| Attributes::new().bytes(VERDICT_CODE, &code.to_be_bytes());
    let verdict = match verdict {
        Verdict::Drop => code(0),
        Verdict::Accept => code(1),
        Verdict::Jump(chain) => code(-3).text(VERDICT_CHAIN, chain),
    };
    expression(
        "immediate",
        Attributes::new()
            .number(IMMEDIATE_DREG, VERDICT_REGISTER)
            .nested(
                IMMEDIATE_DATA,
                &Attributes::new().nested(DATA_VERDICT, &verdict),
            ),
    )
}
