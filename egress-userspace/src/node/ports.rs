//! The ports that the node gives its own connections.

use anyhow::{Context as _, Result};

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The first and the last port that the kernel gives connections of the node itself, of either family, in the
/// network namespace of the calling thread.
///
/// # Errors
/// The kernel does not tell.
pub fn local_ports() -> Result<(u16, u16)> {
    let text = std::fs::read_to_string(RANGE).with_context(|| format!("cannot read {RANGE}"))?;
    parse(&text).with_context(|| format!("cannot understand {RANGE}: {text:?}"))
}

fn parse(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_ascii_whitespace();
    let range = (ports.next()?.parse().ok()?, ports.next()?.parse().ok()?);
    ports.next().is_none().then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_separates_ports_by_blanks() {
        for (text, range) in [
            ("32768\t60999\n", Some((32_768, 60_999))),
            ("1024 65535", Some((1024, 65_535))),
            ("1024\n", None),
            ("1 2 3", None),
            ("1 99999", None),
        ] {
            assert_eq!(parse(text), range, "{text:?}");
        }
    }
}
