//! Patterns of keys, and sweeping.

use std::time::Duration;

use redis::AsyncCommands;
use walcache::failpoint::Point;
use walcache::void::glob::Glob;

use super::{configure, confirmed, fence, fill_in_the_middle, from, rate, scene, set_rate, sweeps_wait_at, warm_items};
use crate::harness::{Daemon, Proxy, Scene, Stage, eventually, eventually_within};

async fn swept(scene: &Scene, tier: &str) -> u64 {
    scene.metric(&format!("walcache_swept_entries_total{{tier=\"{tier}\"}}")).await.unwrap_or_default() as u64
}

/// Waits until no pattern is left, in the process and in the fence.
async fn all_swept(scene: &Scene) {
    eventually_within(Duration::from_secs(60), "sweep all patterns", || async {
        let left = fence(scene, "glob:").await;
        let active = scene.metric("walcache_patterns_active").await;
        if left.is_empty() && active == Some(0.0) { Ok(()) } else { Err(format!("{left:?} {active:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_voids_what_matches_it_and_is_swept_out() {
    let mut scene = scene("patterns_sweep").await;
    let hold = sweeps_wait_at(&mut scene, Point::BeforeSweep).await;
    warm_items(&scene).await;
    for path in ["note/1,1", "note/1,2", "note/2,1"] {
        scene.warm(path).await;
    }
    set_rate(&scene, 2, "SELECT walcache.invalidate_pattern('note:1,*', 'item:1?')").await;
    for (path, wanted) in [("note/1,1", 2), ("note/1,2", 2), ("note/2,1", 1)] {
        assert_eq!(rate(&scene, path).await.0, wanted, "{path}");
    }
    for id in [9, 10, 19, 20, 100, 110] {
        let cache = from(&scene, &format!("item/{id}")).await;
        assert_eq!(cache == "MISS", (10..20).contains(&id), "{id}: {cache}");
    }
    eventually("begin the sweep", || async {
        if scene.daemon.log().contains("this task waits") { Ok(()) } else { Err("not yet") }
    })
    .await;
    // A sweep removes leases, too: only what stands in L2 is there afterwards.
    for key in ["item:10", "item:19", "note:1,1", "note:1,2"] {
        eventually("store what was read", || async { scene.stored(key).await.ok_or(key) }).await;
    }
    assert_eq!(swept(&scene, "l2").await, 0);
    assert_eq!(scene.metric("walcache_patterns_active").await, Some(2.0), "they stand while they are swept");
    std::fs::remove_file(&hold).unwrap();
    all_swept(&scene).await;
    // Ten items and two notes were there; those that were read meanwhile are newer.
    assert_eq!((swept(&scene, "l2").await, swept(&scene, "l1").await), (8, 8));
    let keys = scene.keys("item").await;
    for gone in ["11", "12", "15", "18"] {
        assert!(!keys.contains(&gone.to_owned()), "{gone} is still there");
    }
    for there in ["10", "19", "9", "20", "100", "110"] {
        assert!(keys.contains(&there.to_owned()), "{there} is gone");
    }
    eventually("tell of it in the log", || async {
        let log = scene.daemon.log();
        if log.contains("swept out what patterns have voided") { Ok(()) } else { Err(log) }
    })
    .await;
    // What stands was compared, and is served as before.
    for path in ["item/9", "item/20", "note/2,1"] {
        assert_eq!(from(&scene, path).await, "HIT-L1", "{path}");
    }
    scene.write("UPDATE items SET n = 1 WHERE id < 30").await;
    for path in ["item/9", "item/10"] {
        assert_eq!(scene.get(path).await.json()["n"], 1);
    }
}

/// A fill that was under way stores below the floor, or is not stored: never is it served, swept or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_that_is_under_way_outlives_no_sweep() {
    let scene = scene("patterns_race").await;
    scene.warm("note/2,1").await;
    let (locker, early) = fill_in_the_middle(&scene).await;
    set_rate(&scene, 2, "SELECT walcache.invalidate_pattern('note:1,*')").await;
    all_swept(&scene).await;
    assert_eq!(scene.raw("note:1,1").await, None, "the lease was swept out");
    locker.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    assert_eq!(early.await.unwrap().expect(200).json()["rate"], 1, "it had read before");
    assert_eq!(scene.raw("note:1,1").await, None, "it was not stored");
    assert_eq!(rate(&scene, "note/1,1").await, (2, "MISS".into()), "nor kept in L1");
    assert_eq!(rate(&scene, "note/2,1").await, (1, "HIT-L1".into()));
    scene.warm("note/1,1").await;
}

#[tokio::test]
async fn a_thousand_patterns_are_right_and_end() {
    let scene = scene("patterns_many").await;
    warm_items(&scene).await;
    scene.warm("note/1,1").await;
    // Of one entity in one transaction: most of them become a floor of all of it.
    let mut sql = "BEGIN; UPDATE rates SET rate = 2;".to_owned();
    for n in 0..1000 {
        sql += &format!("SELECT walcache.invalidate_pattern('item:{n}', 'note:1,{n}?');");
    }
    scene.write(&(sql + "COMMIT")).await;
    assert!(fence(&scene, "glob:").await.len() <= 128, "{:?}", fence(&scene, "glob:").await.len());
    for id in [0, 1, 500, 999] {
        assert_eq!(from(&scene, &format!("item/{id}")).await, "MISS", "{id}");
    }
    all_swept(&scene).await;
    assert_eq!(fence(&scene, "void:").await, ["void:item", "void:note"]);
    assert_eq!(rate(&scene, "note/1,1").await, (2, "MISS".into()), "more than is needed");
    scene.warm("item/1500").await;
    // One by one, each swept or not when the next comes.
    for n in 0..200 {
        scene.sql.batch_execute(&format!("SELECT walcache.invalidate_pattern('item:{n}')")).await.unwrap();
    }
    scene.applied().await;
    for id in [0, 100, 199] {
        assert_ne!(from(&scene, &format!("item/{id}")).await, "HIT-L1", "{id}");
    }
    all_swept(&scene).await;
    scene.verify().await;
}

#[tokio::test]
async fn a_sweep_that_was_cut_off_begins_anew() {
    let stage = Stage::shared("patterns_restart").await;
    stage.execute(super::SCHEMA).await;
    // Some twenty seconds for a walk, that it may be cut off.
    let mut scene = Scene::on(stage, |config| configure(config).set("l2", "sweep_rate", 100)).await;
    warm_items(&scene).await;
    scene.warm("note/1,1").await;
    let voided = set_rate(&scene, 2, "SELECT walcache.invalidate_pattern('note:1,*', 'item:19??')").await;
    confirmed(&scene, voided).await;
    assert_eq!(fence(&scene, "glob:").await, ["glob:item:item:19??", "glob:note:note:1,*"]);
    scene.daemon.kill().await;
    scene.config = scene.config.clone().set("l2", "sweep_rate", 100_000);
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
    assert_eq!(rate(&scene, "note/1,1").await.0, 2);
    all_swept(&scene).await;
    let keys = scene.keys("item").await;
    assert!(!keys.iter().any(|key| key.starts_with("19") && key.len() == 4), "{keys:?}");
    assert!(keys.contains(&"1800".to_owned()));
    // The first daemon may have come to some; and the note was read anew before the sweep, or not.
    assert!((1..=101).contains(&swept(&scene, "l2").await), "{}", swept(&scene, "l2").await);
}

/// Another Redis takes over that has lost the last removals, and nothing else: they are not taken for done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_counts_for_the_server_that_it_swept() {
    let stage = Stage::shared("patterns_lost").await;
    stage.execute(super::SCHEMA).await;
    let proxy = Proxy::start(stage.redis.port()).await;
    let url = stage.redis.url_at(proxy.port(), stage.redis_database);
    let mut scene = Scene::on(stage, |config| configure(config).set("l2", "url", url)).await;
    let hold = sweeps_wait_at(&mut scene, Point::Swept).await;
    scene.warm("note/1,1").await;
    let mut l2 = scene.l2.clone();
    let removed: Vec<u8> = redis::cmd("DUMP").arg("note:1,1").query_async(&mut l2).await.unwrap();
    set_rate(&scene, 2, "SELECT walcache.invalidate_pattern('note:1,*')").await;
    eventually("have swept L2", || async {
        if scene.daemon.log().contains("this task waits") { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert_eq!(scene.raw("note:1,1").await, None);
    let epoch = async || scene.l2.clone().hget::<_, _, String>("~walcache:fence", "epoch").await.unwrap();
    let before = epoch().await;
    let _: () = redis::cmd("RESTORE").arg("note:1,1").arg(0).arg(removed).query_async(&mut l2).await.unwrap();
    proxy.cut();
    eventually("claim it anew", || async { if epoch().await > before { Ok(()) } else { Err("not yet") } }).await;
    scene.write("UPDATE items SET n = 1 WHERE id = 1").await;
    assert!(scene.raw("note:1,1").await.is_some(), "nobody has read it, nor swept again");
    std::fs::remove_file(&hold).unwrap();
    all_swept(&scene).await;
    assert_eq!(rate(&scene, "note/1,1").await, (2, "MISS".into()));
}

/// The matcher and Redis' own, on the same patterns and keys.
#[tokio::test]
async fn patterns_mean_what_they_mean_to_redis() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let stage = Stage::shared("patterns_redis").await;
    let mut l2 = stage.l2().await;
    let mut rng = StdRng::seed_from_u64(7);
    const LETTERS: [&str; 12] = ["a", "b", "c", "*", "?", "[", "]", "^", "-", "\\", "é", ","];
    let mut text = |longest: usize, letters: &[&str]| -> String {
        let length = rng.random_range(1..=longest);
        (0..length).map(|_| letters[rng.random_range(0..letters.len())]).collect()
    };
    let mut keys: Vec<String> = (0..400).map(|_| text(5, &LETTERS)).collect();
    keys.extend(["a", "b", "*", "[", "]", "\\", "-", "^", "é"].map(str::to_owned));
    for key in &keys {
        l2.set::<_, _, ()>(key, "").await.unwrap();
    }
    let mut matched = 0;
    for round in 0..6000 {
        let pattern = text(if round % 2 == 0 { 4 } else { 8 }, &LETTERS);
        let mut theirs: Vec<Vec<u8>> = redis::cmd("KEYS").arg(&pattern).query_async(&mut l2).await.unwrap();
        let glob = Glob::parse(&pattern).unwrap();
        let mut ours: Vec<Vec<u8>> =
            keys.iter().filter(|key| glob.matches(key.as_bytes())).map(|key| key.clone().into_bytes()).collect();
        theirs.sort();
        ours.sort();
        ours.dedup();
        assert_eq!(ours, theirs, "{pattern:?}");
        matched += theirs.len();
    }
    assert!(matched > 10_000, "{matched}: hardly anything was compared");
}
