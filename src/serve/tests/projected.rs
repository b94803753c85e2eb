//! Parts of values.

use super::*;

/// The tag of a text.
fn tag(text: &str) -> String {
    format!("\"{:016x}\"", crate::cache::etag(Some(text.as_bytes())))
}

#[tokio::test]
async fn a_part_has_a_tag_of_its_own() {
    // Both the way of a hit and the way through the routes.
    for key in ["a", "l2"] {
        let (target, whole) = (format!("/v1/note/{key}?fields=key"), format!("{{\"key\":\"{key}\"}}"));
        let got = get(&target).await;
        assert_eq!((got.status, &got.body[..]), (200, whole.as_bytes()));
        assert_eq!(got.headers["etag"], tag(&whole));
        let empty = get(&format!("/v1/note/{key}?fields=other,key2")).await;
        assert_eq!((empty.status, &empty.body[..]), (200, &b"{}"[..]));
        assert_eq!(empty.headers["etag"], tag("{}"));
        for method in ["GET", "HEAD"] {
            let same = ask(method, &target, &[("if-none-match", &tag(&whole))], "").await;
            assert_eq!((same.status, same.body.len()), (304, 0), "{method}");
            assert_eq!(same.headers["etag"], tag(&whole));
            // The whole value has this one.
            let other = ask(method, &target, &[("if-none-match", "\"00000000000000ab\"")], "").await;
            assert_eq!(other.status, 200, "{method}");
        }
        let head = ask("HEAD", &format!("/v1/note/{key}?fields=other"), &[], "").await;
        assert_eq!((head.status, head.body.len(), &head.headers["content-length"]), (200, 0, &"2".parse().unwrap()));
        // What is no part is as it was.
        for plain in ["", "?", "?&"] {
            let got = get(&format!("/v1/note/{key}{plain}")).await;
            assert_eq!(
                (&got.body[..], &got.headers["etag"]),
                (whole.as_bytes(), &"\"00000000000000ab\"".parse().unwrap())
            );
        }
    }
}

#[tokio::test]
async fn bad_fields_are_refused() {
    for bad in ["fields", "fields=", "fields=a,", "fields=a&fields=b", "fields=%ff"] {
        for key in ["a", "l2"] {
            get(&format!("/v1/note/{key}?{bad}")).await.is_problem(400, "malformed-fields");
        }
    }
    for other in ["field=key", "x=1&fields=key", "fields=key&x"] {
        for key in ["a", "l2"] {
            get(&format!("/v1/note/{key}?{other}")).await.is_problem(400, "unknown-parameter");
        }
    }
    get("/v1/note/absent?fields=a").await.is_problem(404, "absent");
    get("/v1/user/1?fields=").await.is_problem(404, "unknown-entity");
    for body in [r#"{"keys":["a"],"fields":[]}"#, r#"{"keys":[],"fields":["a",""]}"#] {
        ask("POST", "/v1/note/batch", &[], body).await.is_problem(400, "malformed-fields");
    }
    for body in [r#"{"keys":["a"],"fields":"a"}"#, r#"{"keys":["a"],"fields":[1]}"#] {
        ask("POST", "/v1/note/batch", &[], body).await.is_problem(400, "malformed-body");
    }
}

#[tokio::test]
async fn a_batch_is_projected_item_by_item() {
    let body = r#"{"keys":["a","absent","l2"],"fields":["key","key"]}"#;
    let items = ask("POST", "/v1/note/batch", &[], body).await.json()["items"].clone();
    assert_eq!(items[0]["value"], json!({"key": "a"}));
    assert_eq!((&items[1]["status"], &items[1]["problem"]["status"]), (&json!(404), &json!(404)));
    assert_eq!(items[2]["value"], json!({"key": "l2"}));
    let body = r#"{"fields":["k,e"],"keys":["a"]}"#;
    assert_eq!(ask("POST", "/v1/note/batch", &[], body).await.json()["items"][0]["value"], json!({}));
    let body = r#"{"fields":null,"keys":["a"]}"#;
    assert_eq!(ask("POST", "/v1/note/batch", &[], body).await.json()["items"][0]["value"], json!({"key": "a"}));
}
