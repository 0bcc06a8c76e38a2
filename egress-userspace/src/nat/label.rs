//! Names of protocols.

/// The protocol's name in metrics and tables; its number where none is common (IANA, protocol numbers).
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    let name = match protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        47 => "gre",
        50 => "esp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        other => return other.to_string(),
    };
    name.to_owned()
}
