//! The mark of packets that are let through as the cluster's own.

use std::{fmt, num::ParseIntError, str::FromStr};

use serde::Deserialize;

/// One bit of `skb->mark`, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct LocalMark(u32);

/// Not among the bits that kube-proxy (0x4000, 0x8000), the portmap plugin (0x2000), Calico (0xffff0000), Cilium
/// (0x0f00 and, with IPsec alone, keys above it), AWS's VPC CNI (0x80), Istio (0x539), Tailscale (0xff0000) and wg-quick
/// (0xca6c) use.
const USUAL: u32 = 0x1000;
const OFF: &str = "off";

impl LocalMark {
    /// Nothing is marked.
    pub const OFF: Self = Self(0);

    /// The mark: one bit, or zero.
    #[must_use]
    pub const fn bit(self) -> u32 {
        self.0
    }

    /// Whether anything is marked.
    #[must_use]
    pub const fn is_on(self) -> bool {
        self.0 != 0
    }
}

impl Default for LocalMark {
    fn default() -> Self {
        Self(USUAL)
    }
}

impl FromStr for LocalMark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == OFF {
            return Ok(Self::OFF);
        }
        let bits = number(text).map_err(|_| {
            format!("{text:?} is not a mark: write one bit of 32, such as {USUAL:#x}, or off")
        })?;
        if bits.is_power_of_two() {
            Ok(Self(bits))
        } else {
            Err(format!(
                "{text:?} has {} bits set: the mark is one bit, such as {USUAL:#x}, or off",
                bits.count_ones()
            ))
        }
    }
}

fn number(text: &str) -> Result<u32, ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// In YAML a mark may look like a number, and `off` like a truth value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u32),
    Truth(bool),
    Word(String),
}

impl TryFrom<Written> for LocalMark {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(bits) => bits.to_string().parse(),
            Written::Truth(false) => Ok(Self::OFF),
            Written::Truth(true) => "true".parse(),
            Written::Word(text) => text.parse(),
        }
    }
}

impl fmt::Display for LocalMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_on() {
            write!(f, "{:#x}", self.0)
        } else {
            f.write_str(OFF)
        }
    }
}
