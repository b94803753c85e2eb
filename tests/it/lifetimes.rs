//! How long entries live: in both tiers together, by a column, of absent rows, by chance; and that none comes back.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use walcache::entry::Due;

use crate::harness::{Entity, Scene, Stage, codes, eventually, findings};

const SCHEMA: &str =
    "CREATE TABLE offers (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, at timestamptz, local timestamp,
        day date, seconds int, exact numeric, life interval, note text);
    INSERT INTO offers (id) SELECT generate_series(1, 60);";

fn offers(name: &str) -> Entity {
    Entity::new(name, "public.offers").set("ttl_jitter", 0.0)
}

/// The head of an entry in L2: when it is due, by what it says; and how long Redis keeps it.
async fn life(scene: &Scene, key: &str) -> Option<(u64, i64)> {
    let text = scene.raw(key).await?;
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let due = json["x"].as_str()?.parse().unwrap();
    Some((due, scene.l2.clone().pttl(key).await.unwrap()))
}

fn now() -> u64 {
    Due::now().as_millis()
}

/// The stored text with another due time, in milliseconds from now.
fn due_in(text: &[u8], millis: i64) -> Vec<u8> {
    let mut text = text.to_vec();
    text[83..96].copy_from_slice(format!("{:013}", now().saturating_add_signed(millis)).as_bytes());
    text
}

async fn put(scene: &Scene, key: &str, text: &[u8]) {
    redis::cmd("SET").arg(key).arg(text).arg("PX").arg(60_000).exec_async(&mut scene.l2.clone()).await.unwrap();
}

/// Reads until the answer is not from a tier; says how long that took since `began`.
async fn until_filled(scene: &Scene, path: &str, began: Instant) -> Duration {
    eventually(&format!("fill {path} anew"), || async {
        let response = scene.get(path).await;
        let from = response.header("x-cache").to_owned();
        if from.starts_with("HIT") { Err(from) } else { Ok(began.elapsed()) }
    })
    .await
}

#[tokio::test]
async fn an_entry_lives_for_its_ttl_in_both_tiers_together() {
    let scene = Scene::open("life_ttl", SCHEMA, |config| {
        // The auditor would repair what is planted.
        config
            .set("audit", "rate", 0)
            .entity(offers("short").set("ttl", "4s"))
            .entity(offers("long").set("ttl", "1h"))
            .entity(offers("random").set("ttl", "1h").set("ttl_jitter", 0.5))
    })
    .await;
    let began = now();
    scene.get("short/1").await.expect(200);
    let (due, stays) = life(&scene, "short:1").await.unwrap();
    assert!((began + 4000..=now() + 4000).contains(&due) && (1..=4000).contains(&stays), "{due} {stays}");
    let filled = Instant::now();
    scene.warm("short/1").await;
    let took = until_filled(&scene, "short/1", filled).await;
    assert!(took < Duration::from_secs(12), "it lived for {took:?}");

    // Taken from L2 late: as by an instance that was not asked before. Redis would keep it, and L1 for an hour.
    scene.get("long/2").await.expect(200);
    let text = scene.raw("long:2").await.unwrap();
    let moved = Instant::now();
    put(&scene, "long:3", &due_in(&text, 8000)).await;
    let first = scene.get("long/3").await.expect(200);
    assert_eq!((first.header("x-cache"), first.json()["id"].as_i64()), ("HIT-L2", Some(2)), "the copy");
    assert_eq!(scene.warm("long/3").await.json()["id"], 2);
    let took = until_filled(&scene, "long/3", moved).await;
    assert!(took >= Duration::from_millis(7900) && took < Duration::from_secs(25), "it lived for {took:?}");
    assert_eq!(scene.get("long/3").await.json()["id"], 3);
    // The one that was over gave way to a lease, and that to the new one.
    let (due, stays) = life(&scene, "long:3").await.unwrap();
    assert!(due > now() + 3_000_000 && stays > 3_000_000, "{due} {stays}");
    assert!(scene.metric("walcache_cache_expired_total{tier=\"l2\",entity=\"long\"}").await.unwrap() >= 1.0);

    // Filled together, they do not end together.
    let keys: Vec<i32> = (1..=60).collect();
    scene.http.post("/v1/random/batch", &serde_json::json!({ "keys": keys }), &[]).await.expect(200);
    let mut dues = Vec::new();
    for key in keys {
        let (due, stays) = life(&scene, &format!("random:{key}")).await.unwrap();
        assert!((1_790_000..=3_600_000).contains(&stays), "{stays}");
        dues.push(due);
    }
    let spread = dues.iter().max().unwrap() - dues.iter().min().unwrap();
    assert!(spread > 600_000, "{spread} ms");
    scene.verify().await;
}

