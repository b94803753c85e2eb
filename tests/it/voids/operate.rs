//! Operators: over the admin listener and on the command line.

use serde_json::{Value, json};
use walcache::failpoint::Point;

use super::{from, rate, scene, set_rate, sweeps_wait_at, warm_items};
use crate::harness::{Daemon, Scene, cli, eventually};

async fn post(scene: &Scene, body: Value) -> crate::harness::Response {
    scene.daemon.admin().post("/v1/invalidate", &body, &[]).await
}

async fn invalidate(scene: &Scene, args: &[&str]) -> crate::harness::Finished {
    let mut all = vec!["invalidate", "--admin", scene.daemon.admin_address()];
    all.extend(args);
    cli(&scene.config, &all, &[]).await
}

#[tokio::test]
async fn an_operator_invalidates_by_key_pattern_tag_and_entity() {
    let scene = scene("operate").await;
    let paths = ["note/1,1", "note/1,2", "note/2,1"];
    for (n, (said, voided)) in [
        (&["note:1,1"][..], &paths[..1]),
        (&["note:1,*"], &paths[..2]),
        (&["--tag", "tenant:2"], &paths[2..]),
        (&["--tag", "tenant:nothing", "--tag", "tenant:1"], &paths[..2]),
        (&["--entity", "note"], &paths[..]),
        (&["note:*"], &paths[..]),
    ]
    .into_iter()
    .enumerate()
    {
        for path in paths {
            scene.warm(path).await;
        }
        scene.write(&format!("UPDATE rates SET rate = {}", n + 2)).await;
        let done = invalidate(&scene, said).await;
        assert!(done.status.success(), "{done:?}");
        assert!(done.stdout.starts_with("done: "), "{done:?}");
        for path in paths {
            let (rate, cache) = rate(&scene, path).await;
            let is_new = rate == n as i64 + 2;
            assert_eq!(is_new, voided.contains(&path) || cache == "MISS", "{said:?} {path}: {rate} {cache}");
            assert!(is_new || !voided.contains(&path), "{said:?} {path}");
        }
    }
    let done = invalidate(&scene, &["--json", "note:2,1"]).await;
    let answer: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((answer["applied"].as_bool(), answer["lsn"].is_string()), (Some(true), true), "{answer}");
    // Nothing of it is known to the source's tables: it came through the log.
    assert!(scene.metric("walcache_commands_total{command=\"tag\",result=\"done\"}").await.unwrap() >= 3.0);
}

#[tokio::test]
async fn a_dry_run_counts_and_changes_nothing() {
    let scene = scene("operate_dry").await;
    warm_items(&scene).await;
    for path in ["note/1,1", "note/2,1"] {
        scene.warm(path).await;
    }
    for (body, in_l2) in [
        (json!({"pattern": "item:1?"}), 10),
        (json!({"patterns": ["item:*", "note:1,*"]}), 2001),
        (json!({"tag": "tenant:1"}), 501),
        (json!({"tags": ["all-items"]}), 2000),
        (json!({"entity": "item"}), 2000),
        (json!({"entity": "item", "keys": [1, 2, 99999]}), 2),
    ] {
        let mut body = body;
        body["dry_run"] = true.into();
        let counted = post(&scene, body.clone()).await.expect(200).json();
        assert_eq!(counted["held"]["l2"]["entries"], in_l2, "{body}: {counted}");
        assert_eq!(counted["held"]["l2"]["complete"], true);
        assert_eq!((&counted["lsn"], &counted["applied"]), (&Value::Null, &json!(false)));
        let in_l1 = counted["held"]["l1"]["entries"].as_u64().unwrap();
        assert!(in_l1 > 0 && in_l1 <= in_l2, "{body}: {counted}");
    }
    let done = invalidate(&scene, &["item:1?", "--dry-run"]).await;
    assert!(done.status.success() && done.stdout.contains("L2: 10 entries"), "{done:?}");
    for path in ["item/10", "note/1,1"] {
        assert_eq!(from(&scene, path).await, "HIT-L1", "{path}");
    }
}

