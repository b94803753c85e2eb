//! (b) How long after a COMMIT its change is visible in Redis, against an application that writes Redis itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::harness::{Daemon, current_lsn};
use crate::report::{Aim, Figure, Report};
use crate::shop::Shop;

/// Transactions in a second.
const RATE: u32 = 1000;
/// Sessions that write: one alone would wait for the disk at each commit, and could not keep the rate.
const WRITERS: usize = 8;
/// Seconds at the beginning that do not count.
const WARM_UP: usize = 1;
/// How long the last change may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the application's keys begin with; walcache's begin with the entity.
const NAIVE: &str = "naive:";
const OURS: &str = "product:";
const AIM: f64 = 1.5;

/// When things happened to each row, in nanoseconds since `epoch`; 0: not yet. Each row is changed once in a run.
struct Times {
    epoch: Instant,
    began: Vec<AtomicU64>,
    committed: Vec<AtomicU64>,
    seen: Vec<AtomicU64>,
}

impl Times {
    fn new(rows: usize) -> Self {
        let column = || (0..rows).map(|_| AtomicU64::new(0)).collect();
        Times { epoch: Instant::now(), began: column(), committed: column(), seen: column() }
    }

    fn note(&self, column: &[AtomicU64], row: usize) {
        let nanos = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        column[row].store(nanos, Ordering::Release);
    }

    /// Sorted milliseconds from one column to `seen`, without the warm-up.
    fn until_seen(&self, since: &[AtomicU64]) -> Vec<f64> {
        let pairs = since.iter().zip(&self.seen).skip(WARM_UP * RATE as usize);
        // Seen before the writer knew of its own commit counts as no time at all.
        let nanos = pairs.map(|(a, b)| b.load(Ordering::Acquire).saturating_sub(a.load(Ordering::Acquire)));
        let mut millis: Vec<f64> = nanos.map(|nanos| nanos as f64 / 1e6).collect();
        millis.sort_by(f64::total_cmp);
        millis
    }
}

/// Notes when Redis says that a key was set.
struct Observer {
    thread: JoinHandle<Result<()>>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
}

impl Observer {
    fn start(shop: &Shop, prefix: &'static str, times: Arc<Times>) -> Result<Observer> {
        let mut connection = redis::Client::open(shop.redis.url())?.get_connection()?;
        redis::cmd("CONFIG").arg("SET").arg("notify-keyspace-events").arg("E$").exec(&mut connection)?;
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let thread = thread::spawn({
            let (stop, count) = (stop.clone(), count.clone());
            // A thread that blocks on its socket: nothing else of the bench delays what it sees.
            move || {
                let mut messages = connection.as_pubsub();
                messages.subscribe("__keyevent@0__:set")?;
                messages.set_read_timeout(Some(Duration::from_millis(100)))?;
                while !stop.load(Ordering::Acquire) {
                    let message = match messages.get_message() {
                        Ok(message) => message,
                        Err(error) if error.is_timeout() => continue,
                        Err(error) => return Err(error.into()),
                    };
                    let id = std::str::from_utf8(message.get_payload_bytes())?.strip_prefix(prefix);
                    let row = id.and_then(|id| id.parse::<usize>().ok()?.checked_sub(1));
                    if let Some(row) = row.filter(|row| *row < times.seen.len()) {
                        times.note(&times.seen, row);
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                }
                Ok(())
            }
        });
        Ok(Observer { thread, stop, count })
    }

    /// Waits until all changes were seen.
    async fn finish(self, changes: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.count.load(Ordering::Acquire) < changes && Instant::now() < deadline && !self.thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the observer panicked"))??;
        let seen = self.count.load(Ordering::Acquire);
        ensure!(seen == changes, "BROKEN: {seen} changes became visible in Redis within {PATIENCE:?}, of {changes}");
        Ok(())
    }
}

/// Measures both ways.
pub async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let rows = (WARM_UP + if quick { 2 } else { 10 }) * RATE as usize;
    eprintln!("latency: preparing {rows} rows");
    let shop = Shop::start(rows).await?;
    shop.sql.batch_execute("CHECKPOINT").await?;
    eprintln!("latency: the application writes Redis itself");
    let (naive, naive_rate) = run(&shop, NAIVE, true).await?;
    let daemon = Daemon::start(&shop.config()).await;
    shop.fill(&daemon).await?;
    daemon.wait_applied(current_lsn(&shop.sql).await).await;
    eprintln!("latency: walcache does");
    let (ours, rate) = run(&shop, OURS, false).await?;
    let ids: Vec<i32> = (1..=i32::try_from(rows)?).collect();
    shop.verify(&ids).await?;
    daemon.terminate().await;

