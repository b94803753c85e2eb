//! The admin listener: how things stand, and what operators ask for.

use super::*;
use crate::entity::Generation;
use crate::serve::admin::{Admin, Health, Operate, Refusal, Verify, VerifyScope, Warm, service};

struct Fixed(Result<(), Vec<String>>);

impl Health for Fixed {
    fn ready(&self) -> Result<(), Vec<String>> {
        self.0.clone()
    }

    fn status(&self) -> Value {
        json!({ "leader": true })
    }

    fn metrics(&self) -> String {
        "walcache_leader 1\n".into()
    }
}

#[tokio::test]
async fn the_admin_listener_tells_how_things_stand() {
    let well = || service(&routes(Ok(()), State::Leading));
    let ill = service(&routes(Err(vec!["replication is not connected".into()]), State::Leading));
    let got = ask_of(well(), "GET", "/livez", &[], "").await;
    assert_eq!((got.status, &got.body[..]), (200, &b"ok\n"[..]));
    let got = ask_of(well(), "GET", "/readyz", &[], "").await;
    assert_eq!((got.status, got.json()), (200, json!({"ready": true})));
    let got = ask_of(ill, "GET", "/readyz", &[], "").await;
    assert_eq!((got.status, got.json()), (503, json!({"ready": false, "reasons": ["replication is not connected"]})));
    let got = ask_of(well(), "GET", "/metrics", &[], "").await;
    assert_eq!(got.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(&got.body[..], b"walcache_leader 1\n");
    let got = ask_of(well(), "HEAD", "/metrics", &[], "").await;
    assert_eq!((got.status, got.body.len(), &got.headers["content-length"]), (200, 0, &"18".parse().unwrap()));
    let got = ask_of(well(), "GET", "/v1/status", &[], "").await;
    assert_eq!(
        (&got.headers["content-type"], got.json()),
        (&"application/json".parse().unwrap(), json!({"leader": true}))
    );
    ask_of(well(), "GET", "/v1/note/1", &[], "").await.is_problem(404, "no-route");
    let got = ask_of(well(), "POST", "/readyz", &[], "").await;
    got.is_problem(405, "method-not-allowed");
    assert_eq!(got.headers["allow"], "GET, HEAD");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Following,
    Leading,
}

/// Answers with what it was asked for.
struct Echo(State, Vec<Arc<Entity>>);

impl Echo {
    fn leading(&self) -> Result<(), Refusal> {
        match self.0 {
            State::Leading => Ok(()),
            _ => Err(Refusal::NotLeading("another instance streams".into())),
        }
    }
}

impl Operate for Echo {
    fn entities(&self) -> Result<&[Arc<Entity>], Refusal> {
        if self.0 == State::Starting { Err(Refusal::Starting("not yet".into())) } else { Ok(&self.1) }
    }

    async fn resync(&self, entity: Option<usize>) -> Result<Generation, Refusal> {
        self.leading()?;
        Ok(Generation(entity.map_or(100, |id| id as u64)))
    }

    async fn verify(&self, entity: &Arc<Entity>, verify: Verify) -> Result<Bytes, Refusal> {
        self.leading()?;
        let Verify { scope, repair } = verify;
        let scope = match scope {
            VerifyScope::Sample(count) => json!({ "sample": count }),
            VerifyScope::Page { cursor: Some(text), .. } if text == "bad" => {
                return Err(Refusal::Malformed("no cursor".into()));
            }
            VerifyScope::Page { cursor, limit } => json!({ "cursor": cursor, "limit": limit }),
        };
        Ok(json!({ "entity": entity.name, "scope": scope, "repair": repair }).to_string().into())
    }

    async fn invalidate(&self, command: &str, dry_run: bool) -> Result<(Bytes, bool), Refusal> {
        if command.contains("bad") {
            return Err(Refusal::Malformed("no key".into()));
        }
        let done = self.0 == State::Leading;
        Ok((json!({ "command": command, "dry_run": dry_run }).to_string().into(), done))
    }

    async fn explain(&self, entity: &Arc<Entity>, key: &EntryKey) -> Result<Bytes, Refusal> {
        Ok(json!({ "entity": entity.name, "key": key.key() }).to_string().into())
    }

    async fn tap(&self, entity: Option<usize>, from: Option<&str>) -> Result<Bytes, Refusal> {
        self.leading()?;
        if from == Some("bad") {
            return Err(Refusal::Malformed("no place".into()));
        }
        Ok(json!({ "entity": entity, "from": from }).to_string().into())
    }

    async fn warm(&self, entity: &Arc<Entity>, warm: Warm) -> Result<Bytes, Refusal> {
        self.leading()?;
        if entity.name == "pair" {
            return Err(Refusal::Conflict("under way".into()));
        }
        Ok(format!("{} {warm:?}", entity.name).into())
    }

    fn cancel_warming(&self, entity: &Arc<Entity>) -> Result<Bytes, Refusal> {
        Ok(format!("cancel {}", entity.name).into())
    }

    fn warming(&self) -> Result<Bytes, Refusal> {
        self.entities().map(|_| "{\"jobs\":[]}".into())
    }
}

fn routes(ready: Result<(), Vec<String>>, state: State) -> Arc<Admin<Fixed, Echo>> {
    let entities = vec![entity(0, "note", &[KeyType::Text]), entity(1, "pair", &[KeyType::Text, KeyType::Bool])];
    Admin::new(Arc::new(Fixed(ready)), Arc::new(Echo(state, entities)), limits())
}

async fn post(state: State, path: &str, body: &str) -> Got {
    let headers = [("content-type", "application/json")];
    ask_of(service(&routes(Ok(()), state)), "POST", path, &headers, body).await
}

async fn explain(state: State, path: &str) -> Got {
    ask_of(service(&routes(Ok(()), state)), "GET", &format!("/v1/explain/{path}"), &[], "").await
}

#[tokio::test]
async fn keys_to_explain_are_spelled_as_in_reads() {
    for (path, entity, key) in [
        ("note/a%2Fb", "note", "a/b"),
        ("note/a/b", "note", "a/b"),
        ("note/", "note", ""),
        ("pair/x,true", "pair", "x,t"),
    ] {
        let got = explain(State::Leading, path).await;
        assert_eq!((got.status, got.json()), (200, json!({ "entity": entity, "key": key })), "{path}");
    }
    // Whoever follows can explain, too: what it holds, and that it serves none of it.
    assert_eq!(explain(State::Following, "note/a").await.status, 200);
    explain(State::Starting, "note/a").await.is_problem(503, "starting");
    explain(State::Leading, "note/%ff").await.is_problem(400, "malformed-key");
    explain(State::Leading, "pair/x").await.is_problem(400, "malformed-key");
    explain(State::Leading, "note").await.is_problem(404, "no-route");
    let got = explain(State::Leading, "nothing/1").await;
    got.is_problem(404, "unknown-entity");
    assert!(got.json()["detail"].as_str().unwrap().contains("configured: note, pair"), "{:?}", got.body);
}

#[tokio::test]
async fn verify_takes_a_sample_or_a_page() {
    for (body, scope, repair) in [
        (r#"{"entity":"note","sample":7}"#, json!({"sample": 7}), true),
        (r#"{"entity":"note","sample":10000,"repair":false}"#, json!({"sample": 10000}), false),
        (r#"{"entity":"note"}"#, json!({"cursor": null, "limit": 1000}), true),
        (r#"{"entity":"note","cursor":"l2:7","limit":3}"#, json!({"cursor": "l2:7", "limit": 3}), true),
    ] {
        let got = post(State::Leading, "/v1/verify", body).await;
        assert_eq!(
            (got.status, got.json()),
            (200, json!({"entity": "note", "scope": scope, "repair": repair})),
            "{body}"
        );
        assert_eq!(got.headers["cache-control"], "no-store");
    }
    for body in [
        "",
        "{}",
        "[]",
        r#"{"entity":7}"#,
        r#"{"entity":"note","sample":0}"#,
        r#"{"entity":"note","sample":10001}"#,
        r#"{"entity":"note","limit":0}"#,
        r#"{"entity":"note","sample":-1}"#,
        r#"{"entity":"note","sample":1,"limit":1}"#,
        r#"{"entity":"note","sample":1,"cursor":"x"}"#,
        r#"{"entity":"note","cursor":"bad"}"#,
        r#"{"entity":"note","smaple":1}"#,
    ] {
        post(State::Leading, "/v1/verify", body).await.is_problem(400, "malformed-body");
    }
    let long = format!("{{\"entity\":\"{}\"}}", "x".repeat(2000));
    post(State::Leading, "/v1/verify", &long).await.is_problem(413, "body-too-large");
    post(State::Leading, "/v1/verify", r#"{"entity":"x"}"#).await.is_problem(404, "unknown-entity");
    post(State::Starting, "/v1/verify", r#"{"entity":"note"}"#).await.is_problem(503, "starting");
    let got = post(State::Following, "/v1/verify", r#"{"entity":"note"}"#).await;
    got.is_problem(503, "not-leading");
    assert!(got.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn resync_is_of_one_entity_or_of_all() {
    let got = post(State::Leading, "/v1/resync", r#"{"entity":"pair"}"#).await;
    assert_eq!((got.status, got.json()), (200, json!({"entity": "pair", "generation": 1})));
    let got = post(State::Leading, "/v1/resync", "{}").await;
    assert_eq!((got.status, got.json()), (200, json!({"entity": null, "generation": 100})));
    post(State::Leading, "/v1/resync", r#"{"entity":"x"}"#).await.is_problem(404, "unknown-entity");
    post(State::Leading, "/v1/resync", r#"{"entities":[]}"#).await.is_problem(400, "malformed-body");
    let got = post(State::Following, "/v1/resync", "{}").await;
    got.is_problem(503, "not-leading");
    assert!(got.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn what_is_invalidated_is_handed_on_as_it_is_written() {
    for (body, command, dry_run) in [
        (r#"{"entity":"note","keys":["a",10.50]}"#, r#"{"invalidate":{"entity":"note","keys":["a",10.50]}}"#, false),
        (r#"{"tag":"x","dry_run":true}"#, r#"{"invalidate":{"tag":"x"}}"#, true),
        (r#"{"dry_run":false,"pattern":"note:*"}"#, r#"{"invalidate":{"pattern":"note:*"}}"#, false),
    ] {
        let got = post(State::Leading, "/v1/invalidate", body).await;
        assert_eq!((got.status, got.json()), (200, json!({ "command": command, "dry_run": dry_run })), "{body}");
        // Whoever follows can write it, too, and cannot tell whether it was applied.
        assert_eq!(post(State::Following, "/v1/invalidate", body).await.status, 202);
    }
    for body in ["", "[]", "7", r#"{"tag":"x","dry_run":1}"#, r#"{"tag":"bad"}"#] {
        post(State::Leading, "/v1/invalidate", body).await.is_problem(400, "malformed-body");
    }
}

/// A page in an operator's browser can have a form sent to anywhere: it must not do anything here.
#[tokio::test]
async fn nothing_is_done_for_what_is_not_declared_as_json() {
    for path in ["/v1/resync", "/v1/verify", "/v1/invalidate"] {
        for headers in
            [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/x-www-form-urlencoded")]]
        {
            let got = ask_of(service(&routes(Ok(()), State::Leading)), "POST", path, headers, "{}").await;
            got.is_problem(415, "unsupported-media-type");
        }
        let got = ask_of(service(&routes(Ok(()), State::Leading)), "GET", path, &[], "").await;
        got.is_problem(405, "method-not-allowed");
        assert_eq!(got.headers["allow"], "POST");
    }
    let got = ask_of(service(&routes(Ok(()), State::Leading)), "POST", "/v1/explain/note/a", &[], "").await;
    got.is_problem(405, "method-not-allowed");
    assert_eq!(got.headers["allow"], "GET, HEAD");
}

#[tokio::test]
async fn the_tap_reads_its_parameters() {
    let ask = async |state, query: &str| {
        ask_of(service(&routes(Ok(()), state)), "GET", &format!("/v1/tap{query}"), &[], "").await
    };
    for (query, wanted) in [
        ("", json!({ "entity": null, "from": null })),
        ("?", json!({ "entity": null, "from": null })),
        ("?entity=pair&from=0a-7", json!({ "entity": 1, "from": "0a-7" })),
    ] {
        let got = ask(State::Leading, query).await;
        assert_eq!((got.status, got.json()), (200, wanted), "{query}");
    }
    for (state, query, status) in [
        (State::Leading, "?from=bad", 400),
        (State::Leading, "?entity", 400),
        (State::Leading, "?entity=none", 404),
        (State::Following, "", 503),
    ] {
        assert_eq!(ask(state, query).await.status, status, "{query}");
    }
}

#[tokio::test]
async fn warming_is_begun_ended_and_told() {
    for (body, answer) in [
        (r#"{"entity":"note"}"#, "note Warm { condition: None, keys: None, order: None, limit: None, rate: None }"),
        (
            r#"{"entity":"note","where":"n > 1","order":"desc","limit":5,"rate":100000}"#,
            "note Warm { condition: Some(\"n > 1\"), keys: None, order: Some(Desc), limit: Some(5), rate: Some(100000) }",
        ),
        (r#"{"entity":"note","cancel":true}"#, "cancel note"),
    ] {
        let got = post(State::Leading, "/v1/warm", body).await;
        assert_eq!((got.status, std::str::from_utf8(&got.body).unwrap()), (200, answer), "{body}");
    }
    for body in [
        "",
        "{}",
        r#"{"entity":"note","limit":0}"#,
        r#"{"entity":"note","limit":-1}"#,
        r#"{"entity":"note","rate":0}"#,
        r#"{"entity":"note","rate":100001}"#,
        r#"{"entity":"note","where":" "}"#,
        r#"{"entity":"note","where":"true","keys":"select 1"}"#,
        r#"{"entity":"note","order":"random"}"#,
        r#"{"entity":"note","key":1}"#,
    ] {
        post(State::Leading, "/v1/warm", body).await.is_problem(400, "malformed-body");
    }
    post(State::Leading, "/v1/warm", r#"{"entity":"nothing"}"#).await.is_problem(404, "unknown-entity");
    post(State::Leading, "/v1/warm", r#"{"entity":"pair"}"#).await.is_problem(409, "conflict");
    post(State::Following, "/v1/warm", r#"{"entity":"note"}"#).await.is_problem(503, "not-leading");
    let get = |state| ask_of(service(&routes(Ok(()), state)), "GET", "/v1/warm", &[], "");
    assert_eq!(get(State::Following).await.json(), json!({"jobs": []}));
    get(State::Starting).await.is_problem(503, "starting");
    let got = ask_of(service(&routes(Ok(()), State::Leading)), "PUT", "/v1/warm", &[], "").await;
    got.is_problem(405, "method-not-allowed");
    assert_eq!(got.headers["allow"], "GET, HEAD, POST");
}
