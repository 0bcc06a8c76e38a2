//! Asking the outside by HTTP requests (RFC 9112): a success or a redirection is an answer, and is not followed.

use std::{future::poll_fn, io, net::TcpStream, pin::Pin, sync::Arc, time::Duration};

use anyhow::anyhow;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use socket2::{Protocol, Type};
use tokio::{
    net::TcpSocket,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::timeout,
};

use super::{
    super::round::now,
    asking::Way,
    line::{Claim, Lines, Unsent, key},
};
use crate::model::{Probe, Url};

/// Ports that are tried: the kernel names those that no socket has, and pods' connections have few of them.
const TRIES: u32 = 8;
/// Requests of one URL that may be under way: who is slow is asked less often.
const AT_ONCE: usize = 2;
/// The largest head of a response, in bytes: hyper takes no less.
const LARGEST_HEAD: usize = 8192;
const MOST_FIELDS: usize = 100;
/// Bytes of a response that are read, so that servers need not write to who is gone.
const LARGEST_BODY: usize = 64 << 10;
const AGENT: &str = concat!("egress-probe/", env!("CARGO_PKG_VERSION"));

/// Those that are asked for.
pub(super) struct Requests {
    lines: Lines,
    pages: Vec<Page>,
    /// Requests under way; they end with this.
    running: JoinSet<()>,
    tell: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
    timeout: Duration,
}

struct Page {
    url: Arc<Url>,
    /// As many others hold this as there are requests under way.
    under_way: Arc<()>,
    trouble: Option<String>,
}

/// What became of a request for the page with this number.
struct Told {
    page: usize,
    result: Result<Duration, String>,
}

impl Requests {
    pub(super) fn new(lines: Lines, probe: &Probe<Url>) -> Self {
        let (tell, told) = unbounded_channel();
        let page = |url: &Url| Page {
            url: Arc::new(url.clone()),
            under_way: Arc::new(()),
            trouble: None,
        };
        Self {
            lines,
            pages: probe.targets.iter().map(page).collect(),
            running: JoinSet::new(),
            tell,
            told,
            timeout: probe.timeout,
        }
    }
}

impl Way for Requests {
    const WANTED: &str = "success";

    fn ask(&mut self) -> anyhow::Result<()> {
        while self.running.try_join_next().is_some() {}
        let (mut asked, mut missing) = (false, None);
        for (number, page) in self.pages.iter_mut().enumerate() {
            if Arc::strong_count(&page.under_way) > AT_ONCE {
                // What was asked before is not answered yet.
                asked = true;
                continue;
            }
            match open(&self.lines, &page.url, self.timeout) {
                Ok((socket, claim)) => {
                    asked = true;
                    let (url, tell) = (Arc::clone(&page.url), self.tell.clone());
                    let (under_way, limit) = (Arc::clone(&page.under_way), self.timeout);
                    self.running.spawn(async move {
                        let asked = get(socket, &url, |result| {
                            let told = Told {
                                page: number,
                                result,
                            };
                            // Who is to be told may be gone.
                            let _gone = tell.send(told);
                        });
                        // Whoever takes longer has not answered.
                        let _late = timeout(limit, asked).await;
                        drop((claim, under_way));
                    });
                }
                Err(Unsent::Way(trouble)) => {
                    asked = true;
                    page.trouble = Some(trouble);
                }
                Err(Unsent::Own(error)) => missing = Some(error),
            }
        }
        match missing {
            Some(error) if !asked => Err(error),
            Some(_) | None => Ok(()),
        }
    }

    async fn answer(&mut self) -> Duration {
        loop {
            let Some(Told { page, result }) = self.told.recv().await else {
                // There is always one who may tell: this itself.
                return std::future::pending().await;
            };
            let page = &mut self.pages[page];
            match result {
                Ok(took) => {
                    page.trouble = None;
                    return took;
                }
                Err(trouble) => page.trouble = Some(trouble),
            }
        }
    }

    fn asked(&self) -> Vec<(String, Option<&str>)> {
        self.pages
            .iter()
            .map(|page| (page.url.to_string(), page.trouble.as_deref()))
            .collect()
    }
}

/// A socket on a port that no pod's connection to this server has.
fn open(lines: &Lines, url: &Url, lasts: Duration) -> Result<(TcpSocket, Claim), Unsent> {
    let own = |error: io::Error| Unsent::Own(error.into());
    let server = url.server;
    for _ in 0..TRIES {
        let (socket, from) = lines.socket(server.ip(), Type::STREAM, Protocol::TCP)?;
        let bound = socket.local_addr().map_err(own)?;
        let port = bound.as_socket().map_or(0, |bound| bound.port());
        let key = key(from, port, server.ip(), server.port(), Protocol::TCP);
        if let Some(claim) = lines.claim(key, lasts)? {
            let socket = TcpSocket::from_std_stream(TcpStream::from(socket));
            return Ok((socket, claim));
        }
    }
    Err(Unsent::Own(anyhow!(
        "pods' connections to {server} have all {TRIES} ports that were tried"
    )))
}