    let how = format!("UPDATE, then SET, at {naive_rate:.0} tx/s");
    type Column = fn(&Times) -> &[AtomicU64];
    let columns: [(&str, Column); 2] = [("COMMIT returned", |t| &t.committed), ("statement sent", |t| &t.began)];
    for (since, column) in columns {
        let (ours, naive) = (ours.until_seen(column(&ours)), naive.until_seen(column(&naive)));
        for percent in [50, 99] {
            let what = format!("{since} -> visible in Redis, p{percent}, at {rate:.0} tx/s");
            let aim = (since == "COMMIT returned" && percent == 50).then_some(Aim::Below(AIM, "ms"));
            let limit = Some((percentile(&naive, percent), how.as_str()));
            let figure = Figure { what: &what, ours: percentile(&ours, percent), limit, unit: "ms", aim };
            report.figure(&figure);
        }
    }
    Ok(())
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Changes every row once at the given rate; with `set`, the writer also writes Redis.
///
/// Also returns the rate that came about: commits may take too long for it on this machine.
async fn run(shop: &Shop, prefix: &'static str, set: bool) -> Result<(Times, f64)> {
    let times = Arc::new(Times::new(shop.rows));
    let observer = Observer::start(shop, prefix, times.clone())?;
    let mut writers = JoinSet::new();
    let mut turns = Vec::new();
    for _ in 0..WRITERS {
        let (turn, rows) = mpsc::unbounded_channel();
        turns.push(turn);
        let (sql, times) = (shop.connect().await?, times.clone());
        let redis = if set { Some((shop.l2().await?, vec![b'x'; shop.row_bytes])) } else { None };
        writers.spawn(write(sql, redis, rows, times));
    }
    let rows = shop.rows;
    // A thread of its own: the runtime's clock ticks in milliseconds.
    let pacer = thread::spawn(move || {
        let began = Instant::now();
        for row in 0..rows {
            let due = Duration::from_secs(1) * u32::try_from(row).unwrap_or(u32::MAX) / RATE;
            thread::sleep(due.saturating_sub(began.elapsed()));
            if turns[row % WRITERS].send(row).is_err() {
                // That writer failed, and says why.
                return;
            }
        }
    });
    let began = Instant::now();
    while let Some(written) = writers.join_next().await {
        written??;
    }
    let achieved = rows as f64 / began.elapsed().as_secs_f64();
    pacer.join().map_err(|_| anyhow!("the pacer panicked"))?;
    observer.finish(rows).await?;
    Ok((Arc::into_inner(times).context("somebody still holds the times")?, achieved))
}

async fn write(
    sql: tokio_postgres::Client,
    mut redis: Option<(redis::aio::MultiplexedConnection, Vec<u8>)>,
    mut rows: mpsc::UnboundedReceiver<usize>,
    times: Arc<Times>,
) -> Result<()> {
    let update =
        "UPDATE product SET version = version + 1, stock = stock - 1, updated = clock_timestamp() WHERE id = $1";
    let update = sql.prepare(update).await?;
    while let Some(row) = rows.recv().await {
        let id = i32::try_from(row + 1)?;
        times.note(&times.began, row);
        sql.execute(&update, &[&id]).await?;
        times.note(&times.committed, row);
        if let Some((redis, value)) = &mut redis {
            redis::cmd("SET").arg(format!("{NAIVE}{id}")).arg(&*value).exec_async(redis).await?;
        }
    }
    Ok(())
}
