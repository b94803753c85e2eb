//! Fault 26: slow, silent and hostile HTTP clients. Whatever they do, others are answered, no memory is taken without
//! bound, and nothing panics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::harness::{Daemon, Shop, eventually};

/// `http.header_timeout` where clients are slow on purpose. The others have the default: on a busy machine a well-behaved
/// client may take a second from its connection to its request.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much later than it should something may happen on a busy machine.
const MARGIN: Duration = Duration::from_secs(15);
/// The most memory that the daemon may ever have held.
const MOST_MIB: u64 = 150;

async fn shop(name: &str, max_connections: i64) -> Shop {
    let mut shop = Shop::new(name).await;
    shop.config = shop.config.set("http", "max_connections", max_connections).set("http", "max_body", "64KiB");
    let sql = shop.sql().await;
    for row in 0..10 {
        shop.put(&sql, row, 1).await;
    }
    shop
}

/// As [`shop`], and clients are waited for no longer than [`PATIENCE`].
async fn impatient(name: &str, max_connections: i64) -> Shop {
    let mut shop = shop(name, max_connections).await;
    shop.config = shop.config.set("http", "header_timeout", format!("{}s", PATIENCE.as_secs()));
    shop
}

/// It serves, has not panicked, and has not grown.
async fn is_well(daemon: &Daemon) {
    daemon.http().get("/v1/counter/1").await.expect(200);
    daemon.admin().get("/livez").await.expect(200);
    let log = daemon.log();
    assert!(!log.contains("panick"), "{log}");
    let peak = daemon.peak_mib();
    assert!(peak < MOST_MIB, "peak memory {peak} MiB");
}

