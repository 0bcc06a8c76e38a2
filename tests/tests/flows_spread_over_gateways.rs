//! Several gateways share the flows of a rule by weight, and a lost one moves only its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Scene, Stage,
    client::{datagram_socket, send_flows, whoami},
    resources::{Via, gateway, namespace, pod, policy},
    server::ECHO_PORT,
    topology::{ELSEWHERE, Shape},
    wait,
};

const FLOWS: u32 = 600;

fn three_gateways() -> Shape {
    Shape {
        pods: vec!["web", "plain"],
        gateways: vec!["red", "rouge", "rosso"],
        ..Shape::default()
    }
}

fn resources(scene: &Scene, weights: [u32; 3]) -> Result<String> {
    let mut text = namespace("default", &[])
        + &policy("all", &[("", Via::Code("red"))])
        + &pod(
            "default",
            scene.pod("web")?,
            &[("egressGatewayPolicy", "all")],
            &[],
        );
    for (found, weight) in scene.gateways.iter().zip(weights) {
        if weight > 0 {
            text += &gateway(found, "red", &format!("  weight: {weight}\n"));
        }
    }
    Ok(text)
}

/// Sends flows and tells which gateway each took.
fn gateways_taken(stage: &Stage, address: IpAddr, flows: u32) -> Result<BTreeMap<u32, IpAddr>> {
    let before = stage.internet.seen().len();
    let to = SocketAddr::new(address, ECHO_PORT);
    send_flows(&stage.pod("web")?.host, to, flows)?;
    wait::until("all datagrams arrive", || {
        let seen = stage.internet.seen();
        let seen = &seen[before..];
        ensure!(seen.len() == flows as usize, "{} arrived", seen.len());
        seen.iter()
            .map(|datagram| {
                let number = datagram.payload[..].try_into().context("an odd datagram")?;
                Ok((u32::from_be_bytes(number), datagram.from.ip()))
            })
            .collect()
    })
}

#[test]
fn equal_gateways_take_equal_shares() -> Result<()> {
    let stage = Stage::new(&three_gateways(), |scene| resources(scene, [1, 1, 1]))?;
    for address in ELSEWHERE.addresses() {
        let taken = gateways_taken(&stage, address, FLOWS)?;
        for gateway in &stage.scene.gateways {
            let egress = gateway.egress_like(address);
            let share = taken.values().filter(|seen| **seen == egress).count();
            // Five standard deviations about 200.
            assert!(
                (142..=258).contains(&share),
                "{} took {share}",
                gateway.name
            );
        }
    }
    Ok(())
}

#[test]
fn weights_are_respected() -> Result<()> {
    let stage = Stage::new(&three_gateways(), |scene| resources(scene, [1, 2, 3]))?;
    for address in ELSEWHERE.addresses() {
        let taken = gateways_taken(&stage, address, FLOWS)?;
        for (gateway, weight) in stage.scene.gateways.iter().zip([1, 2, 3]) {
            let egress = gateway.egress_like(address);
            let share = taken.values().filter(|seen| **seen == egress).count();
            let ideal: usize = weight * 100;
            assert!(share.abs_diff(ideal) <= 61, "{} took {share}", gateway.name);
        }
    }
    Ok(())
}

