//! `walcache demo`: a shop on private servers, written through SQL, read through HTTP, and compared with Postgres at
//! the end.
//!
//! ```text
//! stage (Postgres, Redis, shop, setup) -> daemon -> writer + readers, shown each second -> audit -> nothing is left
//! ```

mod audit;
mod client;
mod error;
mod meter;
mod readers;
mod screen;
mod shop;
mod stage;
mod writer;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use audit::Audit;
use client::Http;
pub use error::DemoError;
use meter::{Sample, Span};
use readers::{Checks, Manner, Reader};
use screen::{Screen, Second, milliseconds, thousands};
use shop::Table;
use stage::Stage;
use writer::Journal;

use crate::daemon::{Daemon, DaemonError};

/// How long it runs where nobody is there to press Ctrl-C.
const UNATTENDED: Duration = Duration::from_secs(10);
/// Seconds that quantiles are made from.
const RECENT: usize = 10;
/// Rows that wait to be read by their writer.
const OWN_WRITES: usize = 256;
/// How long the daemon may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// What whoever starts it decides.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long to write and read; until `stop` if `None` and standard output is a terminal.
    pub duration: Option<Duration>,
    /// Print lines instead of drawing in place, so that log lines can stand between them.
    pub lines: bool,
}

/// Runs the demo until its time is over or `stop` is cancelled, and says whether everything held.
///
/// # Errors
/// If a server is not installed, or anything ends that should not.
pub async fn run(options: Options, prometheus: PrometheusHandle, stop: CancellationToken) -> Result<bool, DemoError> {
    let mut screen = Screen::new(options.lines);
    let prepared = tokio::select! {
        prepared = Demo::prepare(&mut screen, prometheus) => Some(prepared?),
        () = stop.cancelled() => None,
    };
    let Some(mut demo) = prepared else {
        screen.say("stopped before it began");
        return Ok(true);
    };
    let duration = options.duration.or((!std::io::stdout().is_terminal()).then_some(UNATTENDED));
    demo.invite(&mut screen, duration);
    let outcome = demo.perform(&mut screen, duration, stop).await;
    let ended = demo.end().await;
    let well = outcome?;
    ended?;
    Ok(well)
}

/// A running daemon on its stage.
struct Demo {
    stage: Stage,
    daemon: JoinHandle<Result<(), DaemonError>>,
    stop_daemon: CancellationToken,
    http: Http,
    admin: Http,
    addresses: (std::net::SocketAddr, std::net::SocketAddr),
}

impl Demo {
    async fn prepare(screen: &mut Screen, prometheus: PrometheusHandle) -> Result<Demo, DemoError> {
        let title = format!("{} keeps Redis and its own memory in step with Postgres", screen.bold("walcache demo:"));
        screen.say(&title);
        let started = Instant::now();
        let stage = Stage::start().await?;
        stage.make_shop().await?;
        let mut steps = Vec::new();
        stage.set_up(|step| steps.push(step.code)).await?;
        let stop_daemon = CancellationToken::new();
        let daemon = Daemon::start(stage.config.clone(), prometheus, stop_daemon.clone()).await?;
        let addresses = (daemon.http, daemon.admin);
        let (http, admin) = (Http::new(addresses.0), Http::new(addresses.1));
        let daemon = tokio::spawn(daemon.run());
        let demo = Demo { stage, daemon, stop_daemon, http, admin, addresses };
        demo.wait_ready().await?;
        let text = format!(
            "started a private Postgres and Redis, made a shop, applied `walcache setup`, and `walcache run`: {:.1} s",
            started.elapsed().as_secs_f64()
        );
        let text = screen.dim(&text);
        screen.say(&text);
        Ok(demo)
    }

