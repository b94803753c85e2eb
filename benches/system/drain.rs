//! (a) Draining a slot that has fallen behind, with every key of it in L2, against a bare reader of the same stream.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walcache::lsn::Lsn;

use crate::bare_reader::{self, Drained, walsender_cpu};
use crate::harness::{Daemon, current_lsn};
use crate::process;
use crate::report::{Aim, Figure, Report, number};
use crate::shop::{SLOT, Shop};

/// A copy of the daemon's slot, for the bare reader.
const COPY: &str = "bench_bare";
/// Sessions that write one-row transactions at a time.
const WRITERS: usize = 4;
/// How long the bare reader pauses, when it does.
const PAUSE: Duration = Duration::from_millis(1);
/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(10);
/// How long a drain may take.
const LIMIT: Duration = Duration::from_secs(180);
const AIM: f64 = 0.6;
const MEMORY: Aim = Aim::Below(64.0, "MiB");

/// What the slot holds.
#[derive(Clone, Copy)]
enum Load {
    /// Transactions of one row each; no row again before all others had their turn.
    Single { transactions: usize },
    /// Transactions of every row.
    Bulk { transactions: usize },
}

/// Measures both loads.
pub async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let (rows, singles) = if quick { (40_000, 60_000) } else { (200_000, 300_000) };
    eprintln!("drain: preparing {rows} rows, all of them in L2");
    let shop = Shop::start(rows).await?;
    let daemon = Daemon::start(&shop.config()).await;
    shop.fill(&daemon).await?;
    stop(&shop, daemon).await?;
    for load in [Load::Single { transactions: singles }, Load::Bulk { transactions: 5 }] {
        one(report, &shop, load).await?;
    }
    Ok(())
}

async fn one(report: &mut Report, shop: &Shop, load: Load) -> Result<()> {
    let (name, events) = match load {
        Load::Single { transactions } => {
            (format!("drain {} x 1 row of {} B", number(transactions as f64), shop.row_bytes), transactions)
        }
        Load::Bulk { transactions } => (
            format!("drain {transactions} x {} rows of {} B", number(shop.rows as f64), shop.row_bytes),
            transactions * shop.rows,
        ),
    };
    let events = events as f64;
    eprintln!("{name}: writing");
    let copy = "SELECT pg_copy_logical_replication_slot($1, $2)";
    shop.sql.execute(copy, &[&SLOT, &COPY]).await?;
    let end = write(shop, load).await?;
    // What has to be written to disk is written now, and not while somebody drains.
    shop.sql.batch_execute("CHECKPOINT").await?;
    let at_once = bare_reader::drain(shop, COPY, end, None).await?;
    let paced = bare_reader::drain(shop, COPY, end, Some(PAUSE)).await?;
    shop.sql.execute("SELECT pg_drop_replication_slot($1)", &[&COPY]).await?;
    let ours = drain(shop, end).await?;
    shop.verify_sample().await?;

    let mib = paced.bytes as f64 / f64::from(1 << 20);
    let rate = |bare: &Drained| format!("{:.0} events/s", events / bare.seconds);
    eprintln!("{name}: {mib:.0} MiB; bare reader at once {}, paced {}", rate(&at_once), rate(&paced));
    let (limit, how) =
        if at_once.seconds < paced.seconds { (at_once, "bare reader") } else { (paced, "bare reader, paced") };
    report.figure(&Figure {
        what: &name,
        ours: events / ours.seconds,
        limit: Some((events / limit.seconds, how)),
        unit: "events/s",
        aim: Some(Aim::Ratio(AIM)),
    });
    report.detail(
        "CPU seconds",
        format!("walsender {:.1}, walcache {:.1}, redis {:.1}", ours.walsender, ours.walcache, ours.redis),
        format!("walsender {:.1}", limit.walsender),
    );
    report.figure(&Figure { what: "  peak memory", ours: ours.peak_mib, limit: None, unit: "MiB", aim: Some(MEMORY) });
    Ok(())
}

/// Fills the slot; returns a position that lies after all that was written, and before the end of one more transaction.
async fn write(shop: &Shop, load: Load) -> Result<Lsn> {
    let asynchronous = "SET synchronous_commit = off";
    match load {
        Load::Single { transactions } => {
            let (keys, each) = (shop.rows / WRITERS, transactions / WRITERS);
            let writers = (0..WRITERS).map(|writer| async move {
                let client = shop.connect().await?;
                client.batch_execute(asynchronous).await?;
                let (first, last) = (writer * keys + 1, (writer + 1) * keys);
                client.batch_execute(&format!("CALL change_one_by_one({first}, {last}, {each})")).await?;
                Ok::<_, anyhow::Error>(())
            });
            for written in futures_util::future::join_all(writers).await {
                written?;
            }
        }
        Load::Bulk { transactions } => {
            let client = shop.connect().await?;
            client.batch_execute(asynchronous).await?;
            for _ in 0..transactions {
                let all = "UPDATE product SET version = version + 1, stock = stock - 1, updated = clock_timestamp()";
                client.batch_execute(all).await?;
            }
        }
    }
    let end = current_lsn(&shop.sql).await;
    // Also flushes what the others left unflushed.
    shop.sql.batch_execute("UPDATE product SET version = version + 1 WHERE id = 1").await?;
    Ok(end)
}

/// How the daemon's drain went.
struct Ours {
    seconds: f64,
    walsender: f64,
    walcache: f64,
    redis: f64,
    peak_mib: f64,
}

/// Starts a daemon, waits until it has applied everything up to `end`, and stops it.
async fn drain(shop: &Shop, end: Lsn) -> Result<Ours> {
    let redis = shop.redis.pid().context("Redis is not running")?;
    let redis_before = process::cpu_seconds(redis)?;
    let daemon = Daemon::start(&shop.config()).await;
    let deadline = Instant::now() + LIMIT;
    let applied_at = loop {
        let status = daemon.status().await;
        let applied = status["applied_lsn"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok());
        if applied.is_some_and(|applied| applied >= end) {
            break SystemTime::now();
        }
        ensure!(Instant::now() < deadline, "walcache did not drain up to {end} within {LIMIT:?}: {status}");
        sleep(POLL).await;
    };
    let walcache = daemon.pid().context("walcache ended")?;
    let ours = Ours {
        seconds: applied_at.duration_since(streaming_since(&daemon.log())?)?.as_secs_f64(),
        walsender: walsender_cpu(shop, SLOT).await?,
        walcache: process::cpu_seconds(walcache)?,
        redis: process::cpu_seconds(redis)? - redis_before,
        peak_mib: process::peak_mib(walcache)?,
    };
    let metrics = daemon.admin().get("/metrics").await.text();
    for name in ["gate_wait_seconds", "apply_batch_seconds", "apply_batch_keys"] {
        let value =
            |what: &str| metrics.lines().find_map(|line| line.strip_prefix(&format!("walcache_{name}_{what} ")));
        eprintln!("  {name}: sum {}, count {}", value("sum").unwrap_or("-"), value("count").unwrap_or("-"));
    }
    stop(shop, daemon).await?;
    Ok(ours)
}

/// When the daemon's log says that the stream began.
fn streaming_since(log: &str) -> Result<SystemTime> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let line = lines.find(|line| line["message"] == "streaming").context("walcache did not say that it streams")?;
    Ok(humantime::parse_rfc3339(line["timestamp"].as_str().unwrap_or_default())?)
}

async fn stop(shop: &Shop, daemon: Daemon) -> Result<()> {
    let status = daemon.terminate().await;
    ensure!(status.success(), "walcache ended with {status}: {}", daemon.log());
    shop.wait_inactive(SLOT).await
}
