//! `egress dump nat`: the connections that this node translates, with or without an agent.

use std::{collections::BTreeMap, net::IpAddr, process::ExitCode};

use anyhow::ensure;
use clap::Args;
use egress_common::{
    gateway::GatewayId,
    nat::{NatBack, NatBackKey, NatOut, NatState},
    overlay::{ORIGIN_HERE, ORIGIN_KERNEL},
};
use serde::Serialize;

use super::{Output, What};
use crate::{
    agent::sweep::now,
    commands::{columns, print},
    gateway_id::gateway_id,
    kernel::{NatMaps, Paths},
    nat::{SECOND, Timeouts, out_key, protocol_name},
    state::Names,
};

/// Which connections `egress dump nat` shows.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connections (with `nat`)")]
pub struct Connections {
    /// Only those of this gateway
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub gateway: Option<String>,
    /// Only those of the pod with this address
    #[arg(long, value_name = "ADDRESS")]
    pub pod: Option<IpAddr>,
    /// Only those to this far end
    #[arg(long, value_name = "ADDRESS")]
    pub remote: Option<IpAddr>,
    /// Only those of this protocol, by name or number
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    pub protocol: Option<u8>,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

impl Connections {
    /// Refuses a choice of connections where none are shown.
    pub(super) fn refuse_unless_asked_for(&self, what: Option<What>) -> anyhow::Result<()> {
        let chosen = self.gateway.is_some()
            || self.pod.is_some()
            || self.remote.is_some()
            || self.protocol.is_some()
            || self.limit.is_some();
        ensure!(
            !chosen || what == Some(What::Nat),
            "--gateway, --pod, --remote, --protocol and --limit choose connections: say `egress dump nat`"
        );
        Ok(())
    }

    fn wants(&self, connection: &Connection) -> bool {
        let Connection { key, back, .. } = connection;
        // A gateway that no list of names knows is asked for by its number.
        let gateway = |wanted: &String| match wanted.strip_prefix('#') {
            Some(number) => u32::from_str_radix(number, 16).is_ok_and(|id| back.gateway.0 == id),
            None => wanted.split_once('/').is_some_and(|(namespace, name)| {
                gateway_id(&crate::model::ObjectName::new(namespace, name)) == back.gateway
            }),
        };
        self.gateway.as_ref().is_none_or(gateway)
            && self.pod.is_none_or(|pod| IpAddr::from(back.pod) == pod)
            && self
                .remote
                .is_none_or(|remote| IpAddr::from(key.remote) == remote)
            && self
                .protocol
                .is_none_or(|protocol| key.protocol == protocol)
    }
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    (0..=u8::MAX)
        .find(|number| protocol_name(*number) == text.to_ascii_lowercase())
        .ok_or_else(|| "there are tcp, udp, icmp, icmpv6, and the numbers of IANA".to_owned())
}

/// Reads the pinned tables, and prints the connections that are asked for.
///
/// # Errors
/// The tables cannot be read, or the result cannot be printed.
pub fn dump_connections(
    output: Output,
    wanted: &Connections,
    paths: &Paths,
    names: &Names,
) -> anyhow::Result<ExitCode> {
    let maps = NatMaps::open(paths)?;
    let mut found = Vec::new();
    for batch in maps.backs() {
        for (key, back) in batch? {
            let alone = Connection {
                key,
                back,
                out: None,
            };
            // What the node itself asks of the outside is no pod's connection.
            if back.origin != ORIGIN_KERNEL && wanted.wants(&alone) {
                let out = maps.out(&out_key(&key, &back))?;
                found.push(Connection { out, ..alone });
            }
        }
    }
    let mut nodes = BTreeMap::new();
    for connection in &found {
        let origin = connection.back.origin;
        if origin != ORIGIN_HERE {
            nodes.insert(origin, maps.node(origin)?.into());
        }
    }
    let context = Context {
        names,
        nodes,
        timeouts: maps.timeouts()?,
        now: now()?,
    };
    print(&render(output, wanted, found, &context)?)?;
    Ok(ExitCode::SUCCESS)
}

/// A connection as the tables have it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    key: NatBackKey,
    back: NatBack,
    /// The half of the pod's packets, where there is one.
    out: Option<NatOut>,
}

/// What it takes to put connections into words.
struct Context<'a> {
    names: &'a Names,
    /// Where frames for other nodes go, by their numbers.
    nodes: BTreeMap<u32, IpAddr>,
    timeouts: Option<Timeouts>,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    now: u64,
}

