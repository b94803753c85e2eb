//! Fault 5: row filters and column lists of publications. An entity is what is published: rows outside of the filter are
//! absent, whether the stream tells of them or a fill; columns outside of the list are read, and never refreshed.

use crate::harness::{
    Entity, LONG_LIMIT, Scene, Stage, cli, codes, eventually, eventually_within, findings, mend, needs_publications,
};
use crate::publications::has_filters;

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, active bool NOT NULL, n int, name text, k0 int, ord int,
        body text);
    INSERT INTO items SELECT i, i % 2 = 1, i, 'item ' || i, i, -i, (SELECT string_agg(md5(i || '/' || j), '')
        FROM generate_series(1, 150) j) FROM generate_series(1, 20) i;";

/// A scene whose publication is made by this SQL, or `None` before Postgres 15. `{p}` is its name.
async fn scene(name: &str, publication: &str, entities: &[Entity]) -> Option<Scene> {
    let stage = Stage::shared(name).await;
    if !has_filters(&stage).await {
        return None;
    }
    stage.execute(&format!("{SCHEMA}{}", publication.replace("{p}", &stage.name))).await;
    let scene = Scene::on(stage, |config| {
        entities.iter().cloned().fold(config.set("source", "schema_check_interval", "200ms"), |c, e| c.entity(e))
    });
    Some(scene.await)
}

fn both() -> [Entity; 2] {
    [Entity::new("item", "items"), Entity::new("pop", "items").set("populate", true)]
}

async fn status(scene: &Scene, path: &str) -> u16 {
    scene.get(path).await.status.as_u16()
}

