//! Asks a running agent: one GET over plain TCP.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

/// Longest wait for the agent.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;

/// The body of the agent's answer to `GET path`.
///
/// # Errors
/// When the agent cannot be reached, or answers anything but 200; the message then carries its answer.
pub fn get(agent: &str, path: &str) -> anyhow::Result<String> {
    let raw = exchange(agent, path).with_context(|| {
        format!(
            "asking the agent at {agent}: is `egress run` running there, and is this its --metrics-listen address?"
        )
    })?;
    let (status, body) = parse(&raw)
        .with_context(|| format!("{agent} does not answer like the agent; what listens there?"))?;
    ensure!(
        status == 200,
        "the agent at {agent} answered {status}: {}",
        body.trim()
    );
    Ok(body.to_owned())
}

fn exchange(agent: &str, path: &str) -> anyhow::Result<String> {
    ensure!(
        path.bytes().all(|b| b.is_ascii_graphic()),
        "{path:?} cannot be asked for"
    );
    let mut last = None;
    for address in agent.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                write!(
                    stream,
                    "GET {path} HTTP/1.1\r\nHost: {agent}\r\nConnection: close\r\n\r\n"
                )?;
                let mut answer = String::new();
                stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
                return Ok(answer);
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("{agent} has no address"),
    }
}

fn parse(answer: &str) -> anyhow::Result<(u16, &str)> {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no head")?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .context("the answer has no HTTP status")?;
    let length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("the answer has no length")?;
    ensure!(
        body.len() == length,
        "the answer was cut short: {} of {length} bytes",
        body.len()
    );
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_is_parsed() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nno\n";
        assert!(matches!(parse(answer), Ok((503, "no\n"))));
    }

    #[test]
    fn an_answer_cut_short_is_no_answer() {
        assert!(parse("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nno").is_err());
        assert!(parse("HTTP/1.1 200 OK\r\n\r\nno").is_err());
        assert!(parse("SSH-2.0-OpenSSH\r\n").is_err());
    }
}
