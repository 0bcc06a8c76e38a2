//! Addresses, ports and MACs in the byte order of the wire.

use crate::map_type;

/// The two families of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

/// An IP address of either family: 16 bytes in wire order, IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
///
/// An IPv6 packet that carries such a mapped address on the wire is refused before it gets here, so the
/// two families never meet.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub [u8; 16]);
map_type!(Addr, size = 16, align = 4);

impl Addr {
    /// The IPv4 address with these wire bytes.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3],
        ])
    }

    /// The IPv6 address with these wire bytes.
    #[inline(always)]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Whether this is an IPv4 address, or an IPv6 address that pretends to be one.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.words()[0] == 0
            && self.words()[1] == 0
            && self.words()[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// The last four bytes: all there is of an IPv4 address.
    #[inline(always)]
    pub const fn v4_bytes(&self) -> [u8; 4] {
        let a = &self.0;
        [a[12], a[13], a[14], a[15]]
    }

    /// The address of four words whose bytes in memory are the wire's.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // Taken apart and put together again, each byte would be stored by itself.
        // SAFETY: both are 16 bytes of plain numbers.
        Self(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
    }

    /// The address as four words whose bytes in memory are the wire's.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: both are 16 bytes of plain numbers.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.0) }
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(a) => Self::v4(a.octets()),
            core::net::IpAddr::V6(a) => Self::v6(a.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            Self::from(addr.v4_bytes())
        } else {
            Self::from(addr.0)
        }
    }
}

/// A 16-bit field (a port, an ICMP identifier) in wire order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireU16(pub [u8; 2]);
map_type!(WireU16, size = 2, align = 1);

impl WireU16 {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be_bytes())
    }

    /// As a number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// An Ethernet address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);
map_type!(Mac, size = 6, align = 1);
