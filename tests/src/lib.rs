//! Hosts made of network namespaces, packets and clients for the end-to-end tests.

pub mod agent;
pub mod client;
pub mod cluster;
pub mod ear;
pub mod field;
pub mod flow;
pub mod fuzz;
pub mod host;
pub mod machine;
pub mod paced;
pub mod packets;
pub mod ping;
pub mod resources;
pub mod scrape;
pub mod segment;
pub mod server;
pub mod services;
pub mod sniffer;
pub mod stage;
pub mod topology;
pub mod wait;
pub mod workspace;

pub use agent::Agent;
pub use cluster::{Cluster, ClusterStage};
pub use host::Host;
pub use stage::Stage;
pub use topology::Scene;