/// However large entries are: never more than a part of them is held to see what tags they bear.
#[tokio::test]
async fn a_dry_run_holds_few_values_at_a_time() {
    const COPIES: usize = 400;
    let scene = scene("operate_large").await;
    scene.write("UPDATE items SET code = repeat('x', 512 * 1024) WHERE id = 1").await;
    scene.warm("item/1").await;
    let keys: Vec<usize> = (0..COPIES).map(|id| 5000 + id).collect();
    // Others are given their turn: they share the server.
    for keys in keys.chunks(10) {
        let mut pipe = redis::pipe();
        for key in keys {
            pipe.cmd("COPY").arg("item:1").arg(format!("item:{key}")).ignore();
        }
        let _: () = pipe.query_async(&mut scene.l2.clone()).await.unwrap();
    }
    let before = scene.daemon.peak_mib();
    let count = async |body: &Value| post(&scene, body.clone()).await.expect(200).json()["held"]["l2"].clone();
    let by_tag = json!({"tag": "tenant:1", "dry_run": true});
    let counted = count(&by_tag).await;
    assert_eq!((&counted["entries"], &counted["complete"]), (&json!(COPIES + 1), &json!(true)), "{counted}");
    let by_key = json!({"entity": "item", "keys": keys, "dry_run": true});
    let counted = count(&by_key).await;
    assert_eq!((&counted["entries"], &counted["complete"]), (&json!(COPIES), &json!(true)), "{counted}");
    let grown = scene.daemon.peak_mib() - before;
    assert!(grown < 100, "{grown} MiB for values of {} MiB", COPIES / 2);
    // What is larger than `apply.max_value`, somebody else has put there.
    let mut l2 = scene.l2.clone();
    let _: () = redis::cmd("SETRANGE").arg("item:5000").arg(33 << 20).arg("x").query_async(&mut l2).await.unwrap();
    for (body, entries) in [(by_tag, COPIES), (by_key, COPIES - 1)] {
        let counted = count(&body).await;
        assert_eq!((&counted["entries"], &counted["complete"]), (&json!(entries), &json!(false)), "{counted}");
    }
    let _: () = redis::cmd("FLUSHDB").arg("ASYNC").query_async(&mut l2).await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_says_nothing() {
    let scene = scene("operate_bad").await;
    scene.warm("item/1").await;
    for (body, said) in [
        (json!({}), "expected"),
        (json!({"entity": "item", "key": "x"}), "\"x\" can be no key of item"),
        (json!({"entity": "item", "keys": []}), "expected"),
        (json!({"entity": "item", "kye": 1}), "expected"),
        (json!({"pattern": "nothing:*"}), "can match no key"),
        (json!({"pattern": ""}), "a pattern is of the form"),
        (json!({"pattern": "x".repeat(2000)}), "a pattern is of the form"),
        (json!({"tag": ""}), "must not be empty"),
        (json!({"tags": []}), "expected"),
        (json!({"tag": "a", "dry_run": "yes"}), "dry_run"),
        (json!({"tag": "a", "entity": "item"}), "expected"),
    ] {
        let refused = post(&scene, body.clone()).await.expect(400).json();
        assert!(refused["detail"].as_str().unwrap().contains(said), "{body}: {refused}");
    }
    let refused = post(&scene, json!({"entity": "nothing"})).await.expect(404).json();
    assert_eq!(refused["type"], "urn:walcache:problem:unknown-entity");
    assert!(refused["detail"].as_str().unwrap().contains("\"nothing\"; configured: item, note"), "{refused}");
    for args in [&[][..], &["item"], &["nothing:1"], &["item:x"], &["item:1", "--tag", "x"], &["--entity", "x"]]
        .into_iter()
        .chain([&["item:1", "item:2*"][..]])
    {
        let refused = invalidate(&scene, args).await;
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {refused:?}");
    }
    assert_eq!(from(&scene, "item/1").await, "HIT-L1");
    scene.daemon.kill().await;
    let away = invalidate(&scene, &["item:1"]).await;
    assert_eq!(away.status.code(), Some(69), "{away:?}");
}

/// An instance that does not lead says it, too, and tells that it cannot know more.
#[tokio::test]
async fn whoever_follows_can_say_it() {
    let scene = scene("operate_follower").await;
    let second = Daemon::start(&scene.config).await;
    scene.warm("note/1,1").await;
    set_rate(&scene, 2, "SELECT 1").await;
    assert_eq!(rate(&scene, "note/1,1").await.0, 1, "nobody has said it");
    let written = eventually("be up", || async {
        let answer = second.admin().post("/v1/invalidate", &json!({"tag": "rates"}), &[]).await;
        if answer.status == 202 { Ok(answer.json()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(written["applied"], false);
    let lsn = written["lsn"].as_str().expect("an LSN");
    let read = scene.http.get_with("/v1/note/1,1", &[("x-min-lsn", lsn)]).await.expect(200);
    assert_eq!(read.json()["rate"], 2);
    let args = ["invalidate", "--admin", second.admin_address(), "--tag", "rates"];
    let said = cli(&scene.config, &args, &[]).await;
    assert_eq!(said.status.code(), Some(69), "{said:?}");
    assert!(said.stdout.contains("not known to be applied"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_tells_tags_and_what_voided_an_entry() {
    let mut scene = scene("operate_explain").await;
    // What a pattern voids is told of for as long as it stands.
    let hold = sweeps_wait_at(&mut scene, Point::BeforeSweep).await;
    for path in ["note/1,1", "note/2,1"] {
        scene.warm(path).await;
    }
    let explain =
        async |key: &str| scene.daemon.admin().get(&format!("/v1/explain/note/{key}")).await.expect(200).json();
    let explained = explain("1,1").await;
    for tier in ["l1", "l2"] {
        assert_eq!(explained[tier]["tags"], json!(["tenant:1", "rates"]), "{explained}");
        assert_eq!(explained[tier]["case"], "agrees", "{explained}");
    }
    set_rate(&scene, 2, "SELECT walcache.invalidate_tag('tenant:1')").await;
    let explained = explain("1,1").await;
    for tier in ["l1", "l2"] {
        assert_eq!(explained[tier]["case"], "unservable", "{explained}");
        let why = explained[tier]["why"].as_str().unwrap();
        assert!(why.starts_with("its tag \"tenant:1\""), "{why}");
    }
    // It differs from Postgres, and nobody takes that for wrong.
    let verified = scene.daemon.admin().post("/v1/verify", &json!({"entity": "note"}), &[]).await.expect(200).json();
    let text = verified.to_string();
    assert!(!text.contains("1,1"), "{text}");
    scene.write("SELECT walcache.invalidate_all('note')").await;
    scene.warm("note/1,1").await;
    set_rate(&scene, 3, "SELECT walcache.invalidate_pattern('note:*')").await;
    let explained = explain("1,1").await;
    let why = explained["l1"]["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("a pattern, or all of the entity"), "{explained}");
    std::fs::remove_file(&hold).unwrap();
}
