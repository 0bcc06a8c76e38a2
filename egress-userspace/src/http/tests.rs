#![expect(clippy::unwrap_used, reason = "a panic fails the test where it is")]

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{
    server::{Limits, serve_within},
    *,
};
use crate::{http::status::Status, metrics::tests as metrics_tests};

const WEB: &str = "/explain?pod=shop/web&dst=198.51.100.1";

struct Server {
    address: SocketAddr,
    snapshot: Arc<ArcSwap<Snapshot>>,
    fake: Arc<crate::counters::tests::Fake>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn server(limits: Limits) -> Server {
    server_that_reads(limits, None).await
}

async fn server_that_reads(limits: Limits, maps: Option<Arc<ReadMaps>>) -> Server {
    let (metrics, fake) = metrics_tests::node();
    let snapshot = Arc::new(ArcSwap::from_pointee(explain::tests::node()));
    let pages = Pages {
        snapshot: Arc::clone(&snapshot),
        metrics,
        maps,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(serve_within(listener, pages, limits, async {
        let _ = stopped.await;
    }));
    Server {
        address,
        snapshot,
        fake,
        stop,
        task,
    }
}

fn patient() -> Limits {
    Limits {
        connections: 4,
        head: Duration::from_secs(20),
        whole: Duration::from_secs(20),
    }
}

async fn ask(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &'static str) -> anyhow::Result<String> {
    tokio::task::spawn_blocking(move || client::get(&address.to_string(), path))
        .await
        .unwrap()
}

#[tokio::test]
async fn the_format_follows_the_accept_header() {
    let server = server(patient()).await;
    let text = ask(server.address, "/metrics", "").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    assert!(
        text.contains("# TYPE egress_gateway_packets_total counter"),
        "{text}"
    );
    let open = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let text = ask(server.address, "/metrics", open).await;
    assert!(
        text.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn a_failing_kernel_is_a_500_without_samples() {
    let server = server(patient()).await;
    server.fake.kernel.lock().unwrap().broken = true;
    let text = ask(server.address, "/metrics", "").await;
    assert!(text.starts_with("HTTP/1.1 500"), "{text}");
    assert!(text.contains("MEMBER_COUNTS"), "{text}");
    assert!(!text.contains("egress_gateway_packets_total"), "{text}");
}

#[tokio::test]
async fn ready_follows_the_snapshot_and_alive_does_not() {
    let server = server(patient()).await;
    assert_eq!(get(server.address, "/readyz").await.unwrap(), "ok\n");
    server.snapshot.store(Arc::new(Snapshot::default()));
    let text = ask(server.address, "/readyz", "").await;
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    assert!(
        text.ends_with("the resources have not been applied yet\n"),
        "{text}"
    );
    assert_eq!(get(server.address, "/livez").await.unwrap(), "ok\n");
}

#[tokio::test]
async fn status_and_explain_are_json() {
    let server = server(patient()).await;
    let status: Status =
        serde_json::from_str(&get(server.address, "/status").await.unwrap()).unwrap();
    assert_eq!(status, Status::of(&server.snapshot.load()));
    let answer: Answer = serde_json::from_str(&get(server.address, WEB).await.unwrap()).unwrap();
    let web = ObjectName::new("shop", "web");
    let dst = "198.51.100.1".parse().unwrap();
    assert_eq!(
        answer,
        explain::against_kernel(&server.snapshot.load(), &web, dst)
    );
}

#[tokio::test]
async fn explain_believes_the_maps_and_not_the_agents_memory() {
    let empty: Arc<ReadMaps> = Arc::new(|| Ok(KernelState::default()));
    let server = server_that_reads(patient(), Some(empty)).await;
    let answer: Answer = serde_json::from_str(&get(server.address, WEB).await.unwrap()).unwrap();
    assert_eq!(
        answer.disagreements,
        ["the resources say through a gateway, the kernel says dropped (SpoofedSource)"]
    );
    let broken: Arc<ReadMaps> = Arc::new(|| anyhow::bail!("PODS: Operation not permitted"));
    let server = server_that_reads(patient(), Some(broken)).await;
    let text = ask(server.address, WEB, "").await;
    assert!(text.starts_with("HTTP/1.1 500"), "{text}");
    assert!(text.contains("PODS: Operation not permitted"), "{text}");
}

#[tokio::test]
async fn maps_read_during_an_apply_are_read_again() {
    let cell: Arc<std::sync::OnceLock<Arc<ArcSwap<Snapshot>>>> = Arc::default();
    let during = Arc::clone(&cell);
    let reads: Arc<ReadMaps> = Arc::new(move || {
        let snapshot = during.get().unwrap();
        if snapshot.load().generation > 0 {
            return Ok((*explain::tests::node().kernel).clone());
        }
        snapshot.rcu(|old| Snapshot {
            generation: 1,
            ..(**old).clone()
        });
        Ok(KernelState::default())
    });
    let server = server_that_reads(patient(), Some(reads)).await;
    cell.set(Arc::clone(&server.snapshot)).unwrap();
    let answer: Answer = serde_json::from_str(&get(server.address, WEB).await.unwrap()).unwrap();
    assert_eq!(answer.disagreements, [""; 0]);
}

#[tokio::test]
async fn bad_questions_are_refused_with_a_reason() {
    let server = server(patient()).await;
    for (path, reason) in [
        ("/explain", "missing field `pod`"),
        ("/explain?pod=web&dst=1.2.3.4", "write NAMESPACE/NAME"),
        ("/explain?pod=a/b&dst=example.org", "is not an IP address"),
    ] {
        let text = ask(server.address, path, "").await;
        assert!(text.starts_with("HTTP/1.1 400"), "{path}: {text}");
        assert!(text.contains(reason), "{path}: {text}");
    }
    let text = ask(server.address, "/", "").await;
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
}

#[tokio::test]
async fn silent_clients_lose_their_seat() {
    let server = server(Limits {
        connections: 1,
        head: Duration::from_millis(100),
        whole: Duration::from_secs(20),
    })
    .await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(10), get(server.address, "/livez"));
    assert_eq!(waited.await.unwrap().unwrap(), "ok\n");
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn endless_heads_are_cut_off() {
    let server = server(patient()).await;
    let text = ask(
        server.address,
        "/livez",
        &format!("X: {}\r\n", "x".repeat(20_000)),
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
}

#[tokio::test]
async fn a_stopped_server_lets_go_of_its_port() {
    let server = server(patient()).await;
    server.stop.send(()).unwrap();
    server.task.await.unwrap();
    let error = get(server.address, "/livez").await.unwrap_err();
    assert!(
        format!("{error:#}").contains("is `egress run` running there"),
        "{error:#}"
    );
}

/// Lets this process have so many files open, or fewer if it may not; gives how many.
fn allow_files(wanted: u64) -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let allowed = wanted.min(hard).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, allowed, hard).unwrap();
    allowed
}

/// Kilobytes that this process has in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_keep_nobody_out() {
    let server = server(Limits {
        connections: 64,
        head: Duration::from_secs(60),
        whole: Duration::from_secs(60),
    })
    .await;
    let count = allow_files(10_700) - 700;
    let before = resident();
    let mut held = Vec::new();
    for number in 0..count {
        let stream = TcpStream::connect(server.address).await.unwrap();
        // Some say nothing, some begin to.
        if number % 3 == 0 {
            // Whoever was shown out hears of it here.
            let _shown_out = stream.try_write(b"GET /metrics HTTP/1.1\r\nX: ");
        }
        held.push(stream);
        if number % 1000 == 0 {
            assert_eq!(get(server.address, "/livez").await.unwrap(), "ok\n");
        }
    }
    let began = std::time::Instant::now();
    for path in ["/livez", "/metrics", "/status"] {
        assert!(!get(server.address, path).await.unwrap().is_empty());
    }
    let (took, grown) = (began.elapsed(), resident().saturating_sub(before));
    println!("{count} connections: three pages in {took:?}, {grown} KiB more in memory");
    assert!(grown < 64 * 1024, "{grown} KiB for {count} connections");
    assert!(took < Duration::from_secs(10), "{took:?}");
    drop(held);
}

#[tokio::test]
async fn a_request_under_way_is_not_shown_out() {
    let gate = Arc::new(std::sync::Barrier::new(2));
    let waits = Arc::clone(&gate);
    let maps: Arc<ReadMaps> = Arc::new(move || {
        waits.wait();
        Ok(KernelState::default())
    });
    let limits = Limits {
        connections: 2,
        ..patient()
    };
    let server = server_that_reads(limits, Some(maps)).await;
    let asked = tokio::spawn(ask(server.address, WEB, ""));
    for _ in 0..20 {
        let _silent = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(get(server.address, "/livez").await.unwrap(), "ok\n");
    }
    // It is read five times where resources and kernel disagree.
    let opens = tokio::task::spawn_blocking(move || {
        for _ in 0..5 {
            gate.wait();
        }
    });
    assert!(asked.await.unwrap().starts_with("HTTP/1.1 200"));
    opens.await.unwrap();
}

#[tokio::test]
async fn whoever_asks_and_leaves_does_not_pile_up_work() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
    let maps: Arc<ReadMaps> = Arc::new(move || {
        highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        counted.fetch_sub(1, Ordering::SeqCst);
        Ok((*explain::tests::node().kernel).clone())
    });
    let server = server_that_reads(patient(), Some(maps)).await;
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET {WEB} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        // Time to be read, none to be answered.
        tokio::time::sleep(Duration::from_millis(2)).await;
        drop(stream);
    }
    let text = ask(server.address, WEB, "").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let most = most.load(Ordering::SeqCst);
    assert!((1..=MAX_WORK).contains(&most), "{most} at one time");
}

