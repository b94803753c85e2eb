//! The daemon is killed under load, at each of its failpoints in turn and anywhere, and started again.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use walcache::failpoint::{KILLS, Point};

use crate::harness::{Config, Crowd, Daemon, Entity, Shop, cli};

/// Kills at each failpoint: over all of them, 70.
const ROUNDS: usize = 5;

/// Kills the daemon `ROUNDS` times at each of these points.
async fn killed_at(name: &str, seed: u64, points: &[Point]) {
    let mut shop = Shop::new(name).await;
    // Many scripts for each batch, one after the other: there is something between them.
    shop.config = shop.config.set("apply", "script_keys", 2).set("apply", "in_flight", 1);
    let sql = shop.sql().await;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kills: BTreeMap<&str, usize> = BTreeMap::new();
    let mut judged = 0;
    for round in 0..ROUNDS {
        let daemon = shop.daemon().await;
        // Evictions make for fills.
        let pace = Some(Duration::from_millis(5));
        let crowd = Crowd { writers: 2, pace, readers: 2, raw: 1, evict: Some(Duration::from_millis(10)) };
        let load = shop.load_of(&daemon, seed * 10 + round as u64, crowd);
        load.reads(50).await;
        daemon.kill().await;
        for &point in points {
            let nth = match point {
                Point::SlotRead
                | Point::Claimed
                | Point::BeforeRaise
                | Point::AfterRaise
                | Point::Voided
                | Point::BeforeSweep
                | Point::Swept => 1,
                Point::AfterConfirm => rng.random_range(1..4),
                _ => rng.random_range(1..16),
            };
            let at = format!("{}=kill@{nth}", point.name());
            let daemon = Daemon::spawn(&shop.config, &[(KILLS, &at)]);
            if matches!(point, Point::BeforeRaise | Point::AfterRaise) {
                shop.truncate(&sql).await.unwrap();
            }
            if matches!(point, Point::Voided | Point::BeforeSweep | Point::Swept) {
                sql.batch_execute("SELECT walcache.invalidate_pattern('counter:1?')").await.unwrap();
            }
            let status = daemon.wait().await;
            assert_eq!(status.signal(), Some(9), "at {at} it ended with {status}");
            assert!(daemon.log().contains(&format!("\"point\":\"{}\"", point.name())), "{}", daemon.log());
            *kills.entry(point.name()).or_default() += 1;
            judged += shop.confirmed_is_applied().await;
        }
        let daemon = shop.daemon().await;
        load.reads(50).await;
        load.stop().await;
        let compared = shop.equals_postgres(&daemon).await;
        assert!(compared.entries > 30, "{compared:?}");
        shop.recorded_equals_postgres().await;
    }
    println!("kills survived: {kills:?}; O4 looked at {judged} entries");
    assert!(kills.len() == points.len() && kills.values().all(|count| *count == ROUNDS), "{kills:?}");
    assert!(judged > 30, "O4 looked at {judged} entries only");
}

/// Every other failpoint, but for that of lookups, which `lookups` has: beside each other the two halves take half the time.
fn half(first: usize) -> Vec<Point> {
    let there = Point::ALL.into_iter().filter(|point| *point != Point::Held);
    there.skip(first).step_by(2).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_one_half_of_the_failpoints() {
    killed_at("failpoints_one", 2, &half(0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_the_other_half_of_the_failpoints() {
    killed_at("failpoints_other", 3, &half(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load() {
    let shop = Shop::new("crash").await;
    let mut rng = StdRng::seed_from_u64(1);
    let mut daemon = shop.daemon().await;
    let load = shop.load(&daemon, 1);
    let mut judged = 0;
    for _ in 0..5 {
        load.reads(20).await;
        load.writes(rng.random_range(20..200)).await;
        daemon.kill().await;
        judged += shop.confirmed_is_applied().await;
        daemon = shop.daemon().await;
    }
    let done = load.stop().await;
    assert!(judged > 20, "O4 looked at {judged} entries only: {done:?}");
    assert!(done.raw_reads > 100, "{done:?}");
    let compared = shop.equals_postgres(&daemon).await;
    assert!(compared.entries > 30, "{compared:?}");
}

#[tokio::test]
async fn a_failpoint_that_is_not_known_is_refused() {
    let config = Config::new("postgres://u:p@127.0.0.1/d", "s", "p", "redis://127.0.0.1", "")
        .entity(Entity::new("counter", "public.counters"));
    for (variable, value) in [(KILLS, "nowhere=kill@1"), (KILLS, "before-write=stop"), ("WALCACHE_WITHOUT", "locks")] {
        let refused = cli(&config, &["run"], &[(variable, value)]).await;
        assert_eq!(refused.status.code(), Some(78), "{refused:?}");
        let known = if variable == KILLS { "before-write" } else { "gate, lease, fence" };
        assert!(refused.stderr.contains(variable) && refused.stderr.contains(known), "{refused:?}");
    }
}
