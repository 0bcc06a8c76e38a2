//! Egress addresses are on their uplinks while their gateways are here, and neighbours are told.
#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
};

use anyhow::{Context, Result, ensure};
use egress_common::{Mac, gateway::GatewayId};
use egress_tests::{
    Host, Stage,
    segment::{Arrivals, NEIGHBOUR, NEIGHBOUR6, OWN, OWN6, Segment},
    wait,
};
use egress_userspace::{
    agent::addresses::{Addresses, answered, release},
    model::ObjectName,
    node::announcement,
    state::{EgressAddress, Holder, Translation},
    state_dir::{Assigned, StateDir},
};
use serde_json::Value;

const V4: &str = "203.0.113.7";
const V6: &str = "2001:db8:7::7";

fn translation(on: &[(&str, &str)]) -> Result<Translation> {
    let mut addresses = BTreeMap::new();
    for (interface, address) in on {
        let egress = EgressAddress {
            gateway: ObjectName::new("edge", "red"),
            id: GatewayId(7),
            ifindex: nix::net::if_::if_nametoindex(*interface)?,
            interface: (*interface).to_owned(),
            mtu: 1500,
            ports: (1024, 65535),
            holder: Holder::Agent,
            allow_local_services: false,
            is_down: false,
        };
        addresses.insert(address.parse()?, egress);
    }
    Ok(Translation {
        addresses,
        ..Translation::default()
    })
}

/// Both addresses on the first uplink.
fn both() -> Result<Translation> {
    translation(&[("up0", V4), ("up0", V6)])
}

/// Brings the node's addresses to what is wanted, from what the node sees now; gives how many changes it took.
fn bring(addresses: &mut Addresses, wanted: &Translation) -> Result<usize> {
    addresses.bring_to(wanted, &Segment::view()?).in_full()
}

fn ips(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|a| a.parse().unwrap()).collect()
}

#[test]
fn they_are_put_on_and_announced_and_never_a_source() -> Result<()> {
    let segment = Segment::new()?;
    for address in [V4, V6] {
        segment.believe_elsewhere(address)?;
    }
    let mut arrivals = Arrivals::start(&segment.neighbour)?;
    let mac = segment.node.mac("up0")?;
    segment.node.enter(|| {
        let state = StateDir::open(&segment.state_dir())?;
        let mut addresses = Addresses::taking_over(state.address_book())?;
        let wanted = both()?;
        assert_eq!(bring(&mut addresses, &wanted)?, 2);
        assert_eq!(addresses.assigned(), ips(&[V4, V6]));
        assert_eq!(bring(&mut addresses, &wanted)?, 0);
        assert!(addresses.lines(&wanted).iter().all(|line| line.in_place));

        let on = segment.addresses("up0")?;
        let find = |local: &str| on.iter().find(|a| a["local"] == local).unwrap();
        assert_eq!(find(V4)["prefixlen"], 32, "{on:#?}");
        assert_eq!(find(V4)["scope"], "host", "{on:#?}");
        let six = find(V6);
        assert_eq!(six["prefixlen"], 128, "{on:#?}");
        assert_eq!(six["preferred_life_time"], 0, "{on:#?}");
        assert_eq!(six["tentative"], Value::Null, "{on:#?}");
        assert_eq!(segment.source_to(NEIGHBOUR)?, OWN);
        assert_eq!(segment.source_to(NEIGHBOUR6)?, OWN6);

        for address in [V4, V6] {
            segment.wait_until_believed(address)?;
            arrivals.wait_for(mac, address, 3)?;
        }
        // It is one of the node's: without a program before it the kernel answers.
        segment.neighbour.ip(&format!(
            "route add {V4} dev near0\nroute add {V6} dev near0\n"
        ))?;
        for address in [V4, V6] {
            let to = SocketAddr::new(address.parse()?, 9);
            let refused = segment.neighbour.enter(|| {
                Ok(TcpStream::connect_timeout(&to, wait::PATIENCE)
                    .err()
                    .map(|error| error.kind()))
            })?;
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{address}");
        }
        Ok(())
    })
}

#[test]
fn they_are_no_source_even_where_the_uplink_has_no_other_address() -> Result<()> {
    let segment = Segment::new()?;
    segment.node.enter(|| {
        let state = StateDir::open(&segment.state_dir())?;
        let mut addresses = Addresses::taking_over(state.address_book())?;
        let wanted = translation(&[("up0", V4)])?;
        bring(&mut addresses, &wanted)?;
        // Beyond a next hop, on the segment, and where a route of the segment names no source.
        let routes = format!(
            "route add default via {NEIGHBOUR} dev up0 onlink
             route add 192.0.2.0/24 dev up0
             "
        );
        let remotes = ["192.88.99.1", "192.0.2.80"];
        segment.node.ip(&routes)?;
        for remote in remotes {
            assert_eq!(segment.source_to(remote)?, OWN, "{remote}");
        }
        // As a DHCP client does that lost its lease.
        segment.node.ip(&format!("addr del {OWN}/24 dev up0\n"))?;
        segment.node.ip(&routes.replace("add", "replace"))?;
        for remote in remotes {
            assert_ne!(
                segment.source_to(remote).ok().as_deref(),
                Some(V4),
                "{remote}"
            );
        }
        segment.node.ip(&format!("addr add {OWN}/24 dev up0\n"))?;
        for remote in remotes {
            assert_eq!(segment.source_to(remote)?, OWN, "{remote}");
        }
        assert!(segment.is_on("up0", V4)?);
        assert_eq!(addresses.restored(), 0);
        assert_eq!(bring(&mut addresses, &wanted)?, 0);
        Ok(())
    })
}

