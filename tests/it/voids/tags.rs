//! Tags.

use tokio_util::sync::CancellationToken;
use walcache::failpoint::{KILLS, Point};

use super::{
    EACH, configure, configure_with, confirmed, fence, fill_in_the_middle, from, rate, scene, set_rate, warm_items,
};
use crate::harness::{Config, Daemon, Entity, Http, Scene, current_lsn, eventually};

#[tokio::test]
async fn a_tag_voids_what_bears_it_however_much_that_is() {
    let scene = scene("tags_many").await;
    warm_items(&scene).await;
    let before = scene.raw("item:1").await.expect("an entry");
    let keys = scene.keys("item").await;
    scene.write("SELECT walcache.invalidate_tag('tenant:1')").await;
    assert_eq!(fence(&scene, "tag:").await.len(), 1, "one field, for all of them");
    assert_eq!(scene.raw("item:1").await, Some(before), "no entry was touched");
    assert_eq!(scene.keys("item").await, keys);
    // In both tiers, of this tenant alone.
    for id in (0..2000).step_by(97) {
        let cache = from(&scene, &format!("item/{id}")).await;
        assert_eq!(cache == "MISS", id % 4 == 1, "{id}: {cache}");
    }
    let published = "walcache_fills_total{entity=\"item\",result=\"published\"}";
    let touched = (0..2000).step_by(97).filter(|id| id % 4 == 1).count();
    let before = scene.metric(published).await.unwrap();
    warm_items(&scene).await;
    assert_eq!(scene.metric(published).await.unwrap() - before, f64::from(EACH) - touched as f64);
    // They are back, and servable.
    for path in ["item/1", "item/5"] {
        scene.warm(path).await;
    }
    scene
        .write("SELECT pg_logical_emit_message(true, 'walcache', '{\"tag\":[\"all-items\",\"nobody bears this\"]}')")
        .await;
    for path in ["item/0", "item/1", "item/2", "item/3"] {
        assert_eq!(from(&scene, path).await, "MISS", "{path}");
        assert_eq!(scene.warm(path).await.header("x-cache"), "HIT-L1");
    }
    scene.verify().await;
}

#[tokio::test]
async fn a_tag_is_of_its_entry_as_it_is_now() {
    let scene = scene("tags_now").await;
    // It moves from tenant 1 to tenant 2; one has none; one is absent, and bears what its key tells.
    for path in ["item/1", "item/2", "item/3", "item/9999", "note/1,1", "note/1,99", "note/2,1"] {
        scene.warm(path).await;
    }
    scene.write("UPDATE items SET tenant = 2 WHERE id = 1; UPDATE items SET tenant = NULL WHERE id = 3").await;
    for path in ["item/1", "item/3"] {
        scene.warm(path).await;
    }
    scene.write("SELECT walcache.invalidate_tag('tenant:1', 'tenant:3', 'tenant:')").await;
    for path in ["item/1", "item/2", "item/3", "item/9999", "note/2,1"] {
        assert_eq!(from(&scene, path).await, "HIT-L1", "{path}");
    }
    for path in ["note/1,1", "note/1,99"] {
        assert_eq!(from(&scene, path).await, "MISS", "{path}");
    }
    scene.write("SELECT walcache.invalidate_tag('tenant:2')").await;
    for (path, wanted) in [("item/1", "MISS"), ("item/2", "MISS"), ("item/3", "HIT-L1"), ("note/2,1", "MISS")] {
        assert_eq!(from(&scene, path).await, wanted, "{path}");
    }
    scene.write("SELECT walcache.invalidate_tag('all-items')").await;
    for path in ["item/3", "item/9999"] {
        assert_eq!(from(&scene, path).await, "MISS", "{path}");
    }
}

