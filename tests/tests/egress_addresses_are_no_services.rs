//! On an egress address nothing of the gateway node answers but echo, unless the gateway says so; and the address is
//! there only as long as its gateway.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use egress_tests::{
    ClusterStage,
    cluster::{
        BLUE, ClusterShape, GATEWAY_NODE, INTERNAL, INTERNET_HOST, NodeSetup, RED, Seen,
        egress_gateway, greeted, usual,
    },
    ping::ping,
    services::Greeter,
    wait,
};

const SSH: u16 = 22;

#[test]
fn a_service_of_the_node_answers_only_on_the_nodes_address() -> Result<()> {
    // Blue is a gateway that wants its node's services.
    let stage = ClusterStage::new(
        &ClusterShape::default(),
        |cluster| {
            Ok(usual(cluster)
                + &egress_gateway(RED, GATEWAY_NODE, "")
                + &egress_gateway(BLUE, GATEWAY_NODE, "  allowLocalServices: true\n"))
        },
        |_: &mut NodeSetup<'_>| {},
    )?;
    stage.play(|stage| {
        stage.sniff_services(&[SSH])?;
        let gateway = stage.node(GATEWAY_NODE)?.clone();
        let sshd = Greeter::start(&gateway.host, SSH)?;
        for address in INTERNET_HOST.addresses() {
            for source in [gateway.address_like(address), BLUE.like(address)] {
                stage.permit_exactly(GATEWAY_NODE, source, address.into(), Some(SSH));
            }
            // Replies to echo requests: who looks for the address finds it.
            stage.permit(RED, &[INTERNET_HOST]);
        }
        let internet = &stage.cluster.internet;
        for address in INTERNET_HOST.addresses() {
            let at = |address| SocketAddr::new(address, SSH);
            ensure!(greeted(internet, at(gateway.address_like(address)))?);
            ensure!(greeted(internet, at(BLUE.like(address)))?);
            let before = stage.dropped(GATEWAY_NODE, "NatNoState")?;
            ensure!(!greeted(internet, at(RED.like(address)))?, "sshd answered");
            stage.wait_for_drops(GATEWAY_NODE, "NatNoState", before + 1)?;
            ensure!(
                !greeted(stage.host("plain")?, at(RED.like(address)))?,
                "sshd answered a pod"
            );
            ping(internet, RED.like(address))?;
        }
        assert_eq!(sshd.callers().len(), 4);
        Ok(())
    })
}

#[test]
fn a_gateway_takes_its_address_with_it() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.expect("web", INTERNAL, Seen::As(RED))?;
        for address in [RED.addresses(), BLUE.addresses()].concat() {
            ensure!(stage.uplink_addresses(GATEWAY_NODE)?.contains(&address));
        }
        let blue = usual(&stage.cluster) + &egress_gateway(BLUE, GATEWAY_NODE, "");
        stage.resources.write("all.yaml", &blue)?;
        wait::until("the address is gone", || {
            let now = stage.uplink_addresses(GATEWAY_NODE)?;
            for address in RED.addresses() {
                ensure!(!now.contains(&address), "{now:?}");
            }
            for address in BLUE.addresses() {
                ensure!(now.contains(&address), "{now:?}");
            }
            Ok(())
        })?;
        // What has no gateway any more is dropped, not sent some other way.
        stage.wait_until_gone("web", INTERNAL)?;
        stage.wait_for_drops("worker-1", "NoGateway", 1)
    })
}
