//! Translated connections as metrics and `egress dump nat` show them, with an agent and without.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use egress_common::{
    Addr, WireU16,
    gateway::{GatewayId, Settings},
    maps::SETTINGS,
    nat::{NatBack, NatOut, NatOutKey, NatState},
};
use egress_tests::{Stage, agent::Setup};
use egress_userspace::{
    agent::sweep::now,
    kernel::{NatMaps, Paths},
    nat::back_key,
};
use serde_json::Value;

/// A gateway that no resource names: it is shown by its number.
const GATEWAY: GatewayId = GatewayId(0xabc);

fn seed(setup: &Setup, pod: u8, protocol: u8, state: NatState) -> Result<()> {
    let mut maps = NatMaps::open(&Paths::new(setup.pin_dir()))?;
    let out_key = NatOutKey {
        pod: Addr::v4([10, 65, 0, pod]),
        remote: Addr::v4([192, 0, 2, 80]),
        pod_port: WireU16::new(4000),
        remote_port: WireU16::new(443),
        gateway: GATEWAY,
        protocol,
        pad: [0; 3],
    };
    let out = NatOut {
        last_seen: now()?,
        egress: Addr::v4([203, 0, 113, 1]),
        origin: 0,
        egress_port: WireU16::new(4000 + u16::from(pod)),
        state: state as u8,
        pad: 0,
    };
    let back = NatBack {
        last_seen: out.last_seen,
        pod: out_key.pod,
        origin: 0,
        gateway: GATEWAY,
        pod_port: out_key.pod_port,
        state: out.state,
        pad: [0; 5],
    };
    maps.insert_back(&back_key(&out_key, &out), &back)?;
    maps.insert_out(&out_key, &out)
}

fn dump(setup: &Setup, choice: &[&str]) -> Result<String> {
    let (pins, state) = (setup.pin_dir(), setup.state_dir());
    let (pins, state) = (pins.display().to_string(), state.display().to_string());
    let places = ["dump", "nat", "--pin-dir", &pins, "--state-dir", &state];
    setup.command(&[&places, choice].concat())
}

#[test]
fn connections_are_shown_with_an_agent_and_without() -> Result<()> {
    let mut stage = Stage::of_examples()?;
    let setup = stage.setup.clone();
    let path = Paths::new(setup.pin_dir()).map(SETTINGS);
    let mut settings: Array<_, Settings> =
        Map::from_map_data(MapData::from_pin(path)?)?.try_into()?;
    let mut told = settings.get(&0, 0)?;
    told.timeouts = NatState::ALL.map(|(_, _, seconds)| seconds);
    settings.set(0, told, 0)?;
    seed(&setup, 10, 6, NatState::TcpEstablished)?;
    seed(&setup, 11, 6, NatState::TcpEstablished)?;
    seed(&setup, 10, 17, NatState::UdpStream)?;

    let agent = stage.agent.take().context("no agent")?;
    agent.wait_for_metrics("connections are counted", |metrics| {
        let of = |protocol| {
            metrics.sum(
                "egress_nat_connections",
                &[("gateway", "#00000abc"), ("protocol", protocol)],
            )
        };
        ensure!((of("tcp"), of("udp")) == (2, 1), "not yet");
        Ok(())
    })?;
    all_are_shown(&setup)?;
    agent.kill()?;
    all_are_shown(&setup)
}

fn all_are_shown(setup: &Setup) -> Result<()> {
    let all = dump(setup, &[])?;
    assert_eq!(all.lines().count(), 4, "{all}");
    for part in ["10.65.0.11:4000", "203.0.113.1:4011", "192.0.2.80:443"] {
        assert!(all.contains(part), "{all}");
    }
    let choice = [
        "--pod",
        "10.65.0.10",
        "--protocol",
        "udp",
        "--output",
        "json",
    ];
    let one: Value = serde_json::from_str(&dump(setup, &choice)?)?;
    assert_eq!(one["connections"].as_array().map(Vec::len), Some(1));
    let row = &one["connections"][0];
    assert_eq!(row["state"], "udp-stream");
    assert_eq!(row["node"], "here");
    let left = row["expires_in_seconds"].as_u64();
    assert!(left.is_some_and(|left| left <= 120), "{row}");
    assert!(dump(setup, &["--limit", "1"])?.ends_with("and 2 more\n"));
    Ok(())
}