#[tokio::test]
async fn a_column_says_when_an_entry_is_due() {
    let columns = ["at", "local", "day", "seconds", "exact", "life"];
    let scene = Scene::open("life_column", SCHEMA, |config| {
        let config = config.set("audit", "rate", 0);
        columns
            .iter()
            .fold(config, |config, column| config.entity(offers(column).set("ttl", "10m").set("ttl_column", *column)))
    })
    .await;
    let set = async |id: i32, seconds: i32| {
        // A day is coarse: it begins now, or begins tomorrow.
        let day = if seconds > 0 { "current_date + 2" } else { "current_date" };
        scene
            .write(&format!(
                "UPDATE offers SET n = n + 1, at = now() + interval '{seconds} s', local = now() AT TIME ZONE 'UTC' + interval '{seconds} s',
                 day = {day}, seconds = {seconds}, exact = {seconds}.5, life = interval '{seconds} s' WHERE id = {id}"
            ))
            .await;
    };
    set(1, 60).await;
    set(2, -60).await;
    set(3, 6000).await;
    let near = |due: u64, seconds: u64| due.abs_diff(now() + seconds * 1000) < 25_000;
    for column in columns {
        let wanted = if column == "day" { 600 } else { 60 };
        let key = |id: i32| format!("{column}:{id}");
        let check = async |what: &str, id: i32, seconds: u64| {
            let (due, stays) = life(&scene, &key(id)).await.unwrap_or_else(|| panic!("{what}: no {}", key(id)));
            assert!(near(due, seconds) && near(now() + stays.unsigned_abs(), seconds), "{what}: {due} {stays}");
        };
        scene.get(&format!("{column}/1")).await.expect(200);
        check(column, 1, wanted).await;
        // No longer than the entity's ttl, which is what NULL means, too.
        for id in [3, 4] {
            scene.get(&format!("{column}/{id}")).await.expect(200);
            check(column, id, 600).await;
        }
        // What is over is answered and not cached.
        for _ in 0..3 {
            let response = scene.get(&format!("{column}/2")).await.expect(200);
            assert!(!response.header("x-cache").starts_with("HIT"), "{column}: {response:?}");
            assert_eq!(scene.raw(&key(2)).await, None);
        }
    }
    // Images of events bring their own times, sooner or later than before.
    set(1, 6000).await;
    set(3, 30).await;
    set(4, -1).await;
    for column in columns {
        let (due, stays) = life(&scene, &format!("{column}:1")).await.unwrap();
        assert!(near(due, 600) && near(now() + stays.unsigned_abs(), 600), "{column}: {due} {stays}");
        let (due, stays) = life(&scene, &format!("{column}:3")).await.unwrap();
        let wanted = if column == "day" { 600 } else { 30 };
        assert!(near(due, wanted) && near(now() + stays.unsigned_abs(), wanted), "{column}: {due} {stays}");
        assert_eq!(scene.raw(&format!("{column}:4")).await, None, "it was over when it was written");
    }
    scene.verify().await;
}

/// An event's image takes over what is left of the life that the entry before it had, by both ways to write it; where a column
/// says how long, it has that.
#[tokio::test]
async fn changes_prolong_no_life_but_by_a_column() {
    const LEFT: i64 = 60_000;
    let scene = Scene::open("life_changed", SCHEMA, |config| {
        let entity = |name: &str| offers(name).set("ttl", "1h");
        config
            .set("audit", "rate", 0)
            .entity(entity("plain"))
            .entity(entity("pop").set("populate", true))
            .entity(entity("renewed").set("stale_while_revalidate", "5m"))
            .entity(entity("own").set("ttl_column", "at"))
            .entity(entity("ownpop").set("ttl_column", "at").set("populate", true))
    })
    .await;
    // wal2json has no word for a NULL here that it does not have for NaN: such a row makes no image.
    scene.write("UPDATE offers SET exact = 1 WHERE id = 1").await;
    let mut before = Vec::new();
    for name in ["plain", "pop", "renewed", "own", "ownpop"] {
        scene.get(&format!("{name}/1")).await.expect(200);
        let key = format!("{name}:1");
        let _: () = scene.l2.clone().pexpire(&key, LEFT).await.unwrap();
        before.push((name, key.clone(), life(&scene, &key).await.unwrap().0));
    }
    scene.write("UPDATE offers SET n = 1, at = now() + interval '20 min' WHERE id = 1").await;
    for (name, key, was) in before {
        let stored = scene.stored(&key).await.unwrap_or_else(|| panic!("{name}: no entry"));
        assert!(stored.value.contains("\"n\":1"), "{name}: {stored:?}");
        let (due, stays) = life(&scene, &key).await.unwrap();
        if name.starts_with("own") {
            assert!((1_100_000..=1_200_000).contains(&stays), "{name}: {stays}");
            assert!(due.abs_diff(now() + 1_200_000) < 100_000, "{name}: {due}");
        } else {
            assert!((1..=LEFT).contains(&stays), "{name}: {stays}");
            assert!(name != "renewed" || due == was, "{name}: due {due}, and {was} before");
        }
    }
}