#[derive(Serialize)]
struct Dump {
    connections: Vec<Row>,
    /// Connections beyond the limit.
    left_out: usize,
}

#[derive(Serialize)]
struct Row {
    gateway: String,
    protocol: String,
    pod: IpAddr,
    pod_port: u16,
    /// "here", or the address of the node that the pod is on.
    node: String,
    remote: IpAddr,
    remote_port: u16,
    egress_address: IpAddr,
    egress_port: u16,
    state: String,
    /// Seconds since the last packet, in either direction.
    idle_seconds: u64,
    /// Seconds until it ends if there is no other packet; 0 if it has ended, and is about to be removed.
    expires_in_seconds: Option<u64>,
}

fn render(
    output: Output,
    wanted: &Connections,
    mut found: Vec<Connection>,
    context: &Context<'_>,
) -> anyhow::Result<String> {
    found.sort_unstable_by_key(|c| (c.back.pod, c.key.remote, c.key));
    let shown = wanted.limit.unwrap_or(usize::MAX).min(found.len());
    let gateways: BTreeMap<GatewayId, String> = context
        .names
        .gateways
        .keys()
        .map(|name| (gateway_id(name), name.to_string()))
        .collect();
    let dump = Dump {
        left_out: found.len() - shown,
        connections: found[..shown]
            .iter()
            .map(|connection| row(connection, context, &gateways))
            .collect(),
    };
    output.render(&dump, table)
}

fn row(
    connection: &Connection,
    context: &Context<'_>,
    gateways: &BTreeMap<GatewayId, String>,
) -> Row {
    let Connection { key, back, out } = connection;
    let last_seen = out.map_or(0, |out| out.last_seen).max(back.last_seen);
    let left = |timeouts: &Timeouts| timeouts.left(back.state, last_seen, context.now);
    let state = NatState::from_number(back.state)
        .map(|state| NatState::ALL.iter().find(|known| known.0 == state));
    Row {
        gateway: gateways
            .get(&back.gateway)
            .cloned()
            .unwrap_or_else(|| format!("#{:08x}", back.gateway.0)),
        protocol: protocol_name(key.protocol),
        pod: back.pod.into(),
        pod_port: back.pod_port.get(),
        node: match context.nodes.get(&back.origin) {
            _ if back.origin == ORIGIN_HERE => "here".to_owned(),
            Some(address) => address.to_string(),
            None => format!("#{}", back.origin),
        },
        remote: key.remote.into(),
        remote_port: key.remote_port.get(),
        egress_address: key.egress.into(),
        egress_port: key.egress_port.get(),
        state: state
            .flatten()
            .map_or_else(|| format!("#{}", back.state), |known| known.1.to_owned()),
        idle_seconds: context.now.saturating_sub(last_seen) / SECOND,
        expires_in_seconds: context
            .timeouts
            .as_ref()
            .map(|timeouts| left(timeouts).unwrap_or(0).div_ceil(SECOND)),
    }
}

fn table(dump: &Dump) -> String {
    let table = columns(
        [
            "GATEWAY",
            "PROTOCOL",
            "POD",
            "NODE",
            "REMOTE",
            "EGRESS",
            "STATE",
            "IDLE",
            "EXPIRES IN",
        ],
        dump.connections.iter().map(|row| {
            [
                row.gateway.clone(),
                row.protocol.clone(),
                end(row.pod, row.pod_port),
                row.node.clone(),
                end(row.remote, row.remote_port),
                end(row.egress_address, row.egress_port),
                row.state.clone(),
                format!("{}s", row.idle_seconds),
                row.expires_in_seconds
                    .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
            ]
        }),
    );
    match dump.left_out {
        0 => table,
        more => format!("{table}and {more} more\n"),
    }
}

/// An address with its port, where there is one.
fn end(address: IpAddr, port: u16) -> String {
    if port == 0 {
        address.to_string()
    } else {
        std::net::SocketAddr::new(address, port).to_string()
    }
}

#[cfg(test)]
mod tests {
    use egress_common::{Addr, WireU16};

    use super::*;
    use crate::model::ObjectName;

    const NOW: u64 = 500_000 * SECOND;