#[test]
fn an_address_whose_uplink_has_no_program_is_off() -> Result<()> {
    let segment = Segment::new()?;
    segment.node.enter(|| {
        let state = StateDir::open(&segment.state_dir())?;
        let mut addresses = Addresses::taking_over(state.address_book())?;
        let wanted = both()?;
        let unanswered = answered(&wanted, |_| false);
        assert_eq!(bring(&mut addresses, &unanswered)?, 0);
        assert!(!segment.is_on("up0", V4)? && !segment.is_on("up0", V6)?);
        bring(&mut addresses, &answered(&wanted, |_| true))?;
        assert!(segment.is_on("up0", V4)? && segment.is_on("up0", V6)?);
        // Something else took the program away, and it cannot be attached again.
        assert_eq!(bring(&mut addresses, &unanswered)?, 2);
        assert!(!segment.is_on("up0", V4)? && !segment.is_on("up0", V6)?);
        Ok(())
    })
}

#[test]
fn what_something_else_removes_comes_back() -> Result<()> {
    let segment = Segment::new()?;
    let mut arrivals = Arrivals::start(&segment.neighbour)?;
    let mac = segment.node.mac("up0")?;
    segment.node.enter(|| {
        let state = StateDir::open(&segment.state_dir())?;
        let mut addresses = Addresses::taking_over(state.address_book())?;
        let wanted = both()?;
        bring(&mut addresses, &wanted)?;
        for address in [V4, V6] {
            arrivals.wait_for(mac, address, 3)?;
        }
        segment.node.ip(&format!(
            "addr del {V4}/32 dev up0\naddr del {V6}/128 dev up0\n"
        ))?;
        let old = Segment::view()?;
        assert_eq!(addresses.bring_to(&wanted, &old).in_full()?, 2);
        assert_eq!(addresses.restored(), 2);
        // A view from before is no second loss.
        assert_eq!(addresses.bring_to(&wanted, &old).in_full()?, 0);
        assert_eq!(addresses.restored(), 2);
        for address in [V4, V6] {
            assert!(segment.is_on("up0", address)?);
            arrivals.wait_for(mac, address, 6)?;
        }

        // The kernel itself takes IPv6 addresses off an interface that goes down.
        segment.node.ip("link set up0 down\n")?;
        assert_eq!(bring(&mut addresses, &wanted)?, 0);
        let in_place = addresses.lines(&wanted).into_iter().map(|l| l.in_place);
        assert_eq!(in_place.collect::<Vec<_>>(), [true, false]);
        segment.node.ip("link set up0 up\n")?;
        wait::until("the link is up", || {
            let index = nix::net::if_::if_nametoindex("up0")?;
            ensure!(Segment::view()?.links[&index].up, "it is down");
            Ok(())
        })?;
        bring(&mut addresses, &wanted)?;
        for address in [V4, V6] {
            assert!(segment.is_on("up0", address)?);
            arrivals.wait_for(mac, address, 9)?;
        }
        assert_eq!(addresses.restored(), 2, "that was nobody but the kernel");
        Ok(())
    })
}

#[test]
fn they_go_with_their_gateway_and_move_with_it() -> Result<()> {
    let segment = Segment::new()?;
    segment.node.enter(|| {
        let state = StateDir::open(&segment.state_dir())?;
        let mut addresses = Addresses::taking_over(state.address_book())?;
        let here = both()?;
        bring(&mut addresses, &here)?;

        let there = translation(&[("up1", V4), ("up0", V6)])?;
        assert_eq!(bring(&mut addresses, &there)?, 2);
        assert!(!segment.is_on("up0", V4)? && segment.is_on("up1", V4)?);
        assert!(segment.is_on("up0", V6)?);

        // In two steps, with the datapath between them.
        let none = Translation::default();
        assert_eq!(addresses.take_off(&none, &Segment::view()?).in_full()?, 2);
        assert!(!segment.is_on("up1", V4)? && !segment.is_on("up0", V6)?);
        assert_eq!(bring(&mut addresses, &none)?, 0);
        assert_eq!(addresses.assigned(), BTreeSet::new());
        assert_eq!(state.address_book().read()?, BTreeSet::new());
        assert!(segment.is_on("up0", OWN)? && segment.is_on("up0", OWN6)?);

        // With the interface the address went.
        bring(&mut addresses, &translation(&[("up1", V4)])?)?;
        segment.node.ip("link del up1\n")?;
        assert_eq!(bring(&mut addresses, &none)?, 0);
        assert_eq!(addresses.assigned(), BTreeSet::new());
        Ok(())
    })
}

