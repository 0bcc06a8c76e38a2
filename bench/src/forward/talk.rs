//! TCP over the same ways, between a pod and a server: how much gets through, and how long an answer takes.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    host::Host,
    laid::{CABLE, ENTRY, Laid, mac, translators},
    right::{NextHop, Source},
    server::Server,
};
use crate::{
    measured::{Measured, Unit},
    progress::Progress,
    world::{Flow, HOST_MAC, POD_MAC, Target, World},
};

/// How long each takes a turn, in seconds.
const TURN: u32 = 1;
/// Connections that ask at the same time: few enough that none waits for another for long.
const CONNECTIONS: u32 = 4;
/// Rounds that there are at least.
const FEWEST: usize = 1;

/// A way that a pod talks to a server.
pub(super) struct Talk {
    scene: &'static str,
    subject: &'static str,
    laid: Laid,
    web: Server,
    _bulk: Bulk,
    /// Bits a second.
    rates: Vec<f64>,
    /// Microseconds of an answer: half of them take at most this.
    half: Vec<f64>,
    /// And 99 of a hundred.
    most: Vec<f64>,
}

/// iperf3's server, until this goes.
struct Bulk {
    child: Child,
    /// Reads what it says of each run: it would wait for a reader otherwise.
    reading: Option<JoinHandle<()>>,
}

impl Talk {
    /// Gives the ends of the way addresses, and sees that the server sees who it should.
    pub(super) fn new(
        scene: &'static str,
        subject: &'static str,
        laid: Laid,
        world: &World,
        flow: &Flow,
    ) -> Result<Self> {
        let pod = world.pod(flow.source).context("the flow is no pod's")?;
        let Some((_, Target::Gateway(gateway))) = world.verdict(pod, flow.destination) else {
            bail!("the flow is not to be steered");
        };
        let next_hop = match laid.right.next_hop {
            NextHop::OfGateway => gateway + 1,
            NextHop::First | NextHop::Untouched => 0,
        };
        connect(&laid, flow, next_hop)?;
        let web = Server::start(&laid.sink, flow.destination)?;
        let seen = web.seen(&laid.pod).context("the pod gets no answer")?;
        let wanted = match laid.right.source {
            Source::Own => flow.source,
            Source::One(address) => address,
            Source::OfGateway(egress) => egress(gateway),
        };
        ensure!(
            seen == wanted,
            "the server sees {seen}, and should see {wanted}"
        );
        Ok(Self {
            scene,
            subject,
            _bulk: Bulk::start(&laid.sink, flow.destination)?,
            laid,
            web,
            rates: Vec::new(),
            half: Vec::new(),
            most: Vec::new(),
        })
    }

    fn turn(&mut self) -> Result<()> {
        let to = self.web.address();
        let seconds = TURN.to_string();
        let text = output(
            &self.laid.pod,
            Command::new("iperf3").args(["-J", "-t", &seconds, "-c", &to.ip().to_string()]),
        )?;
        self.rates.push(rate(&text)?);
        let text = output(
            &self.laid.pod,
            Command::new("wrk")
                .args(["--latency", "-t1", &format!("-c{CONNECTIONS}")])
                .args([format!("-d{seconds}s"), format!("http://{to}/")]),
        )?;
        let (half, most) = latencies(&text)?;
        self.half.push(half);
        self.most.push(most);
        Ok(())
    }

    fn figures(&self, group: &str) -> [Measured; 3] {
        let of = |addition: &str, unit, samples| {
            let subject = format!("{}{addition}", self.subject);
            Measured::of_samples(group, self.scene, &subject, unit, samples)
        };
        [
            of("", Unit::BitsPerSecond, &self.rates),
            of(", p50", Unit::Microseconds, &self.half),
            of(", p99", Unit::Microseconds, &self.most),
        ]
    }
}

impl Bulk {
    fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let mut child = host.enter(|| {
            // It ends with us, whatever ends us.
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "iperf3", "--forceflush", "-s", "-B"])
                .arg(address.to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            child.context("cannot run iperf3: `cargo xtask setup` installs it")
        })?;
        let said = child.stdout.take().context("no output")?;
        let mut bulk = Self {
            child,
            reading: None,
        };
        let mut lines = BufReader::new(said).lines().map_while(Result::ok);
        let listens = lines.any(|line| line.contains("listening"));
        ensure!(listens, "iperf3 does not listen at {address}");
        bulk.reading = Some(thread::spawn(move || lines.for_each(drop)));
        Ok(bulk)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if let Some(reading) = self.reading.take() {
            let _ended = reading.join();
        }
    }
}

