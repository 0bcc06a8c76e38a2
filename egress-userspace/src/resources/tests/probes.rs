//! `spec.probes`: what it means, and where it is wrong.

use std::{net::IpAddr, time::Duration};

use super::*;
use crate::model::{Probe, Probes, Url};

fn gateway(probes: &str) -> String {
    format!(
        "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {{name: g}}\nspec: {{node: gw-1, \
         egressIPs: [203.0.113.10], probes: {probes}}}\n"
    )
}

fn probe<T>(targets: Vec<T>, interval: u64, timeout: u64) -> Probe<T> {
    Probe {
        targets,
        interval: Duration::from_millis(interval),
        timeout: Duration::from_millis(timeout),
    }
}

fn url(text: &str, server: &str, host: &str, path: &str) -> Result<Url, std::net::AddrParseError> {
    Ok(Url {
        text: text.to_owned(),
        server: server.parse()?,
        host: host.to_owned(),
        path: path.to_owned(),
    })
}

#[test]
fn probes_mean_what_they_say() -> Outcome {
    let icmp = |targets: &[&str], interval, timeout| -> Result<_, std::net::AddrParseError> {
        let targets: Result<Vec<IpAddr>, _> = targets.iter().map(|a| a.parse()).collect();
        Ok(Probes {
            icmp: Some(probe(targets?, interval, timeout)),
            http: None,
        })
    };
    let http =
        |text: &str, host: &str, server: &str, path: &str| -> Result<_, std::net::AddrParseError> {
            Ok(Probes {
                icmp: None,
                http: Some(probe(vec![url(text, server, host, path)?], 10_000, 30_000)),
            })
        };
    for (text, expected) in [
        (
            "{icmp: {addresses: [192.0.2.1, 192.0.2.2]}}",
            icmp(&["192.0.2.1", "192.0.2.2"], 5000, 15_000)?,
        ),
        (
            "{icmp: {addresses: [192.0.2.1], interval: 100ms, timeout: 200ms}}",
            icmp(&["192.0.2.1"], 100, 200)?,
        ),
        (
            "{icmp: {addresses: [192.0.2.1], timeout: 20s}}",
            icmp(&["192.0.2.1"], 5000, 20_000)?,
        ),
        // A longer interval alone brings its timeout along.
        (
            "{icmp: {addresses: [192.0.2.1], interval: 1m}}",
            icmp(&["192.0.2.1"], 60_000, 180_000)?,
        ),
        (
            "{icmp: {addresses: [192.0.2.1], interval: 1s}}",
            icmp(&["192.0.2.1"], 1000, 15_000)?,
        ),
        (
            "{http: {urls: [\"http://192.0.2.1\"]}}",
            http("http://192.0.2.1", "192.0.2.1", "192.0.2.1:80", "/")?,
        ),
        (
            "{http: {urls: [\"HTTP://192.0.2.1:8080/a/b?c=d#e\"]}}",
            http(
                "HTTP://192.0.2.1:8080/a/b?c=d#e",
                "192.0.2.1:8080",
                "192.0.2.1:8080",
                "/a/b?c=d",
            )?,
        ),
        (
            "{http: {urls: [\"http://192.0.2.1?c\"]}}",
            http("http://192.0.2.1?c", "192.0.2.1", "192.0.2.1:80", "/?c")?,
        ),
    ] {
        let Some(Object::Gateway(found)) = only_object(read(&gateway(text))) else {
            return Err(text.into());
        };
        let Exit::Node(egress) = found.exit else {
            return Err(text.into());
        };
        assert_eq!(egress.probes, Some(expected), "{text}");
    }
    // Brackets belong to the address.
    let both = gateway("{http: {urls: [\"http://[2001:db8::1]:81/x\"]}}")
        .replace("[203.0.113.10]", "[203.0.113.10, \"2001:db8::10\"]");
    let Some(Object::Gateway(found)) = only_object(read(&both)) else {
        return Err(both.into());
    };
    let Exit::Node(egress) = found.exit else {
        return Err(both.into());
    };
    let expected = url(
        "http://[2001:db8::1]:81/x",
        "[2001:db8::1]:81",
        "[2001:db8::1]:81",
        "/x",
    )?;
    let targets = egress.probes.and_then(|p| p.http).map(|p| p.targets);
    assert_eq!(targets, Some(vec![expected]));
    Ok(())
}

