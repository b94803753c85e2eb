//! Faults 15 and 24: idle tables in a busy cluster, and two daemons on one slot.

use crate::harness::{Daemon, Shop, current_lsn, eventually};
use walcache::lsn::Lsn;
use walcache::sandbox::free_port;

/// 15: the slot advances with what others write, and with heartbeats.
#[tokio::test]
async fn an_idle_slot_advances_while_others_write() {
    let shop = Shop::new("idle").await;
    let daemon = shop.daemon().await;
    let sql = shop.sql().await;
    shop.stage.postgres.create_database("other").await.unwrap();
    let other = shop.stage.postgres.connect("other").await.unwrap();
    sql.batch_execute("CREATE TABLE unpublished (t text)").await.unwrap();
    other.batch_execute("CREATE TABLE busy (t text)").await.unwrap();
    for busy in [&other, &sql] {
        let table = if std::ptr::eq(busy, &other) { "busy" } else { "unpublished" };
        for _ in 0..3 {
            busy.batch_execute(&format!("INSERT INTO {table} SELECT repeat('x', 1000) FROM generate_series(1, 2000)"))
                .await
                .unwrap();
            let end = current_lsn(busy).await;
            eventually("confirm what others wrote", || async {
                let at = shop.confirmed().await;
                if at >= end { Ok(()) } else { Err(format!("{at} of {end}")) }
            })
            .await;
        }
    }
    // And the server may remove what was written: the start of the log that the slot keeps follows.
    let end = current_lsn(&sql).await;
    eventually("let go of the log", || async {
        // It logs what runs, from which a slot can be seen to need nothing of before.
        sql.batch_execute("CHECKPOINT").await.unwrap();
        let query = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
        let at: Lsn = sql.query_one(query, &[&shop.stage.name]).await.unwrap().get::<_, &str>(0).parse().unwrap();
        if at >= end { Ok(()) } else { Err(format!("{at} of {end}")) }
    })
    .await;
    eventually("show that little is kept", || async {
        let kept = daemon.metric("walcache_replication_lag_bytes{kind=\"retained\"}").await.unwrap();
        if kept < 1e6 { Ok(()) } else { Err(kept) }
    })
    .await;
    // Also with nothing at all going on but the heartbeat.
    let end = shop.confirmed().await;
    eventually("go on by heartbeats", || async { if shop.confirmed().await > end { Ok(()) } else { Err(end) } }).await;
    assert!(daemon.status().await["lag_seconds"].as_f64().unwrap() < 5.0);
}

/// 24: the second daemon waits, and takes over when the first is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_waits_and_takes_over() {
    let shop = Shop::new("two").await;
    let mut leader = shop.daemon().await;
    for round in 0..2 {
        let load = shop.load(&leader, 51 + round);
        load.reads(50).await;
        let config = shop.config.clone().set("http", "listen", format!("127.0.0.1:{}", free_port())).set(
            "admin",
            "listen",
            format!("127.0.0.1:{}", free_port()),
        );
        let second = Daemon::start(&config).await;
        eventually("find the slot held", || async {
            if second.log().contains("another consumer holds the slot") { Ok(()) } else { Err("not yet") }
        })
        .await;
        // A follower without a feed knows nothing of W: whatever it serves comes from Postgres.
        let follower = shop.readers(&second, 61 + round);
        follower.reads(30).await;
        follower.stop().await;
        load.writes(50).await;
        leader.kill().await;
        second.wait_ready().await;
        load.writes(50).await;
        load.stop().await;
        shop.equals_postgres(&second).await;
        // The load's readers know the leader's address: the next leader takes it again.
        second.kill().await;
        leader = shop.daemon().await;
        shop.equals_postgres(&leader).await;
    }
}

/// 24: the leader is paused, its connection to the slot ended, another takes over; then it is resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_and_resumed_leader_writes_nothing() {
    let shop = Shop::new("zombie").await;
    let first = shop.daemon().await;
    let load = shop.load(&first, 71);
    load.reads(100).await;
    load.writes(50).await;
    first.pause().await;
    let sql = shop.sql().await;
    let end_it = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    sql.batch_execute(end_it).await.unwrap();
    let config = shop.config.clone().set("http", "listen", format!("127.0.0.1:{}", free_port())).set(
        "admin",
        "listen",
        format!("127.0.0.1:{}", free_port()),
    );
    let second = Daemon::start(&config).await;
    second.wait_ready().await;
    load.writes(100).await;
    first.resume();
    load.writes(100).await;
    load.stop().await;
    shop.equals_postgres(&second).await;
    second.kill().await;
    eventually("have the first lead again", || async {
        let status = first.status().await;
        if status["replication"]["connected"] == true { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    shop.equals_postgres(&first).await;
}