    async fn wait_ready(&self) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_LIMIT;
        while self.admin.get("/readyz", None).await?.status != 200 {
            if Instant::now() >= deadline || self.daemon.is_finished() {
                return Err(DemoError::Timeout("become ready"));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// What to try meanwhile.
    fn invite(&self, screen: &mut Screen, duration: Option<Duration>) {
        let (http, admin) = self.addresses;
        let (id, entity) = (shop::YOURS, Table::Product.entity());
        screen.say("");
        let text = format!("Try it from another terminal; the demo never writes {entity} {id}, so change it yourself:");
        screen.say(&text);
        screen.say("");
        screen.command("read", &format!("curl -i http://{http}/v1/{entity}/{id}"));
        if let Some(psql) = self.stage.psql() {
            let sql = format!("UPDATE products SET price = price + 1 WHERE id = {id}");
            screen.command("change", &format!("{psql} {} \\\n  -c '{sql}'", self.stage.url()));
        }
        screen.command("Redis", &format!("redis-cli -p {} GET {entity}:{id}", self.stage.redis.port()));
        let batch = format!("-H content-type:application/json -d '{{\"keys\":[1,{id}]}}'");
        screen.command("batch", &format!("curl http://{http}/v1/{entity}/batch {batch}"));
        screen.command("status", &format!("curl http://{admin}/v1/status"));
        screen.command("metrics", &format!("curl http://{admin}/metrics"));
        screen.command("config", &format!("cat {}", self.stage.config_path.display()));
        screen.say("");
        let end = match duration {
            Some(duration) => format!("After {} s, or on Ctrl-C,", duration.as_secs()),
            None => "On Ctrl-C".to_owned(),
        };
        let text = format!("{end} every entry is compared with Postgres, and nothing is left behind.");
        screen.say(&screen.dim(&text));
        screen.say("");
    }

    /// Writes, reads and shows, then compares.
    async fn perform(
        &mut self,
        screen: &mut Screen,
        duration: Option<Duration>,
        stop: CancellationToken,
    ) -> Result<bool, DemoError> {
        let journal = Arc::new(Journal::default());
        let checks = Arc::new(Checks::default());
        let quiet = CancellationToken::new();
        // Whatever ends this function ends the writers and readers.
        let _quiet = quiet.clone().drop_guard();
        let mut clients = self.clients(&journal, &checks, &quiet).await?;

        let started = Instant::now();
        let over = async {
            match duration {
                Some(duration) => sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let first = Sample::scrape(&self.admin).await?;
        let mut samples = VecDeque::from([first.clone()]);
        let mut transactions = 0;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = &mut over => break,
                ended = &mut self.daemon => {
                    ended??;
                    return Err(DemoError::Daemon(DaemonError::Stopped));
                }
                Some(ended) = clients.join_next() => ended??,
                _ = tick.tick() => {
                    let sample = Sample::scrape(&self.admin).await?;
                    let total = journal.transactions.load(Ordering::Relaxed);
                    let last = samples.back().unwrap_or(&first);
                    let violations = checks.violations.lock().count;
                    let second = Second {
                        elapsed: started.elapsed(),
                        now: Span { from: Some(last), to: &sample },
                        recent: Span { from: samples.front(), to: &sample },
                        all: Span { from: Some(&first), to: &sample },
                        transactions: ((total - transactions) as f64 / (sample.at - last.at).as_secs_f64(), total),
                        checks: (
                            checks.own_writes.load(Ordering::Relaxed),
                            checks.order.load(Ordering::Relaxed),
                            violations,
                        ),
                        yours: self.yours().await?,
                    };
                    screen.show(&second);
                    transactions = total;
                    samples.push_back(sample);
                    if samples.len() > RECENT {
                        samples.pop_front();
                    }
                }
            }
        }
        quiet.cancel();
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        let elapsed = started.elapsed();
        let last = Sample::scrape(&self.admin).await?;
        screen.say("");
        screen
            .say(&format!("stopped writing after {:.0} s; comparing every entry with Postgres", elapsed.as_secs_f64()));
        let source = self.stage.connect().await?;
        let mut l2 = self.stage.redis.connect().await?;
        let gone = std::mem::take(&mut *journal.gone.lock());
        let audit = audit::audit(&source, &mut l2, &self.http, &self.admin, gone).await?;
        Ok(summarize(screen, &Span { from: Some(&first), to: &last }, &journal, &checks, &audit))
    }

    /// The row that is left to whoever watches, as they would read it.
    async fn yours(&self) -> Result<String, DemoError> {
        let (id, entity) = (shop::YOURS, Table::Product.entity());
        let reply = self.http.row(entity, &id.to_string(), None).await?;
        let row: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let price = row["price"].as_f64().map_or("is gone".to_owned(), |price| format!("costs {price:.2}"));
        Ok(format!("{entity} {id} {price}  (X-Cache: {})", reply.cache))
    }

    /// Starts the writer, its reader, and the other readers.
    async fn clients(
        &self,
        journal: &Arc<Journal>,
        checks: &Arc<Checks>,
        quiet: &CancellationToken,
    ) -> Result<JoinSet<Result<(), DemoError>>, DemoError> {
        let mut clients = JoinSet::new();
        let (written, queue) = mpsc::channel(OWN_WRITES);
        let (client, journal_, quiet_) = (self.stage.connect().await?, journal.clone(), quiet.clone());
        clients.spawn(async move { Ok(writer::write(client, journal_, written, quiet_).await?) });
        clients.spawn(readers::read_own_writes(self.http.clone(), queue, journal.clone(), checks.clone()));
        for manner in [Manner::Plain, Manner::Session, Manner::Session, Manner::Batches] {
            let reader = Reader::new(self.http.clone(), manner, journal.clone(), checks.clone());
            clients.spawn(reader.run(quiet.clone()));
        }
        Ok(clients)
    }

    /// Stops the daemon, then the servers.
    async fn end(self) -> Result<(), DemoError> {
        let Demo { stage, daemon, stop_daemon, http, admin, .. } = self;
        // Their idle connections would be waited for.
        drop((http, admin));
        stop_daemon.cancel();
        if !daemon.is_finished() {
            daemon.await??;
        }
        drop(stage);
        Ok(())
    }
}

/// Prints what came of it, and says whether everything held.
fn summarize(screen: &mut Screen, all: &Span<'_>, journal: &Journal, checks: &Checks, audit: &Audit) -> bool {
    let violations = checks.violations.lock();
    let count = |n: u64| thousands(n as f64);
    let [memory, redis, postgres] = screen::shares(all).map(|share| format!("{:.1} %", share * 100.0));
    let rows = [
        (
            "written",
            format!(
                "{} transactions, {} row changes; visible {}",
                count(journal.transactions.load(Ordering::Relaxed)),
                thousands(screen::events(all)),
                screen::visible(all)
            ),
        ),
        (
            "read",
            format!(
                "{} requests: {memory} from memory, {redis} from Redis, {postgres} from Postgres",
                thousands(screen::requests(all))
            ),
        ),
        (
            "checked",
            format!(
                "{} reads of own writes, {} reads that must not go backwards: {} violated",
                count(checks.own_writes.load(Ordering::Relaxed)),
                count(checks.order.load(Ordering::Relaxed)),
                count(violations.count)
            ),
        ),
        (
            "compared",
            format!(
                "{} keys through HTTP and {} entries in Redis: {} differ (caught up in {})",
                thousands(audit.read as f64),
                thousands(audit.entries as f64),
                count(audit.differences.count),
                milliseconds(audit.caught_up)
            ),
        ),
    ];
    screen.say("");
    for (label, text) in rows {
        let line = format!("  {}  {text}", screen.dim(&format!("{label:<8}")));
        screen.say(&line);
    }
    screen.say("");
    for what in violations.described.iter().chain(&audit.differences.described) {
        screen.say(&format!("  {what}\n"));
    }
    let well = violations.count == 0 && audit.differences.count == 0;
    let text = if well { "OK: every answer and every entry equals Postgres." } else { "FAILED: see above." };
    screen.say(&screen.verdict(well, text));
    well
}
