//! SIGTERM under load.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use walcache::lsn::Lsn;

use crate::harness::{Raw, Shop, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_in_order_under_load() {
    let shop = Shop::new("shutdown").await;
    let mut daemon = shop.daemon().await;
    for round in 0..3 {
        let load = shop.load(&daemon, 41 + round);
        load.reads(50).await;
        load.writes(50).await;
        let began = Instant::now();
        let status = daemon.terminate().await;
        assert!(status.success(), "{status}\n{}", daemon.log());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let confirmed = shop.confirmed_when_free().await;
        // Everything that was written to L2 was also confirmed: the next one replays nothing.
        let mut raw = Raw::connect(&shop.stage).await.unwrap();
        let redis::Value::BulkString(done) = raw.run(&["HGET", "~walcache:fence", "done"]).await.unwrap() else {
            panic!("no `done` in the fence");
        };
        assert_eq!(Some(confirmed), Lsn::from_hex16(&done), "confirmed and done");
        shop.contains(confirmed).await;
        load.writes(20).await;
        load.stop().await;
        daemon = shop.daemon().await;
        shop.equals_postgres(&daemon).await;
    }
}

/// A request that has begun when the signal comes is answered, and nothing new is accepted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_answered() {
    let shop = Shop::new("shutdown_flight").await;
    shop.put(&shop.sql().await, 1, 1).await;
    let daemon = shop.daemon().await;
    let address = daemon.http_address().to_owned();
    let body = "{\"keys\":[1]}";
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server says so itself when it has begun with the request.
    let mut begun = [0; 25];
    stream.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 100 Continue\r\n\r\n");
    let finish = async {
        eventually("the listener is closed", || async {
            match TcpStream::connect(&address).await {
                Ok(_) => Err("still accepts"),
                Err(_) => Ok(()),
            }
        })
        .await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (status, answer) = tokio::join!(daemon.terminate(), finish);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"status\":200"), "{answer}");
    assert!(status.success(), "{status}");
}
