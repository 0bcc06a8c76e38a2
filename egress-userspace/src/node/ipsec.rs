//! Whether the kernel encrypts packets by IPsec policies: what does not go through its stack would go around them.

use std::{io, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_XFRM,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// `XFRMNLGRP_POLICY`: policies that come and go.
const POLICIES: u32 = 4;
/// `XFRM_MSG_GETSPDINFO` and what answers it (`linux/xfrm.h`).
const HOW_MANY: u16 = 0x25;
const SO_MANY: u16 = 0x24;
/// `XFRMA_SPD_INFO`, six counts: in, out, forwarded, and the same of sockets' own policies.
const COUNTS: u16 = 1;
/// Of those the ones that are not sockets' own.
const COUNTED: usize = 3;
const NLMSG_HEADER: usize = 16;
const REQUEST: u16 = 1;
/// How often the kernel is asked, whatever it tells: of a policy that expires it tells others.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// Follows whether the network namespace of the calling thread has any IPsec policy; while that is not known, it may.
///
/// # Errors
/// The first answer does not come: the kernel refuses.
pub async fn watch_ipsec() -> Result<watch::Receiver<bool>> {
    let mut source = match Source::open() {
        Ok(source) => source,
        // A kernel without IPsec, which nobody adds to later, as far as this namespace's policies are asked for.
        Err(error) if is_unknown(&error) => return Ok(watch::channel(false).1),
        Err(error) => return Err(error),
    };
    let (sender, receiver) = watch::channel(source.has_policies()?);
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                () = sender.closed() => return,
                heard = source.changed() => heard,
            };
            let found = heard.and_then(|()| source.has_policies());
            let may_encrypt = match found {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!("lost sight of IPsec policies, trying again: {error:#}");
                    sender.send_if_modified(|known| !std::mem::replace(known, true));
                    sleep(RETRY).await;
                    if let Ok(anew) = Source::open() {
                        source = anew;
                    }
                    continue;
                }
            };
            sender.send_if_modified(|known| std::mem::replace(known, may_encrypt) != may_encrypt);
        }
    });
    Ok(receiver)
}

fn is_unknown(error: &anyhow::Error) -> bool {
    let number = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    number.map(Errno::from_raw) == Some(Errno::EPROTONOSUPPORT)
}

/// Where changes are heard, and what is asked.
struct Source {
    told: TokioSocket,
    asked: Socket,
    buffer: Vec<u8>,
}

impl Source {
    fn open() -> Result<Self> {
        let mut told = TokioSocket::new(NETLINK_XFRM)?;
        let mut asked = Socket::new(NETLINK_XFRM)?;
        asked.bind_auto()?;
        asked.connect(&SocketAddr::new(0, 0))?;
        let socket = told.socket_mut();
        socket.bind(&SocketAddr::new(0, 0))?;
        socket
            .add_membership(POLICIES)
            .context("the kernel does not tell of IPsec policies")?;
        Ok(Self {
            told,
            asked,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Waits until something may have changed.
    async fn changed(&mut self) -> Result<()> {
        self.buffer.clear();
        match timeout(ASK_AGAIN, self.told.recv(&mut self.buffer)).await {
            // What was lost is asked for all the same.
            Err(_) | Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
            Ok(Err(error)) => Err(error).context("cannot hear of IPsec policies"),
        }
    }

    /// Asks whether there is a policy. The kernel answers at once.
    fn has_policies(&self) -> Result<bool> {
        self.asked
            .send(&question(), 0)
            .context("cannot ask for IPsec policies")?;
        let mut answer = Vec::with_capacity(4096);
        self.asked
            .recv(&mut answer, 0)
            .context("the kernel does not tell how many IPsec policies there are")?;
        Ok(policies(&answer)? > 0)
    }
}

fn question() -> Vec<u8> {
    let length = NLMSG_HEADER + 4;
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(0).to_ne_bytes());
    message.extend(HOW_MANY.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number, sender, and flags, which ask for nothing more.
    message.extend([0; 12]);
    message
}

/// How many policies an answer tells of, but for those of sockets.
fn policies(answer: &[u8]) -> Result<u64> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    ensure!(
        kind.map(u16::from_ne_bytes) == Some(SO_MANY),
        "the kernel refuses to tell how many IPsec policies there are"
    );
    // An attribute: its length, its kind, its content, each begins at a multiple of four.
    let mut rest = answer.get(NLMSG_HEADER + 4..).unwrap_or_default();
    while let &[a, b, c, d, ..] = rest {
        let length = usize::from(u16::from_ne_bytes([a, b])).max(4);
        if u16::from_ne_bytes([c, d]) == COUNTS {
            let counts = rest.get(4..length).unwrap_or_default();
            ensure!(
                counts.len() >= COUNTED * 4,
                "the kernel tells of IPsec policies in a way that is not understood"
            );
            let words = counts.chunks_exact(4).take(COUNTED);
            return Ok(words
                .filter_map(|word| word.try_into().ok())
                .map(|word| u64::from(u32::from_ne_bytes(word)))
                .sum());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    anyhow::bail!("the kernel does not tell how many IPsec policies there are")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn answer(kind: u16, attributes: &[(u16, &[u32])]) -> Vec<u8> {
        let mut message = vec![0; NLMSG_HEADER + 4];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        for (kind, words) in attributes {
            let length = u16::try_from(4 + words.len() * 4).unwrap();
            message.extend(length.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }
        message
    }

    #[test]
    fn sockets_own_policies_are_not_counted() {
        type Row<'a> = (&'a str, u16, &'a [(u16, &'a [u32])], Option<u64>);
        let rows: &[Row<'_>] = &[
            ("none", SO_MANY, &[(COUNTS, &[0; 6])], Some(0)),
            (
                "sockets'",
                SO_MANY,
                &[(COUNTS, &[0, 0, 0, 2, 2, 0])],
                Some(0),
            ),
            ("some", SO_MANY, &[(COUNTS, &[1, 2, 3, 0, 0, 0])], Some(6)),
            (
                "behind another",
                SO_MANY,
                &[(2, &[7, 7]), (COUNTS, &[0, 1, 0, 0, 0, 0])],
                Some(1),
            ),
            ("cut off", SO_MANY, &[(COUNTS, &[1])], None),
            ("nothing", SO_MANY, &[], None),
            ("an error", 2, &[(COUNTS, &[0; 6])], None),
        ];
        for (what, kind, attributes, expected) in rows {
            assert_eq!(
                policies(&answer(*kind, attributes)).ok(),
                *expected,
                "{what}"
            );
        }
        assert!(policies(&[]).is_err());
    }
}
