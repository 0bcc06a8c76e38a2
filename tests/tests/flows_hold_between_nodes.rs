//! With gateways on several nodes a flow stays on the one that it started on for as long as its policy allows that
//! one, whatever else changes; and not a packet longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage,
    client::datagram_socket,
    cluster::{BLUE, Cluster, ClusterShape, ELSEWHERE, Egress, PARTNER, RED, Seen, gateway_spec},
    resources::{Via, namespace, pod, policy},
    server::ECHO_PORT,
    services::{Callers, Crowd},
    wait,
};

const GREEN: Egress = Egress {
    name: "green",
    v4: Ipv4Addr::new(172, 18, 0, 203),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x203),
};
const GOLD: Egress = Egress {
    name: "gold",
    v4: Ipv4Addr::new(172, 18, 0, 204),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x204),
};
/// Two nodes' gateways, and one of the pod's own node.
const PLACES: [(Egress, &str); 4] = [
    (RED, "gw-1"),
    (BLUE, "gw-2"),
    (GREEN, "worker-1"),
    (GOLD, "gw-2"),
];
/// The code of no gateway.
const NOBODY: &str = "nobody";
const CALLS: usize = 30;
const FLOWS: u32 = 40;

/// A gateway with this code and weight.
fn gateway(egress: Egress, code: &str, weight: u32) -> Result<String> {
    let (_, node) = PLACES
        .iter()
        .find(|(placed, _)| *placed == egress)
        .context("a gateway without a place")?;
    Ok(gateway_spec(
        egress.name,
        code,
        &format!(
            "  node: {node}\n  egressIPs: [{}, \"{}\"]\n  interface: eth0\n  weight: {weight}\n",
            egress.v4, egress.v6
        ),
    ))
}

