//! Tables and configuration that do not go together: a state of that entity, and of no other.

use super::{BOTH, BOUND, Noticed, becomes, bypassed, items, refused, stands};
use crate::harness::{Config, Daemon, Entity, Response, Scene, cli, current_lsn, eventually_within, plugin};

#[tokio::test]
async fn keys_and_identities_that_change() {
    for noticed in BOTH {
        let scene = items("ddl_keys", noticed).await;
        let cached = |r: &crate::harness::Response| r.status == 200 && r.header("x-cache") != "BYPASS";
        scene.warm("item/1").await;
        let alter = |what: &str| format!("ALTER TABLE items {what}");
        noticed.change(&scene, &alter("DROP CONSTRAINT items_pkey"), "item/1", |r| refused(r, "no primary key")).await;
        stands(&scene, "item", "unreadable", "primary_key_missing").await;
        noticed.change(&scene, &alter("ADD PRIMARY KEY (id)"), "item/1", cached).await;
        scene.warm("item/1").await;
        noticed.change(&scene, &alter("REPLICA IDENTITY NOTHING"), "item/1", |r| bypassed(r, "one")).await;
        stands(&scene, "item", "uncached", "replica_identity").await;
        noticed.change(&scene, &alter("REPLICA IDENTITY FULL"), "item/1", cached).await;
        scene.write("UPDATE items SET id = 3 WHERE id = 2; UPDATE items SET name = 'ONE' WHERE id = 1").await;
        scene.verify().await;
        // Another key: what was a key is none any more.
        scene.warm("item/1").await;
        let another = alter("DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (name)");
        noticed.change(&scene, &another, "item/ONE", |r| r.status == 200).await;
        scene.get("item/1").await.expect(404);
        scene.write("UPDATE items SET name = 'uno' WHERE name = 'ONE'").await;
        scene.verify().await;
        let both = alter("DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (name, id), REPLICA IDENTITY DEFAULT");
        noticed.change(&scene, &both, "item/uno,1", |r| r.status == 200).await;
        scene.get("item/uno").await.expect(400);
        scene.write("UPDATE items SET price = 9").await;
        scene.verify().await;
    }
}

/// Columns that the configuration names and that are gone, while another entity of the same table does without them.
#[tokio::test]
async fn a_column_that_is_gone_concerns_those_who_name_it() {
    for noticed in BOTH {
        let schema = "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10,2));
                      INSERT INTO items VALUES (1, 'one', 1), (2, 'two', 2);";
        let columns = || ["id", "name"].map(toml::Value::from).to_vec();
        let scene = noticed.scene("ddl_columns", schema, |config| {
            config.entity(Entity::new("item", "items")).entity(Entity::new("named", "items").set("columns", columns()))
        });
        let scene = scene.await;
        scene.warm("named/1").await;
        let gone = "ALTER TABLE items RENAME name TO label";
        noticed.change(&scene, gone, "named/1", |r| refused(r, "has no column name")).await;
        stands(&scene, "named", "unreadable", "column_missing").await;
        stands(&scene, "item", "cached", "").await;
        becomes(&scene, |r| r.status == 200 && r.json()["label"] == "one").await;
        noticed.change(&scene, "ALTER TABLE items RENAME label TO name", "named/1", |r| r.status == 200).await;
        scene.write("UPDATE items SET name = 'ONE' WHERE id = 1").await;
        scene.verify().await;
    }
}

#[tokio::test]
async fn rights_that_are_taken_away() {
    for noticed in BOTH {
        let stage = crate::harness::Stage::shared("ddl_rights").await;
        stage.execute("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'one')").await;
        let url = format!("postgres://{0}:right@127.0.0.1:{1}/{0}", stage.name, stage.postgres.port());
        stage.execute(&format!("CREATE ROLE {} LOGIN REPLICATION PASSWORD 'right'", stage.name)).await;
        let configure = |config: Config| {
            noticed.configure(config).set("source", "url", url.as_str()).entity(Entity::new("item", "items"))
        };
        let admin = stage.source_url();
        let done = cli(&configure(stage.config()), &["setup", "--apply", "--url", &admin], &[]).await;
        assert!(done.status.success(), "{done:?}");
        let scene = Scene::on(stage, configure).await;
        scene.warm("item/1").await;
        let role = scene.stage.name.clone();
        let revoke = format!("REVOKE SELECT ON items FROM {role}");
        noticed.change(&scene, &revoke, "item/1", |r| refused(r, "may not read")).await;
        stands(&scene, "item", "unreadable", "table_rights").await;
        let grant = format!("GRANT SELECT ON items TO {role}");
        noticed.change(&scene, &grant, "item/1", |r| r.status == 200).await;
        scene.warm("item/1").await;
        let hide = "ALTER TABLE items ENABLE ROW LEVEL SECURITY";
        noticed.change(&scene, hide, "item/1", |r| refused(r, "row")).await;
        noticed.change(&scene, "ALTER TABLE items DISABLE ROW LEVEL SECURITY", "item/1", |r| r.status == 200).await;
        scene.verify().await;
    }
}

