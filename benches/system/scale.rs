//! (d) What an event costs with more entities, and with more cached keys: it should not grow with either.
//!
//! A daemon that has every key in L2 is paused while one-row transactions are written, and resumed: how much of the
//! processor it takes, and Redis, until it has caught up, and how fast that is. The writes go to as many rows in every
//! case, all over the tables: events on one row within a batch are one write to Redis, which is not what this is about.

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
/// How much more of the processor than with one entity, or a thousand keys.
const AIM: f64 = 1.5;
/// Backlogs of one measurement; the best figures count: the rest is noise of the machine.
const ROUNDS: usize = 3;

/// What the daemon has to look after.
#[derive(Clone, Copy)]
struct Size {
    entities: usize,
    /// Cached, of all entities together.
    keys: usize,
    /// Written to, of all entities together.
    written: usize,
}

impl Size {
    /// The rows of each table.
    fn rows(self) -> usize {
        self.keys / self.entities
    }
}

/// What an event cost.
#[derive(Clone, Copy)]
struct Cost {
    events_per_second: f64,
    /// Of the processor, in the daemon.
    micros: f64,
    /// The same in Redis.
    redis_micros: f64,
}

/// What was found of one size.
#[derive(Clone, Copy)]
struct Found {
    /// From the first start of all until reads were answered from the cache.
    start: Duration,
    cost: Cost,
}

/// Measures both ways to grow.
pub async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let events = if quick { 20_000 } else { 100_000 };
    let entities = if quick { vec![1, 100] } else { vec![1, 10, 100, 1000] };
    let keys = if quick { vec![1000, 100_000] } else { vec![1000, 10_000, 100_000, 1_000_000] };
    let entities = entities.into_iter().map(|entities| Size { entities, keys: 10_000, written: 10_000 });
    grow(report, "entities", entities.collect(), events).await?;
    grow(report, "keys", keys.into_iter().map(|keys| Size { entities: 1, keys, written: 1000 }).collect(), events).await
}

async fn grow(report: &mut Report, what: &str, sizes: Vec<Size>, events: usize) -> Result<()> {
    let mut first: Option<(Found, String)> = None;
    for size in sizes {
        let of = if what == "keys" { size.keys } else { size.entities };
        let name = format!("{} {}", number(of as f64).trim_end_matches(".00"), singular(what, of));
        eprintln!("scale: {name}");
        let found = one(size, events).await.with_context(|| format!("measure {name}"))?;
        let limit = first.as_ref().map(|(found, name)| (found.cost.micros, name.as_str()));
        report.figure(&Figure {
            what: &format!("CPU of an event, {name} cached"),
            ours: found.cost.micros,
            limit,
            unit: "us",
            aim: limit.map(|_| Aim::AtMost(AIM)),
        });
        let mut detail = |what: &str, of: &dyn Fn(&Found) -> String| {
            report.detail(what, of(&found), first.as_ref().map(|(found, _)| of(found)).unwrap_or_default());
        };
        detail("of Redis", &|found| format!("{:.2} us", found.cost.redis_micros));
        detail("caught up", &|found| format!("{} events/s", number(found.cost.events_per_second)));
        detail("ready after", &|found| format!("{:.2} s", found.start.as_secs_f64()));
        first.get_or_insert((found, name));
    }
    Ok(())
}

fn singular(what: &str, count: usize) -> &str {
    match (what, count) {
        ("entities", 1) => "entity",
        _ => what,
    }
}

