//! The API over a read path that answers from a table, in memory and over real sockets.

mod batches;
mod operators;
mod projected;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::service::Service;
use serde_json::{Value, json};
use tokio::sync::Notify;
use warp::http::{HeaderMap, Request};

use super::*;
use crate::cache::answer::Outcome;
use crate::entity::{Definition, Shape};
use crate::key::{KeyColumn, KeyType};
use crate::lsn::Lsn;

fn limits() -> Limits {
    Limits {
        max_body: 1000,
        max_batch: 4,
        header_timeout: Duration::from_millis(300),
        max_connections: 16,
        grace: Duration::from_secs(5),
    }
}

fn entity(id: usize, name: &str, key: &[KeyType]) -> Arc<Entity> {
    let column = |key_type: &KeyType| KeyColumn {
        name: "k".into(),
        type_oid: 0,
        key_type: key_type.clone(),
        cast: String::new(),
    };
    let shape = Shape { key: key.iter().map(column).collect(), ..Shape::unknown(0) };
    Arc::new(Entity::new(id, Definition::rows(name, "public", name), "", shape))
}

/// `note` has text keys, `product` integers. A key's text says how it is answered; any other is its own value.
struct Table {
    entities: HashMap<String, Arc<Entity>>,
    demands: parking_lot::Mutex<Vec<Demand>>,
    l1_lookups: AtomicUsize,
    waiting: Arc<Notify>,
    proceed: Arc<Notify>,
}

impl Table {
    fn new() -> Self {
        let all = [entity(0, "note", &[KeyType::Text]), entity(1, "product", &[KeyType::Integer(0, 1000)])];
        Table {
            entities: all.into_iter().map(|e| (e.name.clone(), e)).collect(),
            demands: Default::default(),
            l1_lookups: AtomicUsize::new(0),
            waiting: Default::default(),
            proceed: Default::default(),
        }
    }

    fn answer(key: &str) -> Result<Answer, ReadError> {
        let outcome = match key {
            "l2" => Outcome::HitL2,
            "miss" | "absent" => Outcome::Miss,
            "bypass" => Outcome::Bypass,
            "down" => return Err(ReadError::SourceUnavailable),
            "slow-source" => return Err(ReadError::SourceTimeout(Duration::from_secs(2))),
            "overload" => return Err(ReadError::Overloaded),
            "old" => {
                let (age, limit) = (Duration::from_millis(12_345), Duration::from_secs(10));
                return Err(ReadError::TooStale { age, limit, why: Box::new(ReadError::SourceUnavailable) });
            }
            "refused" => return Err(ReadError::Refused("42501".into())),
            "ahead" => {
                return Err(ReadError::LsnAhead { demanded: Lsn::from_u64(0xFF), current: Lsn::from_u64(0x10) });
            }
            _ => Outcome::HitL1,
        };
        let value = (key != "absent").then(|| Bytes::from(json!({ "key": key }).to_string()));
        let stale = (key == "stale").then_some(Duration::from_secs(7));
        let read = if key == "miss" { 0x20 } else { 0x10 };
        Ok(Answer { value, etag: 0xAB, outcome, stale, applied: Lsn::from_u64(0x10), read: Lsn::from_u64(read) })
    }
}

impl Reads for Table {
    fn entity(&self, name: &str) -> Option<&Arc<Entity>> {
        self.entities.get(name)
    }

    fn read_l1(&self, _: &Entity, key: &EntryKey, demand: &Demand) -> Option<Answer> {
        self.l1_lookups.fetch_add(1, Ordering::Relaxed);
        self.demands.lock().push(*demand);
        if key.key() == "wait" {
            return None;
        }
        Table::answer(key.key()).ok().filter(|answer| answer.outcome == Outcome::HitL1)
    }

    async fn read(&self, _: &Arc<Entity>, key: EntryKey, demand: Demand) -> Result<Answer, ReadError> {
        if key.key() == "wait" {
            self.waiting.notify_one();
            self.proceed.notified().await;
        }
        self.demands.lock().push(demand);
        let mut answer = Table::answer(key.key())?;
        if demand.fresh {
            answer.outcome = Outcome::Bypass;
        }
        Ok(answer)
    }

    async fn read_many(&self, _: &Arc<Entity>, keys: Vec<EntryKey>, demand: Demand) -> Vec<Result<Answer, ReadError>> {
        self.demands.lock().push(demand);
        keys.iter().map(|key| Table::answer(key.key())).collect()
    }
}

