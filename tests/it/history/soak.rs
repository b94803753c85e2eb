//! Random faults under load, in rounds. After each round writes stop, all servers are up, and everything that is cached
//! is compared with Postgres (O1); what was read meanwhile was judged already, answer by answer.
//!
//! `WALCACHE_SOAK_SECONDS` says for how long, `WALCACHE_SOAK_SEED` which schedule of faults; it is printed.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};
use walcache::failpoint::{KILLS, Point};
use walcache::sandbox::{PostgresOptions, RedisOptions, Restart, StopMode};

use super::blow::{Blow, Fault, Schedule, Way};
use crate::harness::{Club, Crowd, Daemon, Done, Kind, Load, Proxy, Raw, Shop, Violation, eventually};

/// Without a word, as a part of all tests.
const SECONDS: u64 = 12;
const SEED: u64 = 2;
/// The table's rows.
const ROWS: usize = 128;
const CROWD: Crowd = Crowd {
    writers: 4,
    pace: Some(Duration::from_millis(5)),
    readers: 16,
    raw: 1,
    evict: Some(Duration::from_millis(4)),
};
/// How long a daemon may take to come to its failpoint; some are not on the way of everything.
const FAILPOINT_LIMIT: Duration = Duration::from_secs(4);

const END_WALSENDERS: &str = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seconds = number("WALCACHE_SOAK_SECONDS");
    // A soak that is asked for looks for something new.
    let seed = number("WALCACHE_SOAK_SEED").unwrap_or(if seconds.is_some() { rand::rng().random() } else { SEED });
    println!("WALCACHE_SOAK_SEED={seed}");
    let mut siege = Siege::new(seed).await;
    let over = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    loop {
        siege.round().await;
        assert!(siege.violations.is_empty(), "{}", siege.report());
        if Instant::now() >= over {
            break;
        }
    }
    println!("{}", siege.report());
    assert!(siege.done.reads > 100 && siege.compared.iter().sum::<usize>() > 30, "{}", siege.report());
}

/// Servers, the ways to them, a daemon, and what was done to all of these.
struct Siege {
    seed: u64,
    shop: Shop,
    club: Club,
    to_postgres: Proxy,
    to_redis: Proxy,
    daemon: Daemon,
    schedule: Schedule,
    began: Instant,
    faults: BTreeMap<String, usize>,
    /// What was done, in order.
    story: Vec<String>,
    done: Done,
    /// Entries compared, by round.
    compared: Vec<usize>,
    judged: usize,
    violations: Vec<Violation>,
}

impl Siege {
    async fn new(seed: u64) -> Siege {
        // The server holds the slot for a client that is gone until it notices that, too.
        let postgres = PostgresOptions::new().setting("wal_sender_timeout", "2s");
        let mut shop = Shop::of("soak", ROWS, postgres, RedisOptions::new()).await;
        let to_postgres = Proxy::start(shop.stage.postgres.port()).await;
        let to_redis = Proxy::start(shop.stage.redis.port()).await;
        shop.config = shop
            .config
            .set("source", "url", shop.stage.postgres.url_at(to_postgres.port(), &shop.stage.name))
            .set("source", "dead_after", "2s")
            .set("source", "fill_timeout", "1s")
            .set("source", "connect_timeout", "1s")
            .set("l2", "url", shop.stage.redis.url_at(to_redis.port(), shop.stage.redis_database))
            .set("l2", "response_timeout", "500ms")
            // Leases that nobody voids or publishes are soon gone.
            .set("l2", "lease_ttl", "1s")
            // Many scripts for a batch, and transactions that go in pieces.
            .set("apply", "script_keys", 3)
            .set("apply", "in_flight", 2)
            .set("apply", "max_transaction_bytes", "1KiB");
        let club = Club::add(&mut shop).await;
        let daemon = shop.daemon().await;
        Siege {
            seed,
            shop,
            club,
            to_postgres,
            to_redis,
            daemon,
            schedule: Schedule::new(StdRng::seed_from_u64(seed)),
            began: Instant::now(),
            faults: BTreeMap::new(),
            story: Vec::new(),
            done: Done::default(),
            compared: Vec::new(),
            judged: 0,
            violations: Vec::new(),
        }
    }