/// What happened while nobody ran is noticed at the start; a table that was dropped meanwhile takes no other along.
#[tokio::test]
async fn a_start_after_tables_were_changed_and_dropped() {
    for noticed in BOTH {
        let schema = "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10,2));
                      CREATE TABLE others (id int PRIMARY KEY, name text);
                      INSERT INTO items VALUES (1, 'one', 1); INSERT INTO others VALUES (1, 'other')";
        let entities = [Entity::new("item", "items"), Entity::new("other", "others")];
        let name = "ddl_start";
        let mut scene =
            noticed.scene(name, schema, |config| entities.into_iter().fold(config, |c, e| c.entity(e))).await;
        scene.warm("item/1").await;
        scene.warm("other/1").await;
        scene.daemon.kill().await;
        let change = "ALTER TABLE items ALTER price TYPE numeric(10,4); DROP TABLE others";
        scene.sql.batch_execute(change).await.unwrap();
        scene.daemon = Daemon::start(&scene.config).await;
        scene.http = scene.daemon.http();
        scene.daemon.wait_ready().await;
        scene.daemon.wait_applied(current_lsn(&scene.sql).await).await;
        assert!(scene.get("item/1").await.expect(200).text().contains("1.0000"));
        let response = scene.get("other/1").await;
        assert!(refused(&response, "does not exist"), "{response:?}");
        stands(&scene, "other", "unreadable", "table_missing").await;
        assert!(scene.daemon.log().contains("the entity is not cached"), "{}", scene.daemon.log());
        let checked = cli(&scene.config, &["check"], &[]).await;
        assert_eq!(checked.status.code(), Some(1), "{checked:?}");
        let mut made =
            "CREATE TABLE others (id int PRIMARY KEY, name text); INSERT INTO others VALUES (1, 'new')".to_owned();
        if plugin() == "pgoutput" {
            made.push_str(&format!("; ALTER PUBLICATION {} ADD TABLE others", scene.stage.name));
        }
        noticed.change(&scene, &made, "other/1", |r| r.status == 200 && r.header("x-cache") != "BYPASS").await;
        scene.write("UPDATE others SET name = 'newer'; UPDATE items SET name = 'ONE'").await;
        scene.verify().await;
        if plugin() != "pgoutput" {
            continue;
        }
        // What concerns all of them is refused at any start.
        assert!(scene.daemon.terminate().await.success());
        scene.sql.batch_execute(&format!("DROP PUBLICATION {}", scene.stage.name)).await.unwrap();
        let finished = cli(&scene.config, &["run"], &[]).await;
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains("publication_missing"), "{finished:?}");
    }
}

/// An instance that waits for the slot answers from Postgres, and nobody tells it anything: it looks whenever it tries.
#[tokio::test]
async fn an_instance_that_does_not_lead_looks_too() {
    let scene = items("ddl_follower", Noticed::Announced).await;
    let second = Daemon::start(&scene.config.clone().set("source", "reconnect_max", "300ms")).await;
    let http = second.http();
    let becomes = async |what: &str, wanted: &dyn Fn(&Response) -> bool| {
        eventually_within(BOUND, what, || async {
            let response = http.get("/v1/item/1").await;
            if wanted(&response) { Ok(()) } else { Err(format!("{response:?}")) }
        })
        .await;
    };
    becomes("answer", &|r| bypassed(r, "one")).await;
    scene.write("ALTER TABLE items ADD added int DEFAULT 7").await;
    becomes("have the new column", &|r| bypassed(r, "one") && r.json()["added"] == 7).await;
    scene.write("ALTER TABLE items RENAME TO goods").await;
    becomes("refuse", &|r| refused(r, "does not exist")).await;
    scene.write("ALTER TABLE goods RENAME TO items; UPDATE items SET name = 'ONE' WHERE id = 1").await;
    becomes("answer again", &|r| bypassed(r, "ONE")).await;
    scene.verify().await;
}
