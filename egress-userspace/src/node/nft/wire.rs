//! Messages of nfnetlink: transactions, requests, dumps (`linux/netfilter/nfnetlink.h`, `nf_tables.h`).

use std::io;

use anyhow::{Context as _, Result, bail};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The subsystem's number: the upper byte of its messages' types.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// Of a dump: something changed while it was written.
const INTERRUPTED: u16 = 0x10;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// No part of a dump is longer (`NLMSG_GOODSIZE` is at most two pages, and 32 KiB for large readers).
const RECEIVE: usize = 1 << 16;
/// Dumps that something else spoils are begun again, but not for ever.
const TRIES: usize = 16;

/// The families whose packets are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// IP packets that the node receives.
    Inet,
    /// Frames that a port of a bridge receives.
    Bridge,
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }
}

/// The types of messages, as `enum nf_tables_msg_types` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Message {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
    GetGeneration = 16,
    NewObject = 18,
    GetObject = 19,
}

/// Attributes in the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// A number in network byte order, as nearly all of nftables' are.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn long(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, inside: &Self) -> Self {
        self.bytes(kind | NESTED, &inside.0)
    }

    /// What is longer than an attribute can be is a defect of the caller.
    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or_else(|_| {
            unreachable!("an attribute of {} bytes: lists are cut", value.len())
        });
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in `bytes`, each with its type; what is cut short ends them.
pub(super) fn parse(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// The first attribute of a type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    parse(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// A number in network byte order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A long number in network byte order.
pub(super) fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// Changes that the kernel makes all at once or not at all.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    messages: Vec<(Family, Message, u16, Attributes)>,
}

impl Transaction {
    /// Adds what may be there already.
    pub(super) fn add(&mut self, family: Family, message: Message, attributes: Attributes) {
        let flags = CREATE
            | if message == Message::NewRule {
                APPEND
            } else {
                0
            };
        self.messages.push((family, message, flags, attributes));
    }

    /// Removes what must be there, or empties a chain of its rules.
    pub(super) fn remove(&mut self, family: Family, message: Message, attributes: Attributes) {
        self.messages.push((family, message, 0, attributes));
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// A connection to nftables in the network namespace of the thread that opened it.
pub(super) struct Connection {
    socket: Socket,
}

impl Connection {
    pub(super) fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Netlink answers while it is asked, so there is nothing to wait for.
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().context("cannot reach the kernel's netfilter over netlink")?;
        Ok(Self { socket })
    }

    /// Carries a transaction out.
    ///
    /// # Errors
    /// The kernel's first refusal, an [`io::Error`]; nothing is changed then.
    pub(super) fn commit(&self, transaction: &Transaction) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        batch_mark(&mut bytes, BATCH_BEGIN);
        let last = transaction.messages.len() - 1;
        for (place, (family, message, flags, attributes)) in transaction.messages.iter().enumerate()
        {
            let ack = if place == last { ACK } else { 0 };
            let kind = SUBSYSTEM << 8 | *message as u16;
            message_bytes(&mut bytes, kind, REQUEST | flags | ack, *family, attributes);
        }
        batch_mark(&mut bytes, BATCH_END);
        self.socket.send(&bytes, 0)?;
        let mut heard = false;
        let mut refusal = None;
        while let Some(part) = self.receive()? {
            for (kind, _, body) in split(&part) {
                if kind == NLMSG_ERROR {
                    heard = true;
                    refusal = refusal.or(refused(body));
                }
            }
        }
        match refusal {
            Some(error) => Err(error.into()),
            None if heard => Ok(()),
            None => bail!("the kernel did not answer an nftables transaction"),
        }
    }