async fn one(size: Size, events: usize) -> Result<Found> {
    let options = PostgresOptions::new().durable().setting("autovacuum", "off").setting("shared_buffers", "512MB");
    let postgres = Postgres::start(options.setting("max_wal_size", "16GB").setting("checkpoint_timeout", "1h")).await?;
    let redis = Redis::start(RedisOptions::new()).await?;
    postgres.create_database(NAME).await?;
    let sql = postgres.connect(NAME).await?;
    sql.batch_execute(include_str!("scale.sql")).await?;
    let count = |n: usize| i32::try_from(n).context("count in 32 bits");
    sql.execute("CALL make_tables($1, $2)", &[&count(size.entities)?, &count(size.rows())?]).await?;
    let mut config = Config::new(&postgres.url(NAME), NAME, NAME, &redis.url(), "");
    config = config.set("freshness", "min_lsn_wait_max", LIMIT.as_secs().to_string() + "s");
    // The writes may take longer than a hit counts as current.
    config = config.set("freshness", "stale_after", "1h").set("freshness", "max_staleness", "2h");
    // The look at the catalog is paid by the second, not by the event.
    config = config.set("source", "schema_check_interval", "1h").set("audit", "rate", 0);
    for entity in 1..=size.entities {
        config = config.entity(Entity::new(&format!("item{entity}"), &format!("public.item_{entity}")));
    }
    let setup = cli(&config, &["setup", "--apply"], &[]).await;
    ensure!(setup.status.success(), "walcache setup failed: {}{}", setup.stdout, setup.stderr);
    let since = Instant::now();
    let daemon = Daemon::start(&config).await;
    ready(&daemon).await?;
    let start = since.elapsed();
    fill(&daemon, size).await?;
    let mut cost = Cost { events_per_second: 0.0, micros: f64::INFINITY, redis_micros: f64::INFINITY };
    for _ in 0..ROUNDS {
        let round = catch_up(&sql, (&daemon, &redis), size, events).await?;
        cost.events_per_second = cost.events_per_second.max(round.events_per_second);
        cost.micros = cost.micros.min(round.micros);
        cost.redis_micros = cost.redis_micros.min(round.redis_micros);
    }
    let stored: usize = redis::cmd("DBSIZE").query_async(&mut redis.connect().await?).await?;
    ensure!(stored > size.keys, "BROKEN: {stored} keys are in Redis of {}", size.keys);
    ensure!(daemon.terminate().await.success(), "walcache failed: {}", daemon.log());
    Ok(Found { start, cost })
}

/// Waits until reads may be answered from the cache.
async fn ready(daemon: &Daemon) -> Result<()> {
    let since = Instant::now();
    while daemon.admin().get("/readyz").await.status != 200 {
        ensure!(since.elapsed() < LIMIT, "walcache was not ready within {LIMIT:?}: {}", daemon.log());
        sleep(POLL).await;
    }
    Ok(())
}

/// Reads every row, so that all are in L2.
async fn fill(daemon: &Daemon, size: Size) -> Result<()> {
    let (http, rows) = (daemon.http(), size.rows());
    for entity in 1..=size.entities {
        for first in (1..=rows).step_by(BATCH) {
            let keys: Vec<usize> = (first..=rows).take(BATCH).collect();
            http.post(&format!("/v1/item{entity}/batch"), &json!({ "keys": keys }), &[]).await.expect(200);
        }
    }
    Ok(())
}

async fn catch_up(sql: &Client, (daemon, redis): (&Daemon, &Redis), size: Size, events: usize) -> Result<Cost> {
    daemon.pause().await;
    sql.batch_execute("SET synchronous_commit = off").await?;
    let (rows, written) = (size.rows(), size.written / size.entities);
    let change = format!("CALL change_tables({}, {rows}, {written}, {events})", size.entities);
    sql.batch_execute(&change).await?;
    // Also flushes what was left unflushed.
    sql.batch_execute("SET synchronous_commit = on; UPDATE item_1 SET version = version + 1 WHERE id = 1").await?;
    let end = current_lsn(sql).await;
    let pid = daemon.pid().context("walcache ended")?;
    let redis_pid = redis.pid().context("Redis ended")?;
    let before = (process::cpu_seconds(pid)?, process::cpu_seconds(redis_pid)?);
    let since = Instant::now();
    daemon.resume();
    // One request, which is answered when it is there: to ask again and again would cost the processor what is measured.
    let (min_lsn, wait) = (end.to_string(), format!("wait={}", LIMIT.as_millis()));
    let read = daemon.http().get_with("/v1/item1/1", &[("x-min-lsn", &min_lsn), ("prefer", &wait)]).await;
    let seconds = since.elapsed().as_secs_f64();
    let applied = read.header("x-applied-lsn").parse::<Lsn>().ok();
    let hit = read.status == 200 && read.header("x-cache").starts_with("HIT");
    ensure!(hit && applied >= Some(end), "walcache did not catch up with {end} within {LIMIT:?}: {read:?}");
    let micros = |before: f64, now: f64| 1e6 * (now - before) / events as f64;
    Ok(Cost {
        events_per_second: events as f64 / seconds,
        micros: micros(before.0, process::cpu_seconds(pid)?),
        redis_micros: micros(before.1, process::cpu_seconds(redis_pid)?),
    })
}