    /// Some blows under load, and then a look at everything.
    async fn round(&mut self) {
        let number = self.compared.len() as u64;
        let load = self.shop.load_of(&self.daemon, self.seed.wrapping_mul(31).wrapping_add(number) >> 12, CROWD);
        let club = self.club.load(&self.daemon, self.seed.wrapping_mul(37).wrapping_add(number));
        load.reads(50).await;
        for _ in 0..self.schedule.round() {
            let blow = self.schedule.next().expect("the schedule has no end");
            self.tell(blow.to_string());
            self.strike(blow, &load).await;
            self.see_it_alive().await;
            if let Some(respite) = blow.respite {
                load.writes(respite).await;
                load.reads(respite).await;
            }
        }
        self.tell("writes end".into());
        self.end(load).await;
        self.violations.extend(club.end().await);
        self.daemon.wait_ready().await;
        eventually("trust L2 again", || async {
            let status = self.daemon.status().await;
            if status["l2"]["trusted"] == true { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        self.shop.recorded_equals_postgres().await;
        let (compared, violations) = self.shop.compare(&self.daemon).await;
        assert_eq!(self.daemon.audit_findings().await, 0.0, "the auditor has found something");
        self.violations.extend(violations);
        self.violations.extend(self.club.compare(&self.daemon).await);
        self.compared.push(compared.entries);
        self.shop.histories.forget();
    }

    async fn end(&mut self, load: Load) {
        let (done, violations) = load.end().await;
        self.done.writes += done.writes;
        self.done.reads += done.reads;
        self.done.failed_reads += done.failed_reads;
        self.done.raw_reads += done.raw_reads;
        self.violations.extend(violations);
    }

    /// A daemon never ends but when it is told to.
    async fn see_it_alive(&mut self) {
        if self.daemon.pid().is_none() {
            self.violations.push(Violation { kind: Kind::Exited, what: self.daemon.log() });
            self.daemon = self.start().await;
        }
    }

    async fn start(&self) -> Daemon {
        Daemon::start(&self.shop.config).await
    }

    async fn strike(&mut self, blow: Blow, load: &Load) {
        let (postgres, redis) = (self.shop.stage.postgres.clone(), self.shop.stage.redis.clone());
        let lasts = || sleep(blow.lasts);
        *self.faults.entry(blow.fault.name()).or_default() += 1;
        match blow.fault {
            Fault::Kill => {
                self.daemon.kill().await;
                self.look_at_what_is_confirmed().await;
                self.daemon = self.start().await;
            }
            Fault::Failpoint(point) => self.fall(point, blow.nth).await,
            Fault::Terminate => {
                let status = self.daemon.terminate().await;
                if !status.success() {
                    self.violations.push(Violation { kind: Kind::Exited, what: format!("SIGTERM: {status}") });
                }
                self.look_at_what_is_confirmed().await;
                self.daemon = self.start().await;
            }
            Fault::TakeOver => self.take_over(blow).await,
            Fault::RedisEmptied => {
                redis.kill().await.unwrap();
                lasts().await;
                redis.start_again(Restart::Empty).await.unwrap();
            }
            Fault::RedisOldDump => {
                redis.save().await.unwrap();
                lasts().await;
                redis.kill().await.unwrap();
                redis.start_again(Restart::KeepData).await.unwrap();
            }
            Fault::RedisPaused => {
                redis.pause().await.unwrap();
                lasts().await;
                redis.resume().unwrap();
            }
            Fault::RedisFlushed => self.redis(&["FLUSHALL"]).await,
            Fault::RedisFull => {
                self.redis(&["CONFIG", "SET", "maxmemory", "1"]).await;
                lasts().await;
                self.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            Fault::RedisEvicting => {
                self.redis(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]).await;
                self.redis(&["CONFIG", "SET", "maxmemory", "1"]).await;
                lasts().await;
                self.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
                self.redis(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
            }
            Fault::RedisFenceLost => self.redis(&["UNLINK", "~walcache:fence"]).await,
            Fault::RedisEvicted => {
                for row in 0..ROWS {
                    self.redis(&["UNLINK", &format!("counter:{row}")]).await;
                }
            }
            Fault::PostgresCrash => {
                let stopped = if blow.coin { postgres.kill().await } else { postgres.stop(StopMode::Immediate).await };
                stopped.unwrap();
                lasts().await;
                postgres.start_again().await.unwrap();
            }
            Fault::PostgresPaused => {
                postgres.pause().await.unwrap();
                lasts().await;
                postgres.resume().unwrap();
            }
            Fault::WalsendersEnded => self.shop.sql().await.batch_execute(END_WALSENDERS).await.unwrap(),
            Fault::Truncate => drop(self.shop.truncate(&self.shop.sql().await).await.unwrap()),
            Fault::Ddl => {
                let change = if blow.coin {
                    "ADD COLUMN IF NOT EXISTS added int DEFAULT 1"
                } else {
                    "DROP COLUMN IF EXISTS added"
                };
                let sql = self.shop.sql().await;
                sql.batch_execute(&format!("ALTER TABLE counters {change}")).await.unwrap();
            }
            Fault::Cut(way) => self.way(way).cut(),
            Fault::Stalled(way) => {
                self.way(way).stall();
                lasts().await;
                self.way(way).heal();
            }
            Fault::Delayed(way) => {
                self.way(way).delay(blow.lasts / 20);
                load.reads(10).await;
                self.way(way).heal();
            }
            Fault::BlackHole(way) => {
                self.way(way).black_hole();
                lasts().await;
                // What has lost data stays silent, and is to be noticed.
                self.way(way).heal();
            }
        }
    }

    /// The daemon is started again so that it dies at a point.
    async fn fall(&mut self, point: Point, nth: u64) {
        let rare = matches!(point, Point::Claimed | Point::BeforeRaise | Point::AfterRaise);
        let at = format!("{}=kill@{}", point.name(), if rare { 1 } else { nth });
        self.daemon.kill().await;
        self.daemon = Daemon::spawn(&self.shop.config, &[(KILLS, &at)]);
        if rare {
            self.shop.truncate(&self.shop.sql().await).await.unwrap();
        }
        match timeout(FAILPOINT_LIMIT, self.daemon.wait()).await {
            Ok(status) if status.signal() == Some(9) => {}
            Ok(status) => {
                let what = format!("before {at}: {status}: {}", self.daemon.log());
                self.violations.push(Violation { kind: Kind::Exited, what });
            }
            Err(_) => {
                self.tell(format!("{at} was not reached"));
                self.daemon.kill().await;
            }
        }
        self.look_at_what_is_confirmed().await;
        self.daemon = self.start().await;
    }

    /// The leader is paused and another takes over; then it is resumed, or one of them is killed.
    async fn take_over(&mut self, blow: Blow) {
        self.daemon.pause().await;
        self.shop.sql().await.batch_execute(END_WALSENDERS).await.unwrap();
        let second = Daemon::start(&self.shop.beside()).await;
        second.wait_ready().await;
        let readers = self.shop.readers(&second, blow.nth);
        readers.reads(20).await;
        sleep(blow.lasts).await;
        self.daemon.resume();
        readers.reads(20).await;
        self.end(readers).await;
        if blow.coin {
            second.kill().await;
        } else {
            second.terminate().await;
        }
    }

    /// O4, while no daemon runs.
    async fn look_at_what_is_confirmed(&mut self) {
        let (entries, violations) = self.shop.confirmed_and_applied().await;
        self.judged += entries;
        self.violations.extend(violations);
    }

    fn way(&self, way: Way) -> &Proxy {
        match way {
            Way::ToPostgres => &self.to_postgres,
            Way::ToRedis => &self.to_redis,
        }
    }

    async fn redis(&self, command: &[&str]) {
        let mut raw = Raw::connect(&self.shop.stage).await.expect("connect to Redis");
        raw.run(command).await.expect("have Redis do it");
    }

    fn tell(&mut self, what: String) {
        let line = format!("{:8.3} s  {what}", self.began.elapsed().as_secs_f64());
        println!("{line}");
        self.story.push(line);
    }

    fn report(&self) -> String {
        let mut lines = vec![format!("seed {}, {:.0} s", self.seed, self.began.elapsed().as_secs_f64())];
        lines.push(format!("faults: {}", self.faults.values().sum::<usize>()));
        lines.extend(self.faults.iter().map(|(name, count)| format!("  {count:4} {name}")));
        let Done { writes, reads, failed_reads, raw_reads, .. } = self.done;
        lines.push(format!("transactions written: {writes}"));
        lines.push(format!(
            "values read and judged: {reads} over HTTP ({failed_reads} refused), {raw_reads} from Redis"
        ));
        lines.push(format!("results of a query read and judged: {}", self.club.reads()));
        lines.push(format!("entries compared at each of {} quiet points: {:?}", self.compared.len(), self.compared));
        lines.push(format!("entries judged against the confirmed position: {}", self.judged));
        lines.push(format!("violations: {}", self.violations.len()));
        if !self.violations.is_empty() {
            lines.push("what was done:".into());
            lines.extend(self.story.iter().rev().take(30).rev().cloned());
            lines.extend(self.violations.iter().take(5).map(ToString::to_string));
        }
        lines.join("\n")
    }
}