/// Asks for a page, and tells as soon as it is known whether that is an answer.
async fn get(socket: TcpSocket, url: &Url, tell: impl FnOnce(Result<Duration, String>)) {
    let began = now();
    let exchange = async {
        let stream = socket
            .connect(url.server)
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let broken = |error: hyper::Error| format!("no HTTP response: {error}");
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(LARGEST_HEAD)
            .max_headers(MOST_FIELDS)
            .handshake::<_, String>(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let request = Request::get(&url.path)
            .header(HOST, &url.host)
            .header(USER_AGENT, AGENT)
            .header(CONNECTION, "close")
            .body(String::new())
            .map_err(|error| format!("cannot be asked for: {error}"))?;
        let response = async move { sender.send_request(request).await };
        Ok::<_, String>((response, connection))
    };
    let (response, connection) = match exchange.await {
        Ok(both) => both,
        Err(trouble) => return tell(Err(trouble)),
    };
    let hear = async {
        match response.await {
            Ok(response) => {
                let status = response.status();
                tell(if status.is_success() || status.is_redirection() {
                    Ok(now().saturating_sub(began))
                } else {
                    Err(format!("status {status}"))
                });
                read_away(response.into_body()).await;
            }
            Err(error) => tell(Err(format!("no HTTP response: {error}"))),
        }
    };
    // What the connection has to say, the response said already.
    let ((), _ended) = tokio::join!(hear, connection);
}

/// Reads a body to its end, unless it is large.
async fn read_away(mut body: Incoming) {
    let mut length = 0;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        length += frame.data_ref().map_or(0, |data| data.len());
        if length > LARGEST_BODY {
            return;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    /// What becomes of a request that a server answers so, and what the server was asked.
    fn ask(answer: &'static [u8]) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let (tell, asked) = mpsc::channel();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                head.push(byte[0]);
            }
            tell.send(String::from_utf8(head).unwrap()).unwrap();
            // Who has read enough closes.
            let _closed = stream.write_all(answer);
        });
        let url = Url {
            text: format!("http://{server}/a?b"),
            server,
            host: server.to_string(),
            path: "/a?b".to_owned(),
        };
        let told = told_of(&url);
        serving.join().unwrap();
        let asked = asked.recv().unwrap();
        (told, asked.replace(&server.to_string(), "SERVER"))
    }

    /// What comes of one request.
    fn told_of(url: &Url) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut told = None;
        runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            get(socket, url, |result| told = Some(result.map(|_| ()))).await;
        });
        told.unwrap()
    }

    #[test]
    fn successes_and_redirections_are_answers() {
        let large = {
            let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            answer.resize(4 << 20, b'x');
            answer.leak()
        };
        let many_fields = {
            let fields = "x: y\r\n".repeat(MOST_FIELDS + 1);
            format!("HTTP/1.1 200 OK\r\n{fields}\r\n").leak().as_bytes()
        };
        let long_field = {
            let field = "x".repeat(2 * LARGEST_HEAD);
            format!("HTTP/1.1 200 OK\r\nx: {field}\r\n\r\n")
                .leak()
                .as_bytes()
        };
        for (answer, trouble) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], None),
            (b"HTTP/1.0 204 No Content\r\n\r\n", None),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                None,
            ),
            (
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
                None,
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
                None,
            ),
            (large, None),
            (
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                Some("status 404"),
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
                Some("status 503"),
            ),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some("no HTTP response")),
            (b"", Some("no HTTP response")),
            (many_fields, Some("no HTTP response")),
            (long_field, Some("no HTTP response")),
        ] {
            let (result, asked) = ask(answer);
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
            let as_expected = match (&result, trouble) {
                (Ok(()), None) => true,
                (Err(found), Some(expected)) => found.contains(expected),
                (Ok(()), Some(_)) | (Err(_), None) => false,
            };
            assert!(as_expected, "{shown:?}: {result:?}, expected {trouble:?}");
            assert!(asked.starts_with("GET /a?b HTTP/1.1\r\n"), "{asked}");
            for field in [
                "host: SERVER",
                "connection: close",
                "user-agent: egress-probe/",
            ] {
                assert!(asked.contains(field), "{field} in {asked}");
            }
        }
    }

    #[test]
    fn nobody_there_is_told_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        drop(listener);
        let url = Url {
            text: String::new(),
            server,
            host: server.to_string(),
            path: "/".to_owned(),
        };
        let told = told_of(&url);
        let trouble = told.unwrap_err();
        assert!(
            trouble.contains("cannot connect: Connection refused"),
            "{trouble}"
        );
    }
}