#[tokio::test]
async fn whatever_is_sent_is_answered_or_cut_off() {
    let server = server(Limits {
        head: Duration::from_millis(300),
        whole: Duration::from_secs(2),
        ..patient()
    })
    .await;
    let get = |path: &str, rest: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{rest}\r\n");
    let rows: &[(&str, Vec<u8>, &str)] = &[
        (
            "unknown path",
            get("/etc/passwd", "").into(),
            "HTTP/1.1 404",
        ),
        (
            "path upwards",
            get("/../../etc/passwd", "").into(),
            "HTTP/1.1 404",
        ),
        (
            "long path",
            get(&"/x".repeat(40_000), "").into(),
            "HTTP/1.1 4",
        ),
        (
            "long question",
            get(&format!("/explain?pod={}", "x".repeat(9000)), "").into(),
            "HTTP/1.1 400",
        ),
        (
            "huge header",
            get("/livez", &format!("X: {}\r\n", "x".repeat(1 << 20))).into(),
            "HTTP/1.1 431",
        ),
        (
            "many headers",
            get("/livez", &"X: y\r\n".repeat(5000)).into(),
            "HTTP/1.1 431",
        ),
        (
            "another method",
            b"DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "HTTP/1.1 405",
        ),
        (
            "a body that never ends",
            [
                b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n".to_vec(),
                vec![0; 1 << 20],
            ]
            .concat(),
            "HTTP/1.1 405",
        ),
        (
            "another protocol",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            "",
        ),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".into(),
            "",
        ),
        ("zeroes", vec![0; 100_000], ""),
        ("half a request", b"GET /livez HT".into(), ""),
        ("nothing", Vec::new(), ""),
        (
            "many requests at once",
            get("/livez", "").repeat(500).into(),
            "HTTP/1.1 200",
        ),
    ];
    for (what, sent, expected) in rows {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let mut answer = Vec::new();
        let talk = async {
            // The server may have closed before all was sent.
            let send = async { drop(writing.write_all(sent).await) };
            let read = async { drop(reading.read_to_end(&mut answer).await) };
            tokio::join!(send, read);
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), talk).await;
        assert!(ended.is_ok(), "{what}: the server keeps the connection");
        let text = String::from_utf8_lossy(&answer);
        // A reset for what was not read may overtake the answer.
        assert!(
            text.is_empty() && sent.len() > 60_000 || text.starts_with(expected),
            "{what}: {text}"
        );
        let alive = ask(server.address, "/livez", "").await;
        assert!(alive.starts_with("HTTP/1.1 200"), "{what}: {alive}");
    }
}

#[tokio::test]
async fn whoever_sends_or_reads_slowly_is_cut_off() {
    let server = server(Limits {
        connections: 4,
        head: Duration::from_millis(300),
        whole: Duration::from_secs(1),
    })
    .await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let began = std::time::Instant::now();
    for byte in "GET /livez HTTP/1.1\r\nX: y".bytes().cycle() {
        if slow.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );

    // Who asks and never reads holds a seat no longer than any connection may last.
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        deaf.push(stream);
    }
    assert_eq!(get(server.address, "/livez").await.unwrap(), "ok\n");
}