/// One pod, and a server behind the next hop of this number.
fn connect(laid: &Laid, flow: &Flow, next_hop: u32) -> Result<()> {
    let host_mac = mac(HOST_MAC);
    laid.pod.ip(&format!(
        "addr add {source}/32 dev {CABLE}
         route add 169.254.1.1 dev {CABLE} scope link
         route add default via 169.254.1.1 src {source}
         neigh add 169.254.1.1 lladdr {host_mac} dev {CABLE} nud permanent",
        source = flow.source,
    ))?;
    laid.node.ip(&format!(
        "neigh add {} lladdr {} dev {ENTRY} nud permanent",
        flow.source,
        mac(POD_MAC)
    ))?;
    laid.sink.ip(&format!(
        "link set {CABLE} address {own}
         addr add {first}/24 dev {CABLE}
         addr add {server}/32 dev lo
         neigh add 198.51.100.254 lladdr {host_mac} dev {CABLE} nud permanent
         route add 10.65.0.0/16 via 198.51.100.254
         {translators}",
        own = mac(NextHop::mac(next_hop)),
        first = NextHop::address(0),
        server = flow.destination,
        translators = translators(),
    ))
}

/// Each way in its turn, until the time is over.
pub(super) fn measure(
    group: &str,
    mut talks: Vec<Talk>,
    time: Duration,
    progress: &Progress,
) -> Result<Vec<Measured>> {
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < FEWEST || start.elapsed() < time {
        for talk in &mut talks {
            let done = talk.turn();
            done.with_context(|| format!("{}, {}", talk.scene, talk.subject))?;
            progress.measuring(group, rounds + 1, start.elapsed().min(time));
        }
        rounds += 1;
    }
    Ok(talks.iter().flat_map(|talk| talk.figures(group)).collect())
}

/// What a program says that runs on a host.
fn output(host: &Host, command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = host.enter(|| {
        let output = command.output();
        output.with_context(|| format!("cannot run {name}: `cargo xtask bench` installs it"))
    })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let wrong = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ({}): {} {said}", output.status, wrong.trim());
    }
    Ok(said)
}

/// Bits a second that arrived, as iperf3 tells.
fn rate(text: &str) -> Result<f64> {
    let told: Value = serde_json::from_str(text).context("iperf3 wrote no JSON")?;
    told["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3 does not tell how much arrived: {text}"))
}

/// Microseconds that half of the answers take at most, and 99 of a hundred, as wrk tells.
fn latencies(text: &str) -> Result<(f64, f64)> {
    let at = |share: &str| {
        let mut lines = text.lines().map(str::split_whitespace);
        let found = lines.find_map(|mut words| (words.next()? == share).then(|| words.next())?);
        found
            .and_then(microseconds)
            .with_context(|| format!("wrk does not tell how long {share} take: {text}"))
    };
    ensure!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "not every request was answered: {text}"
    );
    Ok((at("50%")?, at("99%")?))
}

fn microseconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok()?;
    let unit = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() -> Result<()> {
        let told = "Running 1s test @ http://192.0.2.1:8080/\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
            Latency    61.06us   35.33us   1.62ms   96.09%\n  Latency Distribution\n     50%   56.00us\n     75%   \
            63.00us\n     90%   78.00us\n     99%    1.25ms\n  69417 requests in 1.10s, 5.03MB read\n";
        assert_eq!(latencies(told)?, (56.0, 1250.0));
        assert!(latencies("50% 1.00us\n").is_err());
        assert!(latencies(&format!("{told}  Socket errors: connect 0, read 1\n")).is_err());
        let told = r#"{"end": {"sum_received": {"bits_per_second": 12.5e9}}}"#;
        assert_eq!(rate(told)?, 12.5e9);
        assert!(rate(r#"{"error": "no route to host"}"#).is_err());
        for (text, expected) in [
            ("2.00s", Some(2e6)),
            ("7", None),
            ("x", None),
            ("3.00m", None),
        ] {
            assert_eq!(microseconds(text), expected, "{text}");
        }
        Ok(())
    }
}