/// Sends bytes one by one until the server ends the connection.
async fn dribble(address: String, head: &'static [u8], rest: &'static [u8]) -> Result<Duration, String> {
    let mut stream = TcpStream::connect(&address).await.map_err(|e| e.to_string())?;
    let (mut read, mut write) = stream.split();
    write.write_all(head).await.map_err(|e| e.to_string())?;
    let began = Instant::now();
    let dribble = async {
        let mut ticks = interval(Duration::from_millis(20));
        for byte in rest.iter().cycle() {
            ticks.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    };
    let mut got = Vec::new();
    tokio::select! {
        // A reset is an end, too.
        _ = read.read_to_end(&mut got) => Ok(began.elapsed()),
        () = dribble => Ok(began.elapsed()),
        () = tokio::time::sleep(4 * PATIENCE + MARGIN) => Err(format!("it may go on for ever; so far: {got:?}")),
    }
}

/// 26: more slow and silent clients than there are connections; each is cut in time, and others get their turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_silent_clients_are_cut() {
    const BATCH: &[u8] =
        b"POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n";
    const CHUNKED: &[u8] =
        b"POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nea60\r\n";
    let shop = impatient("abuse_slow", 16).await;
    let daemon = shop.daemon().await;
    let address = daemon.http_address().to_owned();
    let kinds: [(&[u8], &[u8]); 6] = [
        (b"", b"GET /v1/counter/1"),
        (b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n"),
        (BATCH, b" "),
        (CHUNKED, b" "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"),
        // A whole request, and then the next one never comes.
        (b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/co", b"u"),
    ];
    let mut clients = JoinSet::new();
    for client in 0..36 {
        let (head, rest) = kinds[client % kinds.len()];
        clients.spawn(dribble(address.clone(), head, rest));
    }
    // Three times as many as may be open: so some wait for their turn to be cut.
    let http = daemon.http();
    for _ in 0..5 {
        let began = Instant::now();
        http.get("/v1/counter/1").await.expect(200);
        assert!(began.elapsed() < 4 * PATIENCE + MARGIN, "answered after {:?}", began.elapsed());
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap().unwrap();
    }
    is_well(&daemon).await;
}

/// Sockets that a process holds.
fn sockets(daemon: &Daemon) -> usize {
    let dir = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().unwrap())).unwrap();
    let links = dir.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// 26: a flood of clients; no more are let in than allowed, and as they leave the others get their turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections() {
    const MOST: usize = 16;
    let shop = shop("abuse_flood", MOST as i64).await;
    let daemon = shop.daemon().await;
    // The flood is answered from L1, and opens nothing but itself.
    eventually("be in L1", || async {
        let response = daemon.http().get("/v1/counter/1").await;
        if response.header("x-cache") == "HIT-L1" { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    let before = sockets(&daemon);
    let stop = CancellationToken::new();
    let watch = tokio::spawn({
        let (pid, stop) = (daemon.pid().unwrap(), stop.clone());
        async move {
            let mut most = 0;
            while !stop.is_cancelled() {
                let dir = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
                most = most.max(dir.count());
                tokio::task::yield_now().await;
            }
            most
        }
    });
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().unwrap())).unwrap().count();
    let mut clients = JoinSet::new();
    for _ in 0..500 {
        let address = daemon.http_address().to_owned();
        clients.spawn(async move {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let request = b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    stop.cancel();
    let most = watch.await.unwrap();
    // Besides, a connection to Postgres or Redis may come or go.
    assert!(most <= files + MOST + 4, "{most} files, {files} before");
    eventually("have all of them closed", || async {
        let now = sockets(&daemon);
        if now <= before + 2 { Ok(()) } else { Err(format!("{now} sockets, {before} before")) }
    })
    .await;
    is_well(&daemon).await;
}

/// 26: a client that asks and asks, and reads nothing, takes no memory without bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads() {
    let shop = shop("abuse_deaf", 64).await;
    let sql = shop.sql().await;
    sql.batch_execute("UPDATE counters SET note = repeat('x', 1000000) WHERE id = 1").await.unwrap();
    let daemon = shop.daemon().await;
    daemon.http().get("/v1/counter/1").await.expect(200);
    let request = b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(daemon.http_address()).await.unwrap();
        // Until the server takes no more: 1.6 GB of answers in all, if they were made.
        let _ = timeout(Duration::from_millis(200), async { while stream.write_all(&request).await.is_ok() {} }).await;
        deaf.push(stream);
    }
    is_well(&daemon).await;
}

/// 26: many requests at once over one connection are answered in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let shop = shop("abuse_pipe", 64).await;
    let daemon = shop.daemon().await;
    let cases = [
        ("/v1/counter/1", "200", "\"id\":1,"),
        ("/v1/counter/999", "404", "urn:walcache:problem:absent"),
        ("/v1/counter/x", "400", "urn:walcache:problem:malformed-key"),
        ("/v1/other/1", "404", "urn:walcache:problem:unknown-entity"),
        ("/v1/counter/2", "200", "\"id\":2,"),
    ];
    for rounds in [1, 60] {
        let mut text = String::new();
        for (path, ..) in cases.iter().cycle().take(cases.len() * rounds) {
            text += &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        }
        text += "GET /v1/counter/3 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let stream = TcpStream::connect(daemon.http_address()).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let writing = tokio::spawn(async move { write.write_all(text.as_bytes()).await.map(|()| write) });
        let mut answers = String::new();
        read.read_to_string(&mut answers).await.unwrap();
        writing.await.unwrap().unwrap();
        let answers: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).collect();
        assert_eq!(answers.len(), cases.len() * rounds + 1);
        for ((path, status, wanted), answer) in cases.iter().cycle().zip(&answers[..answers.len() - 1]) {
            assert!(answer.starts_with(status) && answer.contains(wanted), "{path}: {answer}");
        }
        assert!(answers.last().unwrap().contains("\"id\":3,"));
    }
    is_well(&daemon).await;
}

/// Bytes as a hostile client may send them.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let noise = || vec(any::<u8>(), 0..300);
    let word = || "[!-~]{0,30}";
    let valid = prop_oneof![
        Just(b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        Just(b"HEAD /v1/counter/2 HTTP/1.1\r\nhost: x\r\nx-min-lsn: 0/1\r\n\r\n".to_vec()),
        Just(b"POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{\"keys\":[1]}".to_vec()),
        Just(b"POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nc\r\n{\"keys\":[1]}\r\n0\r\n\r\n".to_vec()),
    ];
    let broken =
        (valid, vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6)).prop_map(|(mut bytes, edits)| {
            for (at, byte, how) in edits {
                if bytes.is_empty() {
                    break;
                }
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at),
                }
            }
            bytes
        });
    let line =
        (word(), word(), word()).prop_map(|(method, target, version)| format!("{method} {target} {version}\r\n\r\n"));
    let target = noise().prop_map(|bytes| {
        let path = percent_encoding::percent_encode(&bytes, percent_encoding::NON_ALPHANUMERIC).to_string();
        format!("GET /v1/counter/{path} HTTP/1.1\r\nhost: x\r\n\r\n")
    });
    let raw_target =
        noise().prop_map(|bytes| [b"GET /v1/counter/", &bytes[..], b" HTTP/1.1\r\nhost: x\r\n\r\n"].concat());
    let header = (word(), noise()).prop_map(|(name, value)| {
        [b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n", name.as_bytes(), b": ", &value[..], b"\r\n\r\n"].concat()
    });
    let known =
        prop::sample::select(vec!["x-min-lsn", "prefer", "cache-control", "if-none-match", "content-length", "expect"]);
    let known = (known, noise()).prop_map(|(name, value)| {
        [b"GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n", name.as_bytes(), b": ", &value[..], b"\r\n\r\n"].concat()
    });
    let many =
        (1..3000_usize).prop_map(|n| format!("GET /v1/counter/1 HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(n)));
    let long =
        (1..300_000_usize).prop_map(|n| format!("GET /v1/counter/{} HTTP/1.1\r\nhost: x\r\n\r\n", "9".repeat(n)));
    let body = (noise(), any::<u64>()).prop_map(|(bytes, length)| {
        let head = "POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ";
        [head.as_bytes(), length.to_string().as_bytes(), b"\r\n\r\n", &bytes[..]].concat()
    });
    let chunks = (word(), noise()).prop_map(|(size, bytes)| {
        let head = "POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        [head.as_bytes(), size.as_bytes(), b"\r\n", &bytes[..]].concat()
    });
    let deep = (1..5000_usize).prop_map(|n| {
        let body = format!("{{\"keys\":{}", "[".repeat(n));
        format!("POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    });
    let http2 = noise().prop_map(|bytes| [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &bytes[..]].concat());
    prop_oneof![
        noise(),
        broken,
        raw_target,
        header,
        known,
        body,
        chunks,
        http2,
        prop_oneof![line, target, many, long, deep].prop_map(String::into_bytes),
    ]
}

/// What the server answers, until it has nothing more to say.
async fn exchange(address: &str, request: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let mut got = Vec::new();
    let talk = async {
        // It may end the connection before it has read everything.
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut got).await;
    };
    timeout(PATIENCE + MARGIN, talk).await.map_err(|_| "it never ends".to_owned())?;
    Ok(got)
}

/// An answer of ours is a success, a problem document of the client's fault, or hyper's bare refusal.
fn judge(answer: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(answer) else {
        // Frames of HTTP/2.
        return Ok(());
    };
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(text);
    let Some(head) = text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 ")) else {
        return if text.is_empty() || answer[0] == 0 { Ok(()) } else { Err(format!("no HTTP: {text}")) };
    };
    let (head, _) = head.split_once("\r\n\r\n").ok_or_else(|| format!("half a head: {text}"))?;
    let head = head.to_lowercase();
    let is_empty = head.contains("content-length: 0") || !head.contains("content-length");
    match &head[..3] {
        "200" | "304" => Ok(()),
        status if status.starts_with('4') && (is_empty || head.contains("application/problem+json")) => Ok(()),
        _ => Err(text.to_owned()),
    }
}

/// 26: whatever bytes come, the answer is a success or a refusal of that request, and the next client is served.
#[test]
fn malformed_requests_are_refused_one_by_one() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (shop, daemon) = runtime.block_on(async {
        let shop = impatient("abuse_bytes", 64).await;
        let daemon = shop.daemon().await;
        daemon.http().get("/v1/counter/1").await.expect(200);
        (shop, daemon)
    });
    let address = daemon.http_address().to_owned();
    let cases = Cases { cases: 600, failure_persistence: None, max_shrink_iters: 200, ..Cases::default() };
    let mut runner =
        TestRunner::new_with_rng(cases, proptest::test_runner::TestRng::deterministic_rng(Default::default()));
    let outcome = runner.run(&requests(), |request| {
        let answer = runtime.block_on(exchange(&address, &request)).map_err(TestCaseError::fail)?;
        judge(&answer).map_err(TestCaseError::fail)
    });
    outcome.unwrap_or_else(|e| panic!("{e}\n{}", daemon.log()));
    runtime.block_on(async {
        is_well(&daemon).await;
        shop.equals_postgres(&daemon).await;
    });
    let _entered = runtime.enter();
    drop((daemon, shop));
}

/// 26: requests as large as allowed and larger, many at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_requests_are_refused_in_bounded_memory() {
    let shop = shop("abuse_huge", 64).await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    let allowed = json!({ "keys": (0..1000).collect::<Vec<_>>() });
    let too_many = json!({ "keys": (0..1001).collect::<Vec<_>>() });
    let too_large = Arc::new(Bytes::from(format!("{{\"keys\":[\"{}\"]}}", "x".repeat(8 << 20))));
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let (http, large) = (http.clone(), too_large.clone());
        clients.spawn(async move {
            let headers = [("content-type", "application/json")];
            let body = Bytes::clone(&large);
            // Refused before all of it was sent: the answer may be lost with the connection.
            match http.send(Method::POST, "/v1/counter/batch", &headers, body).await {
                Ok(response) => assert_eq!(response.status, 413, "{response:?}"),
                Err(error) => assert!(!error.contains("no response within"), "{error}"),
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    http.post("/v1/counter/batch", &allowed, &[]).await.expect(200);
    http.post("/v1/counter/batch", &too_many, &[]).await.expect(413);
    is_well(&daemon).await;
}
