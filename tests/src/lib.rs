//! Hosts made of network namespaces, packets and clients for the end-to-end tests.

pub mod agent;
pub mod client;
pub mod host;
pub mod packets;
pub mod resources;
pub mod scrape;
pub mod server;
pub mod stage;
pub mod topology;
pub mod wait;
pub mod workspace;

pub use agent::Agent;
pub use host::Host;
pub use stage::Stage;
pub use topology::Scene;
