//! Fault 6: TRUNCATE of several tables, and of those that refer to them, while their rows are being read into the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hyper::Method;
use tokio_util::sync::CancellationToken;

use crate::harness::{Entity, Http, Scene, soak};

const SCHEMA: &str = "CREATE TABLE makers (id int PRIMARY KEY, n int NOT NULL);
    CREATE TABLE parts (id int PRIMARY KEY REFERENCES makers, n int NOT NULL);
    CREATE TABLE notes (id int PRIMARY KEY, n int NOT NULL)";

const ENTITIES: [&str; 3] = ["maker", "part", "note"];
const ROWS: usize = 16;

async fn scene(name: &str) -> Scene {
    Scene::open(name, SCHEMA, |config| {
        config
            .entity(Entity::new("maker", "public.makers"))
            .entity(Entity::new("part", "public.parts"))
            .entity(Entity::new("note", "public.notes"))
    })
    .await
}

/// Whatever is missing, at this version.
fn insert(version: usize) -> String {
    let each = ["makers", "parts", "notes"].map(|table| {
        format!("INSERT INTO {table} SELECT i, {version} FROM generate_series(1, {ROWS}) i ON CONFLICT DO NOTHING;")
    });
    each.concat()
}

async fn generations(scene: &Scene) -> Vec<u64> {
    let status = scene.daemon.status().await;
    status["entities"].as_array().unwrap().iter().map(|e| e["generation"].as_u64().unwrap()).collect()
}

/// 6: each truncated table, and no other, gets a new generation, whatever the number of its rows; the log says why.
#[tokio::test]
async fn several_tables_and_cascade() {
    let scene = scene("truncate_many").await;
    for (statement, emptied) in [
        ("TRUNCATE makers, parts", &["maker", "part"][..]),
        ("TRUNCATE makers CASCADE", &["maker", "part"]),
        ("TRUNCATE notes, parts", &["part", "note"]),
        ("TRUNCATE makers, parts, notes", &ENTITIES),
        ("BEGIN; TRUNCATE notes; TRUNCATE makers CASCADE; COMMIT", &ENTITIES),
    ] {
        scene.write(&insert(1)).await;
        for entity in ENTITIES {
            for id in 1..=ROWS {
                scene.get(&format!("{entity}/{id}")).await.expect(200);
            }
        }
        let before = generations(&scene).await;
        scene.write(statement).await;
        let after = generations(&scene).await;
        for (at, entity) in ENTITIES.iter().enumerate() {
            let is_emptied = emptied.contains(entity);
            assert_eq!(after[at] > before[at], is_emptied, "{statement}: {entity} {before:?} {after:?}");
            let status = if is_emptied { 404 } else { 200 };
            scene.get(&format!("{entity}/3")).await.expect(status);
        }
        scene.verify().await;
    }
    let truncations = scene.metric("walcache_cache_invalidations_total{entity=\"part\",cause=\"truncate\"}").await;
    assert_eq!(truncations, Some(5.0));
}

/// Reads all rows of all entities, over and over; counts the answers with a row.
async fn read(http: Http, first: usize, found: Arc<AtomicUsize>, stop: CancellationToken) {
    let mut at = first;
    while !stop.is_cancelled() {
        at += 1;
        let path = format!("/v1/{}/{}", ENTITIES[at % 3], at / 3 % ROWS + 1);
        let response = http.send(Method::GET, &path, &[], Bytes::new()).await.unwrap();
        match response.status.as_u16() {
            200 => drop(found.fetch_add(1, Ordering::Relaxed)),
            404 => {}
            _ => panic!("{path}: {response:?}"),
        }
    }
}

/// 6: fills race with truncations; when one is applied, nobody is given a row of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_fills() {
    let scene = scene("truncate_race").await;
    let (found, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let readers: Vec<_> =
        (0..6).map(|i| tokio::spawn(read(scene.http.clone(), i * 8, found.clone(), stop.clone()))).collect();
    let soak = soak();
    for round in 1.. {
        if round > 12 && soak.is_over() {
            break;
        }
        scene.write(&insert(2 * round)).await;
        // Until the readers are in the middle of it again.
        let seen = found.load(Ordering::Relaxed);
        crate::harness::eventually("have rows read", || async {
            if found.load(Ordering::Relaxed) > seen + 5 { Ok(()) } else { Err("not yet") }
        })
        .await;
        // New rows at once, so that fills of before and after are under way together.
        let newer = 2 * round + 1;
        scene.write(&format!("BEGIN; TRUNCATE makers, notes CASCADE; COMMIT; {}", insert(newer))).await;
        for entity in ENTITIES {
            for id in 1..=ROWS {
                let row = scene.get(&format!("{entity}/{id}")).await.expect(200);
                assert_eq!(row.json()["n"], newer, "round {round}, {entity}:{id}: {:?}", row.headers);
            }
        }
    }
    stop.cancel();
    for reader in readers {
        reader.await.unwrap();
    }
    scene.verify().await;
}