/// Each with the part of the file that the complaint points at, and what it says.
#[test]
fn what_is_wrong_with_probes_is_told_with_its_place() {
    let many: Vec<_> = (1..10).map(|n| format!("192.0.2.{n}")).collect();
    let mut wrong = Vec::new();
    let many = format!("{{icmp: {{addresses: [{}]}}}}", many.join(", "));
    for (text, place, complaint) in [
        (
            "{icmp: {address: [192.0.2.1]}}",
            "address",
            "did you mean `addresses`",
        ),
        ("{dns: {}}", "dns", "unknown field `dns`"),
        (
            "{icmp: {interval: 1s}}",
            "interval",
            "`icmp` has no `addresses`",
        ),
        ("{icmp: {addresses: []}}", "[", "`addresses` is empty"),
        (&many, "192.0.2.9", "more than 8"),
        (
            "{icmp: {addresses: [192.0.2.1, 192.0.2.1]}}",
            "192.0.2.1",
            "there twice",
        ),
        (
            "{icmp: {addresses: [localhost]}}",
            "localhost",
            "is not an IP address",
        ),
        ("{icmp: {addresses: [127.0.0.1]}}", "127.0.0.1", "loopback"),
        ("{icmp: {addresses: [224.0.0.1]}}", "224.0.0.1", "multicast"),
        (
            "{icmp: {addresses: [203.0.113.10]}}",
            "203.0.113.10",
            "the gateway itself",
        ),
        (
            "{icmp: {addresses: [\"2001:db8::1\"]}}",
            "\"2001:db8::1\"",
            "no egress address of that family",
        ),
        (
            "{icmp: {addresses: [192.0.2.1], interval: 5}}",
            "5",
            "`interval` is not a time",
        ),
        (
            "{icmp: {addresses: [192.0.2.1], interval: 99ms}}",
            "99ms",
            "out of range",
        ),
        (
            "{icmp: {addresses: [192.0.2.1], interval: 2h}}",
            "2h",
            "out of range",
        ),
        (
            "{icmp: {addresses: [192.0.2.1], timeout: 9s}}",
            "9s",
            "less than twice the interval 5s",
        ),
        (
            "{icmp: {addresses: [192.0.2.1], timeout: 61m}}",
            "61m",
            "out of range",
        ),
        (
            "{http: {urls: [\"https://192.0.2.1/\"]}}",
            "https",
            "\"https\" is not supported",
        ),
        (
            "{http: {urls: [\"ftp://192.0.2.1/\"]}}",
            "ftp",
            "\"ftp\" is not supported",
        ),
        ("{http: {urls: [192.0.2.1]}}", "192.0.2.1", "is no URL"),
        (
            "{http: {urls: [\"http://example.com/a\"]}}",
            "example.com",
            "is no IP address",
        ),
        (
            "{http: {urls: [\"http://user@192.0.2.1/\"]}}",
            "user@192.0.2.1",
            "is no IP address",
        ),
        (
            "{http: {urls: [\"http://192.0.2.1:x/\"]}}",
            "192.0.2.1:x",
            "is no IP address",
        ),
        (
            "{http: {urls: [\"http://192.0.2.1:0/\"]}}",
            "192.0.2.1:0",
            "0 is no port",
        ),
        (
            "{http: {urls: [\"http://[::ffff:192.0.2.1]/\"]}}",
            "[::ffff:192.0.2.1]",
            "IPv4-mapped",
        ),
        ("{http: {urls: [\"http:///a\"]}}", "", "is no IP address"),
        (
            "{http: {urls: [\"http://192.0.2.1/a b\"]}}",
            "http://192.0.2.1/a b",
            "is no URL",
        ),
        (
            "{http: {urls: [\"http://127.0.0.1/\"]}}",
            "\"http://127.0.0.1/\"",
            "loopback",
        ),
    ] {
        let file = gateway(text);
        let found = read(&file).diagnostics;
        let at: Vec<&str> = found
            .iter()
            .filter_map(|d| file.get(d.position.as_ref()?.span.clone()))
            .collect();
        let said = found
            .first()
            .map_or_else(String::new, |d| format!("{} {:?}", d.message, d.help));
        if at.first() != Some(&place) || !said.contains(complaint) {
            wrong.push(format!("{text}: {at:?} {said}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let empty = read(&gateway("{}")).diagnostics;
    assert!(
        empty.len() == 1 && empty[0].message.contains("neither `icmp` nor `http`"),
        "{empty:?}"
    );
    let next_hops = "apiVersion: egress.fastpath/v1alpha1\nkind: EgressGateway\nmetadata: {name: g}\nspec: {nextHops: \
                     [192.0.2.1], probes: {icmp: {addresses: [192.0.2.9]}}}\n";
    let found = read(next_hops).diagnostics;
    assert!(
        found.len() == 1
            && found[0]
                .message
                .contains("means nothing without `egressIPs`"),
        "{found:?}"
    );
}