fn table() -> Arc<api::Api<Table>> {
    api::Api::new(Table::new(), vec!["note".into(), "product".into()], limits())
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    fn is_problem(&self, status: u16, kind: &str) {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("urn:walcache:problem:{kind}"));
        assert_eq!(problem["status"], status);
        assert!(!problem["title"].as_str().unwrap().is_empty() && !problem["detail"].as_str().unwrap().is_empty());
    }
}

async fn ask_of<S, B>(service: S, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Got
where
    S: Service<Request<Full<Bytes>>, Response = http::Response<B>, Error = std::convert::Infallible>,
    B: hyper::body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = service.call(request).await.unwrap();
    let (head, body) = response.into_parts();
    Got { status: head.status.as_u16(), headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
}

async fn ask(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Got {
    ask_of(api::service(&table()), method, target, headers, body).await
}

async fn get(target: &str) -> Got {
    ask("GET", target, &[], "").await
}

#[tokio::test]
async fn a_hit_carries_every_header() {
    let got = get("/v1/note/a").await;
    assert_eq!((got.status, &got.body[..]), (200, &br#"{"key":"a"}"#[..]));
    for (name, value) in [
        ("content-type", "application/json"),
        ("etag", "\"00000000000000ab\""),
        ("x-cache", "HIT-L1"),
        ("cache-status", "walcache; hit; detail=L1"),
        ("x-applied-lsn", "0/10"),
        ("x-read-lsn", "0/10"),
        ("cache-control", "private, no-cache"),
    ] {
        assert_eq!(got.headers[name], value);
    }
    assert!(!got.headers.contains_key("age") && !got.headers.contains_key("preference-applied"));
}

#[tokio::test]
async fn outcomes_have_names() {
    for (key, x_cache, cache_status) in [
        ("l2", "HIT-L2", "walcache; hit; detail=L2"),
        ("miss", "MISS", "walcache; fwd=miss"),
        ("bypass", "BYPASS", "walcache; fwd=bypass"),
        ("stale", "STALE", "walcache; hit; detail=L1; ttl=-7"),
    ] {
        let got = get(&format!("/v1/note/{key}")).await;
        assert_eq!(got.status, 200);
        assert_eq!(got.headers["x-cache"], x_cache);
        assert_eq!(got.headers["cache-status"], cache_status);
        assert_eq!(got.headers.get("age").is_some(), key == "stale");
        assert_eq!(got.headers["x-read-lsn"], if key == "miss" { "0/20" } else { "0/10" });
    }
}

#[tokio::test]
async fn an_absent_row_is_a_404_with_its_lsns() {
    let got = ask("GET", "/v1/note/absent", &[("if-none-match", "*")], "").await;
    got.is_problem(404, "absent");
    assert_eq!(got.headers["x-applied-lsn"], "0/10");
    assert_eq!(got.headers["x-cache"], "MISS");
    assert_eq!(got.headers["cache-control"], "private, no-cache");
    assert!(!got.headers.contains_key("etag"));
}

#[tokio::test]
async fn an_unchanged_value_is_a_304_without_body() {
    for tag in ["\"00000000000000ab\"", "\"1\", W/\"00000000000000ab\"", "*"] {
        for method in ["GET", "HEAD"] {
            let got = ask(method, "/v1/note/a", &[("if-none-match", tag)], "").await;
            assert_eq!((got.status, got.body.len()), (304, 0));
            assert_eq!(got.headers["etag"], "\"00000000000000ab\"");
            assert_eq!(got.headers["x-read-lsn"], "0/10");
            assert!(!got.headers.contains_key("content-type") && !got.headers.contains_key("content-length"));
        }
    }
    assert_eq!(ask("GET", "/v1/note/a", &[("if-none-match", "\"1\"")], "").await.status, 200);
}

#[tokio::test]
async fn head_has_the_headers_of_get() {
    for target in ["/v1/note/a", "/v1/note/l2", "/v1/note/absent", "/v1/note/down", "/v1/no/1", "/v1/note", "/x"] {
        let (get, head) = (get(target).await, ask("HEAD", target, &[], "").await);
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{target}");
        let mut headers = head.headers.clone();
        assert_eq!(headers.remove("content-length").unwrap(), get.body.len().to_string(), "{target}");
        assert_eq!(headers, get.headers, "{target}");
    }
}

#[tokio::test]
async fn reads_without_an_answer_are_503_with_retry_after() {
    for (key, kind) in [
        ("down", "source-unavailable"),
        ("slow-source", "source-timeout"),
        ("overload", "overloaded"),
        ("old", "too-stale"),
        ("ahead", "lsn-ahead"),
        ("refused", "query-refused"),
    ] {
        let got = get(&format!("/v1/note/{key}")).await;
        got.is_problem(503, kind);
        assert!(got.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
        assert_eq!(got.headers["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn demands_reach_the_read_path() {
    let api = table();
    let headers = [("x-min-lsn", "0/AB"), ("prefer", "wait=250"), ("cache-control", "max-age=9, max-stale")];
    let got = ask_of(api::service(&api), "GET", "/v1/note/l2", &headers, "").await;
    assert_eq!(got.headers["preference-applied"], "wait=250");
    // L1 is asked with the same demand before the rest.
    for demand in api.reads.demands.lock().drain(..) {
        assert_eq!(demand.min_lsn, Some(Lsn::from_u64(0xAB)));
        assert_eq!(demand.wait, Some(Duration::from_millis(250)));
        assert_eq!((demand.max_age, demand.max_stale), (Some(Duration::from_secs(9)), Some(Duration::MAX)));
        assert!(!demand.fresh);
    }
    let before = api.reads.l1_lookups.load(Ordering::Relaxed);
    let got = ask_of(api::service(&api), "GET", "/v1/note/a", &[("cache-control", "no-cache")], "").await;
    assert_eq!(got.headers["cache-status"], "walcache; fwd=request");
    assert_eq!(api.reads.l1_lookups.load(Ordering::Relaxed), before, "a fresh read does not ask L1");
    assert!(api.reads.demands.lock()[0].fresh);

    ask("GET", "/v1/note/a", &[("x-min-lsn", "yesterday")], "").await.is_problem(400, "malformed-header");
    ask("GET", "/v1/note/a", &[("x-big", &"x".repeat(40_000))], "").await.is_problem(431, "headers-too-large");
}

#[tokio::test]
async fn keys_are_taken_raw() {
    for (path, key) in [
        ("a%2Fb", "a/b"),
        ("%252f", "%252f"),
        ("", ""),
        ("a%20b", "a b"),
        ("a%2Cb", "a%2Cb"),
        ("batch", "batch"),
        ("..", ".."),
        ("%C3%A9", "é"),
    ] {
        let got = get(&format!("/v1/note/{path}")).await;
        assert_eq!((got.status, &got.json()["key"]), (200, &json!(key)), "{path}");
    }
    assert_eq!(get("/v1/product/042").await.json()["key"], "42");
    for (target, detail) in [
        ("/v1/note/a/b", "%2F"),
        ("/v1/note/a/", "%2F"),
        ("/v1/note/a,b", "2 part(s)"),
        ("/v1/note/%zz", "UTF-8"),
        ("/v1/note/%00", "NUL"),
        ("/v1/product/abc", "integer"),
        ("/v1/product/", "integer"),
    ] {
        let got = get(target).await;
        got.is_problem(400, "malformed-key");
        assert!(got.json()["detail"].as_str().unwrap().contains(detail), "{target}: {:?}", got.body);
    }
    get(&format!("/v1/note/{}", "x".repeat(20_000))).await.is_problem(414, "uri-too-long");
    get(&format!("/v1/note/{}", "x".repeat(60_000))).await.is_problem(414, "uri-too-long");
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let got = get("/v1/user/1").await;
    got.is_problem(404, "unknown-entity");
    assert_eq!(got.json()["detail"], "there is no entity \"user\"; configured: note, product");
    get("/v1/user").await.is_problem(404, "unknown-entity");
    ask("PUT", "/v1/user/1", &[], "").await.is_problem(404, "unknown-entity");
    ask("POST", "/v1/user/batch", &[], "{}").await.is_problem(404, "unknown-entity");
    for target in ["/", "/v1/note", "/v2/note/1", "/livez"] {
        get(target).await.is_problem(404, "no-route");
    }
    for (method, target, allow) in [
        ("PUT", "/v1/note/a", "GET, HEAD"),
        ("DELETE", "/v1/note/a", "GET, HEAD"),
        ("POST", "/v1/note/a", "GET, HEAD"),
        ("PATCH", "/v1/note/batch", "GET, HEAD, POST"),
    ] {
        let got = ask(method, target, &[], "").await;
        got.is_problem(405, "method-not-allowed");
        assert_eq!(got.headers["allow"], allow);
    }
    let names: Vec<String> = (0..30).map(|i| format!("e{i}")).collect();
    let many = api::service(&api::Api::new(Table::new(), names, limits()));
    let detail = ask_of(many, "GET", "/v1/x/1", &[], "").await.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.ends_with("e19 and 10 more"), "{detail}");
}