    /// Asks for one thing; what is not there is none.
    pub(super) fn get(
        &self,
        family: Family,
        message: Message,
        attributes: &Attributes,
    ) -> Result<Option<Vec<u8>>> {
        match self.ask(family, message, 0, attributes) {
            Ok(Answer { mut found, .. }) => Ok(found.pop()),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists things; a list of what is not there is empty.
    pub(super) fn list(
        &self,
        family: Family,
        message: Message,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>> {
        for _ in 0..TRIES {
            match self.ask(family, message, DUMP, attributes) {
                Ok(Answer { whole: false, .. }) => {}
                Ok(Answer { found, .. }) => return Ok(found),
                Err(error) if is_missing(&error) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        bail!("nftables changes faster than it can be read");
    }

    fn ask(
        &self,
        family: Family,
        message: Message,
        flags: u16,
        attributes: &Attributes,
    ) -> Result<Answer> {
        let mut bytes = Vec::new();
        let kind = SUBSYSTEM << 8 | message as u16;
        message_bytes(&mut bytes, kind, REQUEST | flags, family, attributes);
        self.socket.send(&bytes, 0)?;
        let mut answer = Answer {
            found: Vec::new(),
            whole: true,
        };
        let mut refusal = None;
        while let Some(part) = self.receive()? {
            for (kind, flags, body) in split(&part) {
                answer.whole &= flags & INTERRUPTED == 0;
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => refusal = refusal.or(refused(body)),
                    kind if kind >> 8 == SUBSYSTEM => {
                        let attributes = body.get(FAMILY_HEADER..).unwrap_or_default();
                        answer.found.push(attributes.to_vec());
                    }
                    _ => {}
                }
            }
        }
        match refusal {
            Some(error) => Err(error.into()),
            None => Ok(answer),
        }
    }

    /// The next part of an answer; none where there is no more.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut part = Vec::with_capacity(RECEIVE);
        loop {
            return match self.socket.recv(&mut part, 0) {
                Ok(_) => Ok(Some(part)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

struct Answer {
    found: Vec<Vec<u8>>,
    whole: bool,
}

/// Whether the kernel says that there is no such thing.
pub(super) fn is_missing(error: &anyhow::Error) -> bool {
    has_errno(error, libc::ENOENT)
}

/// Whether the kernel knows nothing of such a family of packets, or of nftables at all.
pub(super) fn is_unknown(error: &anyhow::Error) -> bool {
    [
        libc::EAFNOSUPPORT,
        libc::EOPNOTSUPP,
        libc::EPROTONOSUPPORT,
        libc::EINVAL,
    ]
    .iter()
    .any(|errno| has_errno(error, *errno))
}

fn has_errno(error: &anyhow::Error, errno: i32) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.raw_os_error() == Some(errno))
}

fn batch_mark(bytes: &mut Vec<u8>, kind: u16) {
    header(bytes, HEADER + FAMILY_HEADER, kind, REQUEST);
    // Any family; the subsystem is in the field that other messages have no use for.
    bytes.extend([0, 0]);
    bytes.extend(SUBSYSTEM.to_be_bytes());
}

fn message_bytes(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: Family,
    attributes: &Attributes,
) {
    let length = HEADER + FAMILY_HEADER + attributes.as_bytes().len();
    header(bytes, length, kind, flags);
    bytes.extend([family.number(), 0, 0, 0]);
    bytes.extend(attributes.as_bytes());
}

fn header(bytes: &mut Vec<u8>, length: usize, kind: u16, flags: u16) {
    let length = u32::try_from(length)
        .unwrap_or_else(|_| unreachable!("a message of {length} bytes: lists are cut"));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // The number and the sender's port: one question at a time needs neither.
    bytes.extend([0; 8]);
}

/// The messages of one part: type, flags, what follows the header.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, body))
    })
}

/// The refusal in an error message; zero is a receipt.
fn refused(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    (code < 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inside = Attributes::new().number(2, 7);
        let written = Attributes::new()
            .text(1, "egress")
            .nested(4, &inside)
            .long(3, 1 << 40);
        let read: Vec<_> = parse(written.as_bytes()).collect();
        assert_eq!(read[0], (1, b"egress\0".as_slice()));
        assert_eq!(read[1], (4, inside.as_bytes()));
        assert_eq!(long(read[2].1), Some(1 << 40));
        assert_eq!(attribute(read[1].1, 2).and_then(number), Some(7));
        assert_eq!(written.as_bytes().len() % 4, 0);
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let written = Attributes::new().number(1, 1).number(2, 2);
        for length in 0..written.as_bytes().len() {
            let read = parse(&written.as_bytes()[..length]).count();
            assert_eq!(read, length / 8, "{length} bytes");
        }
        assert_eq!(split(&[1, 0, 0, 0, 2, 0, 0, 0]).count(), 0);
    }
}
