//! How packets move a connection from state to state.

use egress_common::nat::NatState;

use super::upper::tcp::{ACK, FIN, RST, SYN};

const SYN_SENT: u8 = NatState::TcpSynSent as u8;
const SYN_RECV: u8 = NatState::TcpSynRecv as u8;
const ESTABLISHED: u8 = NatState::TcpEstablished as u8;
const FIN_WAIT: u8 = NatState::TcpFinWait as u8;
const CLOSE_WAIT: u8 = NatState::TcpCloseWait as u8;
const LAST_ACK: u8 = NatState::TcpLastAck as u8;
const TIME_WAIT: u8 = NatState::TcpTimeWait as u8;
const CLOSE: u8 = NatState::TcpClose as u8;
const UDP: u8 = NatState::Udp as u8;
const UDP_STREAM: u8 = NatState::UdpStream as u8;

/// The state after a packet from the pod; `flags` are zero for all but TCP.
///
/// A function of its own: the verifier then sees one number where there were twenty ways.
#[inline(never)]
pub(super) fn outward(state: u8, flags: u8) -> u8 {
    if state > CLOSE {
        return state;
    }
    if flags & RST != 0 {
        return CLOSE;
    }
    if flags & SYN != 0 {
        return match state {
            // The pod uses the port once more.
            FIN_WAIT | CLOSE_WAIT | LAST_ACK | TIME_WAIT | CLOSE if flags & ACK == 0 => SYN_SENT,
            _ => state,
        };
    }
    if flags & FIN != 0 {
        return match state {
            SYN_SENT | SYN_RECV | ESTABLISHED | CLOSE => FIN_WAIT,
            CLOSE_WAIT => LAST_ACK,
            _ => state,
        };
    }
    match state {
        SYN_RECV => ESTABLISHED,
        LAST_ACK if flags & ACK != 0 => TIME_WAIT,
        // The pod goes on: whoever guessed the ports may have sent the FIN or RST from outside. Where the far
        // end did close, the pod's own FIN shortens the time again.
        CLOSE_WAIT | CLOSE => ESTABLISHED,
        _ => state,
    }
}

/// The state after a packet from the far end, likewise.
#[inline(never)]
pub(super) fn homeward(state: u8, flags: u8) -> u8 {
    if state == UDP {
        return UDP_STREAM;
    }
    if state > CLOSE {
        return state;
    }
    if flags & RST != 0 {
        return CLOSE;
    }
    if flags & SYN != 0 {
        return if state == SYN_SENT { SYN_RECV } else { state };
    }
    if flags & FIN != 0 {
        return match state {
            SYN_SENT | SYN_RECV | ESTABLISHED => CLOSE_WAIT,
            FIN_WAIT => LAST_ACK,
            _ => state,
        };
    }
    match state {
        // The pod's first packet was from the middle of its connection.
        SYN_SENT if flags & ACK != 0 => ESTABLISHED,
        LAST_ACK if flags & ACK != 0 => TIME_WAIT,
        _ => state,
    }
}