#[test]
fn what_was_there_before_is_left_alone() -> Result<()> {
    let segment = Segment::new()?;
    let mut arrivals = Arrivals::start(&segment.neighbour)?;
    segment.node.enter(|| {
        // Another prefix and another interface: the kernel would take ours beside them.
        segment.node.ip(&format!(
            "addr add {V4}/24 dev up0
             addr add {V6}/64 dev up1 nodad
             "
        ))?;
        let state = StateDir::open(&segment.state_dir())?;
        let mut addresses = Addresses::taking_over(state.address_book())?;
        let wanted = both()?;
        assert_eq!(bring(&mut addresses, &wanted)?, 0);
        assert_eq!(addresses.assigned(), BTreeSet::new());
        assert_eq!(state.address_book().read()?, BTreeSet::new());
        assert_eq!(bring(&mut addresses, &Translation::default())?, 0);
        assert_eq!(release(&state.address_book())?, [] as [IpAddr; 0]);
        assert!(segment.is_on("up0", V4)? && segment.is_on("up1", V6)?);
        arrivals.look()?;
        let mac = segment.node.mac("up0")?;
        for frame in announcement(Mac(mac), V4.parse()?) {
            assert_eq!(arrivals.times(&frame), 0, "nobody asked us to say so");
        }

        // Once its owner lets go of it, it is ours to put on.
        segment.node.ip(&format!("addr del {V4}/24 dev up0\n"))?;
        assert_eq!(bring(&mut addresses, &wanted)?, 1);
        assert_eq!(addresses.assigned(), ips(&[V4]));
        Ok(())
    })
}

#[test]
fn the_next_agent_knows_them() -> Result<()> {
    let segment = Segment::new()?;
    segment.node.enter(|| {
        let state = StateDir::open(&segment.state_dir())?;
        let wanted = both()?;
        let mut first = Addresses::taking_over(state.address_book())?;
        bring(&mut first, &wanted)?;
        drop(first);
        assert!(segment.is_on("up0", V4)? && segment.is_on("up0", V6)?);

        let mut second = Addresses::taking_over(state.address_book())?;
        assert_eq!(second.assigned(), ips(&[V4, V6]));
        assert_eq!(bring(&mut second, &wanted)?, 0);
        drop(second);

        // Written down, and killed before it was put on.
        segment.node.ip(&format!("addr del {V4}/32 dev up0\n"))?;
        let mut third = Addresses::taking_over(state.address_book())?;
        assert_eq!(bring(&mut third, &wanted)?, 1);
        assert_eq!(third.restored(), 0);
        assert_eq!(bring(&mut third, &Translation::default())?, 2);
        assert!(!segment.is_on("up0", V4)? && !segment.is_on("up0", V6)?);
        Ok(())
    })
}

/// The node of the examples, with an agent that was killed after it had put an address on the uplink.
fn killed_with_an_address() -> Result<Stage> {
    let mut stage = Stage::of_examples()?;
    stage.agent.take().context("no agent")?.kill()?;
    let node = stage.scene.node.clone();
    let directory = stage.setup.state_dir();
    node.enter(|| {
        let state = StateDir::open(&directory)?;
        let ifindex = nix::net::if_::if_nametoindex("eth0")?;
        let assigned = [V4, V6].map(|address| Assigned {
            address: address.parse().unwrap(),
            ifindex,
            interface: "eth0".to_owned(),
        });
        state.address_book().keep(&assigned.into())
    })?;
    node.ip(&format!(
        "addr add {V4}/32 dev eth0
         addr add {V6}/128 dev eth0 nodad preferred_lft 0
         "
    ))?;
    Ok(stage)
}

fn on_uplink(node: &Host) -> Result<String> {
    node.run(&["ip", "addr", "show", "dev", "eth0"])
}

#[test]
fn a_gateway_that_went_while_no_agent_ran_takes_its_address_along() -> Result<()> {
    let mut stage = killed_with_an_address()?;
    let node = stage.scene.node.clone();
    let before = on_uplink(&node)?;
    assert!(before.contains(V4) && before.contains(V6), "{before}");
    stage.agent = Some(stage.setup.start()?);
    let after = on_uplink(&node)?;
    assert!(!after.contains(V4) && !after.contains(V6), "{after}");
    assert!(after.contains("172.18.0.2/24"), "{after}");
    Ok(())
}

#[test]
fn detach_takes_them_off() -> Result<()> {
    let stage = killed_with_an_address()?;
    let node = stage.scene.node.clone();
    node.ip("addr add 203.0.113.8/32 dev eth0\n")?;
    stage.setup.detach()?;
    let after = on_uplink(&node)?;
    assert!(!after.contains(V4) && !after.contains(V6), "{after}");
    assert!(
        after.contains("203.0.113.8"),
        "that was nobody's of ours: {after}"
    );
    assert!(!stage.setup.state_dir().exists());
    Ok(())
}
