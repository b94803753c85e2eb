//! What is to be warmed is, whatever else runs or ends meanwhile.

use serde_json::json;

use super::*;

const NOTE: &str = "~walcache:warm";

/// What is noted in L2 of an entity that was warmed.
async fn noted(scene: &Scene, entity: &str) -> Option<Value> {
    let note: Value = serde_json::from_slice(&scene.raw(NOTE).await?).unwrap();
    note.get(entity).cloned()
}

async fn restart(scene: &mut Scene) {
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
}

async fn running(scene: &Scene, entity: &str, least: u64) {
    eventually(&format!("be at {entity}"), || async {
        let job = job(&scene.daemon, entity).await.ok_or("no job")?;
        assert_eq!(job["state"], "running", "{job}");
        if job["done"].as_u64() >= Some(least) { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
}

/// The configured walk follows a new generation, and a command, also where an operator's job runs then.
#[tokio::test]
async fn after_an_operator_s_job() {
    let scene = Scene::open("warm_behind", SCHEMA, |config| {
        config
            .entity(item().set("warm", warm(json!({"on": ["generation"], "rate": 100_000}))))
            .entity(Entity::new("note", "public.notes").set("warm", warm(json!({"rate": 100_000}))))
    })
    .await;
    ended(&scene.daemon, "item", |job| job["done"] == ROWS).await;
    for entity in ["item", "note"] {
        let body = json!({"entity": entity, "limit": 140, "rate": 20});
        scene.daemon.admin().post("/v1/warm", &body, &[]).await.expect(200);
        running(&scene, entity, 10).await;
    }
    scene.daemon.admin().post("/v1/resync", &json!({"entity": "item"}), &[]).await.expect(200);
    scene.write(r#"SELECT pg_logical_emit_message(true, 'walcache', '{"warm":{"entity":"note"}}')"#).await;
    for entity in ["item", "note"] {
        let of_operator = job(&scene.daemon, entity).await.unwrap();
        assert_eq!((&of_operator["trigger"], &of_operator["state"]), (&json!("operator"), &json!("running")));
    }
    for (entity, trigger, rows) in [("item", "generation", ROWS), ("note", "command", 300)] {
        let job = ended(&scene.daemon, entity, |job| job["trigger"] == trigger).await;
        assert_eq!((&job["state"], &job["done"]), (&json!("done"), &json!(rows)), "{job}");
        assert_eq!(numbers(&scene, entity).await.len() as u64, rows);
    }
    assert_eq!(scene.metric("walcache_commands_total{command=\"warm\",result=\"done\"}").await, Some(1.0));
    scene.verify().await;
}

/// A generation counts as warmed when its walk has ended, and not before.
#[tokio::test]
async fn a_generation_that_was_not_warmed_is_after_a_restart() {
    let mut scene = Scene::open("warm_unfinished", SCHEMA, |config| {
        let walk = json!({"on": ["generation"], "rate": 15, "limit": 60});
        config.entity(item().set("warm", warm(walk)))
    })
    .await;
    ended(&scene.daemon, "item", |job| job["done"] == 60).await;
    let generation = |note: Option<Value>| note.map(|note| note["generation"].as_u64().unwrap());
    let first = eventually("note what was warmed", || async {
        generation(noted(&scene, "item").await).ok_or("it is not noted")
    })
    .await;
    let (): () = redis::cmd("FLUSHDB").query_async(&mut scene.l2.clone()).await.unwrap();
    eventually("be at the new generation", || async {
        let job = job(&scene.daemon, "item").await.unwrap();
        let is_at = job["trigger"] == "generation" && job["state"] == "running" && job["done"].as_u64() >= Some(10);
        if is_at { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    scene.daemon.kill().await;
    assert!(numbers(&scene, "item").await.len() < 60, "killed in the middle of it");
    drop_leases(&scene, "item").await;
    // What was noted before may be noted again.
    let noted_last = generation(noted(&scene, "item").await);
    assert!(noted_last.is_none_or(|generation| generation <= first), "{noted_last:?}, after {first}");
    restart(&mut scene).await;
    let job = ended(&scene.daemon, "item", |job| job["done"] == 60).await;
    assert_eq!((&job["trigger"], &job["state"]), (&json!("start"), &json!("done")), "{job}");
    assert_eq!(numbers(&scene, "item").await, (1..=60).collect::<Vec<u64>>());
    // One that was warmed is not, after another one.
    let second = eventually("note what was warmed", || async {
        generation(noted(&scene, "item").await).ok_or("it is not noted")
    })
    .await;
    assert!(second > first, "{second}, after {first}");
    assert!(scene.daemon.terminate().await.success());
    restart(&mut scene).await;
    let job = warmed(&scene.daemon, json!({"entity": "item", "limit": 1})).await;
    assert_eq!(job["trigger"], "operator", "{job}");
    assert_eq!(told_of(&scene.daemon, 1).await, 1, "{}", scene.daemon.log());
    scene.verify().await;
}

/// A schedule goes on where it was, by what is noted of the last walk.
#[tokio::test]
async fn a_schedule_outlives_a_restart() {
    let mut scene = Scene::open("warm_schedule", SCHEMA, |config| {
        // The end of a scheduled walk is told at this level.
        config
            .set("log", "level", "walcache=debug")
            .entity(item().set("warm", warm(json!({"every": "1h", "limit": 5}))))
            .entity(Entity::new("note", "public.notes").set("warm", warm(json!({"every": "1h", "limit": 5}))))
    })
    .await;
    // Whatever begins it, the walk is the one of the schedule.
    for entity in ["item", "note"] {
        warmed(&scene.daemon, json!({ "entity": entity })).await;
    }
    let note = eventually("note when it has ended", || async {
        let note = scene.raw(NOTE).await.ok_or("no note")?;
        let note: Value = serde_json::from_slice(&note).unwrap();
        let is_whole = ["item", "note"].iter().all(|entity| note[entity]["ended"].as_u64() > Some(0));
        if is_whole { Ok(note) } else { Err("not both") }
    })
    .await;
    assert!(scene.daemon.terminate().await.success());
    let mut longer_ago = note;
    longer_ago["item"]["ended"] = (longer_ago["item"]["ended"].as_u64().unwrap() - 3_601_000).into();
    let (): () =
        redis::cmd("SET").arg(NOTE).arg(longer_ago.to_string()).query_async(&mut scene.l2.clone()).await.unwrap();
    restart(&mut scene).await;
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["trigger"], &job["done"]), (&json!("schedule"), &json!(5)), "{job}");
    let job = warmed(&scene.daemon, json!({"entity": "note", "limit": 1})).await;
    assert_eq!(job["trigger"], "operator", "{job}");
    assert_eq!(told_of(&scene.daemon, 2).await, 2, "{}", scene.daemon.log());
}

/// What was warmed stays known for as long as a daemon runs, however long ago that was.
#[tokio::test]
async fn the_note_of_what_was_warmed_is_renewed() {
    let mut scene = Scene::open("warm_renewed", SCHEMA, |config| {
        config.entity(item().set("warm", warm(json!({"on": ["generation"], "limit": 5}))))
    })
    .await;
    let is_noted = async |scene: &Scene| {
        eventually("note that it was warmed", || async { noted(scene, "item").await.ok_or("no note") }).await
    };
    let note = is_noted(&scene).await;
    // Nothing is warmed from now on, and nearly a week passes.
    let mut l2 = scene.l2.clone();
    let set: bool = redis::cmd("EXPIRE").arg(NOTE).arg(1000).query_async(&mut l2).await.unwrap();
    assert!(set);
    // At the end what is known is kept, as it is now and then before.
    assert!(scene.daemon.terminate().await.success());
    let left: i64 = redis::cmd("TTL").arg(NOTE).query_async(&mut l2).await.unwrap();
    assert!(left > 100_000, "{left}");
    assert_eq!(noted(&scene, "item").await, Some(note.clone()));
    restart(&mut scene).await;
    warmed(&scene.daemon, json!({"entity": "item", "limit": 1})).await;
    assert_eq!(told_of(&scene.daemon, 1).await, 1, "{}", scene.daemon.log());
}

/// How an operator's job has ended is told also when others have followed it.
#[tokio::test]
async fn an_operator_is_told_of_the_job_that_was_asked_for() {
    let note = Entity::new("note", "public.notes").set("warm", warm(json!({"every": "1s", "rate": 100_000})));
    let scene = Scene::open("warm_followed", SCHEMA, |config| config.entity(note)).await;
    // The schedule's may be under way just then.
    let asked = eventually("begin it", || async {
        let answer = scene.daemon.admin().post("/v1/warm", &json!({"entity": "note", "limit": 7}), &[]).await;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.text()) }
    })
    .await;
    let jobs = eventually("have it followed by the schedule's", || async {
        let jobs = scene.daemon.admin().get("/v1/warm").await.expect(200).json()["jobs"].clone();
        let last = &jobs[0];
        if last["trigger"] == "schedule" && last["job"].as_u64() > asked["job"].as_u64() {
            Ok(jobs)
        } else {
            Err(jobs.to_string())
        }
    })
    .await;
    let told = jobs.as_array().unwrap().iter().find(|job| job["job"] == asked["job"]).expect("it is told of");
    assert_eq!(
        (&told["state"], &told["done"], &told["trigger"]),
        (&json!("done"), &json!(7), &json!("operator")),
        "{jobs}"
    );
    let printed = eventually("warm by the command line", || async {
        let printed = cli_warm(&scene, &["note", "--limit", "9", "--json"]).await;
        if printed.status.success() { Ok(printed.stdout) } else { Err(format!("{printed:?}")) }
    })
    .await;
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&printed["done"], &printed["trigger"]), (&json!(9), &json!("operator")), "{printed}");
}
