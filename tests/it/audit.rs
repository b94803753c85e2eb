//! Audits: what is wrong in a tier is found and repaired, and nothing else is found.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Daemon, Entity, Finished, Scene, Shop, cli, eventually, eventually_within};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO items SELECT i, i FROM generate_series(1, 50) i";

async fn open(name: &str, rate: i64) -> Scene {
    Scene::open(name, SCHEMA, |config| config.set("audit", "rate", rate).entity(Entity::new("item", "public.items")))
        .await
}

/// Checks with one result, of a tier or of both.
async fn checks(daemon: &Daemon, tier: Option<&str>, result: &str) -> u64 {
    let text = daemon.admin().get("/metrics").await.expect(200).text();
    let count = |tier: &str| {
        let name = format!("walcache_audit_checks_total{{tier=\"{tier}\",result=\"{result}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().unwrap() as u64
    };
    tier.map_or_else(|| count("l1") + count("l2"), count)
}

async fn verify(scene: &Scene, arguments: &[&str]) -> Finished {
    let all = [&["verify", "--admin", scene.daemon.admin_address()], arguments].concat();
    cli(&scene.config, &all, &[]).await
}

async fn set(scene: &Scene, key: &str, text: &str) {
    redis::cmd("SET").arg(key).arg(text).arg("KEEPTTL").exec_async(&mut scene.l2.clone()).await.unwrap();
}

/// The text at a key, and the same text with another value under the same labels.
async fn wrong(scene: &Scene, id: i32, n: i32) -> (String, String) {
    let right = String::from_utf8(scene.raw(&format!("item:{id}")).await.expect("an entry").to_vec()).unwrap();
    let planted = right.replace(&format!("\"n\":{n}}}"), "\"n\":7770777}");
    assert_ne!(right, planted);
    (right, planted)
}

/// Has L1 alone hold a wrong value of a row: taken from Redis, where it was for a moment. `None` if an audit was faster.
async fn plant_in_l1(scene: &Scene, id: i32, n: i32) -> Option<()> {
    scene.get(&format!("item/{id}")).await.expect(200);
    // So that L1 asks Redis again.
    scene.write(&format!("UPDATE items SET n = {n} WHERE id = {id}")).await;
    let (right, planted) = wrong(scene, id, n).await;
    set(scene, &format!("item:{id}"), &planted).await;
    let read = scene.get(&format!("item/{id}")).await.expect(200);
    set(scene, &format!("item:{id}"), &right).await;
    (read.json()["n"] == 7770777).then_some(())
}

/// The line that tells of a finding.
fn finding(daemon: &Daemon, tier: &str, key: &str) -> Result<Value, String> {
    let log = daemon.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = lines.filter(|line| line["level"] == "ERROR" && line["tier"] == tier && line["key"] == key);
    found.next().ok_or_else(|| "not logged yet".to_owned())
}

fn shows_both_labels(line: &Value) {
    assert_eq!(line["entity"], "item", "{line}");
    for lsn in ["cached_lo", "cached_hi", "row_hi"] {
        assert!(line[lsn].as_str().is_some_and(|text| text.parse::<walcache::lsn::Lsn>().is_ok()), "{lsn} in {line}");
    }
    assert!(line["cached_generation"].as_u64().is_some_and(|g| g > 0), "{line}");
    let etag = |name: &str| line[name].as_str().map(str::to_owned).filter(|etag| etag.len() == 16);
    assert!(etag("cached_etag").is_some() && etag("row_etag").is_some(), "{line}");
    assert_ne!(etag("cached_etag"), etag("row_etag"), "{line}");
    assert_eq!(line["repaired"], true, "{line}");
    assert!(!line.to_string().contains("7770777"), "the value may be secret: {line}");
}

#[tokio::test]
async fn what_is_wrong_in_redis_is_found_in_the_background() {
    let scene = open("audit_l2", 200).await;
    for id in 1..=50 {
        scene.get(&format!("item/{id}")).await.expect(200);
    }
    eventually("check entries of both tiers", || async {
        let (l1, l2) = (checks(&scene.daemon, Some("l1"), "ok").await, checks(&scene.daemon, Some("l2"), "ok").await);
        if l1 > 100 && l2 > 100 { Ok(()) } else { Err(format!("{l1}, {l2}")) }
    })
    .await;
    assert_eq!(checks(&scene.daemon, None, "finding").await, 0);

    let (_, planted) = wrong(&scene, 7, 7).await;
    set(&scene, "item:7", &planted).await;
    let line = eventually("find it", || async { finding(&scene.daemon, "l2", "7") }).await;
    shows_both_labels(&line);
    eventually("count it", || async {
        match checks(&scene.daemon, Some("l2"), "finding").await {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    })
    .await;
    assert_ne!(scene.raw("item:7").await.as_deref(), Some(planted.as_bytes()));
    assert_eq!(scene.get("item/7").await.expect(200).json()["n"], 7);
    // Somebody wrote what is no entry: no reader takes it, so no check does.
    let before = checks(&scene.daemon, None, "finding").await;
    for (key, text) in [("item:07", "{\"id\":7}"), ("item:x", "y"), ("item:8", "null"), ("item:9", "{\"lease\":\"z\"}")]
    {
        set(&scene, key, text).await;
    }
    let ok = checks(&scene.daemon, Some("l2"), "ok").await;
    eventually("go on", || async {
        let now = checks(&scene.daemon, Some("l2"), "ok").await;
        if now > ok + 200 { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
    assert_eq!((checks(&scene.daemon, None, "finding").await, checks(&scene.daemon, None, "error").await), (before, 0));
    let junk = ["item:07", "item:x", "item:8", "item:9"];
    redis::cmd("DEL").arg(&junk).exec_async(&mut scene.l2.clone()).await.unwrap();
    scene.verify().await;
}

#[tokio::test]
async fn what_is_wrong_in_l1_is_found_in_the_background() {
    let scene = open("audit_l1", 50).await;
    let n = std::sync::atomic::AtomicI32::new(1000);
    eventually("plant a value in L1", || async {
        let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        plant_in_l1(&scene, 5, n).await.ok_or("found in Redis before it was read")
    })
    .await;
    let line = eventually("find it", || async {
        // What was wrong in Redis for a moment may have been found there, and dropped from both.
        if scene.get("item/5").await.expect(200).json()["n"] != 7770777 {
            plant_in_l1(&scene, 5, n.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).await;
        }
        finding(&scene.daemon, "l1", "5")
    })
    .await;
    shows_both_labels(&line);
    let last = n.load(std::sync::atomic::Ordering::Relaxed) - 1;
    eventually("serve what is right", || async {
        let n = scene.get("item/5").await.expect(200).json()["n"].clone();
        if n == last { Ok(()) } else { Err(n) }
    })
    .await;
    scene.verify().await;
}

#[tokio::test]
async fn verify_says_what_is_wrong_and_repairs_it() {
    let scene = open("verify", 0).await;
    let healthy = verify(&scene, &["--all"]).await;
    assert!(healthy.status.success() && healthy.stdout.contains("verified: 0 equal, 0 wrong"), "{healthy:?}");
    for id in 1..=40 {
        scene.get(&format!("item/{id}")).await.expect(200);
    }
    scene.get("item/99").await.expect(404);
    let healthy = verify(&scene, &["--all"]).await;
    assert!(healthy.status.success(), "{healthy:?}");
    assert!(healthy.stdout.contains("item: L2 41 checked, 41 equal, 0 wrong; L1 41 checked, 41 equal"), "{healthy:?}");
    let sample = verify(&scene, &["item", "--sample", "10", "--json"]).await;
    let json: Value = serde_json::from_str(&sample.stdout).unwrap();
    assert_eq!((&json["ok"], &json["entities"][0]["l2"]["ok"]), (&Value::Bool(true), &10.into()), "{sample:?}");

    plant_in_l1(&scene, 3, 33).await.expect("nobody audits");
    assert_eq!(scene.get("item/3").await.json()["n"], 7770777, "L1 is wrong, and Redis right");
    let (_, planted) = wrong(&scene, 4, 4).await;
    set(&scene, "item:4", &planted).await;
    // A row that there is, cached as absent; and the other way round.
    let (right, _) = wrong(&scene, 6, 6).await;
    set(&scene, "item:6", &format!("{}null}}", &right[..walcache::entry::HEAD])).await;
    let absent = String::from_utf8(scene.raw("item:99").await.unwrap().to_vec()).unwrap();
    set(&scene, "item:99", &absent.replace("null", "{\"id\":99,\"n\":1}")).await;

    let told = verify(&scene, &["--all", "--no-repair"]).await;
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    for line in ["wrong: item:3 in l1: ", "wrong: item:4 in l2: ", "wrong: item:6 in l2: ", "wrong: item:99 in l2: "] {
        assert!(told.stdout.contains(line), "{line}: {told:?}");
    }
    assert!(
        told.stdout.contains("item: L2 41 checked, 38 equal, 3 wrong; L1 41 checked, 40 equal, 1 wrong"),
        "{told:?}"
    );
    assert!(told.stdout.contains("not repaired") && !told.stdout.contains("7770777"), "{told:?}");
    assert_eq!(scene.get("item/3").await.json()["n"], 7770777);
    let repaired = verify(&scene, &["--all", "--json"]).await;
    assert_eq!(repaired.status.code(), Some(1), "{repaired:?}");
    let json: Value = serde_json::from_str(&repaired.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!((findings.len(), &json["ok"]), (4, &Value::Bool(false)), "{json}");
    assert!(findings.iter().all(|finding| finding["repaired"] == true), "{json}");
    assert_eq!(scene.get("item/3").await.json()["n"], 33);
    let healthy = verify(&scene, &["--all"]).await;
    assert!(healthy.status.success(), "{healthy:?}");
    scene.verify().await;
}

#[tokio::test]
async fn verify_walks_through_many_pages() {
    let scene = open("verify_pages", 0).await;
    scene.write("INSERT INTO items SELECT i, i FROM generate_series(51, 2500) i").await;
    let ids: Vec<i32> = (1..=2500).collect();
    for ids in ids.chunks(500) {
        scene.http.post("/v1/item/batch", &serde_json::json!({ "keys": ids }), &[]).await.expect(200);
    }
    // Of others, between them.
    let mut others = redis::pipe();
    for i in 0..5000 {
        others.cmd("SET").arg(format!("other:{i}")).arg("x");
    }
    others.exec_async(&mut scene.l2.clone()).await.unwrap();
    let (_, planted) = wrong(&scene, 1234, 1234).await;
    set(&scene, "item:1234", &planted).await;
    let told = verify(&scene, &["--all", "--json"]).await;
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    let json: Value = serde_json::from_str(&told.stdout).unwrap();
    let item = &json["entities"][0];
    assert_eq!((item["l2"]["ok"].as_u64(), item["l2"]["findings"].as_u64()), (Some(2499), Some(1)), "{item}");
    // Its entry in L1 was right, but is fenced with the one in L2.
    assert_eq!(item["l1"]["ok"].as_u64(), Some(2499), "{item}");
}

#[tokio::test]
async fn verify_says_what_keeps_it_from_it() {
    let scene = open("verify_refused", 0).await;
    let unknown = verify(&scene, &["nothing"]).await;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("configured: item"), "{unknown:?}");
    let port = walcache::sandbox::free_port();
    let nowhere = cli(&scene.config, &["verify", "--admin", &format!("127.0.0.1:{port}")], &[]).await;
    assert_eq!(nowhere.status.code(), Some(69), "{nowhere:?}");
    assert!(nowhere.stderr.contains("no daemon answers at") && nowhere.stderr.contains("--admin"), "{nowhere:?}");
    let chosen = cli(&scene.config, &["verify"], &[]).await;
    assert_eq!(chosen.status.code(), Some(2), "the configuration has port 0: {chosen:?}");
    assert!(chosen.stderr.contains("--admin"), "{chosen:?}");
    let other = cli(&scene.config, &["verify", "--admin", scene.daemon.http_address()], &[]).await;
    assert_ne!(other.status.code(), Some(0), "{other:?}");
    for wrong in [&["--sample", "0"][..], &["--sample", "5", "--all"], &["--admin", "https://x:1"]] {
        assert_eq!(verify(&scene, wrong).await.status.code(), Some(2), "{wrong:?}");
    }
}

/// Neither ALTER TABLE has row events: until it is noticed, what is cached differs from what Postgres says. That is
/// known, bounded and no finding.
#[tokio::test]
async fn a_changed_table_is_no_finding() {
    let scene = open("audit_ddl", 0).await;
    for id in 1..=50 {
        scene.get(&format!("item/{id}")).await.expect(200);
    }
    scene.sql.batch_execute("ALTER TABLE items ALTER COLUMN n TYPE text USING 'n' || n").await.unwrap();
    let told = verify(&scene, &["--all", "--json"]).await;
    let json: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(json["findings"], Value::Array(Vec::new()), "{json}");
    assert_eq!(checks(&scene.daemon, None, "finding").await, 0);
    // It has made the leader look: long before schema_check_interval.
    eventually("serve the new shape", || async {
        let n = scene.get("item/3").await.expect(200).json()["n"].clone();
        if n == "n3" { Ok(()) } else { Err(n) }
    })
    .await;
    let healthy = verify(&scene, &["--all"]).await;
    assert!(healthy.status.success(), "{healthy:?}");
}

/// The auditor checks hot rows, a hundred times as often as by default, while they change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_found_under_load() {
    const CONCLUSIVE: u64 = 1000;
    let mut shop = Shop::new("audit_load").await;
    shop.config = shop.config.set("audit", "rate", 5000).set("source", "dead_after", "60s");
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 7);
    load.writes(500).await;
    eventually_within(Duration::from_secs(180), "check entries of both tiers", || async {
        let (l1, l2) = (checks(&daemon, Some("l1"), "ok").await, checks(&daemon, Some("l2"), "ok").await);
        if l1.min(l2) > CONCLUSIVE / 4 && l1 + l2 > CONCLUSIVE { Ok(()) } else { Err(format!("{l1} and {l2}")) }
    })
    .await;
    // On demand, too, at the same time.
    let told = cli(&shop.config, &["verify", "--all", "--json"], &[]).await;
    let done = load.stop().await;
    let mut counts = Vec::new();
    for result in ["ok", "finding", "changed", "inconclusive", "error"] {
        counts.push((result, checks(&daemon, Some("l1"), result).await, checks(&daemon, Some("l2"), result).await));
    }
    println!("{done:?}; checks by result, in L1 and L2: {counts:?}");
    assert_eq!(checks(&daemon, None, "finding").await, 0, "{counts:?}");
    assert_eq!(checks(&daemon, None, "error").await, 0, "{counts:?}");
    let json: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(json["findings"], Value::Array(Vec::new()), "{told:?}");
    let changed = counts.iter().find(|(result, ..)| *result == "changed").unwrap();
    assert!(changed.1 + changed.2 > 0, "no event was ever in flight: the load is no test");
    let healthy = cli(&shop.config, &["verify", "--all"], &[]).await;
    assert!(healthy.status.success(), "{healthy:?}");
    shop.equals_postgres(&daemon).await;
}

/// That the check can fail: without the fence of L1 an event leaves the old value there, and readers get it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_left_out_is_found() {
    let mut shop = Shop::new("audit_unfenced").await;
    shop.config = shop.config.clone().set("audit", "rate", 1000);
    let daemon = Daemon::start_with(&shop.config, &[(walcache::failpoint::WITHOUT, "fence")]).await;
    daemon.wait_ready().await;
    let sql = shop.sql().await;
    for row in 0..20 {
        shop.put(&sql, row, 1).await;
    }
    let http = daemon.http();
    for row in 0..20 {
        http.get(&format!("/v1/counter/{row}")).await.expect(200);
    }
    for row in 0..20 {
        shop.put(&sql, row, 2).await;
    }
    eventually("find what is stale in L1", || async {
        match checks(&daemon, Some("l1"), "finding").await {
            0 => Err("nothing yet"),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(checks(&daemon, Some("l2"), "finding").await, 0, "it is right");
}