#[tokio::test]
async fn a_void_ends_with_its_transaction_and_spares_what_that_wrote() {
    let scene = scene("tags_transaction").await;
    for path in ["item/1", "item/2", "item/5"] {
        scene.warm(path).await;
    }
    scene
        .write(
            "BEGIN; SELECT walcache.invalidate_tag('tenant:1'); ROLLBACK;
             BEGIN; SAVEPOINT s; SELECT walcache.invalidate_tag('all-items'); ROLLBACK TO s; COMMIT",
        )
        .await;
    for path in ["item/1", "item/2", "item/5"] {
        assert_eq!(from(&scene, path).await, "HIT-L1", "{path}");
    }
    assert!(fence(&scene, "tag:").await.is_empty());
    // The image is of the very commit that voids.
    scene.write("BEGIN; UPDATE items SET n = 7 WHERE id = 1; SELECT walcache.invalidate_tag('tenant:1'); COMMIT").await;
    assert_eq!(from(&scene, "item/1").await, "HIT-L2");
    assert_eq!(scene.get("item/1").await.json()["n"], 7);
    assert_eq!((from(&scene, "item/5").await, from(&scene, "item/2").await), ("MISS".into(), "HIT-L1".into()));
    // In pieces: whatever was read before is voided, whatever was written stands.
    for path in ["item/1", "item/2", "item/5"] {
        scene.warm(path).await;
    }
    let mut sql = "BEGIN;".to_owned();
    for n in 0..40 {
        sql += &format!("UPDATE items SET n = {n} WHERE id = 2; SELECT walcache.invalidate_tag('all-items');");
    }
    scene.write(&(sql + "COMMIT")).await;
    assert_eq!(scene.get("item/2").await.json()["n"], 39);
    for path in ["item/1", "item/5"] {
        assert_eq!(from(&scene, path).await, "MISS", "{path}");
    }
    for path in ["item/1", "item/2", "item/5"] {
        scene.warm(path).await;
    }
    scene.verify().await;
}

/// A fill that has read before the void is stored after it: its lease still stands, and nobody is served it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_that_is_under_way_is_below_the_floor() {
    let scene = scene("tags_race").await;
    let (locker, early) = fill_in_the_middle(&scene).await;
    assert!(scene.raw("note:1,1").await.unwrap().starts_with(b"{\"lease\":"));
    let voided = set_rate(&scene, 2, "SELECT walcache.invalidate_tag('rates')").await;
    locker.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    assert_eq!(early.await.unwrap().expect(200).json()["rate"], 1, "it had read before");
    let stored = scene.stored("note:1,1").await.expect("it was published");
    assert!(stored.value.contains("\"rate\":1") && stored.lo < voided, "{stored:?}");
    assert_eq!(rate(&scene, "note/1,1").await, (2, "MISS".into()));
    let stored = scene.stored("note:1,1").await.expect("it was published");
    assert!(stored.value.contains("\"rate\":2") && stored.lo >= voided, "{stored:?}");
    scene.warm("note/1,1").await;
    assert_eq!(rate(&scene, "note/1,1").await, (2, "HIT-L1".into()));
}

/// Readers, and a rate that changes again and again: whoever passes its commit's LSN sees no older one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_passes_its_lsn_sees_nothing_that_it_voided() {
    let scene = scene("tags_ryw").await;
    let stop = CancellationToken::new();
    let readers: Vec<_> = (0..3)
        .map(|reader| {
            let (http, stop) = (Http::new(scene.daemon.http_address()), stop.clone());
            tokio::spawn(async move {
                let mut hits = 0;
                while !stop.is_cancelled() {
                    let path = format!("/v1/note/1,{}", 1 + reader % 2);
                    let response = http.get(&path).await.expect(200);
                    hits += u64::from(response.header("x-cache").starts_with("HIT"));
                }
                hits
            })
        })
        .collect();
    for rate in 2..80 {
        let say = ["SELECT walcache.invalidate_tag('rates')", "SELECT walcache.invalidate_tag('tenant:1')"][rate % 2];
        scene.sql.batch_execute(&format!("BEGIN; UPDATE rates SET rate = {rate}; {say}; COMMIT")).await.unwrap();
        let lsn = current_lsn(&scene.sql).await.to_string();
        for key in ["1,1", "1,2"] {
            let path = format!("/v1/note/{key}");
            let response = scene.http.get_with(&path, &[("x-min-lsn", &lsn)]).await.expect(200);
            assert_eq!(response.json()["rate"], rate, "{response:?}");
        }
    }
    stop.cancel();
    let mut hits = 0;
    for reader in readers {
        hits += reader.await.unwrap();
    }
    assert!(hits > 10, "{hits} hits: nothing was tried");
}