#[tokio::test]
async fn absent_rows_have_lives_of_their_own() {
    let scene = Scene::open("life_absent", SCHEMA, |config| {
        config
            .entity(offers("offer").set("ttl", "1h").set("negative_ttl", "5s"))
            .entity(offers("own").set("ttl", "1h").set("negative_ttl", "5s").set("ttl_column", "life"))
    })
    .await;
    for entity in ["offer", "own"] {
        scene.get(&format!("{entity}/99")).await.expect(404);
        let (due, stays) = life(&scene, &format!("{entity}:99")).await.unwrap();
        assert!(due <= now() + 5000 && (1..=5000).contains(&stays), "{entity}: {due} {stays}");
        scene.get(&format!("{entity}/1")).await.expect(200);
        assert!(life(&scene, &format!("{entity}:1")).await.unwrap().1 > 3_000_000);
    }
    // What was there and is deleted is absent from then on: its entry is due as such, whatever Redis would keep.
    scene.write("DELETE FROM offers WHERE id = 1").await;
    for entity in ["offer", "own"] {
        let (due, _) = life(&scene, &format!("{entity}:1")).await.unwrap();
        assert!(due <= now() + 5000, "{entity}: {due}");
        scene.get(&format!("{entity}/1")).await.expect(404);
    }
    scene.verify().await;
}

/// What a row says is over is not served either where its entry was made before the column was asked.
#[tokio::test]
async fn a_column_that_is_named_later_counts_from_then_on() {
    let with = |config: crate::harness::Config, column: Option<&str>| {
        let offer = offers("offer").set("ttl", "1h");
        let offer = column.into_iter().fold(offer, |offer, column| offer.set("ttl_column", column));
        config.set("audit", "rate", 0).entity(offer).entity(offers("other"))
    };
    let mut scene = Scene::open("life_named", SCHEMA, |config| with(config, None)).await;
    scene.write("UPDATE offers SET at = now() - interval '1 day' WHERE id = 1").await;
    for path in ["offer/1", "other/1"] {
        scene.warm(path).await;
    }
    for column in [None, Some("at")] {
        assert!(scene.daemon.terminate().await.success());
        scene.config = with(scene.stage.config().set("freshness", "stale_after", "60s"), column);
        scene.daemon = crate::harness::Daemon::start(&scene.config).await;
        scene.daemon.wait_ready().await;
        scene.http = scene.daemon.http();
        let from = eventually("trust L2", || async {
            let trusted = scene.daemon.status().await["l2"]["trusted"].as_bool();
            if trusted == Some(true) { Ok(scene.get("offer/1").await.expect(200)) } else { Err("not yet") }
        })
        .await;
        assert_eq!(from.header("x-cache").starts_with("HIT"), column.is_none(), "{column:?}: {from:?}");
        assert!(scene.get("other/1").await.header("x-cache").starts_with("HIT"), "{column:?}");
    }
}

/// Memory is given back without anybody reading.
#[tokio::test]
async fn what_is_over_leaves_l1() {
    let scene = Scene::open("life_l1", SCHEMA, |config| {
        config.without("l2").set("audit", "rate", 0).entity(offers("offer").set("ttl", "6s"))
    })
    .await;
    let keys: Vec<i32> = (1..=60).collect();
    scene.http.post("/v1/offer/batch", &serde_json::json!({ "keys": keys }), &[]).await.expect(200);
    let entries = async || scene.daemon.status().await["l1"]["parts"][0].clone();
    eventually("hold them", || async {
        let part = entries().await;
        if part["entries"] == 60 && part["bytes"].as_u64().unwrap() > 60 * 200 { Ok(()) } else { Err(part) }
    })
    .await;
    eventually("have removed them", || async {
        let part = entries().await;
        if part["entries"] == 0 && part["bytes"] == 0 { Ok(()) } else { Err(part) }
    })
    .await;
    eventually("count them", || async {
        let count = scene.metric("walcache_cache_expired_total{tier=\"l1\",entity=\"offer\"}").await;
        if count == Some(60.0) { Ok(()) } else { Err(format!("{count:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_column_that_says_no_time_is_refused() {
    let stage = Stage::shared("life_check").await;
    stage.execute(SCHEMA).await;
    for (column, words) in [("note", "says neither a time nor how long"), ("expires", "there is no column expires")] {
        let config = stage.config().entity(offers("offer").set("ttl_column", column));
        let found = findings(&config).await;
        assert!(codes(&found, "error").contains(&"ttl_column"), "{found:?}");
        assert!(format!("{found:?}").contains(words), "{found:?}");
    }
    let config = stage.config().entity(offers("offer").set("ttl_column", "at").set("columns", vec!["id", "at"]));
    let found = findings(&config).await;
    assert!(!codes(&found, "error").contains(&"ttl_column"), "{found:?}");
}
