//! The network between the daemon and Postgres breaks: silence, resets, delay.

use std::time::{Duration, Instant};

use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Proxy, Shop, eventually};

async fn through_proxy(name: &str) -> (Shop, Proxy) {
    // The server holds the slot for a client that is gone until it notices that, too.
    let postgres = PostgresOptions::new().setting("wal_sender_timeout", "2s");
    let mut shop = Shop::with(name, postgres, RedisOptions::new()).await;
    let proxy = Proxy::start(shop.stage.postgres.port()).await;
    let url = shop.stage.postgres.url_at(proxy.port(), &shop.stage.name);
    shop.config = shop
        .config
        .set("source", "url", url)
        .set("source", "dead_after", "2s")
        .set("source", "fill_timeout", "1s")
        .set("source", "connect_timeout", "1s");
    (shop, proxy)
}

async fn until_connected(daemon: &Daemon, wanted: bool) {
    eventually(&format!("be connected: {wanted}"), || async {
        let status = daemon.status().await;
        if status["replication"]["connected"] == wanted { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// Connections that are swallowed stay open: only silence tells.
async fn silent(name: &str, under_load: bool) {
    let (shop, proxy) = through_proxy(name).await;
    let daemon = shop.daemon().await;
    for round in 0..2 {
        let load = under_load.then(|| shop.load(&daemon, 31 + round));
        if let Some(load) = &load {
            load.reads(50).await;
            load.writes(50).await;
        }
        let began = Instant::now();
        proxy.black_hole();
        until_connected(&daemon, false).await;
        assert!(began.elapsed() < Duration::from_secs(6), "noticed after {:?} only", began.elapsed());
        proxy.heal();
        until_connected(&daemon, true).await;
        if let Some(load) = load {
            load.writes(20).await;
            load.stop().await;
        }
        shop.equals_postgres(&daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_while_idle() {
    silent("net_idle", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_under_load() {
    silent("net_load", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_that_connections_survive() {
    let (shop, proxy) = through_proxy("net_stall").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 33);
    for _ in 0..2 {
        load.writes(30).await;
        proxy.stall();
        load.writes(30).await;
        until_connected(&daemon, false).await;
        proxy.heal();
        until_connected(&daemon, true).await;
    }
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_under_load() {
    let (shop, proxy) = through_proxy("net_cut").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 34);
    for round in 0..8 {
        load.writes(20 + round * 7).await;
        proxy.cut();
        until_connected(&daemon, true).await;
    }
    proxy.delay(Duration::from_millis(5));
    load.writes(50).await;
    load.reads(20).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}