/// Starts the daemon again, as the scene's configuration says.
async fn restart(scene: &mut Scene) {
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
    eventually("trust L2", || async {
        let trusted = scene.daemon.status().await["l2"]["trusted"].as_bool();
        if trusted == Some(true) { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// As a scene's.
fn patient(scene: &Scene) -> Config {
    scene.stage.config().set("freshness", "stale_after", "60s").set("source", "fill_timeout", "10s")
}

/// A floor is of a tag: what it voided does not come back when entries bear others.
#[tokio::test]
async fn what_a_tag_voided_does_not_come_back_under_other_templates() {
    let mut scene = scene("tags_templates").await;
    let mut wanted = 1;
    for tags in [&["t:{tenant}", "rates"][..], &[], &["tenant:{tenant}"]] {
        scene.warm("item/2").await;
        scene.warm("note/1,1").await;
        assert_eq!(rate(&scene, "note/1,1").await, (wanted, "HIT-L1".into()), "{tags:?}");
        wanted += 1;
        let said = "SELECT walcache.invalidate_tag('tenant:1', 't:1')";
        let voided = set_rate(&scene, wanted as i32, said).await;
        confirmed(&scene, voided).await;
        scene.daemon.kill().await;
        scene.config = configure_with(patient(&scene), tags);
        restart(&mut scene).await;
        // Others are as they were.
        assert_eq!(from(&scene, "item/2").await, "HIT-L2", "{tags:?}");
        assert_eq!(rate(&scene, "note/1,1").await, (wanted, "MISS".into()), "{tags:?}");
    }
}

#[tokio::test]
async fn voids_outlive_the_process_and_end_with_the_generation() {
    let mut scene = scene("tags_restart").await;
    for path in ["note/1,1", "note/2,1", "item/2"] {
        scene.warm(path).await;
    }
    let voided = set_rate(&scene, 2, "SELECT walcache.invalidate_tag('tenant:1')").await;
    confirmed(&scene, voided).await;
    scene.daemon.kill().await;
    restart(&mut scene).await;
    assert_eq!(rate(&scene, "note/2,1").await, (1, "HIT-L2".into()));
    assert_eq!(rate(&scene, "note/1,1").await, (2, "MISS".into()));
    // Killed before a void is in the fence, and after it, with the batch not done.
    for (point, wanted) in [(Point::BeforeWrite, 3), (Point::Voided, 4)] {
        scene.warm("note/1,1").await;
        scene.daemon.kill().await;
        let sql = format!(
            "BEGIN; UPDATE rates SET rate = {wanted}; UPDATE items SET n = {wanted} WHERE id = 2;
             SELECT walcache.invalidate_tag('rates'); COMMIT"
        );
        scene.sql.batch_execute(&sql).await.unwrap();
        scene.daemon = Daemon::spawn(&scene.config, &[(KILLS, &format!("{}=kill@1", point.name()))]);
        scene.daemon.wait().await;
        restart(&mut scene).await;
        scene.applied().await;
        assert_eq!(rate(&scene, "note/1,1").await, (wanted, "MISS".into()), "{point:?}");
        assert_eq!(scene.get("item/2").await.json()["n"], wanted);
    }
    // A Redis that was emptied: a new generation, and no floors of before.
    assert!(!fence(&scene, "tag:").await.is_empty());
    redis::cmd("FLUSHDB").exec_async(&mut scene.l2.clone()).await.unwrap();
    scene.applied().await;
    scene.write("UPDATE items SET n = 1 WHERE id = 2").await;
    eventually("have a fence again", || async {
        if fence(&scene, "done").await.is_empty() { Err("none") } else { Ok(()) }
    })
    .await;
    assert!(fence(&scene, "tag:").await.is_empty());
    scene.warm("note/1,1").await;
    set_rate(&scene, 5, "SELECT walcache.invalidate_tag('rates')").await;
    assert_eq!(rate(&scene, "note/1,1").await.0, 5);
    // Two of them: whoever takes over has the floors of whoever led.
    let second = Daemon::start(&scene.config).await;
    scene.warm("note/1,1").await;
    scene.warm("note/2,1").await;
    let voided = set_rate(&scene, 6, "SELECT walcache.invalidate_tag('tenant:1')").await;
    confirmed(&scene, voided).await;
    let follower = second.http().get("/v1/note/1,1").await.expect(200);
    assert_eq!((follower.json()["rate"].as_i64(), follower.header("x-cache")), (Some(6), "BYPASS"));
    scene.daemon.kill().await;
    second.wait_ready().await;
    scene.daemon = second;
    scene.http = scene.daemon.http();
    scene.applied().await;
    assert_eq!(rate(&scene, "note/1,1").await.0, 6);
    assert_eq!(rate(&scene, "note/2,1").await.0, 5);
}

#[tokio::test]
async fn without_l2_the_floors_are_this_processes_own() {
    let stage = crate::harness::Stage::shared("tags_l1").await;
    stage.execute(super::SCHEMA).await;
    let scene = Scene::on(stage, |config| configure(config).without("l2")).await;
    for path in ["note/1,1", "note/2,1", "item/1"] {
        scene.warm(path).await;
    }
    set_rate(&scene, 2, "SELECT walcache.invalidate_tag('tenant:1')").await;
    assert_eq!(rate(&scene, "note/1,1").await, (2, "MISS".into()));
    assert_eq!(rate(&scene, "note/2,1").await, (1, "HIT-L1".into()));
    assert_eq!(from(&scene, "item/1").await, "MISS");
    set_rate(&scene, 3, "SELECT walcache.invalidate_pattern('note:1,*')").await;
    assert_eq!(rate(&scene, "note/1,1").await, (3, "MISS".into()));
    assert_eq!(rate(&scene, "note/2,1").await, (1, "HIT-L1".into()));
}

#[tokio::test]
async fn check_names_a_tags_column_that_is_not_there() {
    let stage = crate::harness::Stage::shared("tags_check").await;
    stage.execute(super::SCHEMA).await;
    let with = |tags: &[&str]| {
        let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let item = Entity::new("item", "public.items").set("tags", tags);
        stage.config().entity(item.set("columns", vec!["id".to_owned(), "tenant".to_owned()]))
    };
    let setup = crate::harness::cli(&with(&[]), &["setup", "--apply"], &[]).await;
    assert!(setup.status.success(), "{setup:?}");
    for (tags, code, said) in [
        (&["{tenant}", "{id}"][..], 0, ""),
        (&["{tenent}"], 1, "did you mean tenant?"),
        (&["{code}"], 1, "\"code\", which is neither in its value nor in its key"),
        (&["{"], 78, "entity[0].tags[0]"),
        (&["a", ""], 78, "a tag must not be empty"),
    ] {
        let check = crate::harness::cli(&with(tags), &["check"], &[]).await;
        assert_eq!(check.status.code(), Some(code), "{tags:?}: {check:?}");
        assert!((check.stdout + &check.stderr).contains(said), "{tags:?}");
    }
}

#[tokio::test]
async fn results_of_queries_bear_tags_of_their_parameters() {
    let many = r#"
        params = { tenant = "int" }
        query = "select id, n from items where tenant = $1 order by id limit 5"
        depends_on = [{ table = "public.items", key = { tenant = "tenant" } }]
    "#;
    let one = r#"
        params = { code = "text" }
        query = "select id, tenant from items where code = $1"
        shape = "one"
        depends_on = [{ table = "public.items", key = { code = "code" } }]
    "#;
    let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    let with = |many_tag: &str| {
        let (many_tag, one_tag) = (tags(&["all", many_tag]), tags(&["all", "tenant:{tenant}"]));
        move |config: crate::harness::Config| {
            config
                .entity(Entity::query("tenant", many).set("tags", many_tag))
                .entity(Entity::query("coded", one).set("tags", one_tag))
        }
    };
    let scene = Scene::open(
        "tags_query",
        &format!("{}; ALTER TABLE items REPLICA IDENTITY FULL", super::SCHEMA),
        with("tenant:{tenant}"),
    )
    .await;
    let paths = ["tenant/1", "tenant/2", "coded/c1", "coded/c2", "coded/none"];
    for (tag, voided) in [
        ("tenant:1", &["tenant/1", "coded/c1"][..]),
        ("tenant:2", &["tenant/2", "coded/c2"]),
        ("tenant:", &[]),
        ("all", &paths),
    ] {
        for path in paths {
            scene.warm(path).await;
        }
        scene.write(&format!("SELECT walcache.invalidate_tag('{tag}')")).await;
        for path in paths {
            assert_eq!(from(&scene, path).await == "MISS", voided.contains(&path), "{tag} {path}");
        }
    }
    // A list has no columns that a tag could be of.
    let check = crate::harness::cli(&with("{id}")(scene.stage.config()), &["check"], &[]).await;
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    assert!((check.stdout + &check.stderr).contains("has a tag of \"id\", and is of shape \"many\""));
}
