//! Parts of L1: one entity does not evict what another holds.

use serde_json::{Value, json};

use crate::harness::{Entity, LONG_LIMIT, Scene, eventually, eventually_within};

const SCHEMA: &str = "CREATE TABLE rows (id int PRIMARY KEY, note text NOT NULL);
    INSERT INTO rows SELECT i, repeat('x', 400) FROM generate_series(1, 12000) i;";

/// How many of the first rows L1 answers, each asked for by itself.
async fn hits(scene: &Scene, entity: &str, rows: usize) -> usize {
    let mut hits = 0;
    for id in 1..=rows {
        let response = scene.get(&format!("{entity}/{id}")).await.expect(200);
        hits += usize::from(response.header("x-cache") == "HIT-L1");
    }
    hits
}

async fn read(scene: &Scene, entity: &str, ids: impl Iterator<Item = usize>) {
    let ids: Vec<usize> = ids.collect();
    for keys in ids.chunks(1000) {
        scene.http.post(&format!("/v1/{entity}/batch"), &json!({ "keys": keys }), &[]).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_entity_leaves_another_alone() {
    let scene = Scene::open("parts", SCHEMA, |config| {
        config
            .without("l2")
            .set("audit", "rate", 0)
            .set("l1", "max_size", "1MiB")
            .entity(Entity::new("hot", "public.rows").set("l1_size", "2MiB"))
            .entity(Entity::new("flood", "public.rows"))
            .entity(Entity::new("beside", "public.rows"))
    })
    .await;
    read(&scene, "hot", 1..=200).await;
    read(&scene, "beside", 1..=200).await;
    eventually("hold the hot ones", || async {
        let (hot, beside) = (hits(&scene, "hot", 200).await, hits(&scene, "beside", 200).await);
        if (hot, beside) == (200, 200) { Ok(()) } else { Err(format!("{hot}, {beside}")) }
    })
    .await;
    // Twelve times what fits.
    for _ in 0..3 {
        read(&scene, "flood", 1..=12_000).await;
    }
    // Evictions are carried out beside, a fraction of a millisecond each; without optimization, some.
    let full = async |part: usize, size: u64| {
        eventually_within(LONG_LIMIT, "be full, and not fuller", || async {
            let parts = scene.daemon.status().await["l1"]["parts"].clone();
            let bytes = parts[part]["bytes"].as_u64().unwrap();
            if parts[part]["max_bytes"] == size && (size / 2..=size).contains(&bytes) { Ok(parts) } else { Err(parts) }
        })
        .await
    };
    let before = full(0, 1 << 20).await;
    assert_eq!(hits(&scene, "hot", 200).await, 200, "the flood has evicted them");
    // And the other way round.
    read(&scene, "hot", 1..=12_000).await;
    let parts = full(1, 2 << 20).await;
    assert_eq!(parts[0]["entries"], before[0]["entries"], "{before} {parts}");
    assert_eq!((&parts[0]["entity"], &parts[1]["entity"]), (&Value::Null, &"hot".into()));
    eventually("show it in the metrics", || async {
        let text = scene.daemon.admin().get("/metrics").await.expect(200).text();
        let shows = |line: &str| text.lines().any(|found| found.starts_with(line));
        let all = ["walcache_l1_bytes{part=\"hot\"} ", "walcache_l1_max_bytes{part=\"_shared\"} 1048576"];
        if all.into_iter().all(shows) { Ok(()) } else { Err("not yet") }
    })
    .await;
}
