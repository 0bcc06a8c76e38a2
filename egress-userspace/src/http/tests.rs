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
