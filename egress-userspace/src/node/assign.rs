//! Putting single addresses on interfaces, and taking them off, over netlink.
//!
//! Every function here blocks, and may be called with or without an async runtime around it: it runs on a
//! thread of its own, in the network namespace of the caller.

use std::{io, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    AddressMessageBuilder, Error, Handle,
    packet_route::address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
    },
};
use tokio::time::timeout;

/// How long the kernel may take over one of these.
const TIMEOUT: Duration = Duration::from_secs(5);
const FOR_EVER: u32 = u32::MAX;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The interface.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
}

/// Puts an address on an interface, alone in its prefix. Says whether it was not there.
///
/// It is never a source of the node's own traffic, masqueraded traffic included. The kernel never takes an IPv6
/// address for one whose preferred lifetime is zero while there is another (RFC 6724, rule 3). IPv4 knows no
/// such thing, but `inet_select_addr` leaves out an address whose scope is narrower than the destination's:
/// scope host is narrower than all that is not on the node itself. Scope link would not do: an interface's list
/// begins with narrow scopes, and a route to its own segment that names no source takes the first of the list.
/// Whatever its scope, an address is local and answers ARP (unless `arp_ignore` is 3).
///
/// # Errors
/// The kernel refuses, or does not answer.
pub fn assign(ifindex: u32, address: IpAddr) -> Result<bool> {
    let added = on_own_thread(async move |handle| {
        let mut request = handle.address().add(ifindex, address, full_length(address));
        if address.is_ipv6() {
            // Waiting for duplicates would leave the gateway without its address for a second, and the node
            // that had it before may be gone without having let it go.
            let message = request.message_mut();
            message.header.flags = AddressHeaderFlags::Nodad;
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_valid = FOR_EVER;
            message.attributes.extend([
                AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
                AddressAttribute::CacheInfo(lifetime),
            ]);
        } else {
            request.message_mut().header.scope = AddressScope::Host;
        }
        request.execute().await
    });
    done(added, libc::EEXIST)
        .with_context(|| format!("cannot put {address} on interface {ifindex}"))
}

/// Takes an address that [`assign`] put on an interface off it. Says whether it was there.
///
/// # Errors
/// The kernel refuses, or does not answer. That the interface is gone is no error.
pub fn withdraw(ifindex: u32, address: IpAddr) -> Result<bool> {
    let removed = on_own_thread(async move |handle| {
        handle
            .address()
            .del(message(ifindex, address))
            .execute()
            .await
    });
    match done(removed, libc::EADDRNOTAVAIL) {
        Err(error) if has_errno(&error, libc::ENODEV) => Ok(false),
        result => result.with_context(|| format!("cannot take {address} off interface {ifindex}")),
    }
}

/// Every address of the node.
///
/// # Errors
/// The kernel refuses, or does not answer.
pub fn list() -> Result<Vec<Listed>> {
    let messages: Vec<AddressMessage> =
        on_own_thread(async |handle| handle.address().get().execute().try_collect().await)
            .context("cannot list the node's addresses")?;
    Ok(messages.iter().filter_map(listed).collect())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of an address's attributes two matter"
)]
fn listed(message: &AddressMessage) -> Option<Listed> {
    let (mut local, mut prefix) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => prefix = Some(*address),
            _ => {}
        }
    }
    Some(Listed {
        ifindex: message.header.index,
        address: local.or(prefix)?,
    })
}

fn message(ifindex: u32, address: IpAddr) -> AddressMessage {
    let length = full_length(address);
    match address {
        IpAddr::V4(address) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(ifindex)
            .address(address, length)
            .build(),
        IpAddr::V6(address) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
            .index(ifindex)
            .address(address, length)
            .build(),
    }
}

const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Whether something was done; an answer of `nothing` says that there was nothing to do.
fn done(result: Result<()>, nothing: i32) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if has_errno(&error, nothing) => Ok(false),
        Err(error) => Err(error),
    }
}

fn has_errno(error: &anyhow::Error, errno: i32) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.raw_os_error() == Some(errno))
}

/// Runs `work` to its end with a connection to the caller's network namespace.
fn on_own_thread<T: Send>(
    work: impl AsyncFnOnce(Handle) -> std::result::Result<T, Error> + Send,
) -> Result<T> {
    let run = || -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().context("cannot open a netlink socket")?;
            let connection = tokio::spawn(connection);
            let result = timeout(TIMEOUT, work(handle)).await;
            connection.abort();
            result
                .context("the kernel did not answer in time")?
                .map_err(of_kernel)
        })
    };
    std::thread::scope(|scope| {
        scope
            .spawn(run)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The kernel's own answer, where the error is one.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "one kind of error comes from the kernel"
)]
fn of_kernel(error: Error) -> anyhow::Error {
    match error {
        Error::NetlinkError(answer) => answer.to_io().into(),
        other => other.into(),
    }
}
