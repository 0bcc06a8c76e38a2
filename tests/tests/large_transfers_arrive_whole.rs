//! What goes through a gateway arrives as it was sent, however much it is.

use std::{
    net::IpAddr,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{
    ClusterStage, Host,
    cluster::{BLUE, ELSEWHERE},
    services::Bulk,
    wait,
};
use serde_json::Value;

/// In MiB.
const GIBIBYTE: usize = 1024;

#[test]
fn a_gibibyte_comes_down() -> Result<()> {
    comes_down(ELSEWHERE.v4.into())
}

#[test]
fn a_gibibyte_comes_down_over_ipv6() -> Result<()> {
    comes_down(ELSEWHERE.v6.into())
}

fn comes_down(remote: IpAddr) -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let _bulk = Bulk::start(&stage.cluster.internet)?;
        let digest = Bulk::download(stage.host("web")?, remote, GIBIBYTE)?;
        assert_eq!(digest, Bulk::digest(GIBIBYTE)?);
        stage.expect_no_drops()
    })
}

#[test]
fn a_gibibyte_goes_up() -> Result<()> {
    goes_up(ELSEWHERE.v4.into())
}

#[test]
fn a_gibibyte_goes_up_over_ipv6() -> Result<()> {
    goes_up(ELSEWHERE.v6.into())
}

fn goes_up(remote: IpAddr) -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let _bulk = Bulk::start(&stage.cluster.internet)?;
        let digest = Bulk::upload(stage.host("web")?, remote, GIBIBYTE)?;
        assert_eq!(digest, Bulk::digest(GIBIBYTE)?);
        stage.expect_only_what_teaches_the_mtu()
    })
}

/// Ends with the test.
struct Iperf(Child);

impl Drop for Iperf {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Iperf {
    /// Serves one address of a host: its datagrams would else have the source that a route prefers.
    fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let child = host
            .command("iperf3")
            .args(["--server", "--bind", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run iperf3")?;
        Ok(Self(child))
    }
}

/// Measures for a second, once the server listens and has no other client.
fn measure(host: &Host, to: IpAddr, more: &[&str]) -> Result<Value> {
    let to = to.to_string();
    let mut words = vec!["iperf3", "--json", "--client", &to];
    words.extend(more);
    wait::until("iperf3 measures", || {
        let mut result: Value = serde_json::from_str(&host.run(&words)?)?;
        // A server that is still busy with the client before is no failure to iperf3.
        ensure!(result["error"].is_null(), "{}", result["error"]);
        Ok(result["end"].take())
    })
}

#[test]
fn iperf3_is_satisfied() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let web = stage.host("web")?;
        for address in ELSEWHERE.addresses() {
            let _server = Iperf::start(&stage.cluster.internet, address)?;
            for more in [&[][..], &["--reverse"]] {
                // However long it takes; what is under way when all is sent is not counted.
                let end = measure(web, address, &[&["--bytes", "64M"], more].concat())?;
                let bytes = end["sum_received"]["bytes"].as_u64().context("no bytes")?;
                ensure!(bytes > 32_000_000, "{address} {more:?}: {end:#}");
            }
            for more in [&[][..], &["--reverse"]] {
                let udp = [
                    "--udp",
                    "--bitrate",
                    "10M",
                    "--length",
                    "1200",
                    "--time",
                    "1",
                ];
                let end = measure(web, address, &[&udp, more].concat())?;
                let lost = end["sum"]["lost_percent"]
                    .as_f64()
                    .with_context(|| format!("no loss: {end:#}"))?;
                let packets = end["sum"]["packets"].as_u64().context("no packets")?;
                // Some may be lost where a processor is short; all would be where a port is wrong.
                ensure!(lost < 5.0 && packets > 500, "{address} {more:?}: {end:#}");
            }
        }
        Ok(())
    })
}
