//! Voids: entries that nobody names one by one, by their tags and by patterns of keys.

mod operate;
mod patterns;
mod tags;
mod went_back;

use std::path::PathBuf;

use serde_json::json;
use walcache::failpoint::{HOLD, KILLS, Point};
use walcache::lsn::Lsn;

use crate::harness::{Config, Daemon, Entity, Response, Scene, eventually, until_a_read_waits};

/// Rows of each tenant: 0 to 3.
const EACH: i32 = 500;

/// Items of four tenants, and notes that say what a rate was when they were read, which no change of theirs shows. Whoever
/// holds advisory lock 1 makes reads of notes wait when they have seen the rate.
const SCHEMA: &str = "
    CREATE TABLE items (id int PRIMARY KEY, tenant int, code text NOT NULL DEFAULT '', n int NOT NULL DEFAULT 0);
    INSERT INTO items SELECT i, i % 4, 'c' || i FROM generate_series(0, 1999) i;
    CREATE TABLE rates (rate int NOT NULL);
    INSERT INTO rates VALUES (1);
    CREATE TYPE rated AS ENUM ('now');
    CREATE FUNCTION said(rated) RETURNS json LANGUAGE plpgsql VOLATILE AS $$
    DECLARE seen int;
    BEGIN
        SELECT rate INTO seen FROM public.rates;
        PERFORM pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1);
        RETURN to_json(seen);
    END $$;
    CREATE CAST (rated AS json) WITH FUNCTION said(rated);
    CREATE TABLE notes (tenant int, id int, rate rated NOT NULL DEFAULT 'now', PRIMARY KEY (tenant, id));
    INSERT INTO notes SELECT t, i FROM generate_series(1, 2) t, generate_series(1, 3) i;";

fn configure(config: Config) -> Config {
    configure_with(config, &["tenant:{tenant}", "rates"])
}

/// With other tags of notes.
fn configure_with(config: Config, of_notes: &[&str]) -> Config {
    let item =
        Entity::new("item", "public.items").set("tags", ["tenant:{tenant}", "all-items"].map(String::from).to_vec());
    let of_notes: Vec<String> = of_notes.iter().map(|tag| (*tag).to_owned()).collect();
    let note = Entity::new("note", "public.notes").set("tags", of_notes);
    // Transactions of more than a few changes go in pieces.
    config
        .set("apply", "max_transaction_bytes", "1KiB")
        .set("apply", "max_batch_bytes", "64KiB")
        .set("source", "heartbeat_interval", "300ms")
        .set("audit", "rate", 0)
        // Fills are held until much has happened.
        .set("source", "fill_timeout", "60s")
        .set("l2", "lease_ttl", "60s")
        .entity(item)
        .entity(note)
}

async fn scene(name: &str) -> Scene {
    Scene::open(name, SCHEMA, configure).await
}

/// Restarts the daemon such that its first sweep waits at a point until the file is removed whose path is returned.
async fn sweeps_wait_at(scene: &mut Scene, point: Point) -> PathBuf {
    scene.daemon.kill().await;
    let hold = scene.stage.redis.dir().join(&scene.stage.name);
    std::fs::write(&hold, "").unwrap();
    let at = format!("{}=wait@1", point.name());
    scene.daemon = Daemon::start_with(&scene.config, &[(KILLS, &at), (HOLD, hold.to_str().unwrap())]).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
    hold
}

/// Where an answer comes from.
async fn from(scene: &Scene, path: &str) -> String {
    scene.get(path).await.header("x-cache").to_owned()
}

/// Reads items until L1 answers them all.
async fn warm_items(scene: &Scene) {
    for start in [0, 1000] {
        let keys: Vec<i32> = (start..start + 1000).collect();
        for _ in 0..2 {
            scene.http.post("/v1/item/batch", &json!({ "keys": keys }), &[]).await.expect(200);
        }
    }
    scene.warm("item/0").await;
}

/// The names of the fence's fields that begin so, sorted.
async fn fence(scene: &Scene, start: &str) -> Vec<String> {
    let key = "~walcache:fence";
    let mut fields: Vec<String> =
        redis::AsyncCommands::hkeys(&mut scene.l2.clone(), key).await.expect("HKEYS of the fence");
    fields.retain(|field| field.starts_with(start));
    fields.sort();
    fields
}

/// Waits until the slot has confirmed an LSN: what lies before does not come again.
async fn confirmed(scene: &Scene, lsn: Lsn) {
    let query = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2";
    eventually("confirm what is applied", || async {
        let row = scene.sql.query_one(query, &[&lsn.to_string(), &scene.stage.name]).await.unwrap();
        if row.get(0) { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// The rate that a note's answer says.
async fn rate(scene: &Scene, path: &str) -> (i64, String) {
    let response = scene.get(path).await.expect(200);
    (response.json()["rate"].as_i64().expect("a number"), response.header("x-cache").to_owned())
}

/// Sets the rate, and says in the same transaction what that concerns.
async fn set_rate(scene: &Scene, rate: i32, said: &str) -> Lsn {
    scene.write(&format!("BEGIN; UPDATE rates SET rate = {rate}; {said}; COMMIT")).await
}

/// A fill of note 1,1 that has begun, and does not go on before `pg_advisory_unlock(1)` on the connection.
async fn fill_in_the_middle(scene: &Scene) -> (tokio_postgres::Client, tokio::task::JoinHandle<Response>) {
    let locker = scene.stage.sql().await;
    locker.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let http = scene.http.clone();
    let early = tokio::spawn(async move { http.get("/v1/note/1,1").await });
    until_a_read_waits(&scene.sql).await;
    (locker, early)
}
