//! Over real sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::*;

struct Server {
    address: std::net::SocketAddr,
    api: Arc<api::Api<Table>>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(limits: Limits) -> Server {
    let listener = Listener::bind("127.0.0.1:0", "http").await.unwrap();
    let (address, api, shutdown) = (listener.address(), table(), CancellationToken::new());
    let service = {
        let api = api.clone();
        move || api::service(&api)
    };
    let task = tokio::spawn(listener.serve(service, limits, shutdown.clone()));
    Server { address, api, shutdown, task }
}

impl Server {
    /// Sends bytes, and returns what comes until the server closes.
    async fn send(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut got)).await;
        end.expect("the server closes").unwrap();
        String::from_utf8(got).unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn requests_over_the_wire() {
    let server = start(limits()).await;
    let got = server.send("GET /v1/note/a%2Fb HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\n{\"key\":\"a/b\"}"), "{got}");
    let got = server.send("HEAD /v1/note/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(got.contains("content-length: 11\r\n") && got.ends_with("\r\n\r\n"), "{got}");
    // A target without a path.
    for target in ["CONNECT example.org:443", "CONNECT v1:443", "OPTIONS *", "GET v1", "GET http://v1"] {
        let got = server.send(&format!("{target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert!(got.starts_with("HTTP/1.1 4"), "{target}: {got}");
    }
    // A body of unknown length is read only as far as allowed.
    let post = "POST /v1/note/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    let got = server.send(&format!("{post}{chunk}")).await;
    assert!(got.starts_with("HTTP/1.1 413 ") && got.contains("body-too-large"), "{got}");
    let got = server.send(&format!("{post}4\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 408 ") && got.contains("body-timeout"), "{got}");
    let got = server.send("nonsense\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
    server.stop().await;
}

#[tokio::test]
async fn slow_and_silent_clients_are_cut() {
    let server = start(limits()).await;
    for head in
        ["", "P", "PRI * HTTP/2.0\r\n", "GET /v1/note/a HTTP/1.1\r\nhost: x\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut got)).await;
        assert!(end.is_ok(), "{head:?} may wait for ever");
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_cap_wait() {
    let server = start(Limits { max_connections: 1, header_timeout: Duration::from_secs(60), ..limits() }).await;
    let request = "GET /v1/note/a HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(request.as_bytes()).await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second.write_all(request.as_bytes()).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_exact(&mut byte)).await;
    assert!(early.is_err(), "answered beyond the cap");
    drop(first);
    tokio::time::timeout(Duration::from_secs(5), second.read_exact(&mut byte)).await.unwrap().unwrap();
    server.stop().await;
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight() {
    // The idle connection is to end by the drain.
    let server = start(Limits { header_timeout: Duration::from_secs(60), ..limits() }).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /v1/note/wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.api.reads.waiting.notified().await;
    server.shutdown.cancel();
    // The idle connection ends first: the drain has begun, and nobody new gets in.
    let mut got = Vec::new();
    let _ = idle.read_to_end(&mut got).await;
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.task.is_finished());
    server.api.reads.proceed.notify_one();
    stream.read_to_end(&mut got).await.unwrap();
    assert!(String::from_utf8(got).unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
    server.task.await.unwrap();
}

#[tokio::test]
async fn draining_ends_with_the_grace_period() {
    let server = start(Limits { grace: Duration::from_millis(50), ..limits() }).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /v1/note/wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.api.reads.waiting.notified().await;
    tokio::time::timeout(Duration::from_secs(5), server.stop()).await.expect("cut off");
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got).await;
    assert!(got.is_empty());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = Listener::bind("127.0.0.1:0", "http").await.unwrap();
    let error = Listener::bind(&first.address().to_string(), "http").await.unwrap_err().to_string();
    let wanted = format!("cannot listen on {} ([http] listen): Address already in use", first.address());
    assert!(error.starts_with(&wanted), "{error}");
}