#[test]
fn a_flow_keeps_its_gateway_and_a_lost_gateway_moves_only_its_own() -> Result<()> {
    let stage = Stage::new(&three_gateways(), |scene| resources(scene, [1, 1, 1]))?;
    let web = stage.pod("web")?;
    for address in ELSEWHERE.addresses() {
        stage
            .resources
            .write("all.yaml", &resources(&stage.scene, [1, 1, 1])?)?;
        // Flows that are younger than the policy: older ones stay where they are.
        wait::until("three gateways are in use", || {
            let taken = gateways_taken(&stage, address, 60)?;
            ensure!(taken.values().collect::<BTreeSet<_>>().len() == 3);
            Ok(())
        })?;
        let to = SocketAddr::new(address, ECHO_PORT);
        let sockets = (0..120)
            .map(|_| datagram_socket(&web.host, to))
            .collect::<Result<Vec<_>>>()?;
        let takes = || -> Result<Vec<IpAddr>> {
            let before = stage.internet.seen().len();
            for (number, socket) in sockets.iter().enumerate() {
                socket.send(&u32::try_from(number)?.to_be_bytes())?;
            }
            wait::until("all datagrams arrive", || {
                let mut seen = stage.internet.seen().split_off(before);
                ensure!(seen.len() == sockets.len(), "{} arrived", seen.len());
                seen.sort_by(|a, b| a.payload.cmp(&b.payload));
                Ok(seen.iter().map(|datagram| datagram.from.ip()).collect())
            })
        };
        let all = takes()?;
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3, "{all:?}");
        assert_eq!(takes()?, all, "a flow changed its gateway by itself");

        stage
            .resources
            .write("all.yaml", &resources(&stage.scene, [1, 0, 1])?)?;
        let lost = stage.gateway("rouge")?.egress_like(address);
        let fewer = wait::until("the lost gateway is out of use", || {
            let taken = takes()?;
            ensure!(!taken.contains(&lost));
            Ok(taken)
        })?;
        for (before, after) in all.iter().zip(&fewer) {
            assert!(
                before == after || *before == lost,
                "a flow moved from {before} to {after}"
            );
        }
    }
    Ok(())
}

#[test]
fn max_next_hops_limits_a_pod_and_spreads_pods() -> Result<()> {
    let pods = vec!["a", "b", "c", "d", "e", "f", "g", "h"];
    let shape = Shape {
        pods: pods.clone(),
        ..three_gateways()
    };
    let stage = Stage::new(&shape, |scene| {
        let mut text = namespace("default", &[("egressGatewayPolicy", "one")])
            + &policy("one", &[("", Via::Some("red", 1))]);
        for found in &scene.gateways {
            text += &gateway(found, "red", "");
        }
        for found in &scene.pods {
            text += &pod("default", found, &[], &[]);
        }
        Ok(text)
    })?;
    let mut used = BTreeSet::new();
    for name in pods {
        let pod = stage.pod(name)?;
        let taken = (0..6)
            .map(|_| whoami(&pod.host, ELSEWHERE.v4.into()))
            .collect::<Result<BTreeSet<_>>>()?;
        assert_eq!(taken.len(), 1, "the pod {name} used {taken:?}");
        used.extend(taken);
    }
    let gateways: BTreeSet<_> = stage
        .scene
        .gateways
        .iter()
        .map(|gateway| IpAddr::from(gateway.egress_v4))
        .collect();
    assert!(used.is_subset(&gateways), "some left by {used:?}");
    assert!(used.len() > 1, "eight pods all use {used:?}");
    Ok(())
}

/// A later fragment has no ports: it has to go where the first one of its datagram went.
#[test]
fn fragments_go_where_their_flow_goes() -> Result<()> {
    let stage = Stage::new(&three_gateways(), |scene| resources(scene, [1, 1, 1]))?;
    let web = &stage.pod("web")?.host;
    for address in ELSEWHERE.addresses() {
        let before = stage.internet.seen().len();
        let to = SocketAddr::new(address, ECHO_PORT);
        let sockets = (0..60)
            .map(|_| datagram_socket(web, to))
            .collect::<Result<Vec<_>>>()?;
        for socket in &sockets {
            socket.send(&[7; 4000])?;
        }
        let callers: BTreeSet<IpAddr> = wait::until("all datagrams arrive whole", || {
            let seen = stage.internet.seen().split_off(before);
            ensure!(
                seen.len() == sockets.len(),
                "{} arrived; drops: {:?}",
                seen.len(),
                stage.metrics()?.all_dropped()
            );
            ensure!(seen.iter().all(|datagram| datagram.payload == [7; 4000]));
            Ok(seen.iter().map(|datagram| datagram.from.ip()).collect())
        })?;
        assert_eq!(callers.len(), 3, "{callers:?}");
    }
    assert_eq!(stage.metrics()?.all_dropped().len(), 0);
    Ok(())
}
