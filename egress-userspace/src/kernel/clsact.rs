//! What aya does not do for clsact: the qdisc's life, and filters by the interface's index, over rtnetlink.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};

/// The qdisc's handle, and its two lists of filters (`linux/pkt_sched.h`).
const HANDLE: u32 = 0xffff_0000;
const PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `ETH_P_ALL` of `linux/if_ether.h`, in the wire's order as the kernel wants it.
const EVERY_PROTOCOL: u16 = 0x0003_u16.to_be();
/// The attribute `TCA_KIND` with its value, padded to words of four bytes.
const KIND: [u8; 12] = {
    let [length, kind] = [11_u16.to_ne_bytes(), libc::TCA_KIND.to_ne_bytes()];
    [
        length[0], length[1], kind[0], kind[1], b'c', b'l', b's', b'a', b'c', b't', 0, 0,
    ]
};
/// Lengths of `struct nlmsghdr` and `struct tcmsg`.
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// Adds the qdisc, and says whether it was not there before.
pub(super) fn add_qdisc(ifindex: u32) -> io::Result<bool> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match ask(
        &message(libc::RTM_NEWQDISC, flags, ifindex, HANDLE, PARENT, 0),
        &KIND,
    ) {
        Ok(_) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the qdisc in this place is a clsact one, and none of the kind `ingress`, which takes filters for what an interface
/// sends as well, and runs them on what it receives.
pub(super) fn is_clsact(ifindex: u32) -> io::Result<bool> {
    // The kernel compares the kind that it is asked for (`tc_get_qdisc`).
    match ask(
        &message(libc::RTM_GETQDISC, 0, ifindex, HANDLE, PARENT, 0),
        &KIND,
    ) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes the qdisc unless a filter is left in it; one that is gone, or on an interface that is, is as good.
pub(super) fn remove_unused_qdisc(ifindex: u32) -> io::Result<()> {
    for list in [INGRESS, EGRESS] {
        let dump = message(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, ifindex, 0, list, 0);
        match ask(&dump, &[]) {
            Ok(true) => return Ok(()),
            Ok(false) | Err(Errno::ENODEV | Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    absent_is_fine(ask(
        &message(libc::RTM_DELQDISC, 0, ifindex, HANDLE, PARENT, 0),
        &KIND,
    ))
}

/// One of our filters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    /// The interface.
    pub(super) ifindex: u32,
    /// Whether it sees what the interface sends, not what it receives.
    pub(super) egress: bool,
    /// Lower comes first.
    pub(super) priority: u16,
    /// Among those of one priority, which.
    pub(super) handle: u32,
}

/// Whether the filter is there.
pub(super) fn has_filter(filter: Filter) -> io::Result<bool> {
    match ask(&filter.message(libc::RTM_GETTFILTER), &[]) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EINVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes the filter; one that is gone is as good.
pub(super) fn remove_filter(filter: Filter) -> io::Result<()> {
    absent_is_fine(ask(&filter.message(libc::RTM_DELTFILTER), &[]))
}

impl Filter {
    fn message(self, kind: u16) -> Vec<u8> {
        let list = if self.egress { EGRESS } else { INGRESS };
        let info = u32::from(self.priority) << 16 | u32::from(EVERY_PROTOCOL);
        message(kind, 0, self.ifindex, self.handle, list, info)
    }
}

/// `EINVAL` is what the kernel says of a filter where there is no qdisc, or no such priority.
fn absent_is_fine(result: Result<bool, Errno>) -> io::Result<()> {
    match result {
        Ok(_) | Err(Errno::ENOENT | Errno::ENODEV | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn message(kind: u16, flags: i32, ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let mut bytes = Vec::with_capacity(HEADER + TCMSG + KIND.len());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes()[low_half()]);
    // Sequence and port: one question on a socket of its own.
    bytes.extend_from_slice(&[0; 8]);
    // The family, and padding.
    bytes.extend_from_slice(&[0; 4]);
    for word in [ifindex, handle, parent, info] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Where the low sixteen bits of a word lie in its bytes.
const fn low_half() -> std::ops::Range<usize> {
    if cfg!(target_endian = "little") {
        0..2
    } else {
        2..4
    }
}

/// Asks the kernel, and says whether it had anything to tell before the end.
fn ask(message: &[u8], attributes: &[u8]) -> Result<bool, Errno> {
    let mut message = [message, attributes].concat();
    let length = u32::try_from(message.len()).map_err(|_| Errno::EMSGSIZE)?;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
    let mut told = false;
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((size, kind, errno)) = read(rest) {
            match i32::from(kind) {
                libc::NLMSG_ERROR if errno != 0 => return Err(Errno::from_raw(-errno)),
                libc::NLMSG_ERROR | libc::NLMSG_DONE => return Ok(told),
                _ => told = true,
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Length, kind and first word of a message, which is the error where the kind is one.
fn read(bytes: &[u8]) -> Option<(usize, u16, i32)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let word = i32::from_ne_bytes(*bytes.get(HEADER..)?.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    (length > HEADER).then_some((length, kind, word))
}
