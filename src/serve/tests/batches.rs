//! `POST /v1/{entity}/batch`.

use super::*;

#[tokio::test]
async fn a_batch_answers_in_order_item_by_item() {
    let json_type = [("content-type", "application/json; charset=utf-8"), ("prefer", "wait=5")];
    let got = ask("POST", "/v1/note/batch", &json_type, r#"{"keys":["miss", "absent","a\u002c%2F", "down"]}"#).await;
    assert_eq!(got.status, 200, "{:?}", got.body);
    let items = &got.json()["items"];
    assert_eq!(items[0], json!({"key": "miss", "status": 200, "value": {"key": "miss"}}));
    assert_eq!(items[1]["status"], 404);
    assert_eq!(items[1]["problem"]["type"], "urn:walcache:problem:absent");
    assert_eq!(items[2]["status"], 400);
    assert_eq!(items[2]["key"], "a,%2F");
    assert_eq!(items[2]["problem"]["type"], "urn:walcache:problem:malformed-key");
    assert_eq!(items[3]["status"], 503);
    assert_eq!(items[3]["problem"]["status"], 503);
    assert_eq!(items.as_array().unwrap().len(), 4);
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "private, no-cache"),
        ("x-cache", "MISS"),
        ("x-applied-lsn", "0/10"),
        ("x-read-lsn", "0/20"),
        ("preference-applied", "wait=5"),
    ] {
        assert_eq!(got.headers[name], value);
    }

    let got = ask("POST", "/v1/product/batch", &[], r#"{"keys":[7,"007",-1,1.5]}"#).await;
    let items = got.json()["items"].clone();
    assert_eq!(items[0], json!({"key": 7, "status": 200, "value": {"key": "7"}}));
    assert_eq!(items[1], json!({"key": "007", "status": 200, "value": {"key": "7"}}));
    assert_eq!(items[2]["status"], 400);
    assert_eq!((&items[3]["status"], &items[3]["key"]), (&json!(400), &json!(1.5)));
    let got = ask("POST", "/v1/product/batch", &[], r#"{"keys":[null,{"a":[1]},true,"x"]}"#).await;
    assert!(got.json()["items"].as_array().unwrap().iter().all(|item| item["status"] == 400));
    assert!(!got.headers.contains_key("x-applied-lsn"), "nothing was read");

    // The values of the key's columns as they are, as in commands.
    let got = ask("POST", "/v1/product/batch", &[], r#"{"keys":[[7],["07"],[1,2],[null]]}"#).await;
    let items = got.json()["items"].clone();
    assert_eq!(items[0], json!({"key": [7], "status": 200, "value": {"key": "7"}}));
    assert_eq!(items[1], json!({"key": ["07"], "status": 200, "value": {"key": "7"}}));
    assert!((2..4).all(|item| items[item]["status"] == 400), "{items}");
    let got = ask("POST", "/v1/note/batch", &[], r#"{"keys":[["absent"],["a,b/\u0063%"],[["a"]],[]]}"#).await;
    let items = got.json()["items"].clone();
    assert_eq!((&items[0]["status"], &items[0]["problem"]["status"]), (&json!(404), &json!(404)));
    assert_eq!((&items[1]["status"], &items[1]["value"]["key"]), (&json!(200), &json!("a%2Cb/c%25")));
    assert!((2..4).all(|item| items[item]["status"] == 400), "{items}");

    assert_eq!(&ask("POST", "/v1/note/batch", &[], r#"{"keys":[]}"#).await.body[..], br#"{"items":[]}"#);
}

#[tokio::test]
async fn a_bad_batch_is_refused_as_a_whole() {
    for body in ["", "[]", "{}", r#"{"keys":1}"#, r#"{"keys":[1}"#, r#"{"keys":[],"key":1}"#, r#"{"keys":[]} x"#] {
        ask("POST", "/v1/note/batch", &[], body).await.is_problem(400, "malformed-body");
    }
    ask("POST", "/v1/note/batch", &[], r#"{"keys":[1,2,3,4,5]}"#).await.is_problem(413, "batch-too-large");
    let long = "x".repeat(1001);
    ask("POST", "/v1/note/batch", &[], &long).await.is_problem(413, "body-too-large");
    ask("POST", "/v1/note/batch", &[("content-length", "5000")], "").await.is_problem(413, "body-too-large");
    for headers in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let got = ask("POST", "/v1/note/batch", &[headers], r#"{"keys":[]}"#).await;
        got.is_problem(415, "unsupported-media-type");
        assert_eq!(got.headers["accept"], "application/json");
    }
    ask("POST", "/v1/note/batch", &[("x-min-lsn", "1")], r#"{"keys":[]}"#).await.is_problem(400, "malformed-header");
}
