//! Much content over one connection, with its SHA-256 as coreutils reckon it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{Host, host::run, server::TcpServer};

/// The port of [`Bulk`].
pub const BULK_PORT: u16 = 8081;
const MIB: usize = 1 << 20;

/// An HTTP server of large files: `GET /N` gives the first N MiB of an endless content; what is `PUT` is
/// digested, and the answer is its digest.
#[derive(Debug)]
pub struct Bulk {
    _server: TcpServer,
}

impl Bulk {
    /// Serves [`BULK_PORT`] of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        Ok(Self {
            _server: TcpServer::start(host, BULK_PORT, |stream, caller| {
                // Who breaks off in the middle sees it in the digest.
                drop(serve(stream, caller));
            })?,
        })
    }

    /// The digest of the first `mebibytes` of the content.
    pub fn digest(mebibytes: usize) -> Result<String> {
        let mut digester = Digester::start()?;
        write_content(digester.input()?, mebibytes)?;
        digester.finish()
    }

    /// Fetches the first `mebibytes` with curl on a host, and gives the digest of what arrived.
    pub fn download(host: &Host, from: IpAddr, mebibytes: usize) -> Result<String> {
        let url = format!("http://{}/{mebibytes}", SocketAddr::new(from, BULK_PORT));
        let script = "set -o pipefail; curl --silent --show-error --fail --globoff --noproxy '*' --max-time 120 \"$0\" | sha256sum";
        let output = run(host.command("bash").args(["-c", script, &url]))?;
        first_word(&output)
    }

    /// Sends the first `mebibytes` with curl from a host, and gives the digest of what arrived.
    pub fn upload(host: &Host, to: IpAddr, mebibytes: usize) -> Result<String> {
        let url = format!("http://{}/", SocketAddr::new(to, BULK_PORT));
        let mut command = host.command("curl");
        command
            .args(["--silent", "--show-error", "--fail", "--globoff"])
            .args(["--noproxy", "*", "--max-time", "120", "--header", "Expect:"])
            .args(["--header", &format!("Content-Length: {}", mebibytes * MIB)])
            // The length is known, so no chunks.
            .args(["--header", "Transfer-Encoding:"])
            .args(["--upload-file", "-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut curl = command.spawn().context("cannot run curl")?;
        let mut input = curl.stdin.take().context("no standard input")?;
        let written = write_content(&mut input, mebibytes);
        drop(input);
        let output = curl.wait_with_output()?;
        ensure!(output.status.success(), "{command:?} failed");
        written?;
        first_word(&String::from_utf8_lossy(&output.stdout))
    }
}

fn serve(stream: TcpStream, _caller: IpAddr) -> Result<()> {
    let mut reader = BufReader::with_capacity(MIB, &stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.is_empty() {
            break;
        }
    }
    if first.starts_with("GET") {
        let path = first.split_whitespace().nth(1).context("no path")?;
        let mebibytes: usize = path.trim_start_matches('/').parse()?;
        let size = mebibytes * MIB;
        write!(
            &stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        )?;
        return write_content(&mut &stream, mebibytes);
    }
    let mut digester = Digester::start()?;
    let input = digester.input()?;
    let mut buffer = vec![0; MIB];
    let mut body = reader.take(length);
    while let count @ 1.. = body.read(&mut buffer)? {
        input.write_all(&buffer[..count])?;
    }
    let answer = digester.finish()? + "\n";
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    )?;
    Ok(())
}

/// Writes the content: mebibytes of noise, each with its number in front of every page, so that none can be
/// taken for another.
fn write_content(into: &mut impl Write, mebibytes: usize) -> Result<()> {
    let mut block = vec![0; MIB];
    let mut noise: u64 = 0x9e37_79b9_7f4a_7c15;
    for word in block.chunks_exact_mut(8) {
        // Marsaglia's xorshift.
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        word.copy_from_slice(&noise.to_le_bytes());
    }
    for number in 0..mebibytes {
        for page in block.chunks_exact_mut(4096) {
            page[..8].copy_from_slice(&number.to_le_bytes());
        }
        into.write_all(&block)?;
    }
    Ok(())
}

struct Digester {
    child: Child,
}

impl Digester {
    fn start() -> Result<Self> {
        let child = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run sha256sum")?;
        Ok(Self { child })
    }

    fn input(&mut self) -> Result<&mut std::process::ChildStdin> {
        self.child.stdin.as_mut().context("no standard input")
    }

    fn finish(self) -> Result<String> {
        // This closes its input, which is how it knows the end.
        let output = self.child.wait_with_output()?;
        first_word(&String::from_utf8_lossy(&output.stdout))
    }
}

fn first_word(text: &str) -> Result<String> {
    let word = text.split_whitespace().next();
    Ok(word
        .with_context(|| format!("no digest: {text:?}"))?
        .to_owned())
}
