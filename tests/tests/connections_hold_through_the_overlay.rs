//! Connections through a gateway on another node live as long as their two ends want.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage,
    client::Conversation,
    cluster::{BLUE, ELSEWHERE, GATEWAY_NODE},
    services::{
        Callers, Crowd, DNS_PORT, Dns, KEEP_ALIVE_PORT, KeepAlive, NAMED_V4, NAMED_V6,
        allow_many_files, lookup,
    },
};

#[test]
fn http_requests_share_a_connection() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let server = KeepAlive::start(&stage.cluster.internet)?;
        for address in ELSEWHERE.addresses() {
            let url = format!("http://{}/", SocketAddr::new(address, KEEP_ALIVE_PORT));
            let mut words = vec![
                "curl",
                "-sg",
                "--fail",
                "--noproxy",
                "*",
                "--max-time",
                "10",
            ];
            words.extend([url.as_str(); 20]);
            let answer = stage.host("web")?.run(&words)?;
            let callers: Vec<SocketAddr> = answer
                .lines()
                .map(|line| line.parse().context("no address"))
                .collect::<Result<_>>()?;
            ensure!(
                callers.len() == 20
                    && callers[0].ip() == BLUE.like(address)
                    && callers.iter().all(|caller| *caller == callers[0]),
                "{answer}"
            );
        }
        assert_eq!(server.callers().len(), 2);
        stage.expect_no_drops()
    })
}

#[test]
fn names_are_resolved() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        for address in ELSEWHERE.addresses() {
            let server = Dns::start(&stage.cluster.internet, address)?;
            assert_eq!(
                lookup(
                    stage.host("web")?,
                    address,
                    "service.example",
                    &stage.cluster.files()
                )?,
                [IpAddr::from(NAMED_V4), IpAddr::from(NAMED_V6)]
            );
            let callers = server.callers();
            ensure!(
                callers
                    .iter()
                    .all(|caller| caller.ip() == BLUE.like(address)),
                "asked on port {DNS_PORT} by {callers:?}"
            );
        }
        stage.expect_no_drops()
    })
}

#[test]
fn ten_thousand_at_once_to_one_remote() -> Result<()> {
    ten_thousand_to(ELSEWHERE.v4.into())
}

#[test]
fn ten_thousand_at_once_to_one_remote_over_ipv6() -> Result<()> {
    ten_thousand_to(ELSEWHERE.v6.into())
}

fn ten_thousand_to(remote: IpAddr) -> Result<()> {
    const MANY: usize = 10_000;
    // One end of each connection, and some for everything else.
    allow_many_files(12_000)?;
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let crowd = Crowd::start(&stage.cluster.internet)?;
        let callers = Callers::connect(stage.host("web")?, remote, MANY)?;
        let mut seen = crowd.wait_for(MANY)?;
        ensure!(seen.iter().all(|from| from.ip() == BLUE.like(remote)));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), MANY, "two connections have one port");
        callers.say()?;
        crowd.answer(0)?;
        callers.hear()?;
        let all = u64::try_from(MANY)?;
        let gateway = stage.agent(GATEWAY_NODE)?;
        gateway.wait_for_metrics("the table has been counted", |metrics| {
            let counted = metrics.sum("egress_nat_connections", &[("gateway", "blue")]);
            ensure!(counted >= all, "{counted} connections are counted");
            Ok(())
        })?;
        stage.expect_no_drops()
    })
}

#[test]
fn keys_are_changed_under_traffic() -> Result<()> {
    const OLD: &str = egress_tests::cluster::KEY;
    const NEW: &str = "a key for tests, the second one";
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let talks = ELSEWHERE
            .addresses()
            .map(|address| Conversation::start(stage.host("web")?, address));
        let [first, second] = talks;
        let talks = [first?, second?];
        for keys in [&[OLD, NEW][..], &[NEW, OLD], &[NEW]] {
            stage.change_keys(keys)?;
            for talk in &talks {
                talk.go_on(20)?;
            }
        }
        for talk in talks {
            talk.end()?;
        }
        stage.expect_no_drops()
    })
}
