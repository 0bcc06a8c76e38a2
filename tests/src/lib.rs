//! Hosts made of network namespaces, packets and clients for the end-to-end tests.

pub mod packets;
