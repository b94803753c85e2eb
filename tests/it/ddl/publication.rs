//! Tables that leave their publication and come back.

use serde_json::json;

use super::{Noticed, becomes, items};
use crate::harness::{Daemon, current_lsn, needs_publications};

/// 5: what was changed before the gap is still in the stream when the table is published again, and what was changed in
/// the gap is not: the former must not refresh what the latter has made out of date.
#[tokio::test]
async fn changes_of_before_a_gap_refresh_nothing() {
    if needs_publications("ddl::publication::changes_of_before_a_gap_refresh_nothing") {
        return;
    }
    for (name, close, open) in [
        ("ddl_gap", "DROP TABLE items", "ADD TABLE items"),
        ("ddl_silenced", "SET (publish = 'truncate')", "SET (publish = 'insert, update, delete, truncate')"),
    ] {
        let scene = items(name, Noticed::Polled).await;
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
    if needs_publications("ddl::publication::a_table_out_of_the_publication_is_read_from_postgres") {
        return;
    }
    let scene = items("ddl_publication", Noticed::Polled).await;
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

/// A schema that leaves and rejoins between two looks: changes in between were not in the stream.
#[tokio::test]
async fn a_schema_out_of_the_publication_and_back() {
    if needs_publications("ddl::publication::a_schema_out_of_the_publication_and_back") {
        return;
    }
    for noticed in super::BOTH {
        let stage = crate::harness::Stage::shared("ddl_schemas").await;
        if stage.version().await < 15 {
            println!("SKIPPED: publications of schemas need Postgres 15");
            return;
        }
        let schema = "CREATE SCHEMA shop; CREATE TABLE shop.items (id int PRIMARY KEY, name text);
                      INSERT INTO shop.items VALUES (1, 'one'), (2, 'two')";
        stage.execute(schema).await;
        stage.execute(&format!("CREATE PUBLICATION {} FOR TABLES IN SCHEMA shop", stage.name)).await;
        let entity = crate::harness::Entity::new("item", "shop.items");
        let scene = crate::harness::Scene::on(stage, |config| noticed.configure(config).entity(entity)).await;
        let alter = format!("ALTER PUBLICATION {}", scene.stage.name);
        for id in 1..3 {
            scene.warm(&format!("item/{id}")).await;
        }
        scene.daemon.pause().await;
        for statement in [
            &format!("{alter} DROP TABLES IN SCHEMA shop"),
            "UPDATE shop.items SET name = 'unheard of' WHERE id = 1",
            &format!("{alter} ADD TABLES IN SCHEMA shop"),
            "UPDATE shop.items SET name = 'heard of' WHERE id = 2",
        ] {
            scene.sql.batch_execute(statement).await.unwrap();
        }
        scene.daemon.resume();
        scene.applied().await;
        becomes(&scene, |r| r.json()["name"] == "unheard of").await;
        scene.verify().await;
        let out = format!("{alter} DROP TABLES IN SCHEMA shop");
        noticed.change(&scene, &out, "item/1", |r| super::bypassed(r, "unheard of")).await;
        let back = format!("{alter} ADD TABLES IN SCHEMA shop");
        noticed.change(&scene, &back, "item/1", |r| r.header("x-cache") != "BYPASS").await;
        scene.verify().await;
    }
}
