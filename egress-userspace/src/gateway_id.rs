//! The number of a gateway: the same on every node, without anybody giving numbers out.

use egress_common::gateway::GatewayId;
use sha2::{Digest, Sha256};

use crate::model::ObjectName;

/// The gateway's number: the first four bytes, big endian, of SHA-256 over `NAMESPACE/NAME`.
///
/// Nodes of different releases must agree, so this never changes. Two names in four billion share a number;
/// whoever gives numbers to a whole cluster has to look for that.
#[must_use]
pub fn gateway_id(name: &ObjectName) -> GatewayId {
    let hash = Sha256::digest(name.to_string().as_bytes());
    GatewayId(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_change() {
        // From the definition, by other means: `printf NAMESPACE/NAME | sha256sum`.
        for (namespace, name, expected) in [
            ("default", "red", 0x9d52_1f92),
            ("egress", "gw-1", 0xc6f7_9416),
        ] {
            let id = gateway_id(&ObjectName::new(namespace, name));
            assert_eq!(id, GatewayId(expected), "{namespace}/{name}");
        }
    }
}