/// The pod `web`, and the rules of its policy.
fn told(cluster: &Cluster, rules: &[(&str, Via<'_>)]) -> Result<String> {
    Ok(namespace("default", &[])
        + &namespace("shop", &[("egressGatewayPolicy", "shop")])
        + &policy("shop", rules)
        + &pod("shop", cluster.pod("web")?, &[], &[]))
}

fn stage(resources: impl FnOnce(&Cluster) -> Result<String>) -> Result<ClusterStage> {
    let shape = ClusterShape {
        nodes: vec!["worker-1", "gw-1", "gw-2"],
        pods: vec![("web", "worker-1")],
        ..ClusterShape::default()
    };
    let mut stage = ClusterStage::new(&shape, resources, |_| {})?;
    for (egress, node) in PLACES {
        stage.permit_at(node, egress, &[ELSEWHERE, PARTNER]);
    }
    Ok(stage)
}

/// Flows of datagrams of the pod's, each known by a number of its own.
struct Flows {
    sockets: BTreeMap<u32, UdpSocket>,
    /// How many datagrams each has sent.
    sent: u32,
}

impl Flows {
    /// New flows to an address, with these numbers.
    fn open(stage: &ClusterStage, to: IpAddr, numbers: Range<u32>) -> Result<Self> {
        let to = SocketAddr::new(to, ECHO_PORT);
        let web = stage.host("web")?;
        let sockets = numbers
            .map(|number| Ok((number, datagram_socket(web, to)?)))
            .collect::<Result<_>>()?;
        Ok(Self { sockets, sent: 0 })
    }

    /// Sends one datagram of each flow: the flow's number, and which of its datagrams it is.
    fn send(&mut self) -> Result<()> {
        for (flow, socket) in &self.sockets {
            let payload = [flow.to_be_bytes(), self.sent.to_be_bytes()].concat();
            socket.send(&payload)?;
        }
        self.sent += 1;
        Ok(())
    }

    /// Who the outside saw so far: by flow, then by datagram.
    fn seen(&self, stage: &ClusterStage) -> BTreeMap<u32, BTreeMap<u32, IpAddr>> {
        let mut seen: BTreeMap<u32, BTreeMap<u32, IpAddr>> = BTreeMap::new();
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_be_bytes).ok();
        for datagram in stage.outside.internet_datagrams.seen() {
            let (flow, rest) = datagram.payload.split_at(4.min(datagram.payload.len()));
            if let (Some(flow), Some(number)) = (number(flow), number(rest))
                && self.sockets.contains_key(&flow)
            {
                seen.entry(flow)
                    .or_default()
                    .insert(number, datagram.from.ip());
            }
        }
        seen
    }

    /// Sends one more of each, and tells who each is seen as.
    fn gateways(&mut self, stage: &ClusterStage) -> Result<BTreeMap<u32, IpAddr>> {
        self.send()?;
        let last = self.sent - 1;
        wait::until("every flow's datagram arrives", || {
            let seen = self.seen(stage);
            self.sockets
                .keys()
                .map(|flow| {
                    let from = seen.get(flow).and_then(|seen| seen.get(&last));
                    Ok((*flow, *from.with_context(|| format!("not {flow}'s"))?))
                })
                .collect()
        })
    }
}

/// Numbers of flows, each used once.
struct Numbers(u32);

impl Numbers {
    fn take(&mut self, count: u32) -> Range<u32> {
        let first = self.0;
        self.0 += count;
        first..self.0
    }
}

/// Waits until so many flows that begin now all arrive and are seen so: older ones do not tell what the policy is.
///
/// Of those that begin while not every node has the change, some may be lost; others follow them.
fn wait_for_new_flows(
    stage: &ClusterStage,
    to: IpAddr,
    numbers: &mut Numbers,
    count: u32,
    is_so: impl Fn(&[IpAddr]) -> bool,
) -> Result<()> {
    /// How long datagrams are waited for before others are sent.
    const LOST: Duration = Duration::from_millis(100);
    let mut attempt: Option<(Flows, Instant)> = None;
    wait::until("new flows obey the change", || {
        let (flows, began) = match attempt.take() {
            Some(attempt) => attempt,
            None => {
                let mut flows = Flows::open(stage, to, numbers.take(count))?;
                flows.send()?;
                (flows, Instant::now())
            }
        };
        let seen = flows.seen(stage).into_values();
        let taken: Vec<IpAddr> = seen.flat_map(BTreeMap::into_values).collect();
        let whole = taken.len() == flows.sockets.len();
        if !whole && began.elapsed() < LOST {
            attempt = Some((flows, began));
        }
        ensure!(whole && is_so(&taken), "{taken:?}");
        Ok(())
    })
}

#[test]
fn a_flow_stays_while_its_gateway_is_allowed() -> Result<()> {
    let all = [("", Via::Code("all"))];
    let stage = stage(|cluster| {
        Ok(told(cluster, &all)? + &gateway(RED, "all", 1)? + &gateway(BLUE, "all", 1)?)
    })?;
    stage.play(|stage| {
        let write = |stage: &ClusterStage, rules: &[(&str, Via<'_>)], gateways: &[_]| {
            let mut text = told(&stage.cluster, rules)?;
            for (egress, weight) in gateways.iter().copied() {
                text += &gateway(egress, "all", weight)?;
            }
            stage.resources.write("all.yaml", &text)
        };
        stage.permit_node("worker-1", &[PARTNER])?;
        let crowd = Crowd::start(&stage.cluster.internet)?;
        let mut numbers = Numbers(0);
        for address in ELSEWHERE.addresses() {
            let is = |egress: Egress| move |seen: &&IpAddr| **seen == egress.like(address);
            let share = |taken: &[IpAddr], egress| taken.iter().filter(is(egress)).count();
            write(stage, &all, &[(RED, 1), (BLUE, 1)])?;
            wait_for_new_flows(stage, address, &mut numbers, FLOWS, |taken| {
                let (red, blue) = (share(taken, RED), share(taken, BLUE));
                red > 0 && blue > 0 && red + blue == taken.len()
            })?;
            let mut flows = Flows::open(stage, address, numbers.take(FLOWS))?;
            let before = flows.gateways(stage)?;
            let used: BTreeSet<IpAddr> = before.values().copied().collect();
            assert_eq!(used, [RED.like(address), BLUE.like(address)].into());
            let callers = Callers::connect(stage.host("web")?, address, CALLS)?;
            let called: BTreeSet<IpAddr> =
                crowd.wait_for(CALLS)?.iter().map(SocketAddr::ip).collect();
            assert_eq!(called, used, "connections use both");
            // A connection that changed its gateway would have another address, and be reset.
            let mut hold = |stage: &ClusterStage, what: &str| {
                assert_eq!(flows.gateways(stage)?, before, "{what}, {address}");
                callers.say()?;
                crowd.answer(0)?;
                callers.hear()
            };

            // A third gateway, on the pod's own node.
            let three = [(RED, 1), (BLUE, 1), (GREEN, 1)];
            write(stage, &all, &three)?;
            wait_for_new_flows(stage, address, &mut numbers, FLOWS, |taken| {
                share(taken, GREEN) > 0
            })?;
            hold(stage, "a gateway was added")?;

            // Under the weights before, so many would be eleven standard deviations from 13.
            write(stage, &all, &[(RED, 1), (BLUE, 100), (GREEN, 1)])?;
            wait_for_new_flows(stage, address, &mut numbers, FLOWS, |taken| {
                share(taken, BLUE) > 33
            })?;
            hold(stage, "blue weighs more")?;
            write(stage, &all, &[(RED, 1), (BLUE, 1), (GREEN, 100)])?;
            wait_for_new_flows(stage, address, &mut numbers, FLOWS, |taken| {
                share(taken, GREEN) > 33
            })?;
            hold(stage, "green weighs more")?;

            // Another rule for another destination: the flows' own rule is a new one with the same gateways.
            let partner = match address {
                IpAddr::V4(_) => format!("{}/32", PARTNER.v4),
                IpAddr::V6(_) => format!("{}/128", PARTNER.v6),
            };
            let local = [(&*partner, Via::Local), ("", Via::Code("all"))];
            write(stage, &local, &three)?;
            let other = PARTNER.addresses()[usize::from(address.is_ipv6())];
            wait::until("the other rule is obeyed", || {
                stage.expect_at("web", other, Seen::AsNode)
            })?;
            hold(stage, "another rule was added")?;

            // A gateway that neither has gone to goes again: nothing moves for it.
            write(stage, &all, &[(RED, 1), (BLUE, 1)])?;
            wait_for_new_flows(stage, address, &mut numbers, FLOWS, |taken| {
                share(taken, GREEN) == 0
            })?;
            hold(stage, "a gateway was removed")?;

            // One that they use goes: only its own flows move.
            write(stage, &all, &[(RED, 1), (GREEN, 1)])?;
            wait_for_new_flows(stage, address, &mut numbers, FLOWS, |taken| {
                share(taken, BLUE) == 0
            })?;
            let after = flows.gateways(stage)?;
            for (flow, gateway) in &after {
                let (was, blue) = (before[flow], BLUE.like(address));
                assert_ne!(*gateway, blue, "what is gone is used by flow {flow}");
                ensure!(
                    was == blue || *gateway == was,
                    "flow {flow} moved from {was} to {gateway} without need"
                );
            }
            crowd.settle()?;
        }
        Ok(())
    })
}

/// What a policy that forbids a flow's gateways makes of it.
#[derive(Clone, Copy, Debug)]
enum Turned {
    To(&'static [Egress]),
    Local,
    Nowhere,
}

/// Of flows that send without a pause while their policy changes, none has a packet on the old way after the first
/// on the new one.
#[test]
fn the_very_next_packet_obeys() -> Result<()> {
    let before = [("", Via::Code("first"))];
    let gateways = || -> Result<String> {
        Ok(gateway(RED, "first", 1)?
            + &gateway(BLUE, "first", 1)?
            + &gateway(GREEN, "second", 1)?
            + &gateway(GOLD, "second", 1)?
            + &gateway_spec(
                "lone",
                "lone",
                "  node: gw-1\n  egressIPs: [172.18.0.205, \"fd00:18::205\"]\n  interface: eth0\n",
            ))
    };
    const LONE: Egress = Egress {
        name: "lone",
        v4: Ipv4Addr::new(172, 18, 0, 205),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x205),
    };
    let stage = stage(|cluster| Ok(told(cluster, &before)? + &gateways()?))?;
    stage.play(|stage| {
        stage.permit_at("gw-1", LONE, &[ELSEWHERE]);
        stage.permit_node("worker-1", &[ELSEWHERE])?;
        let mut numbers = Numbers(0);
        for address in ELSEWHERE.addresses() {
            for (rule, turned) in [
                (Via::Code("second"), Turned::To(&[GREEN, GOLD])),
                (Via::Code("lone"), Turned::To(&[LONE])),
                (Via::Local, Turned::Local),
                (Via::Code(NOBODY), Turned::Nowhere),
            ] {
                let write = |stage: &ClusterStage, rules: &[_]| {
                    let text = told(&stage.cluster, rules)? + &gateways()?;
                    stage.resources.write("all.yaml", &text)
                };
                let old = [RED.like(address), BLUE.like(address)];
                write(stage, &before)?;
                wait_for_new_flows(stage, address, &mut numbers, 1, |taken| {
                    old.contains(&taken[0])
                })?;
                let mut flows = Flows::open(stage, address, numbers.take(8))?;
                let started = flows.gateways(stage)?;
                ensure!(started.values().all(|from| old.contains(from)));
                let dropped = stage.dropped("worker-1", "NoGateway")?;

                write(stage, &[("0.0.0.0/0", rule), ("::/0", rule)])?;
                let new = match turned {
                    Turned::To(gateways) => gateways.iter().map(|g| g.like(address)).collect(),
                    Turned::Local => vec![stage.node("worker-1")?.address_like(address)],
                    Turned::Nowhere => vec![],
                };
                wait::until("every flow has turned", || {
                    flows.send()?;
                    if new.is_empty() {
                        let so_far = stage.dropped("worker-1", "NoGateway")? - dropped;
                        ensure!(so_far > 8 * 8, "{so_far} dropped");
                        return Ok(());
                    }
                    let seen = flows.seen(stage);
                    let has_turned = |seen: &BTreeMap<u32, IpAddr>| {
                        let last = seen.last_key_value();
                        last.is_some_and(|(_, from)| new.contains(from))
                    };
                    ensure!(
                        seen.values().all(has_turned),
                        "under {turned:?}: {seen:?}"
                    );
                    Ok(())
                })?;
                for _ in 0..20 {
                    flows.send()?;
                    thread::yield_now();
                }
                let dropped = wait::until("each datagram has arrived or is counted", || {
                    let dropped = stage.dropped("worker-1", "NoGateway")? - dropped;
                    let arrived: usize = flows.seen(stage).values().map(BTreeMap::len).sum();
                    let sent = u64::from(flows.sent) * 8;
                    ensure!(
                        arrived as u64 + dropped == sent,
                        "{turned:?}: of {sent}, {arrived} arrived and {dropped} were dropped"
                    );
                    Ok(dropped)
                })?;
                assert_eq!(dropped > 0, new.is_empty(), "{turned:?}: {dropped}");
                for (flow, seen) in flows.seen(stage) {
                    let turn = seen.values().take_while(|from| old.contains(from)).count();
                    ensure!(turn > 0, "flow {flow} never was on the old way");
                    let first = started[&flow];
                    for (at, (number, from)) in seen.iter().enumerate() {
                        let fine = if at < turn { *from == first } else { new.contains(from) };
                        ensure!(
                            fine && u32::try_from(at)? == *number,
                            "{turned:?}: datagram {number} of flow {flow} came from {from}: {seen:?}"
                        );
                    }
                }
            }
        }
        Ok(())
    })
}
