//! Fault 21: clocks that are wrong, or jump. The daemon's or the server's wall clock is turned by libfaketime; time as it
//! passes (CLOCK_MONOTONIC) stays true, as it does where an operator or NTP sets a clock.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Shop, eventually};

/// How far clocks are turned.
const HOUR: i64 = 3600;

/// The library, wherever the distribution keeps it.
fn libfaketime() -> String {
    let mut dirs = vec![PathBuf::from("/usr/lib/faketime"), PathBuf::from("/usr/lib64/faketime")];
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path().join("faketime"));
    dirs.extend(multiarch);
    let found = dirs.iter().map(|dir| dir.join("libfaketime.so.1")).find(|file| file.exists());
    found.expect("libfaketime: scripts/install-servers installs it").to_str().unwrap().to_owned()
}

/// A clock that is turned by what stands in a file.
struct Clock {
    dir: tempfile::TempDir,
}

impl Clock {
    fn new(hours: i64) -> Clock {
        let dir = tempfile::tempdir().unwrap();
        // The server runs as another user.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let clock = Clock { dir };
        clock.turn(hours);
        clock
    }

    fn turn(&self, hours: i64) {
        // Renamed into place, so that nobody reads half of it.
        let (new, file) = (self.dir.path().join("new"), self.file());
        fs::write(&new, format!("{hours:+}h\n")).unwrap();
        fs::rename(new, file).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", libfaketime()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_RESET", "1".to_owned()),
        ]
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// The times that its metrics and its status tell are never negative, nor hours.
async fn tells_sane_times(daemon: &Daemon) {
    let text = daemon.admin().get("/metrics").await.text();
    for line in text.lines().filter(|line| !line.starts_with('#') && line.contains("_seconds")) {
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value >= 0.0, "{line}");
    }
    let lag = daemon.status().await["lag_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&lag), "{lag}");
    let lag = daemon.metric("walcache_replication_lag_seconds").await.unwrap();
    assert!((0.0..60.0).contains(&lag), "{lag}");
}

/// Reads and writes while the clock is turned; ends with O1.
async fn turned(shop: &Shop, daemon: &Daemon, clock: &Clock, seed: u64) {
    let load = shop.load(daemon, seed);
    for hours in [1, -1, 0, -1, 1] {
        load.writes(30).await;
        load.reads(50).await;
        tells_sane_times(daemon).await;
        clock.turn(hours);
    }
    load.writes(30).await;
    load.reads(50).await;
    let done = load.stop().await;
    assert_eq!(done.failed_reads, 0, "{done:?}");
    tells_sane_times(daemon).await;
    shop.equals_postgres(daemon).await;
}

/// 21: the daemon's clock is an hour ahead or behind, and jumps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_daemon() {
    let shop = Shop::new("clock_daemon").await;
    for hours in [1, -1] {
        let clock = Clock::new(hours);
        let env = clock.env();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let daemon = Daemon::start_with(&shop.config, &env).await;
        daemon.wait_ready().await;
        // It really lives at another time: what it logs says when.
        let log = daemon.log();
        let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        let logged = humantime_seconds(first["timestamp"].as_str().unwrap());
        let off = logged - seconds(SystemTime::now());
        assert!((off - hours * HOUR).abs() < HOUR / 2, "it is {off} s off");
        turned(&shop, &daemon, &clock, 200 + hours.unsigned_abs()).await;
        daemon.kill().await;
    }
}

/// Seconds since 1970 of `2026-01-31T12:34:56...Z`, as Postgres would say: asked of nobody, so counted here.
fn humantime_seconds(text: &str) -> i64 {
    let number = |from: usize, to: usize| text[from..to].parse::<i64>().unwrap();
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    // Days from civil: the year begins in March, so that a leap day is its last.
    let year = year - i64::from(month <= 2);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    days * 86_400 + number(11, 13) * 3600 + number(14, 16) * 60 + number(17, 19)
}

#[test]
fn counts_days() {
    assert_eq!(humantime_seconds("1970-01-01T00:00:00Z"), 0);
    assert_eq!(humantime_seconds("2000-03-01T00:00:01Z"), 951_868_801);
}

/// 21: the server's clock is an hour ahead or behind, and jumps: commit times are in the future, or hours ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_server() {
    let clock = Clock::new(1);
    let postgres = clock.env().iter().fold(PostgresOptions::new(), |options, (name, value)| options.env(name, value));
    let mut shop = Shop::with("clock_server", postgres, RedisOptions::new()).await;
    // The collector of statistics, which Postgres 14 still has, may be lost in time: it is then waited for, for 10 s.
    shop.config = shop.config.set("source", "dead_after", "15s");
    let sql = shop.sql().await;
    let now = async || {
        let query = "SELECT extract(epoch FROM clock_timestamp())::int8";
        sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0)
    };
    let off = now().await - seconds(SystemTime::now());
    assert!((off - HOUR).abs() < 60, "it is {off} s off");
    let daemon = shop.daemon().await;
    turned(&shop, &daemon, &clock, 210).await;
    // Turned at last to an hour ahead: forwards and backwards, nothing waits for a clock to catch up.
    clock.turn(-1);
    eventually("have the server's clock turned", || async {
        let off = now().await - seconds(SystemTime::now());
        if (off + HOUR).abs() < 60 { Ok(()) } else { Err(off) }
    })
    .await;
    shop.put(&sql, 1, 5).await;
    shop.equals_postgres(&daemon).await;
    tells_sane_times(&daemon).await;
    let before = daemon.metric("walcache_commit_to_visible_seconds_count").await;
    assert!(before.unwrap() > 0.0);
    drop(sql);
    tokio::time::timeout(Duration::from_secs(20), daemon.terminate()).await.unwrap();
}
