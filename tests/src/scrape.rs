//! Metrics as a scraper sees them.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result, bail};

use crate::{Host, wait};

/// Everything of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_line(line).with_context(|| format!("this line is no sample: {line}")))
            .collect::<Result<_>>()?;
        Ok(Self { samples })
    }

    /// The samples of a metric that carry these labels, and maybe others.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }

    /// The sum of a counter over the samples that carry these labels; none is 0.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters of a test are small whole numbers"
    )]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.matching(name, labels)
            .map(|sample| sample.value)
            .sum::<f64>() as u64
    }

    /// Packets dropped for this reason, whatever the policy.
    #[must_use]
    pub fn dropped(&self, reason: &str) -> u64 {
        self.sum("egress_dropped_packets_total", &[("reason", reason)])
    }

    /// Every drop counter that is not zero, by reason.
    #[must_use]
    pub fn all_dropped(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for sample in self.matching("egress_dropped_packets_total", &[]) {
            let reason = sample.labels.get("reason").cloned().unwrap_or_default();
            let count = self.dropped(&reason);
            if count > 0 {
                found.insert(reason, count);
            }
        }
        found
    }

    /// Packets dropped for this reason on either side: pods' by policy, and translated ones by gateway.
    #[must_use]
    pub fn dropped_anywhere(&self, reason: &str) -> u64 {
        self.drops_anywhere().get(reason).copied().unwrap_or(0)
    }

    /// Every drop counter of either side that is not zero, by reason.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters of a test are small whole numbers"
    )]
    pub fn drops_anywhere(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for sample in &self.samples {
            let reason = sample.labels.get("reason");
            if sample.name.ends_with("dropped_packets_total")
                && sample.value > 0.0
                && let Some(reason) = reason
            {
                *found.entry(reason.clone()).or_default() += sample.value as u64;
            }
        }
        found
    }

    /// Packets sent through a gateway, whatever the policy and the rule.
    #[must_use]
    pub fn through(&self, gateway: &str) -> u64 {
        self.sum("egress_gateway_packets_total", &[("gateway", gateway)])
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Sample {
            name,
            labels,
            value,
        } in &self.samples
        {
            writeln!(f, "{name} {labels:?} {value}")?;
        }
        Ok(())
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].to_owned();
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(mut inside) = rest.strip_prefix('{') {
        while !inside.starts_with('}') {
            let (key, after) = inside.split_once("=\"")?;
            let mut value = String::new();
            let mut characters = after.char_indices();
            let closing = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next()?.1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            labels.insert(key.to_owned(), value);
            inside = &after[closing + 1..];
            inside = inside.strip_prefix(',').unwrap_or(inside);
        }
        rest = &inside[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name,
        labels,
        value,
    })
}

/// Fetches a path by HTTP from inside a host: the status and the body.
pub fn get(host: &Host, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = ask(host, address, path, &[])?;
    Ok((answer.status, answer.body))
}

/// An answer by HTTP.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// What the header `Content-Type` says.
    pub content_type: Option<String>,
    /// The body.
    pub body: String,
}

/// Fetches a path by HTTP from inside a host, with further headers.
pub fn ask(
    host: &Host,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer> {
    let mut stream = host.enter(|| {
        TcpStream::connect_timeout(&address, wait::PATIENCE)
            .with_context(|| format!("nothing listens on {address}"))
    })?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{address} answered no HTTP: {answer:?}"))?;
    if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        bail!("{address}{path} answered in chunks, which this reader does not know");
    }
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("{address} answered no status: {head:?}"))?;
    let content_type = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-type")
            .then(|| value.trim().to_owned())
    });
    Ok(Answer {
        status,
        content_type,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_with_escapes_and_sums_what_matches() -> Result<()> {
        let metrics = Metrics::parse(
            "# HELP x y\nx_total{a=\"1\",b=\"q\\\"}, \"} 3\nx_total{a=\"1\",b=\"z\"} 4.0 17\nx_total{a=\"2\"} 8\ny 1\n# EOF\n",
        )?;
        assert_eq!(metrics.sum("x_total", &[("a", "1")]), 7);
        assert_eq!(metrics.sum("x_total", &[]), 15);
        assert_eq!(metrics.sum("y", &[]), 1);
        assert_eq!(
            metrics.matching("x_total", &[("b", "q\"}, ")]).count(),
            1,
            "{metrics}"
        );
        assert!(Metrics::parse("not a sample").is_err());
        Ok(())
    }
}
