//! What changes values, or keeps changes from being told, without an event for any row.

use serde_json::json;

use crate::harness::{Daemon, Entity, Response, Scene, current_lsn, eventually};

async fn scene(name: &str) -> Scene {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10,2));
                  INSERT INTO items VALUES (1, 'one', 1), (2, 'two', 2);";
    Scene::open(name, schema, |config| {
        config.set("source", "schema_check_interval", "200ms").entity(Entity::new("item", "items"))
    })
    .await
}

/// Reads until the answer is `wanted`; the bound is the harness's, far beyond the interval of the checks.
async fn becomes(scene: &Scene, wanted: impl Fn(&Response) -> bool) -> Response {
    eventually("have the old state go", || async {
        let response = scene.get("item/1").await;
        if wanted(&response) { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await
}

#[tokio::test]
async fn values_rewritten_by_alter_table_are_not_served_as_they_were() {
    let scene = scene("ddl_rewrite").await;
    scene.warm("item/1").await;
    scene.write("ALTER TABLE items ALTER price TYPE numeric(10,3)").await;
    becomes(&scene, |r| r.text().contains("1.000")).await;
    scene.warm("item/1").await;
    scene.write("ALTER TABLE items ALTER name TYPE text USING upper(name)").await;
    becomes(&scene, |r| r.json()["name"] == "ONE").await;
    scene.warm("item/1").await;
    scene.write("ALTER TABLE items RENAME price TO cost").await;
    becomes(&scene, |r| r.json().get("cost").is_some()).await;
    scene.write("ALTER TABLE items ADD added int DEFAULT 7; UPDATE items SET name = 'x' WHERE id = 1").await;
    becomes(&scene, |r| r.json()["added"] == 7 && r.json()["name"] == "x").await;
    scene.verify().await;
}

/// 5: what was changed before the gap is still in the stream when the table is published again, and what was changed in
/// the gap is not: the former must not refresh what the latter has made out of date.
#[tokio::test]
async fn changes_of_before_a_gap_refresh_nothing() {
    for (name, close, open) in [
        ("ddl_gap", "DROP TABLE items", "ADD TABLE items"),
        ("ddl_silenced", "SET (publish = 'truncate')", "SET (publish = 'insert, update, delete, truncate')"),
    ] {
        let scene = scene(name).await;
        scene.warm("item/1").await;
        scene.daemon.kill().await;
        let alter = format!("ALTER PUBLICATION {}", scene.stage.name);
        for step in [
            "UPDATE items SET name = 'of before' WHERE id = 1",
            &format!("{alter} {close}"),
            "UPDATE items SET name = 'of the gap' WHERE id = 1",
            &format!("{alter} {open}"),
        ] {
            scene.sql.batch_execute(step).await.unwrap();
        }
        let daemon = Daemon::start(&scene.config).await;
        daemon.wait_ready().await;
        daemon.wait_applied(current_lsn(&scene.sql).await).await;
        for _ in 0..2 {
            let response = daemon.http().get("/v1/item/1").await.expect(200);
            assert_eq!(response.json()["name"], "of the gap", "{name}: {response:?}");
        }
    }
}

#[tokio::test]
async fn a_table_out_of_the_publication_is_read_from_postgres() {
    let scene = scene("ddl_publication").await;
    let publication: String =
        scene.sql.query_one("SELECT pubname::text FROM pg_publication", &[]).await.unwrap().get(0);
    scene.warm("item/1").await;
    scene
        .write(&format!("ALTER PUBLICATION {publication} DROP TABLE items; UPDATE items SET price = 5 WHERE id = 1"))
        .await;
    becomes(&scene, |r| r.json()["price"] == json!(5.00)).await;
    for price in [6.0, 7.0] {
        scene.write(&format!("UPDATE items SET price = {price} WHERE id = 1")).await;
        let response = scene.get("item/1").await;
        assert_eq!((response.json()["price"].as_f64(), response.header("x-cache")), (Some(price), "BYPASS"));
    }
    scene.write(&format!("ALTER PUBLICATION {publication} ADD TABLE items")).await;
    scene.warm("item/1").await;
    scene.write("UPDATE items SET price = 8 WHERE id = 1").await;
    assert_eq!(scene.get("item/1").await.json()["price"].as_f64(), Some(8.0));
    scene.verify().await;
}