    fn connection(pod: Addr, remote: Addr, protocol: u8, state: NatState, age: u64) -> Connection {
        let echo = matches!(protocol, 1 | 58);
        let key = NatBackKey {
            egress: if pod.is_v4() {
                Addr::v4([203, 0, 113, 1])
            } else {
                Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
            },
            remote,
            egress_port: WireU16::new(40_000),
            remote_port: WireU16::new(if echo { 0 } else { 443 }),
            protocol,
            pad: [0; 3],
        };
        let back = NatBack {
            last_seen: NOW - age * SECOND,
            pod,
            origin: u32::from(echo) * 3,
            gateway: gateway_id(&ObjectName::new("edge", "red")),
            pod_port: WireU16::new(5000),
            state: state as u8,
            pad: [0; 5],
        };
        Connection {
            key,
            back,
            out: None,
        }
    }

    fn all() -> Vec<Connection> {
        let web = Addr::v4([10, 65, 0, 10]);
        let far = Addr::v4([192, 0, 2, 80]);
        let six = |last| Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let mut answered = connection(web, far, 6, NatState::TcpEstablished, 100);
        answered.out = Some(NatOut {
            last_seen: NOW - 7 * SECOND - 1,
            egress: answered.key.egress,
            origin: 0,
            egress_port: answered.key.egress_port,
            state: answered.back.state,
            pad: 0,
        });
        let mut strange = connection(Addr::v4([10, 65, 0, 9]), far, 17, NatState::Udp, 31);
        strange.back.gateway = GatewayId(0xabc);
        strange.back.state = 77;
        vec![
            connection(six(1), six(2), 58, NatState::Icmp, 31),
            answered,
            strange,
        ]
    }

    fn rendered(output: Output, wanted: &Connections) -> anyhow::Result<String> {
        let names = Names {
            gateways: BTreeMap::from([(ObjectName::new("edge", "red"), 0)]),
            ..Names::default()
        };
        let context = Context {
            names: &names,
            nodes: BTreeMap::from([(3, [198, 51, 100, 3].into())]),
            timeouts: Timeouts::of(NatState::ALL.map(|(_, _, seconds)| seconds)),
            now: NOW,
        };
        let found = all().into_iter().filter(|c| wanted.wants(c)).collect();
        render(output, wanted, found, &context)
    }

    #[test]
    fn connections_as_a_table() -> anyhow::Result<()> {
        insta::assert_snapshot!(rendered(Output::Table, &Connections::default())?);
        Ok(())
    }

    #[test]
    fn connections_as_json() -> anyhow::Result<()> {
        let one = Connections {
            limit: Some(1),
            ..Connections::default()
        };
        insta::assert_snapshot!(rendered(Output::Json, &one)?);
        Ok(())
    }

    #[test]
    fn each_choice_narrows() {
        let pods = |wanted: Connections| -> Vec<String> {
            let wanted = all().into_iter().filter(|c| wanted.wants(c));
            wanted
                .map(|c| IpAddr::from(c.back.pod).to_string())
                .collect()
        };
        let none = Connections::default;
        let gateway = |text: &str| Connections {
            gateway: Some(text.to_owned()),
            ..none()
        };
        assert_eq!(pods(none()).len(), 3);
        assert_eq!(pods(gateway("edge/red")), ["fd00::1", "10.65.0.10"]);
        assert_eq!(pods(gateway("#00000abc")), ["10.65.0.9"]);
        assert_eq!(pods(gateway("edge")), [""; 0]);
        assert_eq!(
            pods(Connections {
                pod: Some([10, 65, 0, 10].into()),
                ..none()
            }),
            ["10.65.0.10"]
        );
        assert_eq!(
            pods(Connections {
                remote: Some([192, 0, 2, 80].into()),
                protocol: Some(17),
                ..none()
            }),
            ["10.65.0.9"]
        );
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!(parse_protocol("TCP"), Ok(6));
        assert_eq!(parse_protocol("89"), Ok(89));
        assert!(parse_protocol("http").is_err());
    }

    #[test]
    fn a_choice_without_connections_is_refused() {
        let some = Connections {
            limit: Some(3),
            ..Connections::default()
        };
        for (what, fine) in [
            (Some(What::Nat), true),
            (Some(What::Pods), false),
            (None, false),
        ] {
            assert_eq!(some.refuse_unless_asked_for(what).is_ok(), fine, "{what:?}");
            assert!(Connections::default().refuse_unless_asked_for(what).is_ok());
        }
    }
}
