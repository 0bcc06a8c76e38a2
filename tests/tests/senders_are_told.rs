//! Path MTU discovery and traceroute work for pods on the node itself: their kernels hear of what the node
//! does not send on, and act on it.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use egress_common::{Addr, counter::Answer, gateway::Settings, maps};
use egress_tests::{
    Host, Scene, Stage,
    client::datagram_socket,
    resources::Resources,
    server::ECHO_PORT,
    stage::From,
    topology::{ELSEWHERE, NODE_V4, NODE_V6},
    wait,
};
use egress_userspace::kernel::Paths;
use nix::{
    errno::Errno,
    getsockopt_impl, libc, setsockopt_impl, sockopt_impl,
    sys::socket::{getsockopt, setsockopt, sockopt},
};

/// The MTU of the way from the node to the gateways; pods have 1500.
const MTU: usize = 1400;

sockopt_impl!(
    /// `IP_MTU_DISCOVER` (`linux/in.h`): whether to fragment, or to send nothing larger than the path takes.
    MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// `IPV6_MTU_DISCOVER` (`linux/in6.h`), likewise.
    MtuDiscover6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// `IPV6_MTU`: what a connected socket knows of its path.
    PathMtu6,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);

/// A node whose way to the gateways is narrow, and that knows its own addresses.
fn narrow_stage() -> Result<Stage> {
    let scene = Scene::new()?;
    scene.node.ip(&format!("link set eth1 mtu {MTU}\n"))?;
    for gateway in &scene.gateways {
        gateway.host.ip(&format!("link set eth0 mtu {MTU}\n"))?;
    }
    let resources = Resources::of_examples(&scene)?;
    let stage = Stage::start(scene, resources)?;
    let mut settings: Array<_, Settings> = map(&stage, maps::SETTINGS)?.try_into()?;
    let told = Settings {
        node4: Addr::from(IpAddr::from(NODE_V4)),
        node6: Addr::from(IpAddr::from(NODE_V6)),
        ..settings.get(&0, 0)?
    };
    settings.set(0, told, 0)?;
    Ok(stage)
}

fn map(stage: &Stage, name: &str) -> Result<Map> {
    let path = Paths::new(stage.setup.pin_dir()).map(name);
    Ok(Map::from_map_data(MapData::from_pin(path)?)?)
}

fn answers(stage: &Stage, answer: Answer) -> Result<u64> {
    let counts: PerCpuArray<_, u64> = map(stage, maps::ANSWER_COUNTS)?.try_into()?;
    Ok(counts.get(&(answer as u32), 0)?.iter().sum())
}

/// What the pod's kernel says of the way to an address.
fn route(host: &Host, to: IpAddr) -> Result<String> {
    host.run(&["ip", "route", "get", &to.to_string()])
}

#[test]
fn a_transfer_learns_the_mtu() -> Result<()> {
    let stage = narrow_stage()?;
    let web = &stage.pod("web")?.host;
    for address in ELSEWHERE.addresses() {
        stage.expect_at("web", address, From::Gateway("blue"))?;
        let route_before = route(web, address)?;
        ensure!(!route_before.contains("mtu"), "{route_before}");
        let (told, dropped) = (
            answers(&stage, Answer::TooBig)?,
            stage.metrics()?.dropped("TooBig"),
        );
        let stream = transfer(web, SocketAddr::new(address, ECHO_PORT), 1 << 20)?;
        let learned = match address {
            IpAddr::V4(_) => getsockopt(&stream, sockopt::IpMtu)?,
            IpAddr::V6(_) => getsockopt(&stream, PathMtu6)?,
        };
        ensure!(
            usize::try_from(learned)? == MTU,
            "the socket learned {learned}"
        );
        let route_after = route(web, address)?;
        ensure!(
            route_after.contains(&format!("mtu {MTU}")),
            "the pod learned no MTU: {route_after}"
        );
        let told = answers(&stage, Answer::TooBig)? - told;
        let dropped = stage.metrics()?.dropped("TooBig") - dropped;
        // Aggregates count as their packets and are answered once; a few were under way at once.
        ensure!(
            (1..=dropped.min(20)).contains(&told),
            "{told} answers about {dropped} packets"
        );
    }
    Ok(())
}

/// Sends so many bytes to an echo server, and checks that they come back as they were.
fn transfer(host: &Host, to: SocketAddr, bytes: usize) -> Result<TcpStream> {
    let mut stream = host.enter(|| {
        let stream = TcpStream::connect_timeout(&to, wait::PATIENCE)?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        stream.set_write_timeout(Some(wait::PATIENCE))?;
        Ok(stream)
    })?;
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let mut back = vec![0; bytes];
    thread::scope(|scope| {
        let writer = scope.spawn(|| (&stream).write_all(&sent));
        (&stream)
            .read_exact(&mut back)
            .with_context(|| format!("the transfer to {to} broke"))?;
        writer
            .join()
            .map_err(|_| anyhow!("the writer panicked"))?
            .context("cannot send")
    })?;
    ensure!(
        back == sent,
        "what came back from {to} is not what was sent"
    );
    stream.flush()?;
    Ok(stream)
}