/// Reads until the answer has this status.
async fn becomes(scene: &Scene, path: &str, wanted: u16) {
    eventually(&format!("answer {path} with {wanted}"), || async {
        let response = scene.get(path).await;
        if response.status == wanted { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
}

#[tokio::test]
async fn rows_outside_of_the_filter_are_absent() {
    if needs_publications("filters::rows_outside_of_the_filter_are_absent") {
        return;
    }
    let publication = "ALTER TABLE items REPLICA IDENTITY FULL;
        CREATE PUBLICATION {p} FOR TABLE items WHERE (active AND name <> '{condition}')";
    let Some(scene) = scene("filter", publication, &both()).await else { return };
    for entity in ["item", "pop"] {
        assert_eq!(status(&scene, &format!("{entity}/1")).await, 200);
        let absent = scene.get(&format!("{entity}/2")).await;
        assert_eq!((absent.status.as_u16(), absent.header("x-cache")), (404, "MISS"), "a fill obeys it");
        scene.warm(&format!("{entity}/1")).await;
        scene.warm(&format!("{entity}/2")).await;
    }
    let fresh = scene.http.get_with("/v1/item/2", &[("cache-control", "no-cache")]).await;
    assert_eq!(fresh.status, 404);
    // It stays outside, and changes there.
    scene.write("UPDATE items SET n = 22 WHERE id = 2").await;
    assert_eq!(scene.get("item/2").await.header("x-cache"), "HIT-L1", "nothing is streamed of it");
    // One leaves and one enters, in one transaction.
    scene.write("UPDATE items SET active = NOT active WHERE id IN (1, 2)").await;
    for entity in ["item", "pop"] {
        assert_eq!(scene.stored(&format!("{entity}:1")).await.unwrap().value, "null");
        let entered = scene.get(&format!("{entity}/2")).await.expect(200);
        assert_eq!((entered.json()["n"].as_i64(), entered.header("x-cache")), (Some(22), "HIT-L2"));
    }
    scene.write("UPDATE items SET active = true, n = 11 WHERE id = 1; UPDATE items SET n = 3 WHERE id = 3").await;
    scene.write("INSERT INTO items (id, active, n, name) VALUES (30, true, 1, ''), (31, false, 1, ''), (32, true, 1, '{condition}')").await;
    assert_eq!(
        (status(&scene, "item/30").await, status(&scene, "item/31").await, status(&scene, "item/32").await),
        (200, 404, 404)
    );
    scene.write("DELETE FROM items WHERE id IN (30, 31); UPDATE items SET id = 41 WHERE id = 5; UPDATE items SET id = 42 WHERE id = 6").await;
    scene.verify().await;
    // The auditor's reads obey it, too.
    let verified =
        cli(&scene.config.clone().set("admin", "listen", scene.daemon.admin_address()), &["verify"], &[]).await;
    assert!(verified.status.success(), "{verified:?}");
    assert!(codes(&findings(&scene.config).await, "warning").contains(&"publication_row_filter"));
}

/// 5, 9: a row that comes into the filter comes as an insert, but without what is out of line and has not changed.
#[tokio::test]
async fn a_row_that_enters_the_filter_has_all_of_its_values() {
    if needs_publications("filters::a_row_that_enters_the_filter_has_all_of_its_values") {
        return;
    }
    let publication = "CREATE UNIQUE INDEX items_active ON items (id, active);
        ALTER TABLE items REPLICA IDENTITY USING INDEX items_active;
        ALTER TABLE items ALTER body SET STORAGE EXTERNAL; UPDATE items SET body = body || 'x';
        CREATE PUBLICATION {p} FOR TABLE items WHERE (active)";
    let Some(scene) = scene("filter_toast", publication, &both()).await else { return };
    for key in 1..5 {
        scene.warm(&format!("pop/{key}")).await;
        scene.warm(&format!("item/{key}")).await;
    }
    for _ in 0..3 {
        scene.write("UPDATE items SET active = NOT active").await;
        scene.verify().await;
        scene.write("UPDATE items SET n = n + 1").await;
        scene.verify().await;
    }
    let in_one =
        "BEGIN; UPDATE items SET active = false WHERE id = 1; UPDATE items SET active = true, n = 0 WHERE id = 1;
        UPDATE items SET n = 5 WHERE id = 1; COMMIT";
    scene.write(in_one).await;
    scene.verify().await;
}

#[tokio::test]
async fn another_filter_is_another_shape() {
    if needs_publications("filters::another_filter_is_another_shape") {
        return;
    }
    let publication = "ALTER TABLE items REPLICA IDENTITY FULL; CREATE PUBLICATION {p} FOR TABLE items WHERE (n < 10)";
    let Some(scene) = scene("filter_altered", publication, &both()).await else { return };
    let name = scene.stage.name.clone();
    assert_eq!((status(&scene, "item/3").await, status(&scene, "item/15").await), (200, 404));
    scene.warm("item/3").await;
    scene.warm("item/15").await;
    scene.write(&format!("ALTER PUBLICATION {name} SET TABLE items WHERE (n >= 10)")).await;
    becomes(&scene, "item/3", 404).await;
    becomes(&scene, "item/15", 200).await;
    scene.write("UPDATE items SET n = n + 1").await;
    scene.verify().await;
    scene.write(&format!("ALTER PUBLICATION {name} SET TABLE items")).await;
    becomes(&scene, "item/3", 200).await;
    scene.write("UPDATE items SET n = n + 1").await;
    scene.verify().await;
}

#[tokio::test]
async fn filters_of_several_publications_are_one_or_the_other() {
    if needs_publications("filters::filters_of_several_publications_are_one_or_the_other") {
        return;
    }
    let stage = Stage::shared("filter_or").await;
    if !has_filters(&stage).await {
        return;
    }
    let (one, other) = (format!("{}_one", stage.name), format!("{}_other", stage.name));
    stage
        .execute(&format!(
            "{SCHEMA} ALTER TABLE items REPLICA IDENTITY FULL; CREATE PUBLICATION {one} FOR TABLE items WHERE (n < 5);
             CREATE PUBLICATION {other} FOR TABLE items WHERE (n > 15)"
        ))
        .await;
    let publications = vec![toml::Value::from(one.as_str()), toml::Value::from(other.as_str())];
    let scene = Scene::on(stage, |config| {
        let config = config.set("source", "publication", publications).set("source", "schema_check_interval", "200ms");
        both().into_iter().fold(config, |config, entity| config.entity(entity))
    })
    .await;
    let three =
        async || (status(&scene, "item/2").await, status(&scene, "item/10").await, status(&scene, "item/18").await);
    assert_eq!(three().await, (200, 404, 200));
    scene
        .write("UPDATE items SET n = n + 10; INSERT INTO items (id, active, n) VALUES (50, true, 1), (51, true, 7)")
        .await;
    scene.verify().await;
    scene.write("UPDATE items SET n = n - 10 WHERE id < 50").await;
    assert_eq!(three().await, (200, 404, 200));
    scene.verify().await;
    // Where one of them has none, there is none.
    scene.write(&format!("ALTER PUBLICATION {one} SET TABLE items")).await;
    becomes(&scene, "item/10", 200).await;
    scene.write("UPDATE items SET n = n + 1").await;
    scene.verify().await;
}

#[tokio::test]
async fn a_filter_of_a_partitioned_table() {
    if needs_publications("filters::a_filter_of_a_partitioned_table") {
        return;
    }
    let publication = "CREATE TABLE parts (id int, at int, n int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
        INSERT INTO parts SELECT i, i, i FROM generate_series(0, 19) i;
        CREATE PUBLICATION {p} FOR TABLE parts WHERE (at % 3 <> 0) WITH (publish_via_partition_root = true)";
    let entities = [Entity::new("part", "parts").set("populate", true)];
    let Some(scene) = scene("filter_parts", publication, &entities).await else { return };
    assert_eq!((status(&scene, "part/4,4").await, status(&scene, "part/3,3").await), (200, 404));
    scene.verify().await;
    // Within a partition, into the filter and out of it, and from one partition to the other.
    scene.write("UPDATE parts SET n = n + 1; UPDATE parts SET at = at + 1 WHERE id IN (3, 5, 9)").await;
    scene.verify().await;
    scene.write("DELETE FROM parts WHERE id > 15; TRUNCATE parts_1").await;
    eventually("have the rows of the partition gone", || async {
        let response = scene.get("part/4,4").await;
        if response.status == 404 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
}

/// The role needs the filter's columns, also where the entity does not.
#[tokio::test]
async fn columns_that_only_the_filter_reads_must_be_readable() {
    if needs_publications("filters::columns_that_only_the_filter_reads_must_be_readable") {
        return;
    }
    let stage = Stage::shared("filter_rights").await;
    if !has_filters(&stage).await {
        return;
    }
    let role = &stage.name;
    stage
        .execute(&format!(
            "{SCHEMA} ALTER TABLE items REPLICA IDENTITY FULL; CREATE PUBLICATION {role} FOR TABLE items WHERE (n < 10);
             CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'right'"
        ))
        .await;
    let url = format!("postgres://{role}:right@127.0.0.1:{}/{role}", stage.postgres.port());
    let columns = vec![toml::Value::from("id"), toml::Value::from("name")];
    let config = stage.config().set("source", "url", url).entity(Entity::new("item", "items").set("columns", columns));
    let admin = stage.source_url();
    let done = cli(&config, &["setup", "--apply", "--url", &admin], &[]).await;
    assert!(done.status.success() && done.stdout.contains("GRANT SELECT (\"n\")"), "{done:?}");
    let daemon = crate::harness::Daemon::start(&config).await;
    daemon.wait_ready().await;
    assert_eq!(daemon.http().get("/v1/item/1").await.expect(200).text(), r#"{"id":1,"name":"item 1"}"#);
    daemon.http().get("/v1/item/12").await.expect(404);
}

/// An entity of all columns reads those that are not published, and drops entries on every change; one of published
/// columns only is refreshed.
#[tokio::test]
async fn columns_outside_of_the_list_are_read_and_never_stale() {
    if needs_publications("filters::columns_outside_of_the_list_are_read_and_never_stale") {
        return;
    }
    let publication = "CREATE PUBLICATION {p} FOR TABLE items (id, n, name)";
    let list = vec![toml::Value::from("name"), toml::Value::from("n")];
    let entities =
        [Entity::new("all", "items").set("populate", true), Entity::new("part", "items").set("columns", list)];
    let Some(scene) = scene("column_list", publication, &entities).await else { return };
    let found = findings(&scene.config).await;
    assert_eq!(
        (codes(&found, "error"), codes(&found, "warning").contains(&"publication_columns")),
        (vec![], true),
        "{found:?}"
    );
    let told = found.iter().find(|finding| finding["code"] == "publication_columns").unwrap();
    assert!(told["remedy"].as_str().unwrap().contains("columns = [\"id\", \"n\", \"name\"]"), "{told}");
    for key in [1, 2] {
        scene.warm(&format!("all/{key}")).await;
        scene.warm(&format!("part/{key}")).await;
    }
    scene.write("UPDATE items SET n = 100 WHERE id = 1").await;
    assert_eq!(scene.stored("all:1").await, None, "a part of the value would be missing");
    let part = scene.get("part/1").await;
    assert_eq!((part.text().as_str(), part.header("x-cache")), (r#"{"name":"item 1","n":100}"#, "HIT-L2"));
    let all = scene.get("all/1").await;
    assert_eq!(
        (all.json()["k0"].as_i64(), all.json()["n"].as_i64(), all.header("x-cache")),
        (Some(1), Some(100), "MISS")
    );
    // What is not published has changed, and nothing else.
    scene.write("UPDATE items SET k0 = 77 WHERE id = 2").await;
    assert_eq!(scene.get("all/2").await.json()["k0"], 77);
    scene.write("INSERT INTO items (id, active, name) VALUES (60, true, 'new'); UPDATE items SET id = 61 WHERE id = 3; DELETE FROM items WHERE id = 4").await;
    scene.verify().await;
    // The list gets longer.
    let name = &scene.stage.name;
    scene.write(&format!("ALTER PUBLICATION {name} SET TABLE items (id, active, n, name, k0, ord, body)")).await;
    eventually_within(LONG_LIMIT, "refresh entries in place", || async {
        scene.warm("all/1").await;
        scene.write("UPDATE items SET k0 = k0 + 1 WHERE id = 1").await;
        let response = scene.get("all/1").await;
        if response.header("x-cache") == "HIT-L2" { Ok(()) } else { Err(format!("{:?}", response.headers)) }
    })
    .await;
    scene.verify().await;
}

/// 10: what Postgres would refuse, of the application's writes or in the stream, is said before, with the SQL that mends it.
#[tokio::test]
async fn filters_and_lists_that_cannot_work_are_mended_by_the_sql_that_is_given() {
    if needs_publications("filters::filters_and_lists_that_cannot_work_are_mended_by_the_sql_that_is_given") {
        return;
    }
    let stage = Stage::shared("filter_mend").await;
    if !has_filters(&stage).await {
        return;
    }
    stage.execute(SCHEMA).await;
    let config = stage.config().entity(Entity::new("item", "items"));
    let done = cli(&config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    let name = &stage.name;
    for (publish, identity, wanted) in [
        ("items WHERE (active)", "DEFAULT", &["row_filter_identity"][..]),
        ("items (id, n) WHERE (active)", "DEFAULT", &["row_filter_identity"]),
        ("items (id, n)", "FULL", &["column_list_identity"]),
        ("items (n, name)", "DEFAULT", &["publication_columns"]),
        ("items (n, name) WHERE (n > 0)", "FULL", &["publication_columns"]),
    ] {
        let sql =
            format!("ALTER PUBLICATION {name} SET TABLE {publish}; ALTER TABLE items REPLICA IDENTITY {identity}");
        stage.execute(&sql).await;
        // Else it would be no finding.
        let refused = stage.sql().await.batch_execute("UPDATE items SET n = n + 1").await;
        assert!(refused.is_err(), "{publish}: Postgres takes the update");
        assert_eq!(mend(&stage, &config).await, wanted, "{publish}");
        stage.execute("UPDATE items SET n = n + 1; DELETE FROM items WHERE id = 1000").await;
    }
    // Two publications with different lists, which the stream would end with.
    let other = format!("{name}_other");
    stage
        .execute(&format!(
            "ALTER TABLE items REPLICA IDENTITY DEFAULT; ALTER PUBLICATION {name} SET TABLE items;
        CREATE PUBLICATION {other} FOR TABLE items (id, n)"
        ))
        .await;
    let publications = vec![toml::Value::from(name.as_str()), toml::Value::from(other.as_str())];
    let config = config.set("source", "publication", publications);
    assert_eq!(mend(&stage, &config).await, ["publication_column_lists"]);
    let daemon = crate::harness::Daemon::start(&config).await;
    daemon.wait_ready().await;
    daemon.http().get("/v1/item/1").await.expect(200);
}
