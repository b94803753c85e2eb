//! Fault 5: several publications, of all tables and of schemas; tables and schemas that leave and come back; a publication
//! that is dropped and made anew.

use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{
    Daemon, Entity, LONG_LIMIT, Scene, Shop, Stage, cli, codes, current_lsn, eventually, eventually_within, findings,
    needs_publications, version,
};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
    CREATE TABLE things (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO items SELECT i, 0 FROM generate_series(1, 9) i; INSERT INTO things SELECT i, 0 FROM generate_series(1, 9) i;";

/// Whether the server has row filters, column lists and publications of schemas: since Postgres 15.
pub async fn has_filters(stage: &Stage) -> bool {
    stage.version().await >= 15
}

fn names<const N: usize>(names: [&str; N]) -> toml::Value {
    toml::Value::Array(names.iter().map(|name| toml::Value::from(*name)).collect())
}

/// An update is followed in place.
async fn followed(scene: &Scene, entity: &str, table: &str, n: i32) {
    scene.warm(&format!("{entity}/1")).await;
    scene.write(&format!("UPDATE {table} SET n = {n} WHERE id = 1")).await;
    let response = scene.get(&format!("{entity}/1")).await.expect(200);
    assert_eq!((response.json()["n"].as_i64(), response.header("x-cache")), (Some(i64::from(n)), "HIT-L2"), "{entity}");
}

#[tokio::test]
async fn several_publications_are_one_stream() {
    if needs_publications("publications::several_publications_are_one_stream") {
        return;
    }
    let stage = Stage::shared("publications").await;
    stage.execute(SCHEMA).await;
    let (one, other) = (format!("{} one, 'of two'", stage.name), format!("{}_other", stage.name));
    stage.execute(&format!("CREATE PUBLICATION {other} FOR TABLE things")).await;
    let publications = names([one.as_str(), other.as_str()]);
    let scene = Scene::on(stage, |config| {
        config
            .set("source", "publication", publications)
            .set("source", "schema_check_interval", "200ms")
            .entity(Entity::new("item", "items"))
            .entity(Entity::new("thing", "things"))
    })
    .await;
    // Setup made the one that was missing, for the table that was in none.
    let tables =
        "SELECT pubname || ' ' || tablename FROM pg_publication_tables WHERE pubname LIKE $1 || '%' ORDER BY 1";
    let tables = scene.sql.query(tables, &[&scene.stage.name]).await.unwrap();
    let tables: Vec<String> = tables.iter().map(|row| row.get(0)).collect();
    assert_eq!(tables, [format!("{one} items"), format!("{other} things")]);
    assert_eq!(scene.daemon.status().await["replication"]["publication"], serde_json::json!([one, other]));
    followed(&scene, "item", "items", 1).await;
    followed(&scene, "thing", "things", 1).await;
    // A table may move from one to the other.
    scene
        .write(&format!("ALTER PUBLICATION {other} ADD TABLE items; ALTER PUBLICATION \"{one}\" DROP TABLE items"))
        .await;
    eventually_within(LONG_LIMIT, "follow the table there", || async {
        scene.warm("item/1").await;
        scene.write("UPDATE items SET n = n + 1 WHERE id = 1").await;
        let response = scene.get("item/1").await;
        if response.header("x-cache") == "HIT-L2" { Ok(()) } else { Err(format!("{:?}", response.headers)) }
    })
    .await;
    scene.verify().await;
    // Each must publish everything.
    scene.write(&format!("ALTER PUBLICATION {other} SET (publish = 'insert')")).await;
    assert_eq!(codes(&findings(&scene.config).await, "error"), ["publication_operations"]);
    scene.write(&format!("DROP PUBLICATION \"{one}\"")).await;
    let found = findings(&scene.config).await;
    assert_eq!(codes(&found, "error"), ["publication_missing"]);
}

#[tokio::test]
async fn all_tables_include_one_that_is_made_later() {
    if needs_publications("publications::all_tables_include_one_that_is_made_later") {
        return;
    }
    let stage = Stage::shared("all_tables").await;
    stage.execute(&format!("{SCHEMA} CREATE PUBLICATION {} FOR ALL TABLES", stage.name)).await;
    let scene = Scene::on(stage, |config| {
        config
            .set("source", "schema_check_interval", "200ms")
            .entity(Entity::new("item", "items"))
            .entity(Entity::new("thing", "things"))
    })
    .await;
    followed(&scene, "item", "items", 1).await;
    scene
        .write("DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL, more text DEFAULT 'x')")
        .await;
    scene.write("INSERT INTO items VALUES (1, 5)").await;
    eventually("serve the new table", || async {
        let response = scene.get("item/1").await;
        if response.text().contains("more") { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    followed(&scene, "item", "items", 6).await;
    followed(&scene, "thing", "things", 6).await;
    scene.verify().await;
}

/// 5: a schema that was out of the publication for a time in which nobody looked.
#[tokio::test]
async fn changes_of_a_time_without_the_schema_are_not_missed() {
    if needs_publications("publications::changes_of_a_time_without_the_schema_are_not_missed") {
        return;
    }
    let stage = Stage::shared("in_schema").await;
    if !has_filters(&stage).await {
        return;
    }
    let name = stage.name.clone();
    stage
        .execute(&format!(
            "{SCHEMA} CREATE SCHEMA far; CREATE TABLE far.away (id int PRIMARY KEY, n int NOT NULL);
            INSERT INTO far.away VALUES (1, 0), (2, 0); CREATE PUBLICATION {name} FOR TABLES IN SCHEMA public, far"
        ))
        .await;
    let scene = Scene::on(stage, |config| {
        config
            .set("source", "schema_check_interval", "1h")
            .entity(Entity::new("item", "items"))
            .entity(Entity::new("away", "far.away"))
    })
    .await;
    followed(&scene, "item", "items", 1).await;
    followed(&scene, "away", "far.away", 1).await;
    scene.warm("away/2").await;
    let generation =
        |status: serde_json::Value, entity: usize| status["entities"][entity]["generation"].as_u64().unwrap();
    let before = generation(scene.daemon.status().await, 0);
    scene.daemon.kill().await;
    for sql in [
        &format!("ALTER PUBLICATION {name} DROP TABLES IN SCHEMA far"),
        "UPDATE far.away SET n = 2",
        &format!("ALTER PUBLICATION {name} ADD TABLES IN SCHEMA far"),
    ] {
        scene.sql.batch_execute(sql).await.unwrap();
    }
    let daemon = Daemon::start(&scene.config).await;
    daemon.wait_ready().await;
    daemon.wait_applied(current_lsn(&scene.sql).await).await;
    let scene = Scene { http: daemon.http(), daemon, ..scene };
    for key in [1, 2] {
        assert_eq!(scene.get(&format!("away/{key}")).await.json()["n"], 2, "away/{key}");
    }
    assert_eq!(generation(scene.daemon.status().await, 0), before, "the other schema was in it all the time");
    // A table of a schema may be made later.
    scene.write("CREATE TABLE far.later (id int PRIMARY KEY, n int NOT NULL)").await;
    let more = scene.config.clone().entity(Entity::new("later", "far.later"));
    assert_eq!(codes(&findings(&more).await, "error"), [""; 0]);
    scene.verify().await;
}

/// 5: a transaction that has changed the table before it was published, and ends only afterwards, is not in the stream.
#[tokio::test]
async fn a_transaction_that_was_open_when_the_table_joined_is_waited_for() {
    if needs_publications("publications::a_transaction_that_was_open_when_the_table_joined_is_waited_for") {
        return;
    }
    let stage = Stage::private("joining", PostgresOptions::new(), RedisOptions::new()).await;
    stage.execute(SCHEMA).await;
    let name = stage.name.clone();
    let scene = Scene::on(stage, |config| {
        let config = config.set("source", "schema_check_interval", "200ms");
        config.entity(Entity::new("item", "items")).entity(Entity::new("thing", "things"))
    })
    .await;
    let drop = format!("ALTER PUBLICATION {name} DROP TABLE items");
    let add = format!("ALTER PUBLICATION {name} ADD TABLE items");
    let cached = async |scene: &Scene| {
        // Twice: what is cached would answer the second.
        scene.get("item/1").await.expect(200);
        let response = scene.get("item/1").await.expect(200);
        if response.header("x-cache") == "BYPASS" { Err(format!("{response:?}")) } else { Ok(()) }
    };
    let open = scene.stage.sql().await;
    for (n, down) in [(1, false), (2, true)] {
        scene.warm("item/1").await;
        scene.write(&drop).await;
        eventually("notice that the table has left", || async { cached(&scene).await.err().ok_or("still cached") })
            .await;
        open.batch_execute(&format!("BEGIN; UPDATE items SET n = {n}0 WHERE id = 1")).await.unwrap();
        if down {
            scene.daemon.kill().await;
            scene.sql.batch_execute(&add).await.unwrap();
        } else {
            scene.write(&add).await;
        }
        let again = if down { Some(Daemon::start(&scene.config).await) } else { None };
        let daemon = again.as_ref().unwrap_or(&scene.daemon);
        daemon.wait_serving().await;
        eventually("say that it waits", || async {
            let log = daemon.log();
            if log.contains("not cached before all transactions have ended") { Ok(()) } else { Err(log) }
        })
        .await;
        let http = daemon.http();
        for _ in 0..5 {
            let response = http.get("/v1/item/1").await.expect(200);
            assert_eq!((response.header("x-cache"), response.json()["n"].as_i64()), ("BYPASS", Some((n - 1) * 10)));
        }
        // Other tables do not wait.
        scene.sql.batch_execute("UPDATE things SET n = n + 1").await.unwrap();
        daemon.wait_applied(current_lsn(&scene.sql).await).await;
        open.batch_execute("COMMIT").await.unwrap();
        eventually("cache it", || async {
            let response = http.get("/v1/item/1").await.expect(200);
            if response.header("x-cache") == "HIT-L1" { Ok(()) } else { Err(format!("{response:?}")) }
        })
        .await;
        assert_eq!(http.get("/v1/item/1").await.json()["n"], n * 10);
    }
}

/// 5: of the transactions that run, a snapshot names only those that began before another one has ended.
#[tokio::test]
async fn a_transaction_that_began_while_the_table_joined_is_waited_for() {
    if needs_publications("publications::a_transaction_that_began_while_the_table_joined_is_waited_for") {
        return;
    }
    // Nobody else's transaction may end meanwhile.
    let stage = Stage::private("joining_late", PostgresOptions::new(), RedisOptions::new()).await;
    stage.execute(SCHEMA).await;
    let name = stage.name.clone();
    let scene = Scene::on(stage, |config| {
        config.set("source", "schema_check_interval", "200ms").entity(Entity::new("item", "items"))
    })
    .await;
    scene.warm("item/1").await;
    scene.write(&format!("ALTER PUBLICATION {name} DROP TABLE items")).await;
    let of_item = async || {
        // Twice: what is cached would answer the second.
        scene.get("item/1").await.expect(200);
        let response = scene.get("item/1").await.expect(200);
        (response.header("x-cache").to_owned(), response.json()["n"].as_i64())
    };
    eventually("notice that the table has left", || async {
        let answer = of_item().await;
        if answer.0 == "BYPASS" { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let (adding, open) = (scene.stage.sql().await, scene.stage.sql().await);
    adding.batch_execute(&format!("BEGIN; ALTER PUBLICATION {name} ADD TABLE items")).await.unwrap();
    open.batch_execute("BEGIN; UPDATE items SET n = 10 WHERE id = 1").await.unwrap();
    adding.batch_execute("COMMIT").await.unwrap();
    eventually("say that it waits", || async {
        let log = scene.daemon.log();
        if log.contains("not cached before all transactions have ended") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(of_item().await, ("BYPASS".to_owned(), Some(0)));
    open.batch_execute("COMMIT").await.unwrap();
    assert_eq!(scene.warm("item/1").await.json()["n"], 10);
    scene.verify().await;
}

/// 5: the stream cannot get past the time without its publication: a new slot and a new generation, and nothing stale.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_and_made_anew_while_the_daemon_runs() {
    if needs_publications("publications::dropped_and_made_anew_while_the_daemon_runs") {
        return;
    }
    let shop = Shop::new("pub_anew").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
    }
    shop.equals_postgres(&daemon).await;
    let before = daemon.status().await["entities"][0]["generation"].as_u64().unwrap();
    let name = &shop.stage.name;
    sql.batch_execute(&format!("DROP PUBLICATION {name}")).await.unwrap();
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    // From Postgres 18 on the stream goes on without it, as if its tables were not published.
    let goes_on = shop.stage.version().await >= 18;
    eventually("say that the publication is missing", || async {
        let status = daemon.status().await;
        let said = if goes_on { &status["entities"][0]["cause"] } else { &status["problem"] }.to_string();
        if said.contains("does not exist") { Ok(()) } else { Err(said) }
    })
    .await;
    // As long as it is missing, nothing is given up: the slot stays.
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1";
    assert_eq!(sql.query_one(slots, &[name]).await.unwrap().get::<_, i64>(0), 1);
    let done = cli(&shop.config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    for id in 0..10 {
        shop.put(&sql, id, 3).await;
    }
    eventually("stream again", || async {
        let status = daemon.status().await;
        if status["problem"].is_null() { Ok(()) } else { Err(status["problem"].to_string()) }
    })
    .await;
    shop.equals_postgres(&daemon).await;
    assert!(daemon.status().await["entities"][0]["generation"].as_u64().unwrap() > before);
    let log = daemon.log();
    assert!(goes_on || log.contains("the publication was gone for a time, and changes with it"), "{log}");
    // And from then on as before.
    shop.put(&sql, 3, 4).await;
    shop.equals_postgres(&daemon).await;
    let confirmed = shop.confirmed().await;
    assert!(confirmed > walcache::lsn::Lsn::ZERO);
}

/// 5: as before, but nobody was there, and the daemon starts only afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_and_made_anew_while_no_daemon_runs() {
    if needs_publications("publications::dropped_and_made_anew_while_no_daemon_runs") {
        return;
    }
    let shop = Shop::new("pub_anew_down").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
    }
    shop.equals_postgres(&daemon).await;
    daemon.kill().await;
    let name = &shop.stage.name;
    let create = format!("CREATE PUBLICATION {name} FOR TABLE counters");
    shop.put(&sql, 0, 2).await;
    sql.batch_execute(&format!("DROP PUBLICATION {name}")).await.unwrap();
    for id in 0..20 {
        shop.put(&sql, id, 3).await;
    }
    sql.batch_execute(&create).await.unwrap();
    let daemon = shop.daemon().await;
    shop.equals_postgres(&daemon).await;
    for id in 0..20 {
        let response = daemon.http().get(&format!("/v1/counter/{id}")).await.expect(200);
        assert_eq!(version(&response.json()), Some(3), "{response:?}");
    }
    shop.put(&sql, 1, 4).await;
    shop.equals_postgres(&daemon).await;
}

/// Setup makes whatever publication is missing, also where another one has all tables, or takes them.
#[tokio::test]
async fn each_publication_that_is_missing_is_made() {
    if needs_publications("publications::each_publication_that_is_missing_is_made") {
        return;
    }
    for (name, there) in [("pub_neither", ""), ("pub_listed", "FOR TABLE items, things"), ("pub_all", "FOR ALL TABLES")]
    {
        let stage = Stage::shared(name).await;
        stage.execute(SCHEMA).await;
        let (one, other) = (format!("{}_one", stage.name), format!("{}_other", stage.name));
        if !there.is_empty() {
            stage.execute(&format!("CREATE PUBLICATION {one} {there}")).await;
        }
        let publications = names([one.as_str(), other.as_str()]);
        let config = stage.config().set("source", "publication", publications);
        let config = config.entity(Entity::new("item", "items")).entity(Entity::new("thing", "things"));
        let printed = cli(&config, &["setup"], &[]).await;
        let create = format!("CREATE PUBLICATION \"{other}\" WITH (publish_via_partition_root = true);");
        assert!(printed.status.success() && printed.stdout.contains(&create), "{name}: {printed:?}");
        let done = cli(&config, &["setup", "--apply"], &[]).await;
        assert!(done.status.success(), "{name}: {done:?}");
        assert_eq!(codes(&findings(&config).await, "error"), [""; 0], "{name}");
    }
}
