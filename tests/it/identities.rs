//! Fault 10: what the stream says of old rows (replica identities), and which columns are a key. What cannot work is refused
//! with the SQL that mends it; what works does so for each identity; and a change under way leaves nothing stale.

use serde_json::json;

use crate::harness::{Entity, Scene, Stage, cli, codes, eventually, findings, mend, needs_publications};

fn names(names: &[&str]) -> toml::Value {
    toml::Value::Array(names.iter().map(|name| toml::Value::from(*name)).collect())
}

/// 8, 10: each refusal gives the SQL after which `check` passes and the application can write.
#[tokio::test]
async fn each_refusal_gives_the_sql_that_mends_it() {
    let stage = Stage::shared("identity_mend").await;
    stage
        .execute(
            "CREATE TABLE bare (id int NOT NULL UNIQUE, n int);
             CREATE TABLE swaps (id int PRIMARY KEY DEFERRABLE, n int);
             CREATE TABLE twice (id int PRIMARY KEY DEFERRABLE, n int); CREATE UNIQUE INDEX twice_id ON twice (id);
             CREATE TABLE late (id int, n int, UNIQUE (n), PRIMARY KEY (id) DEFERRABLE);
             CREATE TABLE mute (id int PRIMARY KEY, n int); ALTER TABLE mute REPLICA IDENTITY NOTHING;
             CREATE TABLE mails (id int PRIMARY KEY, email text UNIQUE NOT NULL, n int);
             CREATE TABLE codes (id int PRIMARY KEY, code text, n int);
             CREATE TABLE other (id int PRIMARY KEY, n int UNIQUE NOT NULL);
             ALTER TABLE other REPLICA IDENTITY USING INDEX other_n_key;
             CREATE TABLE parts (id int, at int, n int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
             CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
             ALTER TABLE parts_2 REPLICA IDENTITY NOTHING;
             CREATE TABLE ways (id int, at int, mail text NOT NULL, n int, PRIMARY KEY (id, at), UNIQUE (mail, at))
                 PARTITION BY RANGE (at);
             CREATE TABLE ways_1 PARTITION OF ways FOR VALUES FROM (0) TO (10);",
        )
        .await;
    /// A table, the entity's key, and what is found.
    type Case = (&'static str, Option<&'static [&'static str]>, &'static [&'static str]);
    let cases: [Case; 10] = [
        ("bare", None, &["primary_key_missing"]),
        ("swaps", None, &["primary_key_missing"]),
        ("twice", Some(&["id"]), &["replica_identity"]),
        ("late", Some(&["n"]), &["key_nullable", "replica_identity"]),
        ("mute", None, &["replica_identity"]),
        ("mails", Some(&["email"]), &["replica_identity"]),
        ("codes", Some(&["code"]), &["key_not_unique", "key_nullable", "replica_identity"]),
        ("other", None, &["replica_identity"]),
        ("parts", None, &["replica_identity"]),
        ("ways", Some(&["mail", "at"]), &["replica_identity"]),
    ];
    for (table, key, wanted) in cases {
        let mut entity = Entity::new("it", table);
        if let Some(key) = key {
            entity = entity.set("key", names(key));
        }
        let config = stage.config().entity(entity);
        let publication = format!("{}_{table}", stage.name);
        let config =
            config.set("source", "publication", publication.as_str()).set("source", "slot", publication.as_str());
        let refused = cli(&config, &["run"], &[]).await;
        assert_eq!(refused.status.code(), Some(1), "{table}: {refused:?}");
        let mended = mend(&stage, &config).await;
        let keys: Vec<&str> = mended.iter().map(String::as_str).filter(|code| wanted.contains(code)).collect();
        assert_eq!(keys, wanted, "{table}: {mended:?}");
        let more: Vec<&String> = mended.iter().filter(|code| !wanted.contains(&code.as_str())).collect();
        assert!(
            more.iter().all(|code| ["publication_missing", "migration_missing"].contains(&code.as_str())),
            "{more:?}"
        );
        // Postgres refuses these, rows or none, where a published table has no identity. A key that can be swapped by one
        // statement is deferrable, and none: two rows may have it at a time.
        stage.execute(&format!("UPDATE {table} SET n = n + 1; DELETE FROM {table}")).await;
    }
}

/// Rows by their email, under each identity that says it.
const MAILS: &str = "CREATE TABLE mails (id int PRIMARY KEY, email text NOT NULL UNIQUE, n int, body text);
    INSERT INTO mails SELECT i, 'm' || i, 0, repeat('x', 10) FROM generate_series(1, 9) i;";

async fn by_email(name: &str, identity: &str) -> Scene {
    let schema = format!("{MAILS} ALTER TABLE mails REPLICA IDENTITY {identity};");
    Scene::open(name, &schema, |config| {
        config
            .set("source", "schema_check_interval", "200ms")
            .entity(Entity::new("mail", "mails").set("key", names(&["email"])))
            .entity(Entity::new("pop", "mails").set("key", names(&["email"])).set("populate", true))
    })
    .await
}

/// 8, 10: inserts, updates, deletes and changes of a key that is not the primary one.
#[tokio::test]
async fn a_key_beside_the_primary_one_is_followed() {
    for (name, identity) in [("identity_index", "USING INDEX mails_email_key"), ("identity_full", "FULL")] {
        let scene = by_email(name, identity).await;
        for key in ["m1", "m2", "m3", "m4", "new", "moved"] {
            scene.warm(&format!("mail/{key}")).await;
        }
        scene.write("INSERT INTO mails VALUES (20, 'new', 0, 'b')").await;
        assert_eq!(scene.get("mail/new").await.expect(200).json()["id"], 20);
        scene.write("UPDATE mails SET n = 1 WHERE email = 'm1'").await;
        let response = scene.get("mail/m1").await;
        assert_eq!((response.json()["n"].clone(), response.header("x-cache")), (json!(1), "HIT-L2"), "{identity}");
        // The primary key is none of the entity's.
        scene.write("UPDATE mails SET id = 102 WHERE email = 'm2'").await;
        assert_eq!(scene.get("mail/m2").await.json()["id"], 102);
        scene.write("UPDATE mails SET email = 'moved' WHERE email = 'm3'").await;
        assert_eq!(scene.stored("mail:m3").await.unwrap().value, "null", "{identity}");
        assert_eq!(scene.get("mail/moved").await.json()["id"], 3);
        scene.write("DELETE FROM mails WHERE email = 'm4'").await;
        assert_eq!(scene.stored("mail:m4").await.unwrap().value, "null", "{identity}");
        let swap =
            "BEGIN; UPDATE mails SET email = '' WHERE email = 'm1'; UPDATE mails SET email = 'm1' WHERE email = 'm2';
            UPDATE mails SET email = 'm2' WHERE email = ''; COMMIT";
        scene.write(swap).await;
        assert_eq!(scene.get("pop/m1").await.json()["id"], 102);
        scene.verify().await;
    }
}

/// 10: an identity that does not say the key for a time, in which keys change: nothing stays stale, though all is as it was
/// when somebody looks.
#[tokio::test]
async fn an_identity_that_was_another_one_for_a_time_leaves_nothing_stale() {
    for (name, identity, between) in [
        ("identity_gap_full", "FULL", "DEFAULT"),
        ("identity_gap_index", "USING INDEX mails_email_key", "DEFAULT"),
        ("identity_gap_other", "FULL", "USING INDEX mails_pkey"),
    ] {
        let scene = by_email(name, identity).await;
        for key in ["m1", "m2", "m3", "x1"] {
            scene.warm(&format!("mail/{key}")).await;
            scene.warm(&format!("pop/{key}")).await;
        }
        // In one go, so that no look at the catalog comes in between.
        scene.daemon.pause().await;
        for sql in [
            &format!("ALTER TABLE mails REPLICA IDENTITY {between}"),
            "UPDATE mails SET email = 'x1' WHERE email = 'm1'",
            "UPDATE mails SET n = 5 WHERE email = 'm2'",
            "DELETE FROM mails WHERE email = 'm3'",
            &format!("ALTER TABLE mails REPLICA IDENTITY {identity}"),
        ] {
            scene.sql.batch_execute(sql).await.unwrap();
        }
        scene.daemon.resume();
        scene.applied().await;
        for entity in ["mail", "pop"] {
            assert_eq!(scene.get(&format!("{entity}/m1")).await.status, 404, "{name}");
            assert_eq!(scene.get(&format!("{entity}/m3")).await.status, 404, "{name}");
            assert_eq!(scene.get(&format!("{entity}/x1")).await.json()["id"], 1, "{name}");
        }
        scene.verify().await;
    }
}

/// 10: without an identity Postgres refuses the application's updates; `check` says so, and the entity is not cached until
/// there is one again.
#[tokio::test]
async fn an_identity_that_is_taken_away_is_noticed() {
    // Without a publication Postgres lets such updates pass: see `wal2json::changes_that_are_left_out_are_noticed`.
    if needs_publications("identities::an_identity_that_is_taken_away_is_noticed") {
        return;
    }
    let scene = Scene::open("identity_nothing", MAILS, |config| {
        config.set("source", "schema_check_interval", "200ms").entity(Entity::new("mail", "mails"))
    })
    .await;
    scene.warm("mail/1").await;
    scene.write("ALTER TABLE mails REPLICA IDENTITY NOTHING").await;
    let refused = scene.sql.batch_execute("UPDATE mails SET n = 1 WHERE id = 1").await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("does not have a replica identity"), "{refused:?}");
    assert_eq!(codes(&findings(&scene.config).await, "error"), ["replica_identity"]);
    eventually("read past the tiers", || async {
        let response = scene.get("mail/1").await;
        if response.header("x-cache") == "BYPASS" { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    // Postgres lets inserts through.
    scene.write("INSERT INTO mails VALUES (30, 'm30', 0, '')").await;
    scene.get("mail/30").await.expect(200);
    assert_eq!(mend(&scene.stage, &scene.config).await, ["replica_identity"]);
    scene.warm("mail/1").await;
    scene.write("UPDATE mails SET n = 2 WHERE id = 1; DELETE FROM mails WHERE id = 30").await;
    assert_eq!(scene.get("mail/1").await.json()["n"], 2);
    scene.verify().await;
}

/// A table has one identity: what mends it for one entity must not take it from another.
#[tokio::test]
async fn entities_of_one_table_agree_on_its_identity() {
    let stage = Stage::shared("identity_agree").await;
    stage
        .execute(
            "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE NOT NULL, city text);
             CREATE TABLE places (id int PRIMARY KEY, code text NOT NULL, at int NOT NULL, UNIQUE (code, at));",
        )
        .await;
    let user = || Entity::new("user", "users");
    let by_email = || Entity::new("user_by_email", "users").set("key", names(&["email"]));
    let of_city = Entity::query(
        "of_city",
        "params = { city = \"text\" }\nquery = \"select id from users where city = $1\"\n\
         depends_on = [{ table = \"users\", key = { city = \"city\" } }]\n",
    );
    let place = Entity::query(
        "at",
        "params = { at = \"int\" }\nquery = \"select id from places where at = $1\"\n\
         depends_on = [{ table = \"places\", key = { at = \"at\" } }]\n",
    );
    let identity = async |table: &str| -> String {
        let sql = stage.sql().await;
        let ask = "SELECT relreplident::text FROM pg_class WHERE oid = $1::text::regclass";
        sql.query_one(ask, &[&table]).await.unwrap().get(0)
    };
    let config = || stage.config();
    for (n, (config, table, wanted)) in [
        (config().entity(by_email()), "users", "i"),
        (config().entity(user()), "users", "d"),
        (config().entity(user()).entity(by_email()), "users", "f"),
        (config().entity(by_email()).entity(user()), "users", "f"),
        (config().entity(user()).entity(of_city), "users", "f"),
        (config().entity(place), "places", "i"),
    ]
    .into_iter()
    .enumerate()
    {
        stage.execute(&format!("ALTER TABLE {table} REPLICA IDENTITY NOTHING")).await;
        let name = format!("{}_{n}", stage.name);
        let config = config.set("source", "publication", name.as_str()).set("source", "slot", name.as_str());
        let mended = mend(&stage, &config).await;
        assert_eq!(mended.iter().filter(|code| *code == "replica_identity").count(), 1, "{n}: {mended:?}");
        assert_eq!(identity(table).await, wanted, "{n}");
        assert_eq!(codes(&findings(&config).await, "error"), [""; 0], "{n}");
    }
}
