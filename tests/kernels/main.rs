//! What is shown on other kernels: the programs load, packets through each of them, and pods that leave by
//! an egress address.
//!
//! The packets' tests are those of `tests/tests`, all in one process that loads the programs once.

mod end_to_end;

#[path = "../tests/packets_answered.rs"]
mod packets_answered;
#[path = "../tests/packets_from_gateways.rs"]
mod packets_from_gateways;
#[path = "../tests/packets_from_pods.rs"]
mod packets_from_pods;
#[path = "../tests/packets_inbound.rs"]
mod packets_inbound;
#[path = "../tests/packets_of_flows.rs"]
mod packets_of_flows;
#[path = "../tests/packets_that_leave.rs"]
mod packets_that_leave;
#[path = "../tests/packets_through_nat.rs"]
mod packets_through_nat;
#[path = "../tests/packets_through_nat_headers.rs"]
mod packets_through_nat_headers;
#[path = "../tests/packets_through_nat_icmp.rs"]
mod packets_through_nat_icmp;
#[path = "../tests/packets_through_nat_states.rs"]
mod packets_through_nat_states;
#[path = "../tests/packets_to_overlay.rs"]
mod packets_to_overlay;
#[path = "../tests/packets_with_odd_headers.rs"]
mod packets_with_odd_headers;
#[path = "../tests/packets_with_odd_sources.rs"]
mod packets_with_odd_sources;
