//! The HTTP API and the admin listener: headers, bounds, problems.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use redis::AsyncCommands;
use serde_json::{Value, json};
use walcache::lsn::Lsn;

use crate::harness::{Entity, Response, Scene, current_lsn};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO items SELECT i, 0 FROM generate_series(1, 9) i;
    CREATE TABLE notes (id text PRIMARY KEY, n int)";

/// How much longer than its bound an answer may take on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);

async fn scene(name: &str) -> Scene {
    Scene::open(name, SCHEMA, |config| {
        config
            // The auditor would repair what is planted.
            .set("audit", "rate", 0)
            .set("http", "max_body", "1KiB")
            .set("http", "max_batch", 10)
            .set("freshness", "min_lsn_wait", "200ms")
            .set("freshness", "min_lsn_wait_max", "400ms")
            .entity(Entity::new("item", "public.items"))
            .entity(Entity::new("note", "public.notes"))
    })
    .await
}

fn lsn(response: &Response, name: &str) -> Lsn {
    response.header(name).parse().unwrap()
}

/// A problem document of this status and kind; gives its detail.
#[track_caller]
fn problem(response: &Response, status: u16, kind: &str) -> String {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), "application/problem+json");
    assert_eq!(response.header("cache-control"), "no-store");
    problem_document(&response.json(), status, kind)
}