#[test]
fn a_datagram_that_must_not_be_fragmented_is_refused() -> Result<()> {
    let stage = narrow_stage()?;
    let web = &stage.pod("web")?.host;
    for address in ELSEWHERE.addresses() {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let to = SocketAddr::new(address, ECHO_PORT);
        let unfragmented = || unfragmented(web, to);
        let large = vec![1; 1500 - headers];
        let fits = vec![2; MTU - headers];
        let too_large_by_one = vec![3; MTU + 1 - headers];
        let told = answers(&stage, Answer::TooBig)?;
        unfragmented()?.send(&large)?;
        wait::until("the pod is told the MTU", || {
            let route = route(web, address)?;
            ensure!(route.contains(&format!("mtu {MTU}")), "{route}");
            Ok(())
        })?;
        ensure!(
            answers(&stage, Answer::TooBig)? == told + 1,
            "one packet, one answer"
        );
        for refused in [&large, &too_large_by_one] {
            let error = unfragmented()?.send(refused).err().context("it was sent")?;
            ensure!(
                error.raw_os_error() == Some(Errno::EMSGSIZE as i32),
                "{error}"
            );
        }
        unfragmented()?.send(&fits)?;
        // Any other socket: the pod's kernel cuts the datagram into fragments that fit.
        datagram_socket(web, to)?.send(&large)?;
        wait::until("what fits arrives, and what was cut", || {
            let seen = stage.internet.seen();
            for sent in [&fits, &large] {
                ensure!(
                    seen.iter().any(|datagram| datagram.payload == *sent
                        && datagram.from.is_ipv4() == address.is_ipv4()),
                    "{} bytes are missing",
                    sent.len()
                );
            }
            Ok(())
        })?;
        ensure!(answers(&stage, Answer::TooBig)? == told + 1);
    }
    Ok(())
}

/// A connected UDP socket whose datagrams are sent whole or not at all.
fn unfragmented(host: &Host, to: SocketAddr) -> Result<UdpSocket> {
    let socket = datagram_socket(host, to)?;
    match to {
        SocketAddr::V4(_) => setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_DO)?,
        SocketAddr::V6(_) => setsockopt(&socket, MtuDiscover6, &libc::IPV6_PMTUDISC_DO)?,
    }
    Ok(socket)
}

#[test]
fn an_aggregate_of_datagrams_is_answered_once() -> Result<()> {
    let stage = narrow_stage()?;
    let web = &stage.pod("web")?.host;
    for address in ELSEWHERE.addresses() {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        // Of another socket's aggregate the kernel allows the IPv4 segments to be fragmented.
        let socket = unfragmented(web, SocketAddr::new(address, ECHO_PORT))?;
        let segment = 1500 - headers;
        setsockopt(&socket, sockopt::UdpGsoSegment, &i32::try_from(segment)?)?;
        let before = stage.metrics()?.dropped("TooBig");
        let told = answers(&stage, Answer::TooBig)?;
        socket.send(&vec![7; 10 * segment])?;
        wait::until("the pod is told the MTU", || {
            let route = route(web, address)?;
            ensure!(route.contains(&format!("mtu {MTU}")), "{route}");
            Ok(())
        })?;
        assert_eq!(answers(&stage, Answer::TooBig)? - told, 1);
        assert_eq!(stage.metrics()?.dropped("TooBig") - before, 10);
    }
    Ok(())
}

#[test]
fn traceroute_sees_the_node_first() -> Result<()> {
    let stage = narrow_stage()?;
    let web = &stage.pod("web")?.host;
    let blue = stage.gateway("blue")?;
    for address in ELSEWHERE.addresses() {
        let (node, next): (IpAddr, IpAddr) = match address {
            IpAddr::V4(_) => (NODE_V4.into(), blue.hop_v4.into()),
            IpAddr::V6(_) => (NODE_V6.into(), blue.hop_v6.into()),
        };
        for method in ["-U", "-I", "-T", "--sim-queries=1"] {
            let output = web.run(&[
                "traceroute",
                method,
                "-n",
                "-q",
                "1",
                "-w",
                "5",
                "-m",
                "6",
                &address.to_string(),
            ])?;
            let hops: Vec<IpAddr> = output
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
                .collect();
            ensure!(hops == [node, next, address], "{method}: {output}");
        }
    }
    Ok(())
}
