//! 7, 11: what changes values, or keeps changes from being told, without an event for any row.
//!
//! Each change of the schema is tried in both ways of noticing it: announced in the log by the event triggers, where it
//! must show in the first answer that claims to contain it; and by looking at the catalog alone, within the bound.

mod announce;
mod names;
mod partitions;
mod publication;
mod races;
mod shapes;
mod standing;

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Config, Entity, Response, Scene, eventually_within};

/// How schema changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noticed {
    /// By the event triggers' messages alone.
    Announced,
    /// By looking at the catalog alone.
    Polled,
}

const BOTH: [Noticed; 2] = [Noticed::Announced, Noticed::Polled];

/// The bound of the test's interval (200 ms) with what a busy machine adds. Whatever the interval missed, the next whole
/// look at the catalog would find after a minute.
const BOUND: Duration = Duration::from_secs(15);

impl Noticed {
    fn configure(self, config: Config) -> Config {
        match self {
            Noticed::Announced => config.set("source", "schema_check_interval", "1h"),
            Noticed::Polled => {
                config.set("source", "schema_check_interval", "200ms").set("source", "event_triggers", false)
            }
        }
    }

    async fn scene(self, name: &str, schema: &str, configure: impl FnOnce(Config) -> Config) -> Scene {
        Scene::open(name, schema, |config| configure(self.configure(config))).await
    }

    /// Runs what changes the schema, and has the answer be as wanted from then on: at once, or within the bound.
    async fn change(self, scene: &Scene, sql: &str, path: &str, wanted: impl Fn(&Response) -> bool) {
        scene.write(sql).await;
        match self {
            Noticed::Announced => {
                // Noticed, and nothing more: an entity may have to wait for what other tests have open on the server.
                scene.daemon.wait_joined().await;
                let response = scene.get(path).await;
                assert!(wanted(&response), "after {sql}: {response:?}");
            }
            Noticed::Polled => {
                eventually_within(BOUND, &format!("notice {sql}"), || async {
                    scene.daemon.wait_joined().await;
                    let response = scene.get(path).await;
                    if wanted(&response) { Ok(()) } else { Err(format!("{response:?}")) }
                })
                .await;
            }
        }
    }
}

/// A table of two rows.
async fn items(name: &str, noticed: Noticed) -> Scene {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10,2));
                  INSERT INTO items VALUES (1, 'one', 1), (2, 'two', 2);";
    noticed.scene(name, schema, |config| config.entity(Entity::new("item", "items"))).await
}

/// Reads until the answer is `wanted`; the bound is far beyond the interval of the looks.
async fn becomes(scene: &Scene, wanted: impl Fn(&Response) -> bool) -> Response {
    eventually_within(BOUND, "have the old state go", || async {
        scene.daemon.wait_joined().await;
        let response = scene.get("item/1").await;
        if wanted(&response) { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await
}

/// What the daemon says of an entity.
async fn entity(scene: &Scene, name: &str) -> Value {
    let status = scene.daemon.status().await;
    let entities = status["entities"].as_array().expect("entities").clone();
    entities.into_iter().find(|entity| entity["name"] == name).expect("the entity")
}

/// Checks that an entity comes to be in a state with this in its cause, what its metric says, and that the daemon is ready.
async fn stands(scene: &Scene, name: &str, state: &str, cause: &str) {
    // Entities are looked up one after the other.
    eventually_within(BOUND, &format!("have {name} {state}"), || async {
        scene.daemon.wait_joined().await;
        let entity = entity(scene, name).await;
        let said = entity["cause"].as_str().unwrap_or_default().contains(cause);
        if entity["state"] == state && said { Ok(()) } else { Err(format!("lacks {cause:?}: {entity}")) }
    })
    .await;
    let servable = scene.metric(&format!("walcache_entity_servable{{entity=\"{name}\"}}")).await;
    assert_eq!(servable, Some(if state == "cached" { 1.0 } else { 0.0 }));
    scene.daemon.admin().get("/readyz").await.expect(200);
}

/// Answered with this value, by Postgres itself.
fn bypassed(response: &Response, name: &str) -> bool {
    response.status == 200 && response.header("x-cache") == "BYPASS" && response.json()["name"] == name
}

/// Refused, and said why.
fn refused(response: &Response, why: &str) -> bool {
    response.status == 503
        && response.header("content-type") == "application/problem+json"
        && response.json()["type"] == "urn:walcache:problem:entity-unavailable"
        && response.json()["detail"].as_str().is_some_and(|detail| detail.contains(why))
}