#[track_caller]
fn problem_document(document: &Value, status: u16, kind: &str) -> String {
    assert_eq!(document["type"], format!("urn:walcache:problem:{kind}"), "{document}");
    assert_eq!(document["status"], status, "{document}");
    assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()), "{document}");
    document["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn answers_say_where_they_come_from() {
    let scene = scene("headers").await;
    let mut last = Lsn::ZERO;
    let first = scene.get("item/1").await;
    scene.write("UPDATE items SET n = 1 WHERE id = 1").await;
    let from_l2 = scene.get("item/1").await;
    let answers = [
        (first, "MISS", "walcache; fwd=miss", 0),
        (from_l2, "HIT-L2", "walcache; hit; detail=L2", 1),
        (scene.warm("item/1").await, "HIT-L1", "walcache; hit; detail=L1", 1),
        (
            scene.http.get_with("/v1/item/1", &[("cache-control", "no-cache")]).await,
            "BYPASS",
            "walcache; fwd=request",
            1,
        ),
    ];
    for (response, x_cache, cache_status, n) in answers {
        assert_eq!(response.status, 200);
        assert_eq!(response.header("x-cache"), x_cache);
        assert_eq!(response.header("cache-status"), cache_status);
        assert_eq!(response.header("cache-control"), "private, no-cache");
        assert_eq!(response.header("content-type"), "application/json");
        assert_eq!(response.text(), format!(r#"{{"id":1,"n":{n}}}"#));
        let (applied, read) = (lsn(&response, "x-applied-lsn"), lsn(&response, "x-read-lsn"));
        assert!(last <= applied && applied <= read, "{last} {applied} {read}");
        last = applied;
    }
    let absent = scene.get("item/404").await;
    let detail = problem_document(&absent.json(), 404, "absent");
    assert!(detail.contains("item") && detail.contains("404"), "{detail}");
    assert_eq!(absent.header("x-cache"), "MISS");
    assert!(lsn(&absent, "x-applied-lsn") <= lsn(&absent, "x-read-lsn"));
}

#[tokio::test]
async fn no_cache_reads_postgres() {
    let scene = scene("no_cache").await;
    scene.get("item/1").await;
    scene.write("UPDATE items SET n = 1 WHERE id = 1").await;
    // What nobody should do shows who is asked.
    let entry = String::from_utf8(scene.raw("item:1").await.unwrap().to_vec()).unwrap();
    let (): () = scene.l2.clone().set("item:1", entry.replace("\"n\":1", "\"n\":-1")).await.unwrap();
    let cached = scene.get("item/1").await;
    assert_eq!((cached.header("x-cache"), &cached.json()["n"]), ("HIT-L2", &json!(-1)));
    for header in ["no-cache", "max-age=0, No-Cache"] {
        let fresh = scene.http.get_with("/v1/item/1", &[("cache-control", header)]).await;
        assert_eq!((fresh.header("x-cache"), &fresh.json()["n"]), ("BYPASS", &json!(1)));
        let body = json!({"keys": [1]});
        let batch = scene.http.post("/v1/item/batch", &body, &[("cache-control", header)]).await.expect(200);
        assert_eq!((batch.header("x-cache"), &batch.json()["items"][0]["value"]["n"]), ("BYPASS", &json!(1)));
    }
}

#[tokio::test]
async fn head_and_conditional_requests() {
    let scene = scene("etag").await;
    let get = scene.get("item/1").await;
    let (etag, text) = (get.header("etag").to_owned(), get.text());
    for tier in ["HIT-L1", "BYPASS"] {
        let headers: &[(&str, &str)] = if tier == "BYPASS" { &[("cache-control", "no-cache")] } else { &[] };
        scene.warm("item/1").await;
        let head = scene.http.head("/v1/item/1", headers).await;
        assert_eq!((head.status.as_u16(), head.header("x-cache"), head.header("etag")), (200, tier, etag.as_str()));
        assert_eq!((head.header("content-length"), head.body.len()), (text.len().to_string().as_str(), 0));

        let same = [headers, &[("if-none-match", etag.as_str())]].concat();
        for same in [scene.http.get_with("/v1/item/1", &same).await, scene.http.head("/v1/item/1", &same).await] {
            assert_eq!((same.status.as_u16(), same.header("etag"), same.body.len()), (304, etag.as_str(), 0));
            assert_eq!(same.header("x-cache"), tier);
            assert_eq!(same.find_header("content-type"), None);
            assert!(same.find_header("x-read-lsn").is_some());
        }
    }
    let head = scene.http.head("/v1/item/99", &[]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (404, 0));
    scene.write("UPDATE items SET n = 1 WHERE id = 1").await;
    let changed = scene.http.get_with("/v1/item/1", &[("if-none-match", &etag)]).await.expect(200);
    assert_ne!(changed.header("etag"), etag);
    // The tag is of the value: the old value has the old one again.
    scene.write("UPDATE items SET n = 0 WHERE id = 1").await;
    assert_eq!(scene.get("item/1").await.header("etag"), etag);
}

#[tokio::test]
async fn a_batch_answers_in_order() {
    let scene = scene("batch").await;
    let body = json!({"keys": [2, "1", "02", 77, "abc", 2]});
    for x_cache in ["MISS", "HIT"] {
        let response = scene.http.post("/v1/item/batch", &body, &[]).await.expect(200);
        assert!(response.header("x-cache").starts_with(x_cache), "{response:?}");
        assert!(lsn(&response, "x-applied-lsn") <= lsn(&response, "x-read-lsn"));
        let items = response.json()["items"].as_array().unwrap().clone();
        let keys: Vec<&Value> = items.iter().map(|item| &item["key"]).collect();
        assert_eq!(keys, [&json!(2), &json!("1"), &json!("02"), &json!(77), &json!("abc"), &json!(2)]);
        for (at, id) in [(0, 2), (1, 1), (2, 2), (5, 2)] {
            assert_eq!((&items[at]["status"], &items[at]["value"]), (&json!(200), &json!({"id": id, "n": 0})));
        }
        problem_document(&items[3]["problem"], 404, "absent");
        problem_document(&items[4]["problem"], 400, "malformed-key");
    }
    assert_eq!(scene.keys("item").await, ["1", "2", "77"]);
    assert_eq!(scene.http.post("/v1/item/batch", &json!({"keys": []}), &[]).await.json(), json!({"items": []}));
    let at = scene.write("UPDATE items SET n = 5; INSERT INTO items VALUES (77, 7)").await.to_string();
    let response = scene.http.post("/v1/item/batch", &body, &[("x-min-lsn", &at)]).await;
    assert_eq!(response.json()["items"][0]["value"]["n"], 5);
    assert_eq!(response.json()["items"][3]["value"], json!({"id": 77, "n": 7}));
    scene.verify().await;
}

/// Whoever passes the position of their write sees it; whoever passes on what they were given never sees less.
#[tokio::test]
async fn reads_follow_writes_and_never_go_backwards() {
    const WRITES: i64 = 200;
    let scene = scene("ryw").await;
    let reader = {
        let http = scene.http.clone();
        async move {
            let (mut seen, mut at, mut reads) = (0, Lsn::ZERO.to_string(), 0);
            while seen < WRITES {
                let response = http.get_with("/v1/item/1", &[("x-min-lsn", &at)]).await.expect(200);
                let n = response.json()["n"].as_i64().unwrap();
                assert!(n >= seen, "saw {n} after {seen}: {response:?}");
                let (applied, read) = (lsn(&response, "x-applied-lsn"), lsn(&response, "x-read-lsn"));
                assert!(applied <= read && read >= at.parse().unwrap(), "{at}: {response:?}");
                (seen, at, reads) = (n, read.to_string(), reads + 1);
            }
            reads
        }
    };
    let writer = async {
        let update = scene.sql.prepare("UPDATE items SET n = $1::int8 WHERE id = 1").await.unwrap();
        for n in 1..=WRITES {
            scene.sql.execute(&update, &[&n]).await.unwrap();
            let at = current_lsn(&scene.sql).await;
            let headers = [("x-min-lsn", &*at.to_string())];
            let response = scene.http.get_with("/v1/item/1", &headers).await.expect(200);
            assert_eq!(response.json()["n"], n, "{response:?}");
            assert!(lsn(&response, "x-read-lsn") >= at);
        }
    };
    let ((), reads) = tokio::join!(writer, reader);
    assert!(reads >= 10, "{reads} reads");
    scene.verify().await;
}

#[tokio::test]
async fn an_lsn_that_never_comes_is_waited_for_within_bounds() {
    let scene = scene("min_lsn").await;
    scene.warm("item/1").await;
    for (prefer, least) in [("", 200), ("wait=0", 0), ("wait=300", 300), ("wait=3600000", 400)] {
        let started = Instant::now();
        let headers = [("x-min-lsn", "FFFFFFFF/0"), ("prefer", prefer)];
        let response = scene.http.get_with("/v1/item/1", &headers).await;
        let (took, least) = (started.elapsed(), Duration::from_millis(least));
        assert!(took >= least && took < least + MARGIN, "{prefer}: {took:?}");
        let detail = problem(&response, 503, "lsn-ahead");
        assert!(detail.contains("FFFFFFFF/0"), "{detail}");
        assert!(response.header("retry-after").parse::<u64>().is_ok());
    }
    // What is applied needs no wait, and L1 answers it.
    let applied = scene.applied().await.to_string();
    let headers = [("x-min-lsn", &*applied), ("prefer", "wait=0")];
    let response = scene.http.get_with("/v1/item/1", &headers).await.expect(200);
    assert_eq!((response.header("x-cache"), response.header("preference-applied")), ("HIT-L1", "wait=0"));
    for bad in ["x", "16", "0/1 0/2", "-1/0", ""] {
        let response = scene.http.get_with("/v1/item/1", &[("x-min-lsn", bad)]).await;
        assert!(problem(&response, 400, "malformed-header").contains("X-Min-LSN"), "{bad}");
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem_document() {
    let scene = scene("problems").await;
    let http = &scene.http;
    let detail = problem(&scene.get("thing/1").await, 404, "unknown-entity");
    assert!(detail.contains("thing") && detail.contains("item, note"), "{detail}");
    let detail = problem(&scene.get("item/abc").await, 400, "malformed-key");
    assert!(detail.contains("id") && detail.contains("an integer from -2147483648 to 2147483647"), "{detail}");
    problem(&scene.get("item/1/2").await, 400, "malformed-key");
    problem(&scene.get("item").await, 404, "no-route");
    // The empty text is a key like others.
    problem_document(&scene.get("note/").await.json(), 404, "absent");
    for path in ["/v1", "/v1/"] {
        problem(&http.get(path).await, 404, "unknown-entity");
    }
    for path in ["/", "/v2/item/1", "/metrics", "/livez"] {
        problem(&http.get(path).await, 404, "no-route");
    }
    let send = |method: Method, path: &'static str| async move {
        http.send(method, path, &[("content-type", "application/json")], Bytes::from_static(b"{}")).await.unwrap()
    };
    for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        let response = send(method.clone(), "/v1/item/1").await;
        problem(&response, 405, "method-not-allowed");
        assert_eq!(response.header("allow"), "GET, HEAD", "{method}");
    }
    let response = send(Method::DELETE, "/v1/item/batch").await;
    problem(&response, 405, "method-not-allowed");
    assert_eq!(response.header("allow"), "GET, HEAD, POST");
    problem(&send(Method::DELETE, "/v1/thing/1").await, 404, "unknown-entity");

    let batch = |body: &str, kind: &'static str| {
        let body = Bytes::from(body.to_owned());
        async move { http.send(Method::POST, "/v1/item/batch", &[("content-type", kind)], body).await.unwrap() }
    };
    let json = "application/json";
    for body in ["", "{", "[1]", "{}", r#"{"keys":1}"#, r#"{"keys":[1],"more":1}"#, "\u{1}"] {
        problem(&batch(body, json).await, 400, "malformed-body");
    }
    problem(&batch(r#"{"keys":[1]}"#, "text/plain").await, 415, "unsupported-media-type");
    let detail = problem(&batch(r#"{"keys":[1,2,3,4,5,6,7,8,9,10,11]}"#, json).await, 413, "batch-too-large");
    assert!(detail.contains("11") && detail.contains("10"), "{detail}");
    let detail =
        problem(&batch(&format!("{{\"keys\":[\"{}\"]}}", "x".repeat(1100)), json).await, 413, "body-too-large");
    assert!(detail.contains("1024"), "{detail}");
    problem(&http.post("/v1/thing/batch", &json!({"keys": [1]}), &[]).await, 404, "unknown-entity");
    problem(&http.get_with("/v1/item/1", &[("x-big", &"x".repeat(40_000))]).await, 431, "headers-too-large");
    // None of it left anything behind, and all is as before.
    assert_eq!(scene.keys("item").await, Vec::<String>::new());
    scene.get("item/1").await.expect(200);
}

#[tokio::test]
async fn the_admin_listener_tells_health_metrics_and_status() {
    let scene = scene("admin").await;
    let admin = scene.daemon.admin();
    scene.get("item/1").await.expect(200);
    scene.warm("item/1").await;
    scene.get("item/abc").await.expect(400);
    let at = scene.write("UPDATE items SET n = 1 WHERE id = 1; DELETE FROM items WHERE id = 2").await;

    assert_eq!(admin.get("/livez").await.expect(200).text(), "ok\n");
    assert_eq!(admin.get("/readyz").await.expect(200).json(), json!({"ready": true}));
    problem(&admin.get("/v1/item/1").await, 404, "no-route");
    let response = admin.send(Method::POST, "/livez", &[], Bytes::new()).await.unwrap();
    problem(&response, 405, "method-not-allowed");

    let status = scene.daemon.status().await;
    assert_eq!(
        (&status["ready"], &status["problem"], &status["l2"]["trusted"]),
        (&json!(true), &Value::Null, &json!(true))
    );
    assert!(status["applied_lsn"].as_str().unwrap().parse::<Lsn>().unwrap() >= at);
    assert!(status["lag_seconds"].as_f64().is_some_and(|lag| lag < 60.0), "{status}");
    let replication = &status["replication"];
    assert_eq!((&replication["connected"], &replication["slot"]), (&json!(true), &json!(scene.stage.name)));
    for field in ["source_lsn", "received_lsn", "applied_lsn", "confirmed_lsn"] {
        assert!(replication[field].as_str().is_some_and(|lsn| lsn.parse::<Lsn>().is_ok()), "{field}: {status}");
    }
    assert_eq!(status["entities"][0]["name"], "item");
    assert_eq!(status["entities"][0]["table"], "public.items");

    let metrics = admin.get("/metrics").await.expect(200);
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = metrics.text();
    for line in [
        "walcache_replication_connected 1",
        "walcache_leader 1",
        "walcache_l2_trusted 1",
        "walcache_replication_events_total{entity=\"item\",op=\"update\"} 1",
        "walcache_replication_events_total{entity=\"item\",op=\"delete\"} 1",
        "walcache_replication_events_total{entity=\"note\",op=\"update\"} 0",
        "walcache_cache_requests_total{tier=\"source\",entity=\"item\",result=\"hit\"} 1",
        "walcache_cache_invalidations_total{entity=\"item\",cause=\"truncate\"} 0",
        "walcache_fills_total{entity=\"item\",result=\"published\"} 1",
        "walcache_fenced_writes_total{reason=\"epoch\"} 0",
        "walcache_http_requests_total{route=\"read\",code=\"400\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for start in [
        "walcache_build_info{version=\"",
        "walcache_replication_lag_bytes{kind=\"received\"} ",
        "walcache_replication_lag_bytes{kind=\"applied\"} ",
        "walcache_replication_lag_bytes{kind=\"retained\"} ",
        "walcache_commit_to_visible_seconds_bucket{le=\"0.0015\"} ",
        "walcache_apply_batch_seconds_bucket{",
        "walcache_gate_wait_seconds_bucket{",
        "walcache_http_requests_total{route=\"read\",code=\"200\"} ",
        "walcache_http_request_duration_seconds_bucket{route=\"read\",",
        "walcache_db_pool_available ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(start)), "{start}\n{text}");
    }
    // It moves all the time, so it cannot be exactly zero.
    let lag = scene.metric("walcache_replication_lag_seconds").await.unwrap();
    assert!(lag > 0.0 && lag < 60.0, "{lag}");
    assert!(scene.metric("walcache_commit_to_visible_seconds_count").await.unwrap() >= 1.0);
    let helped = |line: &str| text.contains(&format!("# HELP {} ", line.split(' ').nth(2).unwrap()));
    assert!(text.lines().filter(|line| line.starts_with("# TYPE")).all(helped), "each metric is explained");
    assert!(!text.contains("item:1"), "no key in a metric");
}
