//! (d) What an event costs with more entities, and with more cached keys: it should not grow with either.
//!
//! A daemon that has every key in L2 is paused while one-row transactions are written, and resumed: how fast it catches
//! up, and how much of the processor that takes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use walcache::lsn::Lsn;
use walcache::sandbox::{Postgres, PostgresOptions, Redis, RedisOptions};

use crate::harness::{Config, Daemon, Entity, cli, current_lsn};
use crate::process;
use crate::report::{Aim, Figure, Report, number};

const NAME: &str = "scale";
/// Keys of one request: what walcache takes by default.
const BATCH: usize = 1000;
const POLL: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(180);
/// How much slower than with one entity, or a thousand keys.
const AIM: f64 = 0.7;
/// Writes of one measurement; each of them is a measurement of its own, and the best counts: the rest is noise.
const ROUNDS: usize = 3;

/// What the daemon has to look after.
#[derive(Clone, Copy)]
struct Size {
    entities: usize,
    /// Cached, of all entities together.
    keys: usize,
}

/// What an event cost.
#[derive(Clone, Copy)]
struct Cost {
    events_per_second: f64,
    /// Of the processor, in the daemon.
    micros: f64,
}

/// Measures both ways to grow.
pub async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let events = if quick { 20_000 } else { 60_000 };
    let entities = if quick { vec![1, 100] } else { vec![1, 10, 100, 1000] };
    let keys = if quick { vec![1000, 100_000] } else { vec![1000, 10_000, 100_000, 1_000_000] };
    let entities = entities.into_iter().map(|entities| Size { entities, keys: 10_000 });
    grow(report, "entities", entities.collect(), events).await?;
    grow(report, "keys", keys.into_iter().map(|keys| Size { entities: 1, keys }).collect(), events).await
}

async fn grow(report: &mut Report, what: &str, sizes: Vec<Size>, events: usize) -> Result<()> {
    let mut first: Option<(Cost, String)> = None;
    for size in sizes {
        let of = if what == "keys" { size.keys } else { size.entities };
        let name = format!("{} {}", number(of as f64).trim_end_matches(".00"), singular(what, of));
        eprintln!("scale: {name}");
        let cost = one(size, events).await.with_context(|| format!("measure {name}"))?;
        let limit = first.as_ref().map(|(cost, name)| (cost.events_per_second, name.as_str()));
        report.figure(&Figure {
            what: &format!("catch up, {name} cached"),
            ours: cost.events_per_second,
            limit,
            unit: "events/s",
            aim: limit.map(|_| Aim::Ratio(AIM)),
        });
        let against = first.as_ref().map(|(cost, name)| format!("{:.2} us ({name})", cost.micros));
        report.detail("CPU of an event", format!("{:.2} us", cost.micros), against.unwrap_or_default());
        first.get_or_insert((cost, name));
    }
    Ok(())
}

fn singular(what: &str, count: usize) -> &str {
    match (what, count) {
        ("entities", 1) => "entity",
        _ => what,
    }
}

async fn one(size: Size, events: usize) -> Result<Cost> {
    let options = PostgresOptions::new().durable().setting("autovacuum", "off").setting("shared_buffers", "512MB");
    let postgres = Postgres::start(options.setting("max_wal_size", "16GB").setting("checkpoint_timeout", "1h")).await?;
    let redis = Redis::start(RedisOptions::new()).await?;
    postgres.create_database(NAME).await?;
    let sql = postgres.connect(NAME).await?;
    sql.batch_execute(include_str!("scale.sql")).await?;
    let rows = size.keys / size.entities;
    let count = |n: usize| i32::try_from(n).context("count in 32 bits");
    sql.execute("CALL make_tables($1, $2)", &[&count(size.entities)?, &count(rows)?]).await?;
    let mut config = Config::new(&postgres.url(NAME), NAME, NAME, &redis.url(), "");
    // The look at the catalog is paid by the second, not by the event.
    config = config.set("source", "schema_check_interval", "1h").set("audit", "rate", 0);
    for entity in 1..=size.entities {
        config = config.entity(Entity::new(&format!("item{entity}"), &format!("public.item_{entity}")));
    }
    let setup = cli(&config, &["setup", "--apply"], &[]).await;
    ensure!(setup.status.success(), "walcache setup failed: {}{}", setup.stdout, setup.stderr);
    let daemon = Daemon::start(&config).await;
    ready(&daemon).await?;
    fill(&daemon, size, rows).await?;
    let mut best: Option<Cost> = None;
    for _ in 0..ROUNDS {
        let cost = catch_up(&sql, &daemon, size, rows, events).await?;
        if best.is_none_or(|best| cost.events_per_second > best.events_per_second) {
            best = Some(cost);
        }
    }
    let stored: usize = redis::cmd("DBSIZE").query_async(&mut redis.connect().await?).await?;
    ensure!(stored > rows * size.entities, "BROKEN: {stored} keys are in Redis of {}", rows * size.entities);
    ensure!(daemon.terminate().await.success(), "walcache failed: {}", daemon.log());
    best.context("no round")
}

/// Waits until reads may be answered from the cache: at its first start a daemon looks at every entity, one by one.
async fn ready(daemon: &Daemon) -> Result<()> {
    let since = Instant::now();
    while daemon.admin().get("/readyz").await.status != 200 {
        ensure!(since.elapsed() < LIMIT, "walcache was not ready within {LIMIT:?}: {}", daemon.log());
        sleep(POLL).await;
    }
    Ok(())
}

/// Reads every row, so that all are in L2.
async fn fill(daemon: &Daemon, size: Size, rows: usize) -> Result<()> {
    let http = daemon.http();
    for entity in 1..=size.entities {
        for first in (1..=rows).step_by(BATCH) {
            let keys: Vec<usize> = (first..=rows).take(BATCH).collect();
            http.post(&format!("/v1/item{entity}/batch"), &json!({ "keys": keys }), &[]).await.expect(200);
        }
    }
    Ok(())
}

async fn catch_up(sql: &Client, daemon: &Daemon, size: Size, rows: usize, events: usize) -> Result<Cost> {
    daemon.pause().await;
    sql.batch_execute("SET synchronous_commit = off").await?;
    let change = format!("CALL change_tables({}, {rows}, {events})", size.entities);
    sql.batch_execute(&change).await?;
    // Also flushes what was left unflushed.
    sql.batch_execute("SET synchronous_commit = on; UPDATE item_1 SET version = version + 1 WHERE id = 1").await?;
    let end = current_lsn(sql).await;
    let pid = daemon.pid().context("walcache ended")?;
    let before = process::cpu_seconds(pid)?;
    let since = Instant::now();
    daemon.resume();
    loop {
        let status = daemon.status().await;
        let applied = status["applied_lsn"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok());
        if applied.is_some_and(|applied| applied >= end) {
            break;
        }
        ensure!(since.elapsed() < LIMIT, "walcache did not catch up with {end} within {LIMIT:?}: {status}");
        sleep(POLL).await;
    }
    let (seconds, cpu) = (since.elapsed().as_secs_f64(), process::cpu_seconds(pid)? - before);
    Ok(Cost { events_per_second: events as f64 / seconds, micros: 1e6 * cpu / events as f64 })
}
